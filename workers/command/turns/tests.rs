use std::{sync::OnceLock, time::Duration};

use super::*;
use crate::command::some_keys::key;

fn at() -> Instant {
    static AT: OnceLock<Instant> = OnceLock::new();
    *AT.get_or_init(Instant::now)
}

/// Nobody is held back but by this bound.
fn turns(at_once_max: usize) -> Turns<&'static str> {
    Turns::new(at_once_max, Beside::new(1 << 20, 1 << 20))
}

fn begun(turns: &mut Turns<&'static str>) -> Vec<&'static str> {
    std::iter::from_fn(|| turns.next(at()).map(|(_, asked)| asked)).collect()
}

#[test]
fn a_tenants_flood_holds_up_nobody_elses_next_command() {
    let mut turns = turns(1_000);
    for id in 0..10_000 {
        turns.push(key("flood", id), Class::Stored, "flood", at());
    }
    turns.push(key("calm", 0), Class::Waiting, "calm", at());
    turns.push(key("flood", 10_000), Class::Waiting, "its own client", at());
    let first: Vec<_> = (0..4).map(|_| turns.next(at()).unwrap().1).collect();
    assert_eq!(first, ["flood", "calm", "its own client", "flood"]);
}

#[test]
fn what_one_has_under_way_is_bounded_and_goes_on_when_it_ends() {
    let mut turns = turns(3);
    for id in 0..5 {
        turns.push(key("flood", id), Class::Stored, "flood", at());
    }
    assert_eq!(begun(&mut turns).len(), 3);
    turns.push(key("flood", 9), Class::Waiting, "client", at());
    turns.push(key("calm", 9), Class::Stored, "calm", at());
    assert_eq!(begun(&mut turns), ["client", "calm"], "each has its own bound");
    turns.ended(&key("flood", 1), at());
    assert_eq!(begun(&mut turns), ["flood"]);
    for id in [0, 2, 3, 4] {
        turns.ended(&key("flood", id), at());
    }
    assert_eq!(begun(&mut turns), ["flood"]);
    turns.ended(&key("flood", 4), at());
    turns.ended(&key("flood", 9), at());
    turns.ended(&key("calm", 9), at());
    assert!(turns.aggregates.is_empty() && turns.under_way.is_empty());
    assert!(turns.queues.is_empty() && turns.held.is_empty());
}

/// A tenant with one aggregate that everything is for has its other slots go on.
#[test]
fn what_waits_for_an_aggregate_under_way_counts_once() {
    let mut turns = turns(2);
    for _ in 0..50 {
        turns.push(key("acme", 0), Class::Stored, "hot", at());
    }
    turns.push(key("acme", 1), Class::Stored, "other", at());
    assert_eq!(begun(&mut turns), ["hot", "other"]);
    // All that may be under way, and more is asked of both.
    turns.push(key("acme", 0), Class::Stored, "hot", at());
    turns.push(key("acme", 1), Class::Stored, "other again", at());
    turns.push(key("acme", 2), Class::Stored, "third", at());
    assert!(begun(&mut turns).is_empty());
    turns.ended(&key("acme", 0), at());
    turns.ended(&key("acme", 1), at());
    assert_eq!(begun(&mut turns), ["hot", "other again"]);
}

/// An aggregate was closed to clients until they gave up.
#[test]
fn clients_go_on_beside_a_stored_command_that_waits_for_its_decider_and_stored_ones_do_not() {
    let (mut turns, key_0, key_1) = (turns(1), key("acme", 0), key("acme", 1));
    turns.push(key_0.clone(), Class::Stored, "stored", at());
    turns.push(key_0.clone(), Class::Stored, "second", at());
    turns.push(key_0.clone(), Class::Waiting, "client", at());
    assert_eq!(begun(&mut turns), ["stored"]);
    turns.waits(&key_0, at());
    assert_eq!(begun(&mut turns), ["client"]);
    turns.push(key_0.clone(), Class::Stored, "third", at());
    turns.push(key_1.clone(), Class::Stored, "other", at());
    turns.ended(&key_0, at());
    assert!(begun(&mut turns).is_empty(), "what waits counts");
    turns.push(key_1.clone(), Class::Waiting, "other client", at());
    assert_eq!(begun(&mut turns), ["other client"]);
    turns.ended(&key_1, at());
    turns.waits_no_more(&key_0, at());
    assert_eq!(begun(&mut turns), ["second"]);
    turns.waits(&key_0, at());
    assert!(turns.take_stored(key_0.slot(), at()).contains(&"third"));
    turns.waits_no_more(&key_0, at());
    assert!(turns.waits.is_empty() && turns.under_way.is_empty());
}

#[test]
fn in_an_aggregate_clients_and_stored_commands_take_turns() {
    let mut turns = turns(8);
    for _ in 0..4 {
        turns.push(key("acme", 0), Class::Stored, "stored", at());
    }
    for asked in ["a", "b"] {
        turns.push(key("acme", 0), Class::Waiting, asked, at());
    }
    let mut order = begun(&mut turns);
    while !turns.under_way.is_empty() {
        turns.ended(&key("acme", 0), at());
        order.extend(begun(&mut turns));
    }
    assert_eq!(order, ["stored", "a", "stored", "b", "stored", "stored"]);
}

/// Begins with all that wait and ends them at once, so many times. Returns how often each one
/// came.
fn work(turns: &mut Turns<&'static str>, times: usize) -> (usize, usize) {
    let (mut flood, mut calm) = (0, 0);
    for _ in 0..times {
        let Some((key, asked)) = turns.next(at()) else { break };
        *(if asked == "calm" { &mut calm } else { &mut flood }) += 1;
        turns.ended(&key, at());
    }
    (flood, calm)
}

#[test]
fn a_flood_has_few_under_way_beside_somebody_who_keeps_within_a_share() {
    let mut turns = Turns::new(512, Beside::new(64, 1));
    for id in 0..1_000 {
        turns.push(key("flood", id), Class::Stored, "flood", at());
        turns.push(key("flood", 10_000 + id), Class::Waiting, "flood", at());
    }
    turns.push(key("calm", 0), Class::Waiting, "calm", at());
    assert_eq!(begun(&mut turns), ["flood", "calm"], "one each");
    turns.ended(&key("calm", 0), at());
    turns.ended(&key("flood", 0), at());
    assert_eq!(begun(&mut turns), ["flood"]);
    let client = key("flood", 10_000);
    assert!(turns.under_way.contains_key(&client), "stored ones and clients in turn");
    let later = at() + Duration::from_secs(2);
    turns.ended(&client, later);
    let alone = std::iter::from_fn(|| turns.next(later)).count();
    assert!(alone > 500, "{alone} when it is alone again");
}

#[test]
fn what_was_begun_before_somebody_came_is_all_that_is_before_it() {
    let mut turns = Turns::new(512, Beside::new(64, 1));
    for round in 0..3 {
        for id in 0..400 {
            let asked = ["first", "second", "third"][round];
            turns.push(key("flood", id), Class::Stored, asked, at());
        }
    }
    assert_eq!(begun(&mut turns).len(), 400);
    turns.push(key("calm", 0), Class::Waiting, "calm", at());
    assert_eq!(begun(&mut turns), ["calm"]);
    for id in 0..399 {
        turns.ended(&key("flood", id), at());
        assert!(begun(&mut turns).is_empty(), "it has enough under way");
    }
    turns.ended(&key("flood", 399), at());
    assert_eq!(begun(&mut turns).len(), 1);
    // All of them come, and those of an aggregate in order.
    turns.ended(&key("calm", 0), at());
    let last = turns.under_way.keys().next().unwrap().clone();
    turns.ended(&last, at());
    assert_eq!(work(&mut turns, usize::MAX).0, 799);
    assert!(turns.aggregates.is_empty() && turns.queues.is_empty() && turns.held.is_empty());
}

#[test]
fn an_aggregate_that_goes_on_and_on_holds_up_nobody_of_its_tenant() {
    for busy in [Class::Stored, Class::Waiting] {
        let mut turns = Turns::new(512, Beside::new(64, 1));
        for calm in ["calm1", "calm2", "calm3"] {
            turns.push(key(calm, 0), Class::Waiting, calm, at());
        }
        for _ in 0..256 {
            turns.push(key("busy", 0), busy, "more", at());
        }
        turns.push(key("busy", 1), busy.other(), "the other", at());
        let mut came = begun(&mut turns);
        assert!(!came.contains(&"the other"), "what its tenant wants is much");
        for _ in 0..10 {
            // Another one comes for each.
            turns.ended(&key("busy", 0), at());
            turns.push(key("busy", 0), busy, "more", at());
            came.extend(begun(&mut turns));
        }
        assert!(came.contains(&"the other"), "{busy:?}: {came:?}");
    }
}

#[test]
fn an_aggregates_commands_of_a_class_keep_their_order() {
    let mut turns = turns(1);
    for asked in ["a", "b", "c"] {
        turns.push(key("acme", 0), Class::Stored, asked, at());
        turns.push(key("calm", 0), Class::Stored, "-", at());
    }
    let mut order = begun(&mut turns);
    for _ in 0..2 {
        turns.ended(&key("acme", 0), at());
        turns.ended(&key("calm", 0), at());
        order.extend(begun(&mut turns));
    }
    assert_eq!(order, ["a", "-", "b", "-", "c", "-"]);
}

#[test]
fn whoever_has_used_much_rests_beside_others_and_then_goes_on() {
    let (limit, flood) = (Duration::from_millis(100), Tenant::parse("flood").unwrap());
    let mut turns = turns(8);
    for class in [Class::Waiting, Class::Stored] {
        for id in 0..4 {
            turns.push(key("flood", id), class, "flood", at());
        }
    }
    for _ in 0..100 {
        assert_eq!(turns.used(&flood, limit, at()), None, "it is alone");
    }
    assert_eq!(begun(&mut turns).len(), 4, "one an aggregate");
    turns.push(key("calm", 0), Class::Waiting, "calm", at());
    let until = (0..100).find_map(|_| turns.used(&flood, limit, at())).unwrap();
    turns.ended(&key("flood", 0), at());
    turns.ended(&key("flood", 1), at());
    assert_eq!(begun(&mut turns), ["calm"]);
    turns.rested(&flood, at());
    assert!(turns.next(at()).is_none(), "too early");
    turns.rested(&flood, until);
    let rest: Vec<_> = std::iter::from_fn(|| turns.next(until)).collect();
    assert_eq!(rest.len(), 2, "one for each aggregate that has nothing under way");
}

/// A number above 0 of an aggregate that is in the slot of the tenant's number 0, or is not.
fn in_slot_of_the_first(tenant: &str, is_in: bool) -> usize {
    let slot = key(tenant, 0).slot();
    (1..).find(|id| (key(tenant, *id).slot() == slot) == is_in).unwrap()
}

#[test]
fn what_is_stored_for_a_slot_that_is_left_is_taken_out_and_all_else_goes_on() {
    let mut turns = turns(1);
    let slot = key("acme", 0).slot();
    let (same, other) = (in_slot_of_the_first("acme", true), in_slot_of_the_first("acme", false));
    turns.push(key("acme", 0), Class::Stored, "begun", at());
    turns.push(key("acme", 0), Class::Stored, "behind it", at());
    assert_eq!(begun(&mut turns), ["begun"]);
    turns.push(key("acme", same), Class::Stored, "waits", at());
    turns.push(key("acme", other), Class::Stored, "elsewhere", at());
    turns.push(key("acme", 0), Class::Waiting, "client", at());
    assert!(begun(&mut turns).is_empty());
    let mut taken = turns.take_stored(slot, at());
    taken.sort_unstable();
    assert_eq!(taken, ["behind it", "waits"]);
    assert!(turns.take_stored(slot, at()).is_empty());
    turns.ended(&key("acme", 0), at());
    assert_eq!(begun(&mut turns), ["client"]);
    turns.ended(&key("acme", 0), at());
    assert_eq!(begun(&mut turns), ["elsewhere"]);
    turns.ended(&key("acme", other), at());
    assert!(turns.under_way.is_empty() && turns.aggregates.is_empty());
    assert!(turns.queues.is_empty() && turns.order.is_empty() && turns.held.is_empty());
}

/// Left where they stood, they would have had two turns for one, or none.
#[test]
fn whoever_has_nothing_left_of_a_slot_lines_up_anew() {
    let mut turns = turns(1);
    let slot = key("acme", 0).slot();
    let same = in_slot_of_the_first("acme", true);
    turns.push(key("acme", 0), Class::Stored, "in the order", at());
    assert_eq!(turns.take_stored(slot, at()), ["in the order"]);
    assert!(turns.order.is_empty() && turns.queues.is_empty());
    turns.push(key("acme", 0), Class::Stored, "begun", at());
    assert_eq!(begun(&mut turns), ["begun"]);
    turns.push(key("acme", same), Class::Stored, "held", at());
    assert!(begun(&mut turns).is_empty());
    assert_eq!(turns.take_stored(slot, at()), ["held"]);
    assert!(turns.held.is_empty());
    turns.push(key("acme", same), Class::Stored, "the next owner's", at());
    turns.ended(&key("acme", 0), at());
    assert_eq!(begun(&mut turns), ["the next owner's"]);
}
