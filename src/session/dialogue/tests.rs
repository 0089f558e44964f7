use super::*;
use crate::dialect::{Confirmation, Inbound, Request, Sequence, Subscribe};
use crate::error::Result;

const SEC: Duration = Duration::from_secs(1);
const STAMP: Stamp = Stamp { unix: SEC, nonce: 7 };

// The login.

#[test]
fn without_a_login_and_without_channels_a_new_wire_is_live_at_once() {
    let mut talk = Talk::new(Speech::default());
    assert_eq!(talk.up(), ["logged in", "live"]);
    assert!(talk.dialogue.is_live() && talk.dialogue.next_deadline().is_none());
}

#[test]
fn a_login_of_one_step_opens_the_wire_when_it_is_answered() {
    let mut talk = Talk::new(Speech { steps: 1, ..Speech::default() });
    assert_eq!(talk.up(), ["!login 0 0 - -"]);
    assert!(talk.dialogue.awaits(&id(0)) && !talk.dialogue.awaits(&id(1)) && !talk.dialogue.is_logged_in());
    assert_eq!(talk.dialogue.next_deadline(), None, "the dial has a deadline of its own");
    assert_eq!(talk.reply(0, "yes"), ["logged in", "live"]);
    assert_eq!(talk.reply(0, "yes"), [""; 0], "a repeated reply is used up too");
}

#[test]
fn each_step_of_a_login_gets_the_reply_to_the_one_before() {
    let mut talk = Talk::new(Speech { steps: 2, ..Speech::default() });
    assert_eq!(talk.up(), ["!login 0 0 - -"]);
    assert_eq!(talk.reply(0, "challenge"), ["!login 1 1 challenge -"]);
    assert_eq!(talk.reply(1, "yes"), ["logged in", "live"]);
}

#[test]
fn a_refused_login_says_why_and_the_next_wire_begins_anew() {
    let mut talk = Talk::new(Speech { steps: 1, ..Speech::default() });
    talk.want(1, "a");
    talk.up();
    assert_eq!(talk.reply(0, "no: wrong key"), ["login failed: wrong key, fatal"]);
    assert_eq!(talk.pass(1000 * SEC), [""; 0]);
    assert_eq!(talk.lose(), [""; 0]);
    assert_eq!(talk.up(), ["!login 2 0 - -"]);
    assert_eq!(talk.reply(2, "no: busy"), ["login failed: busy"]);
}

#[test]
fn a_login_that_never_ends_fails() {
    let mut talk = Talk::new(Speech { steps: usize::MAX, ..Speech::default() });
    talk.up();
    for step in 0..15 {
        assert_eq!(talk.reply(step, "more"), [format!("!login {0} {0} more -", step + 1)]);
    }
    assert_eq!(talk.reply(15, "more"), ["login failed: the login takes more than 16 steps"]);
}

#[test]
fn a_login_lost_half_way_is_forgotten() {
    let mut talk = Talk::new(Speech { steps: 2, ..Speech::default() });
    talk.up();
    talk.reply(0, "challenge");
    talk.lose();
    assert!(!talk.dialogue.awaits(&id(0)) && !talk.dialogue.awaits(&id(1)));
    assert!(!talk.dialogue.handle_reply(talk.now, STAMP, &id(1), "yes"));
    assert_eq!(talk.up(), ["!login 2 0 - -"]);
}

// Its refresh.

#[test]
fn a_refresh_begins_in_time_with_the_token_and_users_notice_nothing() {
    let mut talk = Talk::logged_in(Speech { steps: 2, refresh: Some(60 * SEC), token: Some("t1"), ..Speech::default() });
    assert_eq!(talk.pass(59 * SEC), [""; 0]);
    assert_eq!(talk.pass(SEC), ["!login 3 0 - t1"]);
    assert!(talk.dialogue.is_live());
    assert_eq!(talk.reply(3, "challenge"), ["!login 4 1 challenge t1"]);
    assert_eq!(talk.reply(4, "yes"), [""; 0]);
    assert_eq!(talk.pass(59 * SEC), [""; 0]);
    assert_eq!(talk.pass(SEC), ["!login 6 0 - t1"], "and again");
}

#[test]
fn a_refresh_without_a_token_is_told_apart_from_a_first_login_and_leaves_time() {
    let mut talk = Talk::logged_in(Speech { steps: 1, refresh: Some(Duration::ZERO), ..Speech::default() });
    assert_eq!(talk.pass(SEC - Duration::from_nanos(1)), [""; 0]);
    assert_eq!(talk.pass(Duration::from_nanos(1)), ["!login 2 0 - "]);
}

#[test]
fn a_refresh_may_be_due_beyond_all_time() {
    let mut talk = Talk::logged_in(Speech { steps: 1, refresh: Some(Duration::MAX), ..Speech::default() });
    assert_eq!(talk.pass(1000 * SEC), [""; 0]);
}

#[test]
fn a_refused_refresh_asks_for_a_new_wire_once() {
    let mut talk = Talk::logged_in(Speech { steps: 1, refresh: Some(60 * SEC), ..Speech::default() });
    talk.pass(60 * SEC);
    assert_eq!(talk.reply(2, "no: wrong key"), ["hangup: wrong key"]);
    assert_eq!(talk.pass(1000 * SEC), [""; 0]);
}

