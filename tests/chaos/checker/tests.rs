//! The checks' own tests: a right story passes, and each way to spoil it is found by the check that is
//! for it.

use super::{
    Story, Verdict, all, commands,
    commands::{ACCEPTED, COMMITS, IN_THE_LOG, QUEUED_ORDER, REFUSED, TURNED_AWAY, UNKNOWN},
    example::{SECOND_NS, accepted, call, commit, no_answer, refused, story, turned_away},
    reads::{ROWS, STATES},
    stored::{Outcome, STORED},
};
use crate::history::{Call, Seen, Told, Wanted, Way};

/// The check's finding in a spoilt story.
fn found(what: &str, story: &Story) -> Vec<String> {
    let verdict = all(story).into_iter().find(|verdict| verdict.what == what);
    verdict.unwrap_or_else(|| panic!("there is a check {what:?}")).violations
}

/// Spoils the story, and expects this check to find just that.
fn spoilt(what: &str, spoil: impl FnOnce(&mut Story)) -> String {
    let mut story = story();
    spoil(&mut story);
    let found = found(what, &story);
    assert_eq!(found.len(), 1, "{what}: {found:?}");
    found[0].clone()
}

fn of<'a>(story: &'a mut Story, key: &str) -> &'a mut Call {
    story.calls.iter_mut().find(|call| call.key == key).unwrap()
}

#[test]
fn a_right_story_has_no_violation_and_leaves_no_check_without_work() {
    for verdict in all(&story()) {
        assert_eq!(verdict.violations, Vec::<String>::new(), "{}", verdict.what);
        assert!(verdict.n > 0, "{} looked at something", verdict.what);
    }
}

#[test]
fn every_check_of_nothing_looks_at_nothing() {
    // A run in which nothing happened must not pass for a good one.
    let empty = Story { rebuilt: Some(Default::default()), ..Story::default() };
    let idle: Vec<Verdict> = all(&empty);
    let busy: Vec<&Verdict> = idle.iter().filter(|verdict| verdict.n > 0).collect();
    // That a listener hears nothing where there is nothing is looked at, and right.
    assert!(busy.iter().all(|verdict| verdict.what.starts_with("a listener")), "{busy:?}");
}

#[test]
fn a_lost_command_is_found() {
    let lose = |story: &mut Story| drop(story.log.commits.remove(1));
    let mut short = story();
    lose(&mut short);
    for what in [ACCEPTED, IN_THE_LOG] {
        // It was answered once as new and once as a repetition.
        let found = found(what, &short);
        assert!(found.len() == 2 && found[0].starts_with("LOST"), "{what}: {found:?}");
    }
}

#[test]
fn a_stored_command_that_is_lost_is_found() {
    for outcome in [None, Some(Outcome::Pending)] {
        let told = spoilt(STORED, |story| {
            story.log.commits.retain(|commit| commit.key != "queued");
            let (key, _) = story.outcomes.iter().find(|(key, _)| key.2 == "queued").unwrap();
            let key = key.clone();
            story.outcomes.remove(&key);
            story.outcomes.extend(outcome.map(|outcome| (key, outcome)));
            // A later commit has the version that it would have had.
            story.log.commits[3].changes[0].tag = "several".to_owned();
        });
        assert!(told.starts_with("LOST from the queue"), "{told}");
    }
}

#[test]
fn a_stored_command_that_stands_twice_in_part_or_changed_is_found() {
    let doubled = |story: &mut Story| {
        let mut again = story.log.commits[2].clone();
        (again.first, again.last, again.sequence) = (9, 9, 7);
        again.stored_ms += 10_000;
        story.log.commits.push(again);
    };
    assert!(spoilt(STORED, doubled).starts_with("stands more than once"));
    assert!(spoilt(COMMITS, doubled).starts_with("stands once more"));
    let changed = |story: &mut Story| story.log.commits[2].changes[0].amount = 50;
    for what in [STORED, COMMITS] {
        assert!(spoilt(what, changed).starts_with("is in part, or changed"));
    }
    let in_part = |story: &mut Story| drop(story.log.commits[3].changes.pop());
    assert!(spoilt(STORED, in_part).starts_with("is in part, or changed"));
    // A writer that expected the version after the whole of it is found out, too.
    let mut story = story();
    in_part(&mut story);
    let found = found(COMMITS, &story);
    assert!(found.len() == 2 && found[0].starts_with("is in part, or changed"), "{found:?}");
}

