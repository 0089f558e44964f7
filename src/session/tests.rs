//! The rules of the session, one per test, in virtual time.

use super::*;
use crate::error::Refusal;

const SEC: Duration = Duration::from_secs(1);

// Redialling.

#[test]
fn the_first_dial_begins_at_once() {
    let mut s = new(exact());
    assert_eq!((drain(&mut s), s.state()), (vec!["dialing 1".to_owned(), "dial 1".into()], State::Connecting));
}

#[test]
fn a_life_is_reported_in_order() {
    let (mut s, t0) = (new(exact()), now());
    s.handle_dial_failed(t0, refused());
    s.handle_timeout(t0 + SEC);
    s.handle_opened(t0 + SEC, generation(1), None);
    s.handle_lost(t0 + 2 * SEC, Error::Disconnected);
    s.handle_opened(t0 + 2 * SEC, generation(2), None);
    let expected = [
        "dialing 1",
        "dial 1",
        "dial 1 failed, next in 1s: could not connect to peer: connection refused",
        "dialing 2",
        "dial 2",
        "open",
        "lost, next in 0ns: the peer closed the TCP connection without a close frame",
        "dialing 1",
        "dial 1",
        "open",
    ];
    assert_eq!(drain(&mut s), expected);
}

#[test]
fn the_first_loss_is_redialled_at_once_and_failures_after_it_climb_the_ladder() {
    let life = live(exact(), 100 * SEC, |dial| if dial == 0 { Peer::OpensFor(SEC) } else { Peer::Refuses });
    assert_eq!(life.dials, secs([0, 1, 2, 4, 8, 16, 32, 62, 92]));
}

#[test]
fn failures_before_the_first_wire_climb_the_same_ladder() {
    let life = live(exact().connect_attempts(8), 200 * SEC, |_| Peer::Refuses);
    assert_eq!(life.dials, secs([0, 1, 3, 7, 15, 31, 61, 91]));
}

#[test]
fn failures_before_the_first_wire_do_not_count_against_its_loss() {
    let life = live(exact(), 6 * SEC, |dial| match dial {
        0 | 1 => Peer::Refuses,
        2 => Peer::OpensFor(SEC),
        _ => Peer::Refuses,
    });
    assert_eq!(life.dials, secs([0, 1, 3, 4, 5]));
    assert_eq!(life.attempts, [1, 2, 3, 1, 2]);
}

#[test]
fn wires_lost_before_they_proved_stable_meet_growing_pauses() {
    let life = live(exact(), 20 * SEC, |_| Peer::OpensFor(SEC));
    assert_eq!(life.dials, secs([0, 1, 3, 6, 11, 20]));
}

#[test]
fn a_hundred_wires_accepted_and_closed_follow_the_ladder() {
    let life = live(exact(), 3600 * SEC, |_| Peer::OpensFor(Duration::ZERO));
    // At 0, at once, five rungs below 30 s, then one every 30 s.
    assert_eq!(life.dials.len(), 2 + 5 + (3600 - 31) / 30);
    assert_eq!(life.attempts.last(), Some(&(life.dials.len() as u32 - 1)), "the count goes on");
}

#[test]
fn the_ladder_starts_over_once_a_wire_proved_stable() {
    let life = live(exact(), 40 * SEC, |dial| Peer::OpensFor(if dial == 3 { 10 * SEC } else { SEC }));
    // Three short ones climb, the long one clears, so its loss is redialled at once and the next ladder begins below.
    assert_eq!(life.dials, secs([0, 1, 3, 6, 16, 18, 21, 26, 35]));
}

#[test]
fn the_ladder_does_not_start_over_before_that() {
    let almost = 10 * SEC - Duration::from_millis(1);
    let life = live(exact(), 55 * SEC, |dial| Peer::OpensFor(if dial == 0 { SEC } else { almost }));
    assert_eq!(gaps(&life.dials)[1..], [1, 2, 4].map(|pause| almost + pause * SEC));
}

#[test]
fn a_stable_wire_also_clears_the_count_of_dials() {
    let life = live(exact().redial_attempts(3), 100 * SEC, |dial| match dial {
        0 | 3 | 6 => Peer::OpensFor(20 * SEC),
        9.. => Peer::OpensFor(1000 * SEC),
        _ => Peer::Refuses,
    });
    assert_eq!((life.attempts, life.session.state()), (vec![1, 1, 2, 3, 1, 2, 3, 1, 2, 3], State::Open));
}

#[test]
fn the_jitter_comes_only_from_the_seed() {
    let pauses = |seed| live_with(seed, exact().jitter(0.5).connect_attempts(9), 300 * SEC, |_| Peer::Refuses).dials;
    assert_eq!(pauses(1), pauses(1));
    assert_ne!(pauses(1), pauses(2));
    let fixed = |seed| live_with(seed, exact().jitter(0.5).seed(7), 300 * SEC, |_| Peer::Refuses).dials;
    assert_eq!(fixed(1), fixed(2), "the seed of the config comes first");
}

#[test]
fn the_jitter_takes_no_more_than_its_part_of_a_pause() {
    for seed in 0..100 {
        let life = live_with(seed, exact().jitter(0.5).connect_attempts(5), 60 * SEC, |_| Peer::Refuses);
        for (pause, whole) in gaps(&life.dials).into_iter().zip(secs([1, 2, 4, 8])) {
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
        }
    }
}

#[test]
fn a_thousand_sessions_lost_together_do_not_return_together() {
    let second = |seed| {
        let life = live_with(seed, exact().jitter(0.5), 3 * SEC, |dial| match dial {
            0 => Peer::OpensFor(SEC),
            _ => Peer::Refuses,
        });
        (life.dials[2] - life.dials[1]).as_millis() / 50
    };
    let mut crowds = [0; 20];
    (0..1000).for_each(|seed| crowds[second(seed) as usize] += 1);
    assert_eq!(crowds[..10], [0; 10]);
    assert!(crowds[10..].iter().all(|crowd| (60..140).contains(crowd)), "{crowds:?}");
}

#[test]
fn an_outage_of_an_hour_costs_two_dials_a_minute_and_no_memory() {
    let config = || exact().redial_attempts(u32::MAX);
    let outage = |peer: Peer| {
        let mut life = live(config(), 3600 * SEC, |dial| if dial == 0 { Peer::OpensFor(SEC) } else { peer });
        assert!(life.dials.len() <= 2 + 5 + 3600 / 30, "{} dials", life.dials.len());
        assert!(life.session.take_actions().capacity() <= 8);
        let size = format!("{:?}", life.session).len();
        assert!(size < 4096, "{size}");
    };
    outage(Peer::Refuses);
    outage(Peer::Silent);
    outage(Peer::Answers(503, None));
    let life = live(config(), 3700 * SEC, |dial| if dial < 100 { Peer::Refuses } else { Peer::OpensFor(1000 * SEC) });
    assert_eq!(life.session.state(), State::Closed, "a first connect gives up");
}

#[test]
fn ten_thousand_failures_overflow_nothing() {
    let (mut s, mut t) = open();
    s.handle_lost(t, Error::Disconnected);
    for attempt in 1..=10_000 {
        assert_eq!(s.attempt, attempt);
        drain(&mut s);
        s.handle_dial_failed(t, refused());
        t = s.next_deadline().unwrap();
        s.handle_timeout(t);
    }
    s.attempt = u32::MAX;
    s.handle_dial_failed(t, refused());
    s.handle_timeout(t + 30 * SEC);
    assert_eq!(drain(&mut s).pop().unwrap(), format!("dial {}", u32::MAX));
}

#[test]
fn the_longest_settings_overflow_nothing() {
    let year = Duration::from_secs(365 * 24 * 3600);
    let config = exact()
        .connect_timeout(year)
        .base_delay(year)
        .max_backoff(year)
        .stable_after(year)
        .heartbeat_interval(year)
        .patience(year)
        .data_silence(year)
        .close_timeout(year);
    config.validate().unwrap();
    let life = live(config.connect_attempts(100), 50 * year, |dial| if dial < 20 { Peer::Refuses } else { Peer::Silent });
    assert_eq!((life.dials.len(), life.session.state()), (36, State::Connecting));
}

#[test]
fn exhausted_attempts_carry_the_last_cause() {
    let mut life = live(exact(), 100 * SEC, |_| Peer::Refuses);
    let end = drain(&mut life.session);
    assert_eq!(life.attempts, [1, 2, 3]);
    let cause = "could not connect to peer: connection refused";
    assert_eq!(end, [format!("dial 3 failed for good: {cause}"), format!("closed: gave up after 3 attempts: {cause}")]);
    assert!(
        matches!(life.session.end(), Some(Some(Error::Exhausted { attempts: 3, last })) if matches!(**last, Error::Connect { .. }))
    );
}

#[test]
fn a_single_attempt_ends_with_its_own_cause() {
    let life = live(exact().connect_attempts(1), 100 * SEC, |_| Peer::Refuses);
    assert_eq!(life.attempts, [1]);
    assert!(matches!(life.session.end(), Some(Some(Error::Connect { .. }))));
}