#[test]
fn a_refresh_that_is_not_answered_asks_for_a_new_wire() {
    let mut talk = Talk::logged_in(Speech { steps: 1, refresh: Some(60 * SEC), ..Speech::default() });
    assert_eq!(talk.pass(60 * SEC), ["!login 2 0 - "]);
    assert_eq!(talk.pass(9 * SEC), [""; 0]);
    assert_eq!(talk.pass(SEC), ["hangup: the refresh of the login was not answered"]);
    assert!(talk.dialogue.awaits(&id(2)), "a late reply is still ours");
    assert_eq!(talk.reply(2, "yes"), [""; 0]);
}

#[test]
fn a_refresh_that_waits_for_the_rate_limit_is_given_more_time() {
    let mut talk = Talk::logged_in(Speech { steps: 1, refresh: Some(60 * SEC), ..Speech::default() });
    talk.throttled = true;
    assert_eq!(talk.pass(89 * SEC), ["!login 2 0 - "]);
    talk.release();
    assert_eq!(talk.pass(10 * SEC), [""; 0], "it has left a moment ago");
    assert_eq!(talk.pass(SEC), ["hangup: the refresh of the login was not answered"]);
}

#[test]
fn while_reading_is_stopped_no_answer_is_missed() {
    let mut talk = Talk::logged_in(Speech { steps: 1, refresh: Some(60 * SEC), ..Speech::default() });
    talk.want(1, "a");
    talk.pass(60 * SEC);
    talk.block(true);
    assert_eq!(talk.pass(1000 * SEC), [""; 0]);
    talk.block(false);
    assert_eq!(talk.pass(9 * SEC), [""; 0]);
    assert_eq!(talk.pass(SEC).last().unwrap(), "hangup: the refresh of the login was not answered");
}

// Subscribing.

#[test]
fn channels_are_asked_for_once_the_login_is_complete() {
    let mut talk = Talk::new(Speech { steps: 1, ..Speech::default() });
    assert_eq!(talk.want(1, "b a"), ["b wanted", "a wanted"]);
    assert_eq!(talk.up(), ["!login 0 0 - -"]);
    assert_eq!(talk.want(2, "c"), ["c wanted"]);
    assert_eq!(talk.reply(0, "yes"), ["logged in", "sub 2 b,a,c", "b pending", "a pending", "c pending"]);
    assert_eq!(talk.reply(2, "+b +a +c"), ["b confirmed", "a confirmed", "c confirmed", "live"]);
}

#[test]
fn a_channel_wanted_on_a_live_wire_is_asked_for_at_once() {
    let mut talk = Talk::live("a");
    assert_eq!(talk.want(2, "b a"), ["b wanted", "sub 2 b", "b pending", "not live"]);
    assert_eq!(talk.reply(2, "+b"), ["b confirmed", "live"]);
}

#[test]
fn what_one_message_cannot_hold_goes_into_the_next() {
    let mut talk = Talk::new(Speech { take: 2, ..Speech::default() });
    talk.want(1, "e d c b a");
    assert_eq!(said(talk.up()), ["sub 1 e,d", "sub 2 c,b", "sub 3 a"]);
}

#[test]
fn four_requests_wait_for_their_answers_at_most() {
    let mut talk = Talk::new(Speech { take: 1, ..Speech::default() });
    talk.want(1, "a b c d e f");
    assert_eq!(said(talk.up()), ["sub 1 a", "sub 2 b", "sub 3 c", "sub 4 d"]);
    assert_eq!(talk.reply(3, "+c"), ["c confirmed", "sub 5 e", "e pending"]);
    assert_eq!(said(talk.reply(1, "-a:no")), ["sub 6 f"], "a refusal is an answer");
}

#[test]
fn a_reply_may_speak_of_some_channels_and_another_of_the_rest() {
    let mut talk = Talk::new(Speech::default());
    talk.want(1, "a b c");
    talk.up();
    assert_eq!(talk.reply(1, "+b"), ["b confirmed"]);
    assert_eq!(talk.reply(1, "+c +b"), ["c confirmed"]);
    assert_eq!(talk.pass(10 * SEC), ["a wanted", "sub 2 a", "a pending"], "the rest is asked for again");
    assert_eq!(talk.reply(1, "+a"), ["a confirmed", "live"]);
}

#[test]
fn a_confirmation_of_channels_that_nobody_wants_changes_nothing() {
    let mut talk = Talk::new(Speech::default());
    talk.want(1, "a");
    talk.up();
    assert_eq!(talk.reply(1, "+x -y:no"), [""; 0]);
    assert_eq!(talk.reply(1, "-a:no"), ["a rejected: no", "event: a rejected: no"]);
    assert_eq!(talk.reply(1, "+a"), [""; 0], "it is not asked for");
    assert_eq!(talk.confirm("+x -y:no"), [""; 0]);
}

#[test]
fn a_channel_that_several_want_is_asked_for_once_and_kept_for_the_last() {
    let mut talk = Talk::live("a");
    assert_eq!(talk.want(2, "a"), [""; 0]);
    assert_eq!(talk.want(2, "a"), [""; 0], "who wants it twice counts once");
    assert_eq!(talk.unwant(2), [""; 0]);
    assert_eq!(talk.unwant(2), [""; 0]);
    assert_eq!(talk.unwant(1), ["a gone", "unsub 2 a"]);
}