#[test]
fn a_stored_command_with_a_wrong_outcome_is_found() {
    let say = |key: &'static str, outcome: Outcome| {
        spoilt(STORED, move |story| {
            let of = story.outcomes.iter_mut().find(|(name, _)| name.2 == key).unwrap();
            *of.1 = outcome;
        })
    };
    let no = |code: &str| Outcome::Refused { code: code.to_owned() };
    let dead = || Outcome::Dead { reason: "delivered 11 times".to_owned() };
    let there = || Outcome::Accepted { version: 3, sequence: Some(3) };
    assert!(say("much", no("already_open")).starts_with("was refused without a reason"));
    assert!(say("much", dead()).starts_with("was put aside without a reason"));
    assert!(say("much", there()).starts_with("is said to be accepted"));
    assert!(say("much", Outcome::Pending).starts_with("LOST"));
    assert!(say("much", Outcome::Strange("500".to_owned())).starts_with("has no outcome"));
    assert!(say("nothing", no("too_little")).starts_with("was refused without a reason"));
    assert!(say("queued", no("too_little")).starts_with("stands in the log, and something else"));
    assert!(say("queued", dead()).starts_with("stands in the log, and something else"));
    let elsewhere = Outcome::Accepted { version: 3, sequence: Some(4) };
    assert!(say("queued", elsewhere).starts_with("is said to stand elsewhere"));
}

#[test]
fn an_answer_that_says_something_else_than_the_log_is_found() {
    let wrong = |change: fn(&mut Story), what: &str| {
        let told = spoilt(ACCEPTED, change);
        assert!(told.starts_with(what), "{what}: {told}");
    };
    wrong(|story| story.log.commits[4].account = "b".to_owned(), "stands at another account");
    wrong(|story| story.log.commits[4].last += 1, "has another version");
    wrong(|story| story.log.commits[4].changes[0].tag = "x".to_owned(), "has another's payload");
    wrong(|story| of(story, "second").told = accepted(7, 6), "stands elsewhere");
    wrong(|story| story.log.commits[4].stored_ms += 600, "was answered before it was stored");
    wrong(|story| story.calls[15].told = accepted(2, 2), "was answered as new");
}

#[test]
fn what_nobody_sent_or_the_rules_forbid_is_found() {
    let phantom = |story: &mut Story| story.log.commits.push(commit("phantom", 30, 9, 9));
    assert!(spoilt(COMMITS, phantom).starts_with("nobody sent"));
    let another_tenant = |story: &mut Story| {
        let mut leaked = commit("queued", 14, 1, 9);
        leaked.tenant = "birch".to_owned();
        story.log.commits.push(leaked);
    };
    assert!(spoilt(COMMITS, another_tenant).starts_with("nobody sent"));
    let overdrawn = |story: &mut Story| {
        of(story, "silent").wanted = Wanted::Withdraw { amount: 500 };
        let change = &mut story.log.commits[5].changes[0];
        (change.event, change.amount) = ("withdrawn".to_owned(), 500);
    };
    for what in [COMMITS, UNKNOWN] {
        let mut story = story();
        overdrawn(&mut story);
        assert_eq!(found(what, &story).len(), 1, "{what}");
    }
    let expects = |story: &mut Story| of(story, "second").if_match = Some(5);
    assert!(spoilt(COMMITS, expects).starts_with("expected another version"));
}

#[test]
fn what_was_turned_away_and_done_all_the_same_is_found() {
    // Only turned away, and there; or there before it was sent again.
    let only = |story: &mut Story| {
        story.calls.push(call("away", 24, turned_away()));
        story.log.commits.push(commit("away", 24, 9, 7));
    };
    let before = |story: &mut Story| {
        only(story);
        let replayed = Told::Accepted { version: 9, sequence: Some(7), replayed: true };
        story.calls.push(call("away", 26, replayed));
    };
    let spoils: [&dyn Fn(&mut Story); 2] = [&only, &before];
    for spoil in spoils {
        spoilt(TURNED_AWAY, spoil);
        assert!(spoilt(COMMITS, spoil).starts_with("everybody was told that nothing was done"));
    }
    // Sent again, and stored then: right.
    let mut after = story();
    before(&mut after);
    after.log.commits[6].stored_ms += 2_000;
    after.calls.last_mut().unwrap().told = accepted(9, 7);
    assert!(found(TURNED_AWAY, &after).is_empty() && found(COMMITS, &after).is_empty());
    // No connection is a word that nothing was done, too.
    spoilt(TURNED_AWAY, |story| {
        only(story);
        story.calls.last_mut().unwrap().told = Told::NotSent;
    });
}