#[test]
fn attempts_that_never_get_an_answer_are_exhausted_too() {
    let config = exact().connect_timeout(SEC / 5).connect_attempts(2).base_delay(SEC / 20);
    let life = live(config, 5 * SEC, |_| Peer::Silent);
    assert_eq!(life.dials, [Duration::ZERO, SEC / 4]);
    assert_eq!(life.over, Some(Duration::from_millis(450)));
    assert!(
        matches!(life.session.end(), Some(Some(Error::Exhausted { last, .. })) if matches!(**last, Error::DialTimeout { .. }))
    );
}

#[test]
fn a_first_failure_that_cannot_pass_ends_the_session_at_once() {
    for cause in [answer(401, None), answer(403, None), answer(404, None), answer(302, None), bad_certificate()] {
        let mut s = new(exact());
        drain(&mut s);
        s.handle_dial_failed(now(), cause.clone());
        assert_eq!(drain(&mut s), [format!("dial 1 failed for good: {cause}"), format!("closed: {cause}")]);
        assert_eq!((s.state(), s.next_deadline()), (State::Closed, None));
    }
}

#[test]
fn a_first_failure_of_this_moment_is_tried_again() {
    for cause in [answer(429, None), answer(503, None), answer(500, None), Error::Handshake("no upgrade".into())] {
        let mut s = new(exact());
        s.handle_dial_failed(now(), cause);
        assert_eq!(s.state(), State::Waiting);
    }
}

#[test]
fn after_a_first_success_the_same_failures_are_retried_at_the_longest_pause_and_reported() {
    for cause in [answer(401, None), answer(403, None), answer(404, None), bad_certificate()] {
        let (mut s, mut t) = open();
        s.handle_lost(t, Error::Disconnected);
        for attempt in 1..100 {
            drain(&mut s);
            s.handle_dial_failed(t, cause.clone());
            assert_eq!(drain(&mut s), [format!("dial {attempt} failed, next in 30s: {cause}")]);
            t += 30 * SEC;
            s.handle_timeout(t);
        }
        s.handle_opened(t, generation(2), None);
        assert_eq!(s.state(), State::Open);
    }
}

#[test]
fn the_pause_a_server_asks_for_is_kept() {
    let pause = |status, asked| {
        let mut s = new(exact());
        s.handle_dial_failed(now(), answer(status, Some(asked)));
        s.next_deadline().unwrap() - now()
    };
    assert_eq!([pause(429, 17 * SEC), pause(503, 17 * SEC)], [17 * SEC; 2]);
    assert_eq!(pause(429, 100 * SEC), 100 * SEC, "longer than the longest of the ladder");
    assert_eq!(pause(503, SEC / 2), SEC, "the ladder's own pause is not shortened");
    assert_eq!(pause(429, 100_000 * SEC), 3600 * SEC, "but no more than an hour");
}

#[test]
fn without_redial_a_loss_closes_with_its_cause() {
    for code in [1000, 1001, 1008] {
        let (mut s, t) = open_with(exact().reconnect(false));
        s.handle_lost(t, Error::PeerClosed { code: Some(code), reason: "bye".into() });
        let cause = format!("the peer closed with code {code}: bye");
        assert_eq!(drain(&mut s), [format!("lost for good: {cause}"), format!("closed: {cause}")]);
        assert!(matches!(s.end(), Some(Some(Error::PeerClosed { code: Some(have), .. })) if *have == code));
    }
}

#[test]
fn without_redial_the_first_connect_still_has_its_attempts() {
    let life = live(exact().reconnect(false), 4 * SEC, |_| Peer::Refuses);
    assert_eq!(life.attempts, [1, 2, 3]);
}

#[test]
fn code_and_reason_of_the_peer_reach_the_loss_unchanged() {
    for (code, reason) in [(Some(1012), ""), (Some(4001), "Überlast"), (None, "")] {
        let (mut s, t) = open();
        s.handle_lost(t, Error::PeerClosed { code, reason: reason.into() });
        let Some(Action::Emit(Event::Lost { cause, redial_in: Some(Duration::ZERO) })) = s.take_actions().into_iter().next()
        else {
            panic!("not lost")
        };
        assert!(matches!(cause, Error::PeerClosed { code: c, reason: r } if c == code && *r == *reason));
    }
}

#[test]
fn losses_in_a_row_exhaust_a_limited_budget_and_carry_the_cause() {
    let mut life = live(exact().redial_attempts(2), 100 * SEC, |_| Peer::OpensFor(SEC));
    assert_eq!(life.attempts, [1, 1, 2]);
    let end = drain(&mut life.session);
    assert_eq!(end.last().unwrap(), "closed: gave up after 2 attempts: the peer closed the TCP connection without a close frame");
}

#[test]
fn redials_that_never_get_an_answer_are_bounded_and_backed_off() {
    let config = exact().connect_timeout(SEC / 2).redial_attempts(3).base_delay(SEC / 5);
    let life = live(config, 6 * SEC, |dial| if dial == 0 { Peer::OpensFor(SEC) } else { Peer::Silent });
    assert_eq!(life.dials, [0, 1000, 1700, 2600].map(Duration::from_millis));
    assert_eq!((life.session.state(), life.over), (State::Closed, Some(Duration::from_millis(3100))));
}

#[test]
fn a_slow_redial_is_not_overtaken_by_another() {
    let config = exact().connect_timeout(4 * SEC).redial_attempts(99).base_delay(SEC / 20);
    let life = live(config, Duration::from_millis(8500), |dial| if dial == 0 { Peer::OpensFor(3 * SEC) } else { Peer::Silent });
    assert_eq!(life.dials, [0, 3000, 7050].map(Duration::from_millis));
}

// The dial.

#[test]
fn a_dial_is_given_up_at_its_deadline_which_names_the_phase() {
    for phase in [Phase::Resolve, Phase::Connect, Phase::Tls, Phase::Upgrade, Phase::Login] {
        let (mut s, t0) = (new(exact()), now());
        drain(&mut s);
        s.handle_phase(t0 + SEC, phase);
        s.handle_timeout(t0 + 5 * SEC - Duration::from_nanos(1));
        assert_eq!((drain(&mut s).len(), s.next_deadline()), (0, Some(t0 + 5 * SEC)));
        s.handle_timeout(t0 + 5 * SEC);
        assert_eq!(drain(&mut s), ["abandon", &format!("dial 1 failed, next in 1s: timed out after 5s {phase}")]);
    }
}

#[test]
fn the_action_tells_when_its_dial_will_be_given_up() {
    let mut s = new(exact());
    assert!(matches!(s.take_actions()[..], [_, Action::Dial { deadline, attempt: 1 }] if deadline == now() + 5 * SEC));
}

#[test]
fn a_phase_is_given_up_at_its_own_deadline() {
    let (mut s, t0) = (new(exact().phase_timeout(Phase::Tls, SEC)), now());
    drain(&mut s);
    s.handle_phase(t0 + 2 * SEC, Phase::Tls);
    assert_eq!(s.next_deadline(), Some(t0 + 3 * SEC));
    s.handle_timeout(t0 + 3 * SEC);
    assert_eq!(drain(&mut s), ["abandon", "dial 1 failed, next in 1s: timed out after 1s in the TLS handshake"]);
}

#[test]
fn the_first_phase_has_its_deadline_from_the_start() {
    let s = new(exact().phase_timeout(Phase::Resolve, SEC));
    assert_eq!(s.next_deadline(), Some(now() + SEC));
}

#[test]
fn a_phase_that_is_reported_again_gains_no_time() {
    let (mut s, t0) = (new(exact().phase_timeout(Phase::Connect, SEC)), now());
    s.handle_phase(t0 + SEC, Phase::Connect);
    s.handle_phase(t0 + SEC + SEC / 2, Phase::Connect);
    assert_eq!(s.next_deadline(), Some(t0 + 2 * SEC));
}

#[test]
fn a_phase_that_ended_no_longer_limits() {
    let (mut s, t0) = (new(exact().phase_timeout(Phase::Connect, SEC)), now());
    s.handle_phase(t0, Phase::Connect);
    s.handle_phase(t0 + SEC / 2, Phase::Tls);
    assert_eq!(s.next_deadline(), Some(t0 + 5 * SEC));
}

#[test]
fn phases_do_not_extend_the_dial() {
    let (mut s, t0) = (new(exact().phase_timeout(Phase::Upgrade, 5 * SEC)), now());
    s.handle_phase(t0 + 4 * SEC, Phase::Upgrade);
    assert_eq!(s.next_deadline(), Some(t0 + 5 * SEC));
}

#[test]
fn news_of_a_dial_that_was_given_up_changes_nothing() {
    let (mut s, t0) = (new(exact()), now());
    s.handle_timeout(t0 + 5 * SEC);
    drain(&mut s);
    s.handle_phase(t0 + 5 * SEC, Phase::Upgrade);
    s.handle_dial_failed(t0 + 5 * SEC, refused());
    s.handle_opened(t0 + 5 * SEC, generation(1), None);
    s.handle_lost(t0 + 5 * SEC, Error::Disconnected);
    assert_eq!(drain(&mut s), [""; 0]);
    assert_eq!((s.state(), s.was_open(), s.next_deadline()), (State::Waiting, false, Some(t0 + 6 * SEC)));
}