#[test]
fn a_dialect_without_subscriptions_rejects_every_channel() {
    let dialect = Arc::new(crate::dialect::Plain);
    let mut talk = Talk { dialogue: Dialogue::new(dialect, rules(), Instant::now()), ..Talk::new(Speech::default()) };
    talk.want(1, "a b");
    let reported = talk.up();
    assert_eq!(reported.len(), 5);
    assert!(reported[1].starts_with("a rejected: ") && reported[4].starts_with("event: b rejected: "), "{reported:?}");
}

#[test]
fn a_channel_the_dialect_refuses_is_rejected_and_no_other() {
    let mut talk = Talk::new(Speech::default());
    talk.want(1, "a b c d BAD e f");
    let reported = talk.up();
    assert_eq!(said(reported.clone()), ["sub 2 a,b,c", "sub 5 d", "sub 8 e", "sub 9 f"]);
    assert!(reported.iter().any(|line| line.starts_with("event: BAD rejected: ")), "{reported:?}");
}

#[test]
fn a_dialect_that_names_no_channel_is_taken_to_name_one() {
    let mut talk = Talk::new(Speech { take: 0, ..Speech::default() });
    talk.want(1, "a b");
    assert_eq!(talk.up(), ["logged in", "sub 1 ", "a pending", "sub 2 ", "b pending"]);
}

// Rejections.

#[test]
fn a_rejected_channel_is_reported_and_asked_for_again_after_a_pause() {
    let mut talk = Talk::new(Speech::default());
    talk.want(1, "a b");
    talk.up();
    assert_eq!(
        talk.reply(1, "+a -b:no such channel"),
        ["a confirmed", "b rejected: no such channel", "event: b rejected: no such channel"]
    );
    assert_eq!(talk.pass(59 * SEC), [""; 0]);
    assert_eq!(talk.pass(SEC), ["b wanted", "sub 2 b", "b pending"]);
    assert_eq!(talk.reply(2, "+b"), ["b confirmed", "live"]);
}

#[test]
fn a_connection_is_live_once_nobody_wants_what_was_rejected() {
    let mut talk = Talk::live("a");
    talk.want(2, "b");
    assert_eq!(talk.reply(2, "-b:no"), ["b rejected: no", "event: b rejected: no"]);
    assert_eq!(talk.unwant(2), ["b gone", "live"], "and nothing is said of it");
    assert_eq!(talk.pass(100 * SEC), [""; 0]);
}

#[test]
fn a_rejected_channel_is_asked_for_at_once_when_it_is_wanted_again_or_the_wire_is_new() {
    let mut talk = Talk::new(Speech::default());
    talk.want(1, "a");
    talk.up();
    talk.reply(1, "-a:no");
    talk.pass(SEC);
    assert_eq!(talk.want(2, "a"), ["a wanted", "sub 2 a", "a pending"]);
    talk.reply(2, "+a");
    assert_eq!(talk.pass(100 * SEC), [""; 0], "its pause is forgotten");
    talk.lose();
    talk.up();
    talk.reply(4, "-a:no");
    assert_eq!(talk.lose(), ["a wanted"]);
    assert_eq!(talk.up(), ["logged in", "sub 6 a", "a pending"]);
    assert_eq!(talk.dialogue.next_deadline(), Some(talk.now + 10 * SEC));
}

// Unsubscribing.

#[test]
fn what_was_asked_for_or_confirmed_is_unsubscribed_in_common_messages() {
    let mut talk = Talk::new(Speech { take: 2, ..Speech::default() });
    talk.want(1, "c b a");
    talk.up();
    talk.reply(2, "+a");
    assert_eq!(talk.unwant(1), ["c gone", "b gone", "a gone", "unsub 3 c,b", "unsub 4 a", "live"]);
    assert!(talk.dialogue.awaits(&id(3)) && talk.dialogue.awaits(&id(4)));
    assert_eq!(talk.reply(3, "+c +b"), [""; 0]);
    assert_eq!(talk.reply(4, "-a:no"), [""; 0]);
}

#[test]
fn what_was_never_asked_for_goes_without_a_word() {
    let mut talk = Talk::new(Speech { take: 1, ..Speech::default() });
    talk.want(1, "a b c d");
    talk.want(2, "e");
    talk.up();
    assert_eq!(talk.unwant(2), ["e gone"]);
    talk.lose();
    assert_eq!(talk.unwant(1), ["a gone", "b gone", "c gone", "d gone"]);
    assert_eq!(talk.up(), ["logged in", "live"]);
}

#[test]
fn what_the_dialect_cannot_unsubscribe_is_left() {
    let mut talk = Talk::live("a STUCK b");
    assert_eq!(talk.unwant(1), ["a gone", "STUCK gone", "b gone", "unsub 3 a", "unsub 6 b"]);
}

#[test]
fn what_was_asked_for_on_another_wire_only_goes_without_a_word() {
    let mut talk = Talk::new(Speech { take: 1, ..Speech::default() });
    talk.want(1, "a b c d");
    talk.want(2, "e");
    talk.up();
    talk.reply(1, "+a");
    talk.reply(5, "+e");
    talk.lose();
    talk.up();
    assert_eq!(talk.confirm("+e"), [""; 0]);
    assert_eq!(talk.unwant(2), ["e gone"]);
}