#[test]
fn a_refusal_without_a_reason_is_found() {
    let say = |key: &'static str, code: &'static str| {
        let told = spoilt(REFUSED, |story| of(story, key).told = refused(code));
        assert!(told.starts_with("was refused without a reason"), "{key} {code}: {told}");
    };
    say("early", "too_little");
    say("again", "not_open");
    say("more", "already_open");
    say("more", "invalid-payload");
    say("more", "version-mismatch");
    say("more", "idempotency-key-reused");
    say("rival", "conflict");
    say("more", "unauthorized");
    say("rival", "too_little");
    // The reason was gone before the call began, or came after it had ended.
    let late = |story: &mut Story| {
        let early = of(story, "early");
        (early.start_ns, early.end_ns) = (12 * SECOND_NS, 13 * SECOND_NS);
    };
    let soon = |story: &mut Story| {
        let again = of(story, "again");
        (again.start_ns, again.end_ns) = (10 * SECOND_NS, 10 * SECOND_NS + SECOND_NS / 10);
    };
    assert!(spoilt(REFUSED, late).starts_with("was refused without a reason"));
    assert!(spoilt(REFUSED, soon).starts_with("was refused without a reason"));
    let fits = |story: &mut Story| {
        let more = of(story, "more");
        more.wanted = Wanted::Withdraw { amount: 20 };
    };
    assert!(spoilt(REFUSED, fits).starts_with("was refused without a reason"));
}

#[test]
fn a_refused_command_with_an_event_is_found() {
    let only = |story: &mut Story| {
        of(story, "more").wanted = Wanted::Deposit { amount: 5, parts: 1 };
        story.log.commits.push(commit("more", 21, 9, 7));
    };
    assert!(spoilt(REFUSED, only).starts_with("was done all the same"));
    let before = |story: &mut Story| story.calls.push(call("first", 24, refused("too_little")));
    assert!(spoilt(REFUSED, before).starts_with("was recorded before"));
}

#[test]
fn half_an_unknown_command_and_two_of_it_are_found() {
    let half = |story: &mut Story| {
        of(story, "silent").wanted = Wanted::Deposit { amount: 5, parts: 2 };
    };
    assert!(spoilt(UNKNOWN, half).starts_with("more than once, or in part"));
    let two = |story: &mut Story| story.log.commits.push(commit("silent", 21, 9, 7));
    assert!(spoilt(UNKNOWN, two).starts_with("more than once, or in part"));
}

#[test]
fn two_winners_of_one_version_are_found() {
    let told = spoilt("of commands that expect one version one wins", |story| {
        of(story, "rival").told = accepted(9, 7);
        story.log.commits.push(commit("rival", 19, 9, 7));
    });
    assert!(told.contains("second won"), "{told}");
}

#[test]
fn a_commit_before_what_its_sender_may_have_known_is_found() {
    let told = spoilt("a commit comes behind what was known when it was sent", |story| {
        // "second" was accepted before "silent" was sent, and stands behind it.
        let (second, silent) = (story.log.commits[4].clone(), story.log.commits[5].clone());
        (story.log.commits[4].key, story.log.commits[5].key) = (silent.key, second.key);
        let (second, silent) = (second.changes, silent.changes);
        (story.log.commits[4].changes, story.log.commits[5].changes) = (silent, second);
        story.log.commits[4].stored_ms += 2_000;
        of(story, "second").told = accepted(8, 6);
    });
    assert!(told.contains("silent"), "{told}");
}

#[test]
fn queued_commands_out_of_order_are_found() {
    let mut story = story();
    let mut queue = |key: &str, sent_ns: u64, sequence: u64| {
        let mut queued = call(key, 0, Told::Queued);
        let sent_ns = 30 * SECOND_NS + sent_ns;
        (queued.way, queued.start_ns, queued.end_ns) = (Way::Publish, sent_ns, sent_ns + 10);
        story.calls.push(queued);
        story.log.commits.push(commit(key, 31, sequence, sequence));
    };
    queue("one", 1_000, 15);
    // At the same time as the first: either may be first.
    queue("two", 1_005, 14);
    queue("three", 2_000, 20);
    queue("four", 3_000, 17);
    let told = found(QUEUED_ORDER, &story);
    assert!(told.len() == 1 && told[0].contains("three was stored first, and is behind four"));
    // Sent to its owner as well, it may come early; and the one before may come late.
    for key in ["four", "three"] {
        let mut story = story.clone();
        story.calls.push(call(key, 31, accepted(7, 7)));
        assert_eq!(found(QUEUED_ORDER, &story).len(), 0, "{key}");
    }
}