#[test]
fn the_state_is_told_while_a_dial_hangs() {
    let s = new(exact());
    assert_eq!((s.state(), s.generation().number(), s.was_open(), s.end().is_some()), (State::Connecting, 0, false, false));
}

#[test]
fn a_waiter_that_looks_after_the_loss_still_learns_that_a_wire_was_up() {
    let (mut s, t) = open();
    s.handle_lost(t, Error::Disconnected);
    assert_eq!((s.was_open(), s.state()), (true, State::Connecting));
}

#[test]
fn generation_and_subprotocol_are_those_of_the_latest_wire() {
    let (mut s, t) = open();
    s.handle_lost(t, Error::Disconnected);
    assert_eq!(s.generation(), generation(1));
    s.handle_opened(t, generation(2), Some("v2".into()));
    assert_eq!((s.generation(), s.subprotocol().as_deref()), (generation(2), Some("v2")));
}

// The limit on dials.

#[test]
fn a_dial_that_the_limit_holds_back_is_made_after_the_wait_under_the_same_number() {
    let (mut s, t0) = (new(exact()), now());
    drain(&mut s);
    s.handle_dial_throttled(t0, 7 * SEC);
    assert_eq!(drain(&mut s), ["dial 1 failed, next in 7s: the rate limit allows it in 7s"]);
    assert_eq!((s.state(), s.next_deadline()), (State::Waiting, Some(t0 + 7 * SEC)));
    s.handle_timeout(t0 + 7 * SEC);
    assert_eq!((drain(&mut s), s.state()), (vec!["dialing 1".to_owned(), "dial 1".into()], State::Connecting));
}

#[test]
fn dials_that_the_limit_holds_back_use_up_no_attempts_and_climb_no_ladder() {
    let (mut s, mut t) = (new(exact().connect_attempts(2)), now());
    for _ in 0..100 {
        s.handle_dial_throttled(t, SEC);
        t += SEC;
        s.handle_timeout(t);
    }
    drain(&mut s);
    s.handle_dial_failed(t, refused());
    assert_eq!(drain(&mut s), ["dial 1 failed, next in 1s: could not connect to peer: connection refused"]);
}

#[test]
fn redials_that_the_limit_holds_back_are_not_counted_either() {
    let (mut s, mut t) = open_with(exact().redial_attempts(1));
    s.handle_lost(t, Error::Disconnected);
    for _ in 0..3 {
        s.handle_dial_throttled(t, SEC);
        t += SEC;
        s.handle_timeout(t);
    }
    assert_eq!((s.state(), s.end().is_some()), (State::Connecting, false));
    drain(&mut s);
    s.handle_dial_failed(t, refused());
    assert_eq!(drain(&mut s)[0], "dial 1 failed for good: could not connect to peer: connection refused");
}

#[test]
fn a_limit_on_dials_is_looked_at_again_within_the_hour() {
    let (mut s, t0) = (new(exact()), now());
    drain(&mut s);
    s.handle_dial_throttled(t0, 10_000 * SEC);
    assert_eq!(drain(&mut s), ["dial 1 failed, next in 10000s: the rate limit allows it in 10000s"]);
    assert_eq!(s.next_deadline(), Some(t0 + 3600 * SEC));
}

#[test]
fn dials_that_one_limit_holds_back_do_not_all_come_back_at_once() {
    let pause = |seed| {
        let mut s: Session = Session::new(Arc::new(exact().jitter(0.5)), seed, now());
        s.handle_begin(now());
        s.handle_dial_throttled(now(), 7 * SEC);
        s.next_deadline().unwrap() - now()
    };
    let pauses: Vec<_> = (0..100).map(pause).collect();
    assert!(pauses.iter().all(|pause| (7 * SEC..=7 * SEC + SEC / 2).contains(pause)), "{pauses:?}");
    let early = pauses.iter().filter(|pause| **pause < 7 * SEC + SEC / 4).count();
    assert!((30..70).contains(&early), "{pauses:?}");
}

#[test]
fn only_a_dial_can_be_held_back() {
    for (mut s, t0) in [open(), waiting(), closing()] {
        let before = (s.state(), s.next_deadline());
        s.handle_dial_throttled(t0, 7 * SEC);
        assert_eq!((drain(&mut s), (s.state(), s.next_deadline())), (vec![], before));
    }
}

#[test]
fn a_dial_that_is_held_back_is_given_up_by_no_deadline_of_its_own() {
    let (mut s, t0) = (new(exact().phase_timeout(Phase::Resolve, SEC)), now());
    drain(&mut s);
    s.handle_dial_throttled(t0, 100 * SEC);
    drain(&mut s);
    s.handle_timeout(t0 + 99 * SEC);
    assert_eq!(drain(&mut s), [""; 0]);
}

// The login.

#[test]
fn a_session_that_logs_in_is_not_open() {
    let (mut s, t0) = (new(exact()), now());
    s.handle_phase(t0 + SEC, Phase::Login);
    assert_eq!((s.state(), s.was_open(), s.generation().number()), (State::Connecting, false, 0));
    assert!(matches!(call(&mut s, t0 + SEC, 1, SEC), Err(Error::NotConnected)));
    s.handle_opened(t0 + 2 * SEC, generation(1), None);
    assert_eq!(s.state(), State::Open);
}

#[test]
fn a_login_has_a_deadline_of_its_own() {
    let (mut s, t0) = (new(exact().phase_timeout(Phase::Login, SEC)), now());
    drain(&mut s);
    s.handle_phase(t0 + SEC, Phase::Login);
    assert_eq!(s.next_deadline(), Some(t0 + 2 * SEC));
    s.handle_timeout(t0 + 2 * SEC);
    assert_eq!(drain(&mut s), ["abandon", "dial 1 failed, next in 1s: timed out after 1s logging in"]);
}

#[test]
fn a_login_that_succeeded_is_limited_no_longer() {
    let (mut s, t0) = (new(exact().phase_timeout(Phase::Login, SEC)), now());
    s.handle_phase(t0, Phase::Login);
    s.handle_opened(t0 + SEC / 2, generation(1), None);
    drain(&mut s);
    s.handle_timeout(t0 + 5 * SEC);
    assert_eq!((drain(&mut s).len(), s.state()), (0, State::Open));
}

#[test]
fn a_login_that_failed_obeys_ladder_and_attempts() {
    for cause in [login_refused(false), Error::Disconnected, Error::PeerClosed { code: Some(1008), reason: "".into() }] {
        let (mut s, mut t) = (new(exact()), now());
        let mut pauses = Vec::new();
        while s.state() == State::Connecting {
            s.handle_phase(t, Phase::Login);
            s.handle_dial_failed(t, cause.clone());
            let Some(next) = s.next_deadline() else { break };
            pauses.push(next - t);
            t = next;
            s.handle_timeout(t);
        }
        assert_eq!(pauses, secs([1, 2]));
        assert!(matches!(s.end(), Some(Some(Error::Exhausted { attempts: 3, .. }))));
    }
}

#[test]
fn a_first_login_refused_for_good_ends_the_session_at_once() {
    let (mut s, t0) = (new(exact()), now());
    drain(&mut s);
    s.handle_phase(t0, Phase::Login);
    s.handle_dial_failed(t0, login_refused(true));
    let cause = "the venue refused the login: bad key";
    assert_eq!(drain(&mut s), [format!("dial 1 failed for good: {cause}"), format!("closed: {cause}")]);
    assert!(matches!(s.end(), Some(Some(Error::LoginRefused { fatal: true, .. }))));
}

#[test]
fn a_later_login_refused_for_good_is_retried_at_the_longest_pause() {
    let (mut s, mut t) = open();
    s.handle_lost(t, Error::Disconnected);
    for attempt in 1..10 {
        drain(&mut s);
        s.handle_phase(t, Phase::Login);
        s.handle_dial_failed(t, login_refused(true));
        assert_eq!(drain(&mut s), [format!("dial {attempt} failed, next in 30s: the venue refused the login: bad key")]);
        t += 30 * SEC;
        s.handle_timeout(t);
    }
    s.handle_opened(t, generation(2), None);
    assert_eq!(s.state(), State::Open);
}

#[test]
fn closing_during_a_login_abandons_it() {
    let (mut s, t0) = (new(exact()), now());
    drain(&mut s);
    s.handle_phase(t0, Phase::Login);
    s.wish_close(1000, "".into());
    s.handle_wishes(t0);
    assert_eq!((drain(&mut s), s.next_deadline()), (vec!["abandon".to_owned(), "closed".into()], None));
}

// Live.

#[test]
fn a_session_is_live_while_every_channel_is_confirmed() {
    let (mut s, _) = open();
    let states = [true, false, true].map(|is_live| {
        s.handle_live(is_live);
        s.state()
    });
    assert_eq!(states, [State::Live, State::Open, State::Live]);
    assert_eq!(drain(&mut s), [""; 0], "it is the dialogue's to say so");
}