#[test]
fn a_channel_refused_after_an_answer_was_missing_is_unsubscribed() {
    let mut talk = Talk::new(Speech { take: 1, ..Speech::default() });
    talk.want(1, "b c d e");
    talk.want(2, "a");
    talk.up();
    talk.reply(1, "-b:no");
    talk.pass(10 * SEC);
    talk.reply(5, "-a:no");
    assert_eq!(talk.unwant(2), ["a gone", "unsub 10 a"], "the venue may have accepted it the first time");
}

#[test]
fn late_data_and_late_confirmations_never_bring_a_channel_back() {
    let mut talk = Talk::new(Speech::default());
    talk.want(1, "a");
    talk.up();
    talk.unwant(1);
    assert_eq!(talk.data("a", "1>2"), [""; 0]);
    assert_eq!(talk.reply(1, "+a"), [""; 0]);
    assert_eq!(talk.confirm("+a"), [""; 0]);
    talk.lose();
    assert_eq!(talk.up(), ["logged in", "live"]);
}

#[test]
fn a_channel_wanted_again_is_subscribed_again_and_only_the_later_reply_counts() {
    let mut talk = Talk::new(Speech::default());
    talk.want(1, "a");
    talk.up();
    assert_eq!(talk.unwant(1), ["a gone", "unsub 2 a", "live"]);
    assert_eq!(talk.want(1, "a"), ["a wanted", "sub 3 a", "a pending", "not live"]);
    assert_eq!(talk.reply(1, "+a"), [""; 0]);
    assert_eq!(talk.reply(3, "+a"), ["a confirmed", "live"]);
}

#[test]
fn a_channel_dropped_and_wanted_again_is_not_confirmed_by_a_request_that_was_given_up() {
    let mut talk = Talk::new(Speech::default());
    talk.want(1, "a b");
    talk.up();
    talk.pass(10 * SEC);
    talk.unwant(1);
    assert_eq!(said(talk.want(1, "a")), ["sub 4 a"]);
    assert_eq!(talk.reply(1, "+a"), [""; 0]);
    assert_eq!(talk.reply(2, "-a:no"), [""; 0]);
    assert_eq!(talk.reply(4, "+a"), ["a confirmed", "live"]);
}

// Confirmations.

#[test]
fn confirmations_without_an_id_settle_whatever_is_asked_for() {
    let mut talk = Talk::new(Speech { no_ids: true, ..Speech::default() });
    talk.want(1, "a b c");
    talk.up();
    assert_eq!(talk.confirm("+b"), ["b confirmed"]);
    assert_eq!(talk.confirm("-c:no +a"), ["a confirmed", "c rejected: no", "event: c rejected: no"]);
    assert_eq!(talk.confirm("-a:no"), [""; 0], "it is confirmed already");
}

#[test]
fn a_request_without_an_answer_is_repeated_for_ever_and_counted() {
    let mut talk = Talk::new(Speech::default());
    talk.want(1, "a b");
    talk.up();
    assert_eq!(talk.pass(9 * SEC), [""; 0]);
    assert_eq!(talk.pass(SEC), ["a wanted", "b wanted", "sub 2 a,b", "a pending", "b pending"]);
    assert_eq!(said(talk.pass(100 * SEC)).len(), 10);
    assert_eq!(talk.dialogue.retries(), 11);
    assert_eq!(talk.reply(12, "+a +b"), ["a confirmed", "b confirmed", "live"]);
}

#[test]
fn a_request_given_up_leaves_alone_what_is_asked_for_by_a_later_one() {
    let mut talk = Talk::new(Speech::default());
    talk.want(1, "a");
    talk.want(2, "b");
    talk.up();
    talk.pass(5 * SEC);
    talk.unwant(1);
    assert_eq!(said(talk.want(1, "a")), ["sub 3 a"]);
    assert_eq!(talk.pass(5 * SEC), ["b wanted", "sub 4 b", "b pending"]);
}

#[test]
fn a_late_answer_counts_if_the_channel_was_wanted_all_the_time() {
    let mut talk = Talk::new(Speech::default());
    talk.want(1, "a");
    talk.up();
    talk.pass(10 * SEC);
    assert_eq!(talk.reply(1, "+a"), ["a confirmed", "live"]);
    assert_eq!(talk.reply(2, "-a:you have it"), [""; 0]);
}

#[test]
fn a_late_answer_counts_while_the_channel_waits_for_its_turn() {
    let mut talk = Talk::new(Speech { take: 1, ..Speech::default() });
    talk.want(1, "w x y z");
    talk.up();
    for (number, name) in [(1, "w"), (2, "x"), (3, "y"), (4, "z")] {
        talk.reply(number, &format!("-{name}:no"));
    }
    talk.pass(50 * SEC);
    assert_eq!(said(talk.want(2, "a b c")), ["sub 5 a", "sub 6 b", "sub 7 c"]);
    assert_eq!(said(talk.pass(10 * SEC)), ["sub 8 w", "sub 9 x", "sub 10 y", "sub 11 z"]);
    assert_eq!(talk.reply(5, "+a"), ["a confirmed"]);
    assert_eq!(talk.confirm("+b"), ["b confirmed"]);
    assert_eq!(talk.unwant(2), ["a gone", "b gone", "c gone", "unsub 12 a", "unsub 13 b", "unsub 14 c"]);
}