#[test]
fn a_late_repetition_that_is_done_again_is_found() {
    let check = |told: Told, again: bool| {
        let mut story = story();
        for n in 0..2_000 {
            let (key, version) = (format!("n{n}"), n + 9);
            story.log.commits.push(commit(&key, 24, version, n + 7));
            story.calls.push(call(&key, 24, accepted(version, n + 7)));
        }
        if again {
            story.log.commits.push(commit("first", 30, 2_009, 2_007));
        }
        story.calls.push(call("first", 30, told));
        let verdict = commands::late_repeats_are_known(&story);
        (verdict.n, verdict.violations.len())
    };
    let replayed = Told::Accepted { version: 2, sequence: Some(2), replayed: true };
    assert_eq!(check(replayed, false), (1, 0));
    assert_eq!(check(accepted(2_009, 2_007), true), (1, 1));
    assert_eq!(check(accepted(2, 2), false), (1, 1), "as if it were new");
    assert_eq!(check(refused("idempotency-key-reused"), false), (1, 1));
    assert_eq!(commands::late_repeats_are_known(&story()).n, 0, "none is that late");
}

#[test]
fn a_row_that_is_none_of_the_accounts_is_found() {
    let check = |seen: Seen| {
        let mut story = story();
        story.reads[5].seen = seen;
        found(ROWS, &story).len()
    };
    let shown = |change: fn(&mut (String, crate::evidence::Row))| {
        let Seen::Rows(mut rows) = story().reads.swap_remove(5).seen else { unreachable!() };
        change(&mut rows[0]);
        check(Seen::Rows(rows))
    };
    assert_eq!(shown(|_| {}), 0);
    assert_eq!(shown(|(_, row)| row.deposited = 5), 1, "another sum");
    assert_eq!(shown(|(_, row)| (row.version, row.changes, row.deposited) = (1, 0, 0)), 1, "old");
    assert_eq!(shown(|(_, row)| row.version = 4), 1, "in the middle of a commit");
    assert_eq!(shown(|(_, row)| row.version = 9), 1, "of the future");
    assert_eq!(shown(|(account, _)| *account = "b".to_owned()), 1, "another's");
    assert_eq!(check(Seen::Rows(Vec::new())), 1, "none");
    let two = |row: &(String, _)| Seen::Rows(vec![row.clone(), row.clone()]);
    let Seen::Rows(rows) = story().reads.swap_remove(5).seen else { unreachable!() };
    assert_eq!(check(two(&rows[0])), 1, "somebody else's beside it");
    // 401 and 404 are wrong, and silence does not count as good.
    let not = |status| Seen::Not { status, retry_after: false };
    assert_eq!((check(not(401)), check(not(404)), check(not(503))), (1, 1, 0));
    let mut silent = story();
    silent.reads[5].seen = Seen::Nothing { why: "Timeout".to_owned() };
    let verdict = all(&silent).into_iter().find(|verdict| verdict.what == ROWS).unwrap();
    assert_eq!((verdict.n, verdict.violations.len()), (0, 0));
}

#[test]
fn states_and_events_that_are_not_the_logs_are_found() {
    let check = |read: usize, seen: Seen| {
        let mut story = story();
        story.reads[read].seen = seen;
        found(STATES, &story).len()
    };
    let state = |version, balance| Seen::State { version, branch: "b0".to_owned(), balance };
    assert_eq!(check(1, state(1, 0)), 0);
    assert_eq!(check(1, state(1, 7)), 1, "another balance");
    assert_eq!(check(1, state(2, 5)), 1, "of the future");
    assert_eq!(check(3, state(1, 0)), 1, "of the past: version 2 was known");
    let not = |status| Seen::Not { status, retry_after: false };
    assert_eq!((check(3, not(404)), check(3, not(401)), check(3, not(503))), (1, 1, 0));
    let Seen::Events { events, .. } = story().reads.swap_remove(2).seen else { unreachable!() };
    let with = |change: fn(&mut Vec<(u64, crate::evidence::Change)>), more| {
        let mut events = events.clone();
        change(&mut events);
        check(2, Seen::Events { events, more })
    };
    assert_eq!(with(|_| {}, false), 0);
    assert_eq!(with(|events| events.clear(), true), 0, "a short page");
    assert_eq!(with(|events| events.clear(), false), 1, "version 2 was known");
    assert_eq!(with(|events| events[0].1.amount = 6, false), 1);
    assert_eq!(with(|events| events[0].0 = 3, false), 1);
    assert_eq!(with(|events| events.push(events[0].clone()), false), 1);
    // No answer.
    assert_eq!(check(2, Seen::Nothing { why: no_answer_why() }), 0);
}

fn no_answer_why() -> String {
    let Told::NoAnswer { why } = no_answer() else { unreachable!() };
    why
}
