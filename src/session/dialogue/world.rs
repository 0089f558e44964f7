//! Dialogues with a venue that loses, delays and refuses, in virtual time. Each seed ends with a phase in which all is well, after which
//! the venue must have what is wanted and nothing else.

use std::collections::BTreeSet;

use super::tests::{Speech, id, rules};
use super::*;

const SEEDS: u64 = 2_000;
const STEPS: u64 = 50;
const MILLI: Duration = Duration::from_millis(1);

#[test]
fn whatever_a_venue_does_it_ends_up_with_the_channels_that_are_wanted() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.heal();
        world.judge();
    }
}

struct World {
    seed: u64,
    chance: Chance,
    speech: Speech,
    dialogue: Dialogue,
    now: Instant,
    /// Faults happen.
    faulty: bool,
    blocked: bool,
    wanted: BTreeMap<u64, Vec<Arc<str>>>,
    // What the reactor knows.
    up: bool,
    logged_in: bool,
    live: bool,
    standings: BTreeMap<Arc<str>, Standing>,
    /// The request that asked for a channel last.
    asked: BTreeMap<Arc<str>, String>,
    dropped: bool,
    // What is under way, in order: frames with their tickets, and answers with the times at which they arrive.
    outbound: VecDeque<(String, Option<Arc<Ticket>>)>,
    inbound: VecDeque<(Instant, Option<u64>, String)>,
    /// What the venue holds.
    subscribed: BTreeSet<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let speech = Speech {
            steps: chance.below(3) as usize,
            refresh: chance.one_in(2).then(|| Duration::from_secs(5 + chance.below(60))),
            token: None,
            take: 1 + chance.below(4) as usize,
            no_ids: chance.one_in(3),
        };
        let rules = Rules { resubscribe_on_gap: chance.one_in(2), ..rules() };
        let now = Instant::now();
        Self {
            seed,
            chance,
            dialogue: Dialogue::new(Arc::new(speech.clone()), rules, now),
            speech,
            now,
            faulty: true,
            blocked: false,
            wanted: BTreeMap::new(),
            up: false,
            logged_in: false,
            live: false,
            standings: BTreeMap::new(),
            asked: BTreeMap::new(),
            dropped: false,
            outbound: VecDeque::new(),
            inbound: VecDeque::new(),
            subscribed: BTreeSet::new(),
        }
    }

    /// Something happens, and time passes.
    fn step(&mut self) {
        match self.chance.below(14) {
            0 if self.up && self.chance.one_in(4) => self.lose(),
            1 => {
                let blocked = self.chance.one_in(2);
                self.set_blocked(blocked);
            }
            2..=4 => self.want(),
            5 | 6 => self.unwant(),
            7 => self.tick(),
            _ => {}
        }
        let pauses = [MILLI, 20 * MILLI, 500 * MILLI, 3_000 * MILLI, 15_000 * MILLI];
        let pause = pauses[self.chance.below(5) as usize];
        self.pass(pause);
    }

    /// Faults end, and time enough passes for every retry.
    fn heal(&mut self) {
        self.faulty = false;
        self.set_blocked(false);
        for _ in 0..60 {
            for name in self.subscribed.clone() {
                self.dialogue.handle_data(self.now, &name, "tick");
            }
            self.obey();
            self.pass(2_000 * MILLI);
        }
    }

    fn judge(&self) {
        let seed = self.seed;
        let wanted: BTreeSet<String> = self.wanted.values().flatten().map(|name| name.to_string()).collect();
        let confirmed = self.standings.iter().filter(|(_, standing)| **standing == Standing::Confirmed);
        assert_eq!(self.subscribed, wanted, "seed {seed}: what the venue has");
        assert_eq!(confirmed.map(|(name, _)| name.to_string()).collect::<BTreeSet<_>>(), wanted, "seed {seed}");
        assert_eq!(self.standings.len(), wanted.len(), "seed {seed}");
        assert!(self.live && self.dialogue.is_live(), "seed {seed}: live");
    }

    /// Lets time pass: the wire comes up, frames leave, the venue answers, answers arrive, deadlines are met.
    fn pass(&mut self, pause: Duration) {
        let end = self.now + pause;
        if !self.up && (!self.faulty || self.chance.one_in(2)) {
            (self.up, self.blocked) = (true, false);
            let stamp = self.stamp();
            self.dialogue.handle_upgraded(self.now, stamp);
            self.obey();
        }
        loop {
            self.transmit();
            self.deliver();
            if self.dropped {
                self.lose();
            }
            let arrival = self.inbound.front().map(|(at, ..)| *at).filter(|_| !self.blocked);
            let Some(next) = self.dialogue.next_deadline().into_iter().chain(arrival).min().filter(|next| *next <= end) else {
                break;
            };
            self.now = self.now.max(next);
            let stamp = self.stamp();
            self.dialogue.handle_timeout(self.now, stamp);
            assert!(self.dialogue.next_deadline().is_none_or(|next| next > self.now), "seed {}: a hot loop", self.seed);
            self.obey();
        }
        self.now = end;
    }

    fn want(&mut self) {
        let subscriber = self.chance.below(4);
        let names: Vec<Arc<str>> = (0..=self.chance.below(6)).map(|_| format!("c{}", self.chance.below(12)).into()).collect();
        let silence = self.chance.one_in(3).then(|| Duration::from_secs(3 + self.chance.below(20)));
        let sequenced = self.chance.one_in(3);
        self.dialogue.want(self.now, subscriber, &names, silence, sequenced);
        self.wanted.entry(subscriber).or_default().extend(names);
        self.obey();
    }

    fn unwant(&mut self) {
        let subscriber = self.chance.below(4);
        self.wanted.remove(&subscriber);
        self.dialogue.unwant(self.now, subscriber);
        self.obey();
    }

    /// Data of some channel, mostly with a hole before it.
    fn tick(&mut self) {
        let (name, number) = (format!("c{}", self.chance.below(12)), self.chance.below(10));
        self.dialogue.handle_data(self.now, &name, &format!("{number}>{}", number + 1));
        self.obey();
    }

    fn set_blocked(&mut self, blocked: bool) {
        self.blocked = blocked;
        self.dialogue.handle_blocked(self.now, blocked);
    }

    fn lose(&mut self) {
        self.dialogue.handle_lost(self.now);
        (self.up, self.logged_in, self.live, self.dropped, self.blocked) = (false, false, false, false, false);
        self.outbound.clear();
        self.inbound.clear();
        self.subscribed.clear();
        self.obey();
    }

    /// Does what the dialogue asks for, and checks that it may.
    fn obey(&mut self) {
        let seed = self.seed;
        for deed in self.dialogue.take_deeds() {
            match deed {
                Deed::Say { text, urgent, ticket } => {
                    assert!(self.up && (urgent || self.logged_in), "seed {seed}: {text} before the login");
                    if let Some(names) = text.strip_prefix("sub ").and_then(|rest| rest.split(' ').nth(1)) {
                        self.asked.extend(names.split(',').map(|name| (name.into(), text.clone())));
                    }
                    self.outbound.push_back((text, ticket));
                }
                Deed::LoggedIn => self.logged_in = true,
                Deed::LoginFailed(_) | Deed::Hangup(_) => self.dropped = true,
                Deed::Standing(name, Some(standing)) => {
                    self.standings.insert(name, standing);
                }
                Deed::Standing(name, None) => assert!(self.standings.remove(&name).is_some(), "seed {seed}: {name}"),
                Deed::Live(live) => {
                    assert_ne!(live, self.live, "seed {seed}");
                    self.live = live;
                }
                Deed::Emit(_) => {}
            }
        }
        let pending = self.standings.iter().filter(|(_, standing)| **standing == Standing::Pending);
        let requests: BTreeSet<_> = pending.map(|(name, _)| &self.asked[name]).collect();
        assert!(requests.len() <= 4, "seed {seed}: {requests:?}");
        let confirmed = self.standings.values().all(|standing| *standing == Standing::Confirmed);
        assert_eq!((self.live, self.dialogue.is_live()), (self.logged_in && confirmed, self.live), "seed {seed}");
        let wanted: BTreeSet<_> = self.wanted.values().flatten().collect();
        assert!(self.standings.keys().eq(wanted), "seed {seed}: {:?}", self.standings);
    }

    /// Frames leave, unless the rate limit is reached, and the venue answers.
    fn transmit(&mut self) {
        while !self.faulty || !self.chance.one_in(4) {
            let Some((text, ticket)) = self.outbound.pop_front() else { return };
            if let Some(ticket) = ticket {
                assert!(ticket.begin());
                ticket.finish();
            }
            self.answer(&text);
        }
    }

    fn answer(&mut self, text: &str) {
        let words: Vec<&str> = text.split(' ').collect();
        let delay = if self.faulty { [MILLI, 100 * MILLI, 12_000 * MILLI][self.chance.below(3) as usize] } else { MILLI };
        // Answers come in the order of the requests.
        let at = self.inbound.back().map_or(self.now, |(at, ..)| *at).max(self.now + delay);
        if words[0] == "login" {
            let number = words[1].parse().unwrap();
            let text = if self.faulty && self.chance.one_in(6) { "no: busy" } else { "yes" };
            return match self.faulty && self.chance.one_in(6) {
                // Nobody waits for the login of a new wire for ever.
                true => self.dropped |= !self.logged_in,
                false => self.inbound.push_back((at, Some(number), text.into())),
            };
        }
        let mut parts = Vec::new();
        for name in words[2].split(',') {
            if words[0] == "unsub" {
                self.subscribed.remove(name);
            } else if self.faulty && !self.speech.no_ids && self.chance.one_in(5) {
                parts.push(format!("-{name}:no"));
            } else {
                self.subscribed.insert(name.into());
                parts.push(format!("+{name}"));
            }
        }
        if self.faulty && self.chance.one_in(4) {
            return;
        }
        let number = (!self.speech.no_ids).then(|| words[1].parse().unwrap());
        let pieces = if self.chance.one_in(2) { 1 } else { parts.len() };
        for piece in parts.chunks(parts.len().div_ceil(pieces.max(1)).max(1)) {
            if words[0] == "sub" || number.is_some() {
                self.inbound.push_back((at, number, piece.join(" ")));
            }
        }
    }

    /// Answers arrive, unless reading is stopped.
    fn deliver(&mut self) {
        while !self.blocked && self.inbound.front().is_some_and(|(at, ..)| *at <= self.now) {
            let Some((_, number, text)) = self.inbound.pop_front() else { return };
            match number {
                Some(number) => {
                    let (stamp, id) = (self.stamp(), id(number));
                    assert!(self.dialogue.awaits(&id), "seed {}: {number} is ours", self.seed);
                    assert!(self.dialogue.handle_reply(self.now, stamp, &id, &text), "seed {}: {number}", self.seed);
                }
                None => self.dialogue.handle_confirmation(self.now, &text),
            }
            self.obey();
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp { unix: Duration::from_secs(1), nonce: 7 }
    }
}

/// Splitmix64.
#[derive(Clone)]
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}