#[test]
fn a_request_that_waits_for_the_rate_limit_is_not_repeated() {
    let mut talk = Talk::new(Speech::default());
    talk.throttled = true;
    talk.want(1, "a");
    talk.up();
    assert_eq!(talk.pass(25 * SEC), [""; 0]);
    talk.release();
    assert_eq!(talk.pass(14 * SEC), [""; 0], "it has left a moment ago");
    assert_eq!(said(talk.pass(SEC)), ["sub 2 a"]);
}

// Loss and restore.

#[test]
fn channels_are_restored_in_the_order_in_which_they_were_first_wanted() {
    let mut talk = Talk::new(Speech { take: 3, ..Speech::default() });
    talk.want(1, "z b");
    talk.want(2, "a z m");
    talk.up();
    talk.reply(1, "+z +b +a");
    assert_eq!(talk.lose(), ["a wanted", "b wanted", "m wanted", "z wanted"]);
    assert!(!talk.dialogue.awaits(&id(1)) && !talk.dialogue.awaits(&id(2)));
    assert_eq!(talk.dialogue.next_deadline(), None);
    assert_eq!(talk.lose(), [""; 0]);
    assert_eq!(said(talk.up()), ["sub 4 z,b,a", "sub 5 m"]);
    assert_eq!(talk.reply(4, "+z +b +a").len(), 3);
    assert_eq!(talk.reply(5, "+m"), ["m confirmed", "live"]);
}

#[test]
fn a_wire_that_replaces_another_without_a_word_begins_anew() {
    let mut talk = Talk::live("a");
    assert_eq!(talk.up(), ["a wanted", "logged in", "sub 3 a", "a pending"]);
    talk.block(true);
    talk.pass(10 * SEC);
    assert_eq!(said(talk.up()), ["sub 5 a"]);
    assert_eq!(talk.pass(10 * SEC), ["a wanted", "sub 6 a", "a pending"], "reading is not stopped on a new wire");
    talk.lose();
    assert!(!talk.dialogue.awaits(&id(5)), "what was given up is forgotten too");
}

#[test]
fn channels_are_not_restored_if_that_is_off() {
    let mut talk = Talk::with(Speech::default(), Rules { restore: false, ..rules() });
    assert_eq!(talk.want(1, "a"), ["a wanted"]);
    assert_eq!(talk.lose(), [""; 0], "a wire that never opened had nothing to be restored");
    talk.up();
    talk.reply(1, "+a");
    assert_eq!(talk.lose(), ["a gone"]);
    assert_eq!(talk.want(2, "b"), ["b wanted"]);
    assert_eq!(talk.up(), ["logged in", "sub 3 b", "b pending"]);
}

#[test]
fn ten_thousand_channels_are_restored() {
    let mut talk = Talk::new(Speech { take: 10, ..Speech::default() });
    let names: Vec<Arc<str>> = (0..10_000).map(|number| format!("ticker.{number}").into()).collect();
    talk.dialogue.want(talk.now, 1, &names, Some(SEC), true);
    for _ in 0..3 {
        let mut waiting = VecDeque::from(said(talk.up()));
        let mut asked = 0;
        while let Some(request) = waiting.pop_front() {
            let words: Vec<&str> = request.split(' ').collect();
            asked += 1;
            let answer = words[2].split(',').map(|name| format!("+{name} ")).collect::<String>();
            let reported = talk.reply(words[1].parse().unwrap(), &answer);
            assert!(asked < 1000 || reported.last().unwrap() == "live");
            waiting.extend(said(reported));
            assert!(waiting.len() <= 4);
        }
        assert_eq!((asked, talk.dialogue.is_live()), (1000, true));
        assert_eq!(talk.lose().len(), 10_000);
    }
}

// Silence.

#[test]
fn a_channel_that_is_silent_for_too_long_is_subscribed_anew() {
    let mut talk = Talk::watching("a", Some(5 * SEC), false);
    talk.want(2, "b");
    talk.reply(2, "+b");
    assert_eq!(talk.pass(5 * SEC), ["event: a silent for 5s", "unsub 3 a", "a wanted", "sub 4 a", "a pending", "not live"]);
    assert_eq!(talk.pass(5 * SEC), [""; 0], "its clock starts when it is confirmed");
    assert_eq!(talk.reply(4, "+a"), ["a confirmed", "live"]);
    assert_eq!(talk.pass(5 * SEC).first().unwrap(), "event: a silent for 5s");
}

#[test]
fn data_puts_off_the_verdict_and_its_clock_is_looked_at_once_per_limit() {
    let mut talk = Talk::watching("a", Some(5 * SEC), false);
    for _ in 0..10 {
        let armed = talk.dialogue.next_deadline();
        talk.pass(SEC);
        talk.data("a", "tick");
        assert!(armed >= Some(talk.now));
    }
    assert_eq!(talk.pass(5 * SEC - Duration::from_nanos(1)), [""; 0]);
    assert_eq!(talk.pass(Duration::from_nanos(1)).first().unwrap(), "event: a silent for 5s");
}