#[test]
fn only_an_open_session_is_live() {
    for (mut s, state) in [(new(exact()), State::Connecting), (waiting().0, State::Waiting), (closing().0, State::Closing)] {
        s.handle_live(true);
        assert_eq!(s.state(), state);
    }
    let (mut s, t0) = closing();
    s.handle_lost(t0, Error::Disconnected);
    s.handle_live(true);
    assert_eq!(s.state(), State::Closed);
}

#[test]
fn a_new_wire_is_not_live_because_the_last_one_was() {
    let (mut s, t0) = open();
    s.handle_live(true);
    s.handle_lost(t0, Error::Disconnected);
    assert_eq!(s.state(), State::Connecting);
    s.handle_opened(t0, generation(2), None);
    assert_eq!(s.state(), State::Open);
}

#[test]
fn a_live_session_is_pinged_lost_closed_and_replaced_as_an_open_one() {
    let (mut s, t0) = open();
    s.handle_live(true);
    s.handle_blocked(t0, true);
    s.handle_blocked(t0, false);
    s.handle_timeout(t0 + 30 * SEC);
    assert_eq!(drain(&mut s), ["ping"]);
    s.handle_lost(t0 + 31 * SEC, Error::Disconnected);
    assert_eq!(drain(&mut s)[1..], ["dialing 1", "dial 1"]);
    let (mut s, t0) = open();
    s.handle_live(true);
    s.wish_reconnect();
    assert_eq!(s.state(), State::Connecting);
    s.handle_wishes(t0);
    assert_eq!((drain(&mut s), s.state()), (vec!["hang up: replaced on request".to_owned()], State::Connecting));
    s.wish_close(1000, "".into());
    assert_eq!(s.state(), State::Closing);
    s.handle_wishes(t0);
    assert_eq!((drain(&mut s), s.state()), (vec!["close 1000 ".to_owned()], State::Closing));
}

#[test]
fn standings_are_the_latest_of_the_channels_that_are_wanted() {
    let (mut s, _) = open();
    s.handle_standing("book".into(), Some(Standing::Wanted));
    s.handle_standing("book".into(), Some(Standing::Pending));
    s.handle_standing("trades".into(), Some(Standing::Confirmed));
    s.handle_standing("ticker".into(), Some(Standing::Rejected("no".into())));
    s.handle_standing("trades".into(), None);
    s.handle_standing("never".into(), None);
    let expected = [("book".into(), Standing::Pending), ("ticker".into(), Standing::Rejected("no".into()))];
    assert_eq!(*s.standings(), BTreeMap::from(expected));
}

// Calls.

#[test]
fn a_call_is_registered_for_the_open_wire() {
    let (mut s, t0) = open();
    assert_eq!(call(&mut s, t0, 1, SEC).unwrap().0, generation(1));
    s.handle_live(true);
    assert_eq!(call(&mut s, t0, 2, SEC).unwrap().0, generation(1));
    s.handle_lost(t0, Error::Disconnected);
    s.take_calls();
    s.handle_opened(t0, generation(2), None);
    assert_eq!((call(&mut s, t0, 1, SEC).unwrap().0, s.calls_pending()), (generation(2), 1));
}

#[test]
fn without_an_open_wire_no_call_is_registered() {
    let (mut replaced, t0) = open();
    replaced.wish_reconnect();
    for mut s in [new(exact()), waiting().0, replaced] {
        assert!(matches!(call(&mut s, t0, 1, SEC), Err(Error::NotConnected)));
        assert_eq!((s.calls_pending(), s.take_calls().len()), (0, 0));
    }
}

#[test]
fn a_session_that_closes_takes_no_calls() {
    let (mut wished, t0) = open();
    wished.wish_close(1000, "".into());
    let mut closed = closing().0;
    closed.handle_lost(t0, Error::Disconnected);
    for mut s in [wished, closing().0, closed] {
        assert!(matches!(call(&mut s, t0, 1, SEC), Err(Error::Closed)));
        assert_eq!(s.calls_pending(), 0);
    }
}

#[test]
fn as_many_calls_wait_as_the_config_allows_and_no_id_twice() {
    let (mut s, t0) = open_with(exact().calls_max(2));
    call(&mut s, t0, 1, SEC).unwrap();
    assert!(matches!(call(&mut s, t0, 1, SEC), Err(Error::Duplicate(Id::Number(1)))));
    call(&mut s, t0, 2, SEC).unwrap();
    assert!(matches!(call(&mut s, t0, 3, SEC), Err(Error::TooManyCalls { pending: 2 })));
    s.handle_reply(t0, &Id::Number(1)).unwrap();
    call(&mut s, t0, 3, SEC).unwrap();
}

#[test]
fn a_wire_that_ends_gives_back_its_calls_however_it_ends() {
    let ends: [fn(&mut Session, Instant); 4] = [
        |s, t| s.handle_lost(t, Error::Disconnected),
        |s, t| s.handle_failure(t, Error::Stopped),
        |s, t| {
            s.wish_close(1000, "".into());
            s.handle_wishes(t);
            s.handle_lost(t, Error::Closed);
        },
        |s, t| s.handle_lost(t, Error::Replaced),
    ];
    for end in ends {
        let (mut s, t0) = open();
        (1..=3).for_each(|id| _ = call(&mut s, t0, id, SEC).unwrap());
        end(&mut s, t0);
        let with_alarm = s.next_deadline();
        assert_eq!(s.take_calls().into_keys().collect::<Vec<_>>(), [1, 2, 3].map(Id::Number));
        assert_eq!((s.calls_pending(), s.take_calls().len(), s.take_expired(t0 + SEC).len()), (0, 0, 0));
        assert_eq!((with_alarm, s.next_deadline() == with_alarm), (Some(t0 + SEC), false), "the alarm goes with them");
        assert!(s.handle_reply(t0, &Id::Number(1)).is_none());
    }
}

#[test]
fn calls_go_on_while_a_close_is_under_way() {
    let (mut s, t0) = open();
    (1..=2).for_each(|id| _ = call(&mut s, t0, id, SEC).unwrap());
    s.wish_close(1000, "".into());
    s.handle_wishes(t0);
    assert!(s.handle_receive(t0));
    assert!(s.handle_reply(t0, &Id::Number(1)).is_some());
    assert_eq!((s.next_deadline(), s.take_expired(t0 + SEC).len()), (Some(t0 + SEC), 1));
}

#[test]
fn a_call_is_looked_at_when_its_deadline_comes() {
    let (mut s, t0) = open();
    call(&mut s, t0, 1, 5 * SEC).unwrap();
    call(&mut s, t0, 2, 3 * SEC).unwrap();
    assert_eq!(s.next_deadline(), Some(t0 + 3 * SEC));
    assert_eq!(s.take_expired(t0 + 3 * SEC).len(), 1);
    assert_eq!((s.next_deadline(), s.calls_pending()), (Some(t0 + 5 * SEC), 1));
    assert_eq!(s.take_expired(t0 + 5 * SEC).len(), 1);
    assert_eq!(s.next_deadline(), Some(t0 + 30 * SEC), "the ping's");
}

#[test]
fn a_look_at_calls_that_is_early_or_repeated_is_harmless() {
    let (mut s, t0) = open();
    call(&mut s, t0, 1, 3 * SEC).unwrap();
    for _ in 0..3 {
        s.handle_timeout(t0 + 3 * SEC - Duration::from_nanos(1));
        assert_eq!(s.take_expired(t0 + 3 * SEC - Duration::from_nanos(1)).len(), 0);
    }
    assert_eq!((s.next_deadline(), drain(&mut s).len()), (Some(t0 + 3 * SEC), 0));
    let expired = [(); 3].map(|()| {
        s.handle_timeout(t0 + 3 * SEC);
        s.take_expired(t0 + 3 * SEC).len()
    });
    assert_eq!((expired, drain(&mut s).len()), ([1, 0, 0], 0));
}

#[test]
fn the_alarm_of_a_call_that_was_answered_rings_once_for_nothing() {
    let (mut s, t0) = open();
    call(&mut s, t0, 1, 3 * SEC).unwrap();
    s.handle_reply(t0 + SEC, &Id::Number(1)).unwrap();
    assert_eq!(s.next_deadline(), Some(t0 + 3 * SEC));
    s.handle_timeout(t0 + 3 * SEC);
    assert_eq!((s.take_expired(t0 + 3 * SEC).len(), s.next_deadline()), (0, Some(t0 + 30 * SEC)));
}

#[test]
fn a_dial_that_its_limit_puts_off_is_no_redial() {
    let (mut s, t0) = open();
    s.handle_lost(t0 + SEC, Error::Disconnected);
    assert_eq!(s.redials(), 1);
    for _ in 0..5 {
        s.handle_dial_throttled(t0 + SEC, SEC);
        let next = s.next_deadline().unwrap();
        s.handle_timeout(next);
    }
    assert_eq!(s.redials(), 1);
}

#[test]
fn a_reply_ends_its_call_and_measures_it() {
    let (mut s, t0) = open();
    call(&mut s, t0 + SEC, 1, 9 * SEC).unwrap();
    assert!(s.handle_reply(t0 + 2 * SEC, &Id::from("1")).is_none(), "a text is another id");
    let (_, rtt) = s.handle_reply(t0 + 3 * SEC, &Id::Number(1)).unwrap();
    assert_eq!((rtt, s.calls_pending()), (2 * SEC, 0));
    assert!(s.handle_reply(t0 + 4 * SEC, &Id::Number(1)).is_none(), "it ends once");
}

