//! Pings and what they prove.
//!
//! Each ping carries a number of its own, and only the pong with that number proves that the peer answered it (RFC 6455 §5.5.3 lets an
//! endpoint answer the latest ping only, so a pong settles the earlier ones too).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::latency::Compact;

/// How many unanswered pings are remembered; a pong for one that was forgotten is taken for a stranger's.
const REMEMBERED: usize = 64;

/// The pings of one wire.
#[derive(Debug, Default)]
pub struct Heartbeat {
    number: u64,
    outstanding: VecDeque<Ping>,
    misses: u64,
    /// When the peer last answered.
    proof: Option<Instant>,
    rtts: Compact,
}

#[derive(Debug)]
struct Ping {
    number: u64,
    sent: Instant,
    /// Its patience is over, or never ran.
    judged: bool,
}

/// What the unanswered pings say about the peer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Patience is over.
    Silent,
    /// Nothing yet; ask again at this time, if any.
    Wait(Option<Instant>),
}

impl Heartbeat {
    /// Makes the payload of the next ping. One that is `excused` measures the round trip, but its pong may stay away.
    pub(crate) fn ping(&mut self, now: Instant, excused: bool) -> [u8; 8] {
        self.number += 1;
        if self.outstanding.len() == REMEMBERED {
            // Never the oldest that is still to be judged: frequent pings would put off its verdict for ever.
            let index = self.outstanding.iter().position(|ping| ping.judged).unwrap_or(1);
            self.outstanding.remove(index);
        }
        self.outstanding.push_back(Ping { number: self.number, sent: now, judged: excused });
        self.number.to_be_bytes()
    }

    /// Takes a pong; returns the round trip if it answers a ping of ours.
    pub(crate) fn pong(&mut self, now: Instant, payload: &[u8]) -> Option<Duration> {
        let number = u64::from_be_bytes(payload.try_into().ok()?);
        let index = self.outstanding.iter().position(|ping| ping.number == number)?;
        let answered = self.outstanding.drain(..=index).next_back()?;
        Some(self.note_proof(now, answered))
    }

    /// Takes an answer without a number: it answers the latest ping, and with it the earlier ones.
    pub(crate) fn prove(&mut self, now: Instant) -> Option<Duration> {
        let latest = self.outstanding.drain(..).next_back()?;
        Some(self.note_proof(now, latest))
    }

    fn note_proof(&mut self, now: Instant, answered: Ping) -> Duration {
        let rtt = now.saturating_duration_since(answered.sent);
        self.proof = Some(now);
        self.rtts.record(rtt);
        if self.outstanding.is_empty() {
            // An idle connection has many neighbours.
            self.outstanding = VecDeque::new();
        }
        rtt
    }

    /// Forgets a ping that did not leave.
    pub(crate) fn withdraw(&mut self, payload: &[u8; 8]) {
        let number = u64::from_be_bytes(*payload);
        self.outstanding.retain(|ping| ping.number != number);
    }

    /// Excuses the latest ping: it has not left yet.
    pub(crate) fn excuse(&mut self) {
        if let Some(latest) = self.outstanding.back_mut() {
            latest.judged = true;
        }
    }

    /// Judges pings whose patience is over. A byte heard since the ping excuses a missing pong unless `strict`.
    pub(crate) fn judge(&mut self, now: Instant, patience: Duration, strict: bool, heard: Instant) -> Verdict {
        for ping in self.outstanding.iter_mut().filter(|ping| !ping.judged) {
            if ping.sent + patience > now {
                return Verdict::Wait(Some(ping.sent + patience));
            }
            ping.judged = true;
            self.misses += 1;
            if strict || heard <= ping.sent {
                return Verdict::Silent;
            }
        }
        Verdict::Wait(None)
    }

    /// Forgets the unanswered pings: the wire is gone, or its bytes are not being read.
    pub(crate) fn forget(&mut self) {
        self.outstanding.clear();
    }

    /// When the peer last answered a ping.
    pub fn proof(&self) -> Option<Instant> {
        self.proof
    }

    /// How long the answers took, on all wires.
    pub fn rtts(&self) -> &Compact {
        &self.rtts
    }