#[test]
fn the_shortest_limit_of_those_who_want_a_channel_counts() {
    let mut talk = Talk::watching("a", Some(50 * SEC), false);
    talk.pass(2 * SEC);
    talk.want_on(2, "a", Some(5 * SEC), false);
    assert_eq!(talk.dialogue.next_deadline(), Some(talk.now + 3 * SEC));
    talk.unwant(2);
    assert_eq!(talk.pass(47 * SEC), [""; 0]);
    assert_eq!(talk.pass(SEC).first().unwrap(), "event: a silent for 50s");
    talk.unwant(1);
    assert!(!talk.dialogue.watches_data());
}

#[test]
fn a_limit_set_later_counts_from_then_on() {
    let mut talk = Talk::live("a");
    assert!(!talk.dialogue.watches_data());
    talk.pass(100 * SEC);
    talk.want_on(1, "a", Some(5 * SEC), false);
    assert!(talk.dialogue.watches_data());
    assert_eq!(talk.pass(4 * SEC), [""; 0]);
    assert_eq!(talk.pass(SEC).first().unwrap(), "event: a silent for 5s");
    talk.want_on(1, "a", None, false);
    assert!(!talk.dialogue.watches_data());
}

#[test]
fn nothing_is_silent_while_reading_is_stopped() {
    let mut talk = Talk::watching("a", Some(5 * SEC), false);
    talk.pass(4 * SEC);
    talk.block(true);
    assert_eq!(talk.dialogue.next_deadline(), None);
    assert_eq!(talk.pass(1000 * SEC), [""; 0]);
    talk.block(false);
    assert_eq!(talk.pass(5 * SEC - Duration::from_nanos(1)), [""; 0]);
    assert_eq!(talk.pass(Duration::from_nanos(1)).first().unwrap(), "event: a silent for 5s");
}

// Sequences.

#[test]
fn a_hole_in_the_sequence_of_a_channel_is_reported() {
    let mut talk = Talk::watching("a", None, true);
    assert_eq!(talk.data("a", "7>8"), [""; 0], "the first message is the base");
    assert_eq!(talk.data("a", "8>10"), [""; 0]);
    assert_eq!(talk.data("a", "15>16"), ["event: a misses 5"]);
    assert_eq!(talk.data("a", "16>17"), [""; 0]);
    assert_eq!(talk.data("a", "no number"), [""; 0]);
}

#[test]
fn duplicates_and_old_messages_are_no_holes_and_a_snapshot_is_a_new_base() {
    let mut talk = Talk::watching("a", None, true);
    for text in ["7>8", "7>8", "3>4", "8>9", ">20", "20>21"] {
        assert_eq!(talk.data("a", text), [""; 0], "{text}");
    }
    assert_eq!(talk.data("a", "19>22"), ["event: a misses 0"], "it does not join on");
}

#[test]
fn sequences_are_checked_only_while_somebody_wants_that() {
    let mut talk = Talk::watching("a", None, true);
    talk.data("a", "1>2");
    talk.want_on(1, "a", None, false);
    assert!(!talk.dialogue.watches_data());
    assert_eq!(talk.data("a", "8>9"), [""; 0]);
    talk.want_on(2, "a", None, true);
    assert_eq!(talk.data("a", "20>21"), [""; 0], "the first message is the base");
    talk.want_on(2, "a", Some(SEC), true);
    assert_eq!(talk.data("a", "30>31"), ["event: a misses 9"], "other terms leave the sequence alone");
}

#[test]
fn a_channel_with_a_hole_is_subscribed_anew_if_that_is_on() {
    let mut talk = Talk::with(Speech::default(), Rules { resubscribe_on_gap: true, ..rules() });
    talk.want_on(1, "a", None, true);
    talk.up();
    talk.reply(1, "+a");
    talk.data("a", "1>2");
    assert_eq!(talk.data("a", "5>6"), ["event: a misses 3", "unsub 2 a", "a wanted", "sub 3 a", "a pending", "not live"]);
    assert_eq!(talk.data("a", "7>8"), [""; 0], "it may belong to the old subscription");
    assert_eq!(talk.reply(1, "+a"), [""; 0]);
    talk.reply(3, "+a");
    assert_eq!(talk.data("a", "9>10"), [""; 0]);
}

#[test]
fn a_new_wire_begins_a_new_sequence() {
    let mut talk = Talk::watching("a", None, true);
    talk.data("a", "1>2");
    talk.lose();
    talk.up();
    talk.reply(3, "+a");
    assert_eq!(talk.data("a", "8>9"), [""; 0]);
}

// Time and memory.

#[test]
fn time_never_runs_backwards() {
    let mut talk = Talk::live("");
    talk.pass(100 * SEC);
    talk.now -= 50 * SEC;
    talk.want(1, "a");
    assert_eq!(talk.dialogue.next_deadline(), Some(talk.now + 60 * SEC));
}

#[test]
fn old_ids_are_forgotten_at_a_bound_but_not_those_that_are_awaited() {
    let mut talk = Talk::logged_in(Speech { steps: 1, refresh: Some(60 * SEC), ..Speech::default() });
    talk.pass(60 * SEC);
    talk.want(1, "a");
    for number in 0..=SAID_MAX {
        talk.dialogue.voice.say(String::new(), false, Some(id(number as u64 + 100)), None);
    }
    assert_eq!(
        [0, 2, 3, 100, 101, SAID_MAX as u64].map(|number| talk.dialogue.awaits(&id(number))),
        [false, true, true, false, true, true]
    );
}