#[test]
fn what_answers_a_request_that_has_not_begun_to_leave_answers_another() {
    let (mut s, t0) = open();
    let ticket = Arc::<Ticket>::default();
    s.register(t0, Id::Number(1), t0 + SEC, (), ticket.clone()).unwrap();
    assert!(s.handle_reply(t0, &Id::Number(1)).is_none());
    assert_eq!(s.calls_pending(), 1);
    ticket.begin();
    assert!(s.handle_reply(t0, &Id::Number(1)).is_some());
}

#[test]
fn a_call_that_expired_or_was_taken_back_gets_no_reply() {
    let (mut s, t0) = open();
    let first = call(&mut s, t0, 1, SEC).unwrap().1;
    call(&mut s, t0, 2, SEC).unwrap();
    assert!(s.withdraw(&Id::Number(1), first.token).is_some());
    assert!(s.withdraw(&Id::Number(1), first.token).is_none());
    assert_eq!(s.take_expired(t0 + SEC).len(), 1);
    assert!([1, 2].into_iter().all(|id| s.handle_reply(t0 + SEC, &Id::Number(id)).is_none()));
}

#[test]
fn a_receive_says_whether_a_reply_may_be_in_it() {
    let (mut s, t0) = open();
    assert!(!s.handle_receive(t0));
    call(&mut s, t0, 1, SEC).unwrap();
    assert!(s.handle_receive(t0));
    s.take_calls();
    assert!(!s.handle_receive(t0));
}

#[test]
fn the_times_of_calls_do_not_run_backwards() {
    let (mut s, t0) = open();
    s.handle_receive(t0 + 10 * SEC);
    call(&mut s, t0, 1, 9 * SEC).unwrap();
    let (_, rtt) = s.handle_reply(t0 + 5 * SEC, &Id::Number(1)).unwrap();
    assert_eq!(rtt, Duration::ZERO);
    call(&mut s, t0, 2, 9 * SEC).unwrap();
    assert_eq!(s.take_expired(t0).len(), 1, "its deadline was before what is known to be now");
}

// Liveness.

#[test]
fn a_ping_leaves_every_interval_whatever_arrives() {
    let (mut s, t0) = open();
    let mut pings = Vec::new();
    for second in 1..=100 {
        let t = t0 + second * SEC;
        s.handle_receive(t);
        s.handle_data(t);
        s.handle_timeout(t);
        if drain(&mut s) == ["ping"] {
            pings.push(second);
        }
    }
    assert_eq!(pings, [30, 60, 90]);
}

#[test]
fn a_silent_peer_is_pinged_then_dropped() {
    let (mut s, t0) = open();
    s.handle_receive(t0 + 20 * SEC);
    s.handle_timeout(t0 + 30 * SEC);
    assert_eq!((drain(&mut s), s.next_deadline()), (vec!["ping".to_owned()], Some(t0 + 40 * SEC)));
    s.handle_timeout(t0 + 40 * SEC);
    assert_eq!(drain(&mut s), ["hang up: the peer is silent: not a byte for 20s"]);
}

#[test]
fn a_silent_wire_is_redialled_at_once() {
    let (mut s, t0) = open();
    s.handle_lost(t0 + 40 * SEC, Error::Silent { quiet: 20 * SEC });
    assert_eq!(drain(&mut s), ["lost, next in 0ns: the peer is silent: not a byte for 20s", "dialing 1", "dial 1"]);
}

#[test]
fn any_byte_since_the_ping_excuses_its_pong() {
    let (mut s, t0) = pinged(exact());
    s.handle_receive(t0 + 35 * SEC);
    s.handle_timeout(t0 + 40 * SEC);
    assert_eq!(drain(&mut s), [""; 0]);
    assert_eq!((s.heartbeat().misses(), s.next_deadline()), (1, Some(t0 + 60 * SEC)));
}

#[test]
fn a_byte_before_the_ping_excuses_nothing() {
    let (mut s, t0) = open();
    s.handle_receive(t0 + 30 * SEC);
    s.handle_timeout(t0 + 30 * SEC);
    s.handle_timeout(t0 + 40 * SEC);
    assert_eq!(drain(&mut s), ["ping", "hang up: the peer is silent: not a byte for 10s"]);
}

#[test]
fn a_strict_session_takes_nothing_but_the_pong() {
    let (mut s, t0) = pinged(exact().strict(true));
    s.handle_receive(t0 + 39 * SEC);
    s.handle_data(t0 + 39 * SEC);
    s.handle_timeout(t0 + 40 * SEC);
    assert_eq!(drain(&mut s), ["hang up: the peer is silent: not a byte for 1s"]);
}

#[test]
fn only_its_own_pong_settles_a_ping() {
    for (payload, hung_up) in [(None, true), (Some(b"foreign!".to_vec()), true), (Some(vec![]), true), (Some(own(1)), false)] {
        let (mut s, t0) = pinged(exact().strict(true));
        s.handle_receive(t0 + 31 * SEC);
        let rtt = payload.and_then(|payload| s.handle_pong(t0 + 31 * SEC, &payload));
        s.handle_timeout(t0 + 40 * SEC);
        assert_eq!((!drain(&mut s).is_empty(), rtt.is_none(), s.heartbeat().rtt().is_none()), (hung_up, hung_up, hung_up));
    }
}

#[test]
fn a_pong_measures_the_round_trip() {
    let (mut s, t0) = pinged(exact());
    assert_eq!(s.handle_pong(t0 + 30 * SEC + Duration::from_nanos(1234), &own(1)), Some(Duration::from_nanos(1234)));
    assert_eq!(s.heartbeat().rtt(), Some(Duration::from_nanos(1234)));
}

#[test]
fn every_ping_differs() {
    let (mut s, t0) = open();
    let mut payloads = Vec::new();
    for beat in 1..=3 {
        s.handle_timeout(t0 + beat * 30 * SEC);
        payloads.extend(s.take_actions().into_iter().filter_map(|action| match action {
            Action::Ping(payload) => Some(payload),
            _ => None,
        }));
        s.handle_pong(t0 + beat * 30 * SEC, payloads.last().unwrap());
    }
    assert_eq!(payloads, [1_u64, 2, 3].map(u64::to_be_bytes));
}

#[test]
fn a_pong_later_than_the_interval_still_proves() {
    let (mut s, t0) = open_with(exact().strict(true).heartbeat_interval(5 * SEC));
    s.handle_timeout(t0 + 5 * SEC);
    s.handle_timeout(t0 + 10 * SEC);
    assert_eq!(s.handle_pong(t0 + 12 * SEC, &own(1)), Some(7 * SEC));
    s.handle_timeout(t0 + 15 * SEC);
    assert_eq!(drain(&mut s), ["ping"; 3]);
    s.handle_timeout(t0 + 20 * SEC);
    assert_eq!(drain(&mut s)[1], "hang up: the peer is silent: not a byte for 20s", "the second was never answered");
}

#[test]
fn pings_more_frequent_than_patience_do_not_put_off_the_verdict() {
    for (millis, strict) in [(1000, false), (1000, true), (200, false), (200, true)] {
        let (mut s, t0) = open_with(exact().strict(strict).heartbeat_interval(Duration::from_millis(millis)));
        let silent_at = (0..30_000).find(|elapsed| {
            s.handle_timeout(t0 + Duration::from_millis(*elapsed));
            drain(&mut s).iter().any(|action| action.starts_with("hang up"))
        });
        assert_eq!(silent_at, Some(millis + 10_000));
    }
}

#[test]
fn a_callers_pings_do_not_put_off_the_verdict() {
    let (mut s, t0) = pinged(exact());
    (0..1000).for_each(|_| _ = s.start_ping(t0 + 35 * SEC));
    s.handle_timeout(t0 + 40 * SEC);
    assert_eq!(drain(&mut s), ["hang up: the peer is silent: not a byte for 40s"]);
}

#[test]
fn frequent_pings_after_a_callers_do_not_put_off_the_verdict_either() {
    let (mut s, t0) = open_with(exact().heartbeat_interval(SEC / 10));
    s.start_ping(t0);
    (1..=101).for_each(|tick| s.handle_timeout(t0 + tick * SEC / 10));
    assert_eq!(drain(&mut s).pop().unwrap(), "hang up: the peer is silent: not a byte for 10.1s");
}

#[test]
fn each_unanswered_ping_is_counted_once() {
    let (mut s, t0) = open();
    for second in 1..=105 {
        s.handle_receive(t0 + second * SEC);
        s.handle_timeout(t0 + second * SEC);
    }
    assert_eq!(s.heartbeat().misses(), 3);
}