    /// The round trip of the latest ping that was answered.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtts.last()
    }

    /// How many pings were not answered within the patience.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// How many pings of this wire are not answered, and when the oldest of them was sent.
    pub fn unanswered(&self) -> (usize, Option<Instant>) {
        (self.outstanding.len(), self.outstanding.front().map(|ping| ping.sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn every_ping_is_unique_and_only_its_own_pong_answers_it() {
        let t0 = Instant::now();
        let mut heartbeat = Heartbeat::default();
        let (first, second) = (heartbeat.ping(t0, false), heartbeat.ping(t0 + SEC, false));
        assert_ne!(first, second);
        assert_eq!(heartbeat.pong(t0 + SEC, b"foreign!"), None);
        assert_eq!(heartbeat.pong(t0 + SEC, b""), None);
        assert_eq!(heartbeat.pong(t0 + 3 * SEC, &second), Some(2 * SEC));
        assert_eq!(heartbeat.pong(t0 + 3 * SEC, &first), None, "settled by the later one");
    }

    #[test]
    fn a_pong_later_than_the_interval_still_answers() {
        let t0 = Instant::now();
        let mut heartbeat = Heartbeat::default();
        let first = heartbeat.ping(t0, false);
        heartbeat.ping(t0 + 5 * SEC, false);
        assert_eq!(heartbeat.pong(t0 + 7 * SEC, &first), Some(7 * SEC));
        assert_eq!(heartbeat.judge(t0 + PATIENCE, PATIENCE, true, t0), Verdict::Wait(Some(t0 + 15 * SEC)));
    }

    #[test]
    fn a_byte_since_the_ping_excuses_the_pong_unless_strict() {
        let t0 = Instant::now();
        let verdict = |strict, heard| {
            let mut heartbeat = Heartbeat::default();
            heartbeat.ping(t0, false);
            (heartbeat.judge(t0 + PATIENCE, PATIENCE, strict, heard), heartbeat.misses())
        };
        assert_eq!(verdict(false, t0 + SEC), (Verdict::Wait(None), 1));
        assert_eq!(verdict(true, t0 + SEC), (Verdict::Silent, 1));
        assert_eq!(verdict(false, t0), (Verdict::Silent, 1));
    }

    #[test]
    fn an_excused_ping_is_measured_and_not_judged() {
        let t0 = Instant::now();
        let mut heartbeat = Heartbeat::default();
        let excused = heartbeat.ping(t0, true);
        heartbeat.ping(t0 + SEC, false);
        heartbeat.excuse();
        assert_eq!(heartbeat.judge(t0 + 2 * PATIENCE, PATIENCE, true, t0), Verdict::Wait(None));
        assert_eq!((heartbeat.misses(), heartbeat.pong(t0 + 3 * SEC, &excused)), (0, Some(3 * SEC)));
    }

    #[test]
    fn only_the_latest_ping_is_excused_afterwards() {
        let t0 = Instant::now();
        let mut heartbeat = Heartbeat::default();
        heartbeat.excuse();
        heartbeat.ping(t0, false);
        heartbeat.ping(t0 + SEC, false);
        heartbeat.excuse();
        heartbeat.ping(t0 + 2 * SEC, false);
        let judge = |heartbeat: &mut Heartbeat, at| heartbeat.judge(at, PATIENCE, true, t0);
        assert_eq!(judge(&mut heartbeat, t0 + PATIENCE - SEC), Verdict::Wait(Some(t0 + PATIENCE)));
        assert_eq!(judge(&mut heartbeat, t0 + PATIENCE), Verdict::Silent);
        assert_eq!(judge(&mut heartbeat, t0 + PATIENCE), Verdict::Wait(Some(t0 + 2 * SEC + PATIENCE)));
        assert_eq!(heartbeat.misses(), 1);
    }

    #[test]
    fn an_answer_without_a_number_answers_all() {
        let t0 = Instant::now();
        let mut heartbeat = Heartbeat::default();
        assert_eq!((heartbeat.prove(t0), heartbeat.proof()), (None, None));
        let first = heartbeat.ping(t0, false);
        heartbeat.ping(t0 + SEC, false);
        assert_eq!((heartbeat.prove(t0 + 3 * SEC), heartbeat.proof()), (Some(2 * SEC), Some(t0 + 3 * SEC)));
        assert_eq!((heartbeat.pong(t0 + 3 * SEC, &first), heartbeat.prove(t0 + 3 * SEC)), (None, None));
        assert_eq!(heartbeat.judge(t0 + 2 * PATIENCE, PATIENCE, true, t0), Verdict::Wait(None));
    }

    #[test]
    fn forgotten_pings_are_neither_judged_nor_answered_and_the_round_trip_stays() {
        let t0 = Instant::now();
        let mut heartbeat = Heartbeat::default();
        let (first, second) = (heartbeat.ping(t0, false), heartbeat.ping(t0, false));
        heartbeat.pong(t0 + SEC, &first);
        heartbeat.forget();
        assert_eq!(heartbeat.judge(t0 + PATIENCE, PATIENCE, true, t0), Verdict::Wait(None));
        assert_eq!((heartbeat.pong(t0 + 2 * SEC, &second), heartbeat.proof()), (None, Some(t0 + SEC)));
        assert_ne!(heartbeat.ping(t0, false), second, "numbers are not used again");
    }

    #[test]
    fn the_first_to_be_forgotten_are_those_that_are_judged() {
        let t0 = Instant::now();
        let mut heartbeat = Heartbeat::default();
        let (first, excused) = (heartbeat.ping(t0, false), heartbeat.ping(t0, true));
        (2..REMEMBERED + 1).for_each(|_| _ = heartbeat.ping(t0, false));
        assert_eq!(heartbeat.pong(t0, &excused), None);
        assert_eq!(heartbeat.pong(t0, &first), Some(Duration::ZERO));
        assert_eq!(heartbeat.outstanding.len(), REMEMBERED - 1);
    }

    #[test]
    fn unanswered_pings_are_remembered_up_to_a_bound() {
        let t0 = Instant::now();
        let mut heartbeat = Heartbeat::default();
        let (first, second) = (heartbeat.ping(t0, false), heartbeat.ping(t0, false));
        for _ in 0..1000 {
            heartbeat.ping(t0, false);
        }
        assert_eq!(heartbeat.outstanding.len(), REMEMBERED);
        assert_eq!(heartbeat.pong(t0, &second), None);
        assert_eq!(heartbeat.pong(t0, &first), Some(Duration::ZERO), "the oldest to be judged stays");
    }

    #[test]
    fn the_oldest_unanswered_ping_says_how_long_the_peer_is_silent() {
        let t0 = Instant::now();
        let mut heartbeat = Heartbeat::default();
        assert_eq!(heartbeat.unanswered(), (0, None));
        let first = heartbeat.ping(t0, false);
        heartbeat.ping(t0 + SEC, false);
        assert_eq!(heartbeat.unanswered(), (2, Some(t0)));
        heartbeat.pong(t0 + SEC, &first);
        assert_eq!(heartbeat.unanswered(), (1, Some(t0 + SEC)));
    }
}