#[test]
fn requests_have_numbers_of_their_own_across_wires() {
    let mut talk = Talk::new(Speech { steps: 1, ..Speech::default() });
    talk.up();
    talk.lose();
    talk.up();
    assert_eq!((id(0), talk.dialogue.awaits(&id(0))), (Id::Number(4_503_599_627_370_496), false));
    assert!(talk.dialogue.awaits(&id(1)));
}

/// A dialogue with a venue that the test plays.
struct Talk {
    dialogue: Dialogue,
    now: Instant,
    tickets: Vec<Arc<Ticket>>,
    /// Nothing leaves until it is released.
    throttled: bool,
}

impl Talk {
    fn new(speech: Speech) -> Self {
        Self::with(speech, rules())
    }

    fn with(speech: Speech, rules: Rules) -> Self {
        let now = Instant::now();
        Self { dialogue: Dialogue::new(Arc::new(speech), rules, now), now, tickets: Vec::new(), throttled: false }
    }

    /// All steps of the login are done.
    fn logged_in(speech: Speech) -> Self {
        let steps = speech.steps as u64;
        let mut talk = Self::new(speech);
        talk.up();
        for step in 0..steps {
            talk.reply(step, "yes");
        }
        assert!(talk.dialogue.is_live());
        talk
    }

    /// These channels are confirmed.
    fn live(names: &str) -> Self {
        Self::watching(names, None, false)
    }

    fn watching(names: &str, silence: Option<Duration>, sequenced: bool) -> Self {
        let mut talk = Self::new(Speech::default());
        talk.want_on(1, names, silence, sequenced);
        talk.up();
        if !names.is_empty() {
            talk.reply(1, &names.split(' ').map(|name| format!("+{name} ")).collect::<String>());
        }
        assert!(talk.dialogue.is_live());
        talk
    }

    fn up(&mut self) -> Vec<String> {
        self.dialogue.handle_upgraded(self.now, STAMP);
        self.deeds()
    }

    fn lose(&mut self) -> Vec<String> {
        self.dialogue.handle_lost(self.now);
        self.deeds()
    }

    fn want(&mut self, subscriber: u64, names: &str) -> Vec<String> {
        self.want_on(subscriber, names, None, false)
    }

    fn want_on(&mut self, subscriber: u64, names: &str, silence: Option<Duration>, sequenced: bool) -> Vec<String> {
        let names: Vec<Arc<str>> = names.split_whitespace().map(Arc::from).collect();
        self.dialogue.want(self.now, subscriber, &names, silence, sequenced);
        self.deeds()
    }

    fn unwant(&mut self, subscriber: u64) -> Vec<String> {
        self.dialogue.unwant(self.now, subscriber);
        self.deeds()
    }

    fn reply(&mut self, number: u64, text: &str) -> Vec<String> {
        assert!(self.dialogue.awaits(&id(number)));
        assert!(self.dialogue.handle_reply(self.now, STAMP, &id(number), text));
        self.deeds()
    }

    fn confirm(&mut self, text: &str) -> Vec<String> {
        self.dialogue.handle_confirmation(self.now, text);
        self.deeds()
    }

    fn data(&mut self, channel: &str, text: &str) -> Vec<String> {
        let gap = self.dialogue.handle_data(self.now, channel, text);
        gap.map(Deed::Emit).map(show).into_iter().chain(self.deeds()).collect()
    }

    fn block(&mut self, blocked: bool) {
        self.dialogue.handle_blocked(self.now, blocked);
    }

    /// Lets time pass from deadline to deadline.
    fn pass(&mut self, time: Duration) -> Vec<String> {
        let end = self.now + time;
        let mut deeds = Vec::new();
        while let Some(deadline) = self.dialogue.next_deadline().filter(|deadline| *deadline <= end) {
            self.now = deadline;
            self.dialogue.handle_timeout(self.now, STAMP);
            deeds.extend(self.deeds());
            assert!(self.dialogue.next_deadline().is_none_or(|next| next > self.now), "a deadline that stays is a hot loop");
        }
        self.now = end;
        self.dialogue.handle_timeout(self.now, STAMP);
        assert_eq!(self.deeds(), [""; 0], "a timeout without a deadline");
        deeds
    }

    /// What was throttled leaves.
    fn release(&mut self) {
        self.throttled = false;
        send(&mut self.tickets);
    }

    fn deeds(&mut self) -> Vec<String> {
        let deeds = self.dialogue.take_deeds();
        for deed in &deeds {
            if let Deed::Say { ticket, .. } = deed {
                self.tickets.extend(ticket.clone());
            }
        }
        if !self.throttled {
            send(&mut self.tickets);
        }
        deeds.into_iter().map(show).collect()
    }
}

fn send(tickets: &mut Vec<Arc<Ticket>>) {
    for ticket in tickets.drain(..) {
        ticket.begin();
        ticket.finish();
    }
}

pub(super) fn rules() -> Rules {
    Rules { confirm_timeout: 10 * SEC, retry: 60 * SEC, restore: true, resubscribe_on_gap: false }
}