#[test]
fn a_callers_ping_is_measured_and_not_judged() {
    let (mut s, t0) = open();
    let (unanswered, answered) = (s.start_ping(t0 + 28 * SEC), s.start_ping(t0 + 29 * SEC));
    assert_ne!(unanswered, answered);
    s.handle_timeout(t0 + 30 * SEC);
    s.handle_receive(t0 + 35 * SEC);
    s.handle_timeout(t0 + 40 * SEC);
    assert_eq!((drain(&mut s), s.heartbeat().misses()), (vec!["ping".to_owned()], 1), "that of the heartbeat");
    assert_eq!(s.handle_pong(t0 + 41 * SEC, &answered), Some(12 * SEC));
}

#[test]
fn a_callers_ping_moves_no_beat() {
    let (mut s, t0) = open();
    let before = s.next_deadline();
    s.start_ping(t0 + 20 * SEC);
    assert_eq!(s.next_deadline(), before);
    s.handle_timeout(t0 + 30 * SEC);
    assert_eq!(drain(&mut s), ["ping"]);
}

#[test]
fn without_heartbeat_nothing_is_sent_and_nothing_concluded() {
    let (mut s, t0) = open_with(exact().heartbeat_interval(None));
    s.handle_timeout(t0 + 3600 * SEC);
    assert_eq!((drain(&mut s).len(), s.next_deadline()), (0, None));
}

#[test]
fn a_new_wire_does_not_answer_for_the_pings_of_the_old_one() {
    let (mut s, t0) = pinged(exact().strict(true));
    s.handle_lost(t0 + 31 * SEC, Error::Disconnected);
    s.handle_opened(t0 + 32 * SEC, generation(2), None);
    drain(&mut s);
    s.handle_timeout(t0 + 61 * SEC);
    assert_eq!((drain(&mut s).len(), s.handle_pong(t0 + 61 * SEC, &own(1))), (0, None));
    assert_eq!(s.next_deadline(), Some(t0 + 62 * SEC), "its beat begins with it");
}

#[test]
fn no_ping_leaves_between_wires() {
    let (mut s, t0) = open();
    s.handle_lost(t0, Error::Disconnected);
    drain(&mut s);
    s.handle_dial_failed(t0, answer(429, Some(1000 * SEC)));
    drain(&mut s);
    s.handle_timeout(t0 + 999 * SEC);
    assert_eq!(drain(&mut s), [""; 0]);
}

#[test]
fn a_ping_that_the_limit_holds_back_is_not_missed() {
    let (mut s, t0) = pinged(exact().strict(true));
    s.handle_ping_held();
    s.handle_timeout(t0 + 40 * SEC);
    assert_eq!((drain(&mut s).len(), s.heartbeat().misses(), s.next_deadline()), (0, 0, Some(t0 + 60 * SEC)));
    assert_eq!(s.handle_pong(t0 + 45 * SEC, &own(1)), Some(15 * SEC), "it left in the end");
}

#[test]
fn the_ping_after_one_that_was_held_back_is_judged() {
    let (mut s, t0) = pinged(exact());
    s.handle_ping_held();
    s.handle_timeout(t0 + 60 * SEC);
    s.handle_timeout(t0 + 70 * SEC);
    assert_eq!(drain(&mut s), ["ping", "hang up: the peer is silent: not a byte for 70s"]);
}

#[test]
fn the_ping_before_one_that_is_held_back_is_judged() {
    let (mut s, t0) = open_with(exact().strict(true).heartbeat_interval(5 * SEC));
    s.handle_timeout(t0 + 5 * SEC);
    s.handle_timeout(t0 + 10 * SEC);
    s.handle_ping_held();
    s.handle_timeout(t0 + 15 * SEC);
    assert_eq!(drain(&mut s)[2..], ["ping", "hang up: the peer is silent: not a byte for 15s"]);
    assert_eq!(s.heartbeat().misses(), 1);
}

#[test]
fn nothing_held_back_excuses_nothing() {
    let (mut s, t0) = open();
    s.handle_ping_held();
    s.handle_timeout(t0 + 30 * SEC);
    s.handle_timeout(t0 + 40 * SEC);
    assert_eq!(drain(&mut s), ["ping", "hang up: the peer is silent: not a byte for 40s"]);
}

#[test]
fn a_proof_without_a_number_settles_the_pings_before_it() {
    let (mut s, t0) = open_with(exact().strict(true).heartbeat_interval(5 * SEC));
    s.handle_timeout(t0 + 5 * SEC);
    s.handle_timeout(t0 + 10 * SEC);
    assert_eq!(s.handle_proof(t0 + 12 * SEC), Some(2 * SEC), "since the latest");
    assert_eq!((s.heartbeat().rtt(), s.handle_proof(t0 + 13 * SEC)), (Some(2 * SEC), None));
    s.handle_timeout(t0 + 24 * SEC);
    assert_eq!((drain(&mut s), s.heartbeat().misses()), (vec!["ping".to_owned(); 3], 0));
}

#[test]
fn a_proof_before_the_ping_proves_nothing() {
    let (mut s, t0) = open_with(exact().strict(true));
    assert_eq!(s.handle_proof(t0 + 29 * SEC), None);
    s.handle_timeout(t0 + 30 * SEC);
    s.handle_timeout(t0 + 40 * SEC);
    assert_eq!(drain(&mut s).len(), 2);
}

#[test]
fn a_proof_of_an_earlier_wire_proves_nothing() {
    let (mut s, t0) = pinged(exact());
    s.handle_lost(t0 + 31 * SEC, Error::Disconnected);
    s.handle_opened(t0 + 31 * SEC, generation(2), None);
    assert_eq!((s.handle_proof(t0 + 32 * SEC), s.heartbeat().rtt()), (None, None));
}

#[test]
fn silence_of_data_drops_the_wire() {
    let (mut s, t0) = open_with(exact().data_silence(20 * SEC));
    s.handle_data(t0 + 5 * SEC);
    s.handle_timeout(t0 + 20 * SEC);
    assert_eq!((drain(&mut s).len(), s.next_deadline()), (0, Some(t0 + 25 * SEC)));
    s.handle_timeout(t0 + 25 * SEC);
    assert_eq!(drain(&mut s), ["hang up: no data message for 20s"]);
}

#[test]
fn pings_and_pongs_are_no_data() {
    let (mut s, t0) = open_with(exact().data_silence(50 * SEC));
    s.handle_timeout(t0 + 30 * SEC);
    s.handle_receive(t0 + 31 * SEC);
    s.handle_pong(t0 + 31 * SEC, &own(1));
    s.handle_receive(t0 + 49 * SEC);
    drain(&mut s);
    s.handle_timeout(t0 + 50 * SEC);
    assert_eq!(drain(&mut s), ["hang up: no data message for 50s"]);
}

#[test]
fn a_new_wire_gets_the_whole_time_for_its_first_data() {
    let (mut s, t0) = open_with(exact().data_silence(20 * SEC));
    s.handle_lost(t0 + 19 * SEC, Error::Disconnected);
    s.handle_opened(t0 + 21 * SEC, generation(2), None);
    drain(&mut s);
    s.handle_timeout(t0 + 41 * SEC - Duration::from_nanos(1));
    assert_eq!(drain(&mut s), [""; 0]);
}

#[test]
fn the_clocks_stand_still_while_reading_is_stopped() {
    for strict in [false, true] {
        let (mut s, t0) = pinged(exact().strict(strict).data_silence(35 * SEC));
        s.handle_blocked(t0 + 31 * SEC, true);
        for second in 32..1000 {
            s.handle_timeout(t0 + second * SEC);
        }
        let actions = drain(&mut s);
        assert!(actions.iter().all(|action| action == "ping"), "{actions:?}");
    }
}

#[test]
fn pings_go_on_while_reading_is_stopped_and_are_excused() {
    let (mut s, t0) = open_with(exact().strict(true));
    s.handle_blocked(t0 + SEC, true);
    s.handle_timeout(t0 + 30 * SEC);
    assert_eq!(drain(&mut s), ["ping"]);
    s.handle_blocked(t0 + 31 * SEC, false);
    s.handle_timeout(t0 + 59 * SEC);
    assert_eq!((drain(&mut s).len(), s.heartbeat().misses()), (0, 0));
}

#[test]
fn pings_from_before_reading_stopped_are_forgotten() {
    let (mut s, t0) = pinged(exact());
    s.handle_blocked(t0 + 31 * SEC, true);
    s.handle_blocked(t0 + 32 * SEC, false);
    s.handle_timeout(t0 + 60 * SEC);
    s.handle_receive(t0 + 65 * SEC);
    s.handle_timeout(t0 + 70 * SEC);
    assert_eq!(s.heartbeat().misses(), 1, "the one since");
}

#[test]
fn the_clocks_start_anew_when_reading_resumes() {
    let (mut s, t0) = open_with(exact().data_silence(35 * SEC));
    s.handle_blocked(t0 + SEC, true);
    s.handle_blocked(t0 + 20 * SEC, false);
    s.handle_timeout(t0 + 30 * SEC);
    s.handle_timeout(t0 + 40 * SEC);
    assert_eq!(drain(&mut s), ["ping", "hang up: the peer is silent: not a byte for 20s"]);
    s.handle_timeout(t0 + 55 * SEC);
    assert_eq!(drain(&mut s), ["hang up: no data message for 35s"]);
}