pub(super) fn id(number: u64) -> Id {
    Id::Number((NUMBER_FIRST + number) as i64)
}

/// The requests to subscribe among what was done.
fn said(shown: Vec<String>) -> Vec<String> {
    shown.into_iter().filter(|line| line.starts_with("sub ")).collect()
}

fn show(deed: Deed) -> String {
    match deed {
        Deed::Say { text, urgent, .. } => format!("{}{text}", if urgent { "!" } else { "" }),
        Deed::LoggedIn => "logged in".into(),
        Deed::LoginFailed(Error::LoginRefused { reason, fatal }) => {
            format!("login failed: {reason}{}", if fatal { ", fatal" } else { "" })
        }
        Deed::Hangup(Error::LoginRefused { reason, fatal: false }) => format!("hangup: {reason}"),
        Deed::Standing(name, None) => format!("{name} gone"),
        Deed::Standing(name, Some(Standing::Wanted)) => format!("{name} wanted"),
        Deed::Standing(name, Some(Standing::Pending)) => format!("{name} pending"),
        Deed::Standing(name, Some(Standing::Confirmed)) => format!("{name} confirmed"),
        Deed::Standing(name, Some(Standing::Rejected(reason))) => format!("{name} rejected: {reason}"),
        Deed::Live(live) => if live { "live" } else { "not live" }.into(),
        Deed::Emit(Event::Rejected { channel, reason }) => format!("event: {channel} rejected: {reason}"),
        Deed::Emit(Event::ChannelSilent { channel, quiet }) => format!("event: {channel} silent for {quiet:?}"),
        Deed::Emit(Event::Gap { channel: Some(channel), missing }) => format!("event: {channel} misses {missing}"),
        Deed::Emit(_) | Deed::LoginFailed(_) | Deed::Hangup(_) => unreachable!("nothing else is done"),
    }
}

/// A language of few words. Numbers count from the first of the dialogue's own.
///
/// - `login NUMBER STEP REPLY TOKEN` is answered by any text; one that begins with `no: ` refuses.
/// - `sub NUMBER a,b` and `unsub NUMBER a,b` are answered by `+a -b:reason`.
/// - Data is `FOLLOWS>LAST`.
#[derive(Clone)]
pub(super) struct Speech {
    pub(super) steps: usize,
    pub(super) refresh: Option<Duration>,
    pub(super) token: Option<&'static str>,
    /// How many channels one message takes.
    pub(super) take: usize,
    /// Confirmations have no ids.
    pub(super) no_ids: bool,
}

impl Default for Speech {
    fn default() -> Self {
        Self { steps: 0, refresh: None, token: None, take: usize::MAX, no_ids: false }
    }
}

impl Speech {
    fn list(&self, verb: &str, number: u64, channels: &[&str]) -> Result<Subscribe> {
        let channels = &channels[..channels.len().min(self.take)];
        if channels.contains(&"BAD") || (verb == "unsub" && channels.contains(&"STUCK")) {
            return Err(Error::config("dialect", "no such channels"));
        }
        let text = format!("{verb} {} {}", number - NUMBER_FIRST, channels.join(","));
        Ok(Subscribe { text, id: (!self.no_ids).then_some(Id::Number(number as i64)), channels: channels.len() })
    }
}

impl Dialect for Speech {
    fn name(&self) -> &str {
        "speech"
    }

    fn classify<'a>(&self, _: &'a str) -> Inbound<'a> {
        Inbound::Message
    }

    fn subscribe(&self, number: u64, channels: &[&str]) -> Result<Subscribe> {
        self.list("sub", number, channels)
    }

    fn unsubscribe(&self, number: u64, channels: &[&str]) -> Result<Subscribe> {
        self.list("unsub", number, channels)
    }

    fn confirm(&self, reply: &str, _: &[&str]) -> Confirmation {
        let accepted = reply.split_whitespace().filter_map(|word| word.strip_prefix('+')).map(String::from).collect();
        let reasons = reply.split('-').skip(1).filter_map(|part| part.split('+').next()?.trim().split_once(':'));
        Confirmation { accepted, rejected: reasons.map(|(name, reason)| (name.into(), reason.into())).collect() }
    }

    fn sequence(&self, _: &str, text: &str) -> Option<Sequence> {
        let (follows, last) = text.split_once('>')?;
        Some(Sequence { follows: follows.parse().ok(), last: last.parse().ok()? })
    }

    fn login(&self, step: &LoginStep<'_>) -> Login {
        assert_eq!((step.unix, step.nonce, step.step == 0), (STAMP.unix, STAMP.nonce, step.reply.is_none()));
        if let Some(reason) = step.reply.and_then(|reply| reply.strip_prefix("no: ")) {
            return Login::Refused { reason: reason.into(), fatal: reason.contains("key") };
        }
        if step.step == self.steps {
            return Login::Done { refresh_after: self.refresh, token: self.token.map(Secret::new) };
        }
        let token = step.token.map_or(if step.is_refresh { "" } else { "-" }, Secret::expose);
        let text = format!("login {} {} {} {token}", step.number - NUMBER_FIRST, step.step, step.reply.unwrap_or("-"));
        Login::Send(Request { text, id: Id::Number(step.number as i64) })
    }
}