#[test]
fn a_new_wire_is_not_blocked() {
    let (mut s, t0) = open();
    s.handle_blocked(t0, true);
    s.handle_lost(t0, Error::Disconnected);
    s.handle_opened(t0, generation(2), None);
    s.handle_timeout(t0 + 30 * SEC);
    s.handle_timeout(t0 + 40 * SEC);
    assert_eq!(drain(&mut s).last().unwrap(), "hang up: the peer is silent: not a byte for 40s");
}

// Closing.

#[test]
fn closing_an_open_session_runs_the_handshake() {
    let (mut s, t0) = open();
    s.wish_close(1000, "done".into());
    s.handle_wishes(t0);
    assert_eq!((drain(&mut s), s.state()), (vec!["close 1000 done".to_owned()], State::Closing));
    s.handle_lost(t0 + SEC, Error::PeerClosed { code: Some(1000), reason: "".into() });
    assert_eq!((drain(&mut s), s.state()), (vec!["closed".to_owned()], State::Closed));
    assert!(matches!(s.end(), Some(None)));
}

#[test]
fn a_peer_that_does_not_answer_the_close_is_dropped_at_the_deadline() {
    let (mut s, t0) = closing();
    assert_eq!(s.next_deadline(), Some(t0 + 2 * SEC));
    s.handle_timeout(t0 + 2 * SEC);
    assert_eq!(drain(&mut s), ["hang up: the connection was closed"]);
    s.handle_lost(t0 + 2 * SEC, Error::Closed);
    assert_eq!(drain(&mut s), ["closed"]);
}

#[test]
fn while_closing_nothing_is_pinged_judged_or_redialled() {
    let (mut s, t0) = open_with(exact().heartbeat_interval(SEC).data_silence(SEC));
    s.wish_close(1000, "".into());
    s.handle_wishes(t0);
    drain(&mut s);
    s.wish_reconnect();
    s.handle_wishes(t0);
    s.handle_blocked(t0, true);
    s.handle_blocked(t0, false);
    s.handle_timeout(t0 + SEC);
    s.handle_dial_failed(t0 + SEC, refused());
    s.handle_opened(t0 + SEC, generation(2), None);
    assert_eq!(drain(&mut s), [""; 0]);
    assert_eq!((s.state(), s.generation(), s.next_deadline()), (State::Closing, generation(1), Some(t0 + 2 * SEC)));
}

#[test]
fn closing_during_a_dial_abandons_it() {
    let mut s = new(exact());
    drain(&mut s);
    s.wish_close(1000, "".into());
    s.handle_wishes(now());
    assert_eq!(drain(&mut s), ["abandon", "closed"]);
    assert!(matches!(s.end(), Some(None)));
}

#[test]
fn closing_during_a_pause_ends_it() {
    let (mut s, t0) = waiting();
    s.wish_close(1000, "".into());
    s.handle_wishes(t0);
    assert_eq!((drain(&mut s), s.next_deadline()), (vec!["closed".to_owned()], None));
}

#[test]
fn a_loss_that_comes_before_the_close_is_taken_up_does_not_save_the_session() {
    let (mut s, t0) = open();
    s.wish_close(1000, "".into());
    s.handle_lost(t0, Error::Disconnected);
    s.handle_wishes(t0);
    assert_eq!(drain(&mut s)[3..], ["abandon", "closed"]);
}

#[test]
fn the_first_close_stands() {
    let (mut s, t0) = open();
    s.wish_close(4000, "first".into());
    s.wish_close(1000, "second".into());
    s.handle_wishes(t0);
    s.wish_close(1000, "third".into());
    s.handle_wishes(t0 + SEC);
    assert_eq!((drain(&mut s), s.next_deadline()), (vec!["close 4000 first".to_owned()], Some(t0 + 2 * SEC)));
}

#[test]
fn a_close_outdoes_a_reconnect() {
    let (mut s, t0) = open();
    s.wish_reconnect();
    s.wish_close(1000, "".into());
    s.wish_reconnect();
    s.handle_wishes(t0);
    s.handle_wishes(t0);
    assert_eq!(drain(&mut s), ["close 1000 "]);
}

#[test]
fn after_the_end_no_input_has_an_effect() {
    let (mut s, t0) = closing();
    s.handle_lost(t0, Error::Disconnected);
    drain(&mut s);
    s.wish_close(1000, "".into());
    s.wish_reconnect();
    s.handle_wishes(t0);
    s.handle_phase(t0, Phase::Tls);
    s.handle_opened(t0, generation(9), None);
    s.handle_receive(t0);
    s.handle_data(t0);
    s.handle_pong(t0, &own(1));
    s.handle_blocked(t0, true);
    s.handle_blocked(t0, false);
    s.handle_dial_failed(t0, refused());
    s.handle_lost(t0, Error::Disconnected);
    s.handle_failure(t0, Error::Stopped);
    s.handle_timeout(t0 + 3600 * SEC);
    assert_eq!(drain(&mut s), [""; 0]);
    assert_eq!((s.state(), s.next_deadline(), s.generation()), (State::Closed, None, generation(1)));
    assert!(matches!(s.end(), Some(None)));
}

#[test]
fn a_failure_ends_the_session_from_any_state_with_its_cause() {
    for (mut s, state) in
        [(new(exact()), State::Connecting), (open().0, State::Open), (waiting().0, State::Waiting), (closing().0, State::Closing)]
    {
        drain(&mut s);
        assert_eq!(s.state(), state);
        s.handle_failure(now(), Error::Stopped);
        let expected: &[&str] = match state {
            State::Connecting => &["abandon", "closed: the reactor was stopped"],
            _ => &["closed: the reactor was stopped"],
        };
        assert_eq!(drain(&mut s), expected);
        assert!(matches!(s.end(), Some(Some(Error::Stopped))));
    }
}

// Wishes.

#[test]
fn a_reconnect_replaces_an_open_wire_at_once() {
    let (mut s, t0) = open();
    s.wish_reconnect();
    s.handle_wishes(t0);
    assert_eq!(drain(&mut s), ["hang up: replaced on request"]);
    s.handle_lost(t0, Error::Replaced);
    assert_eq!(drain(&mut s), ["lost, next in 0ns: replaced on request", "dialing 1", "dial 1"]);
}

#[test]
fn a_reconnect_ends_a_pause() {
    let (mut s, t0) = waiting();
    s.wish_reconnect();
    s.handle_wishes(t0);
    assert_eq!((drain(&mut s).len(), s.state(), s.next_deadline()), (2, State::Connecting, Some(t0 + 5 * SEC)));
}

#[test]
fn a_reconnect_during_a_dial_changes_nothing() {
    let mut s = new(exact());
    drain(&mut s);
    s.wish_reconnect();
    s.handle_wishes(now() + SEC);
    assert_eq!((drain(&mut s).len(), s.next_deadline()), (0, Some(now() + 5 * SEC)));
}

#[test]
fn a_reconnect_asked_for_during_a_dial_is_granted_by_that_dial() {
    let mut s = new(exact());
    s.wish_reconnect();
    s.handle_opened(now(), generation(1), None);
    drain(&mut s);
    s.handle_wishes(now());
    assert_eq!((drain(&mut s).len(), s.state()), (0, State::Open));
}

#[test]
fn a_reconnect_whose_wire_is_lost_before_it_is_taken_up_spares_the_pause() {
    let (mut s, t0) = open();
    s.handle_lost(t0, Error::Disconnected);
    s.handle_opened(t0, generation(2), None);
    s.wish_reconnect();
    s.handle_lost(t0, Error::Disconnected);
    drain(&mut s);
    s.handle_wishes(t0);
    assert_eq!(drain(&mut s), ["dialing 2", "dial 2"]);
}

#[test]
fn repeated_wishes_merge() {
    let (mut s, t0) = open();
    (0..100).for_each(|_| s.wish_reconnect());
    s.handle_wishes(t0);
    assert_eq!(drain(&mut s), ["hang up: replaced on request"]);
    s.handle_lost(t0, Error::Replaced);
    drain(&mut s);
    s.handle_wishes(t0);
    assert_eq!((drain(&mut s), s.state()), (vec![], State::Connecting));
}

#[test]
fn wishes_for_another_wire_use_up_no_redials() {
    let (mut s, t0) = open_with(exact().redial_attempts(2));
    for number in 2..5 {
        s.handle_lost(t0, Error::Replaced);
        s.handle_opened(t0, generation(number), None);
    }
    s.handle_lost(t0, Error::Disconnected);
    assert_eq!(s.end().cloned().map(|_| ()), None);
}

#[test]
fn a_reconnect_works_though_redialling_is_off() {
    let (mut s, t0) = open_with(exact().reconnect(false));
    s.handle_lost(t0, Error::Replaced);
    assert_eq!(s.state(), State::Connecting);
    s.handle_opened(t0, generation(2), None);
    s.handle_lost(t0, Error::Disconnected);
    assert_eq!(s.state(), State::Closed);
}

#[test]
fn a_reconnect_does_not_climb_the_ladder() {
    let (mut s, t0) = open();
    for wire in 2..10 {
        s.handle_lost(t0, Error::Replaced);
        s.handle_opened(t0, generation(wire), None);
    }
    drain(&mut s);
    s.handle_lost(t0, Error::Disconnected);
    assert_eq!(drain(&mut s)[0], "lost, next in 0ns: the peer closed the TCP connection without a close frame");
}

#[test]
fn the_state_honours_wishes_before_they_are_taken_up() {
    let (mut s, _) = open();
    s.wish_reconnect();
    assert_eq!(s.state(), State::Connecting);
    s.wish_close(1000, "".into());
    assert_eq!(s.state(), State::Closing);
    let (mut s, _) = waiting();
    s.wish_reconnect();
    assert_eq!(s.state(), State::Connecting);
    let mut s = new(exact());
    s.wish_close(1000, "".into());
    assert_eq!(s.state(), State::Closing);
}

// Time.

#[test]
fn early_and_repeated_timeouts_are_harmless() {
    for (mut s, t0) in [(new(exact()), now()), open(), waiting(), closing()] {
        drain(&mut s);
        let deadline = s.next_deadline().unwrap();
        for _ in 0..3 {
            s.handle_timeout(t0);
            s.handle_timeout(deadline - Duration::from_nanos(1));
        }
        assert_eq!((drain(&mut s).len(), s.next_deadline()), (0, Some(deadline)));
        s.handle_timeout(deadline);
        let (count, next) = (drain(&mut s).len(), s.next_deadline());
        s.handle_timeout(deadline);
        assert!(count > 0 || next != Some(deadline));
        assert_eq!((drain(&mut s).len(), s.next_deadline()), (0, next));
    }
}

#[test]
fn a_deadline_of_an_earlier_state_does_not_fire_in_a_later_one() {
    let (mut s, t0) = (new(exact()), now());
    let dial = s.next_deadline().unwrap();
    s.handle_opened(t0 + SEC, generation(1), None);
    drain(&mut s);
    s.handle_timeout(dial);
    assert_eq!((drain(&mut s).len(), s.state()), (0, State::Open));
}

#[test]
fn a_time_before_the_latest_seen_counts_as_the_latest() {
    let (mut s, t0) = open();
    s.handle_receive(t0 + 100 * SEC);
    s.handle_timeout(t0);
    assert_eq!(drain(&mut s), ["ping"]);
    s.handle_lost(t0 + SEC, Error::Disconnected);
    assert_eq!(s.next_deadline(), Some(t0 + 105 * SEC));
    s.handle_opened(t0 + 2 * SEC, generation(2), None);
    assert_eq!(s.next_deadline(), Some(t0 + 130 * SEC));
}

#[test]
fn after_a_timeout_the_next_deadline_lies_ahead() {
    let (mut s, t0) = open_with(exact().data_silence(7 * SEC).heartbeat_interval(2 * SEC));
    for step in 1..200 {
        let t = t0 + step * SEC * 7 / 10;
        s.handle_data(t - SEC);
        s.handle_timeout(t);
        assert!(s.next_deadline().unwrap() > t);
    }
}

#[test]
fn a_reactor_that_slept_for_hours_catches_up_with_one_ping() {
    let (mut s, t0) = open();
    s.handle_timeout(t0 + 4 * 3600 * SEC);
    assert_eq!(drain(&mut s), ["ping"]);
}

// The bench.

/// What the peer does with a dial.
#[derive(Clone, Copy)]
enum Peer {
    Silent,
    Refuses,
    Answers(u16, Option<Duration>),
    /// And then disconnects.
    OpensFor(Duration),
}

/// What was seen of a session.
struct Life {
    session: Session,
    /// When each dial began.
    dials: Vec<Duration>,
    /// The number each dial had.
    attempts: Vec<u32>,
    /// When the session ended.
    over: Option<Duration>,
}

fn live(config: Config, window: Duration, peer: impl Fn(usize) -> Peer) -> Life {
    live_with(0, config, window, peer)
}

/// Lets a session live against a peer; the actions of its last input are left in it.
fn live_with(seed: u64, config: Config, window: Duration, peer: impl Fn(usize) -> Peer) -> Life {
    let t0 = now();
    let mut life =
        Life { session: Session::new(Arc::new(config), seed, t0), dials: Vec::new(), attempts: Vec::new(), over: None };
    life.session.handle_begin(t0);
    let (mut t, mut loss) = (t0, None);
    loop {
        let s = &mut life.session;
        if s.state() == State::Closed {
            life.over = Some(t - t0);
            return life;
        }
        let dial = s.take_actions().into_iter().find_map(|action| match action {
            Action::Dial { attempt, .. } => Some(attempt),
            _ => None,
        });
        if let Some(attempt) = dial {
            life.dials.push(t - t0);
            life.attempts.push(attempt);
            match peer(life.dials.len() - 1) {
                Peer::Silent => {}
                Peer::Refuses => s.handle_dial_failed(t, refused()),
                Peer::Answers(status, retry_after) => s.handle_dial_failed(t, answer(status, retry_after)),
                Peer::OpensFor(uptime) => {
                    s.handle_opened(t, s.generation().next(), None);
                    loss = Some(t + uptime);
                }
            }
            continue;
        }
        let Some(next) = [s.next_deadline(), loss].into_iter().flatten().min().filter(|next| *next <= t0 + window) else {
            return life;
        };
        t = next;
        s.handle_receive(t);
        s.handle_timeout(t);
        if loss.is_some_and(|at| at <= t) {
            loss = None;
            s.handle_lost(t, Error::Disconnected);
        }
    }
}

/// The defaults with exact pauses.
fn exact() -> Config {
    Config::new("ws://peer").jitter(0.0)
}

/// One moment for all tests.
fn now() -> Instant {
    static NOW: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    *NOW
}

fn new(config: Config) -> Session {
    let mut session = Session::new(Arc::new(config), 0, now());
    session.handle_begin(now());
    session
}

fn open() -> (Session, Instant) {
    open_with(exact())
}

fn open_with(config: Config) -> (Session, Instant) {
    let mut s = new(config);
    s.handle_opened(now(), generation(1), None);
    drain(&mut s);
    (s, now())
}

/// Open since 30 s, with the first ping unanswered.
fn pinged(config: Config) -> (Session, Instant) {
    let (mut s, t0) = open_with(config);
    s.handle_timeout(t0 + 30 * SEC);
    assert_eq!(drain(&mut s), ["ping"]);
    (s, t0)
}

fn waiting() -> (Session, Instant) {
    let mut s = new(exact());
    s.handle_dial_failed(now(), refused());
    drain(&mut s);
    (s, now())
}

fn closing() -> (Session, Instant) {
    let (mut s, t0) = open();
    s.wish_close(1000, "".into());
    s.handle_wishes(t0);
    drain(&mut s);
    (s, t0)
}

fn call(s: &mut Session, t: Instant, id: i64, limit: Duration) -> Result<(Generation, Registered), Error> {
    let ticket = Arc::<Ticket>::default();
    // Its request leaves at once.
    assert!(ticket.begin());
    s.register(t, Id::Number(id), t + limit, (), ticket)
}

fn generation(number: u32) -> Generation {
    (0..number).fold(Generation::default(), |generation, _| generation.next())
}

/// The payload of a session's ping of this number.
fn own(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn refused() -> Error {
    Error::Connect { peer: "peer".into(), source: Arc::new(std::io::ErrorKind::ConnectionRefused.into()) }
}

fn answer(status: u16, retry_after: Option<Duration>) -> Error {
    Error::Refused(Arc::new(Refusal { status, headers: vec![], body: String::new(), retry_after }))
}

fn login_refused(fatal: bool) -> Error {
    Error::LoginRefused { reason: "bad key".into(), fatal }
}

fn bad_certificate() -> Error {
    Error::Tls { certificate: true, source: Arc::new(std::fmt::Error) }
}

fn secs<const N: usize>(seconds: [u64; N]) -> [Duration; N] {
    seconds.map(Duration::from_secs)
}

fn gaps(times: &[Duration]) -> Vec<Duration> {
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// The actions a session asks for, in words.
fn drain(s: &mut Session) -> Vec<String> {
    let next = |redial_in: Option<Duration>| redial_in.map_or(" for good".into(), |pause| format!(", next in {pause:?}"));
    s.take_actions()
        .into_iter()
        .map(|action| match action {
            Action::Dial { attempt, .. } => format!("dial {attempt}"),
            Action::Abandon => "abandon".into(),
            Action::Ping(_) => "ping".into(),
            Action::Close(code, reason) => format!("close {code} {reason}"),
            Action::Hangup(cause) => format!("hang up: {cause}"),
            Action::Emit(Event::Dialing { attempt }) => format!("dialing {attempt}"),
            Action::Emit(Event::DialFailed { attempt, cause, redial_in }) => {
                format!("dial {attempt} failed{}: {cause}", next(redial_in))
            }
            Action::Emit(Event::Open) => "open".into(),
            Action::Emit(Event::Lost { cause, redial_in }) => format!("lost{}: {cause}", next(redial_in)),
            Action::Emit(Event::Closed { cause: None }) => "closed".into(),
            Action::Emit(Event::Closed { cause: Some(cause) }) => format!("closed: {cause}"),
            Action::Emit(event) => panic!("a session does not emit {event:?}"),
        })
        .collect()
}
