//! An aggregate's memory, held to a plain map; and the way in which its lane uses it.

use std::collections::HashMap;

use flexcore_domain::{CommandHash, CommandId, Outcome, Secret, limits};
use flexcore_eventstore::{
    Error, Recorded,
    snapshot::{OlderCommands, RememberedCommand, Snapshot},
};

use super::{
    lane::Lane,
    lane_tests::{
        append, appended, deployed, key, lane, loaded, outcomes, recorded, started, unavailable, up,
    },
    memory::{Memory, Recall},
    messages::{Action, Input, Loaded, Work},
};

const RECENT: u64 = limits::COMMAND_IDS_REMEMBERED as u64;
const BLOCK: u64 = limits::FINGERPRINTS_PER_BLOCK as u64;

fn id(text: &str) -> CommandId {
    CommandId::parse(text).unwrap()
}

fn secret(number: u8) -> Secret {
    [number; 16].into()
}

fn accepted(id_: &str, version: u64, sequence: u64) -> RememberedCommand {
    RememberedCommand { id: id(id_), hash: CommandHash::of(id_, ""), version, sequence }
}

/// The memory's answer once the log is asked, if it wants that. Fails when the log must be asked at
/// more than a few places.
fn said<'a>(
    memory: &'a Memory,
    log: &'a HashMap<u64, RememberedCommand>,
    of: &CommandId,
) -> Option<&'a RememberedCommand> {
    match memory.recall(of) {
        Recall::Known(known) => Some(known),
        Recall::Never => None,
        Recall::Perhaps(places) => {
            assert!(places.is_sorted() && places.len() <= 3, "{places:?}");
            places.iter().map(|place| &log[place]).find(|command| command.id == *of)
        }
    }
}

/// As through a snapshot and its blocks, which the broker keeps as text.
fn restored(memory: &Memory, broker: &mut Vec<String>) -> Memory {
    let (commands, older) = memory.save();
    for block in &older.blocks[older.kept..] {
        broker.push(serde_json::to_string(&**block).unwrap());
    }
    let text = serde_json::to_string(&older).unwrap();
    let mut read: OlderCommands = serde_json::from_str(&text).unwrap();
    assert!(text.len() < 100_000 && read.blocks.is_empty(), "{} bytes", text.len());
    assert_eq!(read.full, broker.len());
    read.blocks = broker.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
    Memory::restore(&commands, &read)
}

#[test]
fn a_memory_says_what_a_map_of_all_commands_says() {
    for seed in 1_u64..=2 {
        let mut memory = Memory::new(secret(7));
        let (mut model, mut log) = (HashMap::<String, RememberedCommand>::new(), HashMap::new());
        let (mut random, mut broker, mut sequence) = (seed, Vec::new(), 0);
        for step in 0..3 * BLOCK + RECENT {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Every fourth is a repetition, of any age.
            let number = if random % 4 == 0 { (random >> 8) % (step + 1) } else { step };
            let name = format!("command-{number}");
            let first = said(&memory, &log, &id(&name));
            assert_eq!(first, model.get(&name), "seed {seed}, step {step}");
            if first.is_none() {
                sequence += 1 + random % 1_000;
                let command = accepted(&name, step, sequence);
                log.insert(sequence, command.clone());
                model.insert(name, command.clone());
                memory.remember(command);
            }
            if step % 2_500 == 0 {
                memory = restored(&memory, &mut broker);
            }
        }
        assert!(broker.len() >= 2, "{}", broker.len());
    }
}

/// Two ids that have one fingerprint: one in a few billion pairs, and unforeseeable for clients.
fn alike(secret: Secret) -> (String, String) {
    let mut seen = HashMap::new();
    for number in 0_u64.. {
        let name = format!("c-{number}");
        if let Some(other) = seen.insert(secret.fingerprint(&name), name.clone()) {
            return (other, name);
        }
    }
    unreachable!("there are more ids than fingerprints")
}

#[test]
fn ids_of_one_fingerprint_are_told_apart_by_the_log() {
    let (one, other) = alike(secret(1));
    let mut memory = Memory::new(secret(1));
    let mut log = HashMap::new();
    for (version, name) in [&one, &other].into_iter().enumerate() {
        assert_eq!(said(&memory, &log, &id(name)), None, "{name}");
        let command = accepted(name, version as u64, 100 + version as u64);
        log.insert(command.sequence, command.clone());
        memory.remember(command);
        for number in 0..RECENT {
            memory.remember(accepted(&format!("{name}-{number}"), number, 1_000 + number));
        }
    }
    assert_eq!(memory.recall(&id(&one)), Recall::Perhaps(vec![100, 101]));
    assert_eq!(said(&memory, &log, &id(&other)).unwrap().sequence, 101);
    // Under another secret they have nothing in common.
    assert_ne!(secret(2).fingerprint(&one), secret(2).fingerprint(&other));
}

#[test]
fn what_the_log_said_is_forgotten_with_the_next_command() {
    let mut memory = Memory::new(secret(1));
    memory.looked_up(id("a"), Some(accepted("a", 1, 1)));
    assert!(matches!(memory.recall(&id("a")), Recall::Known(_)));
    memory.remember(accepted("b", 2, 2));
    assert_eq!(memory.recall(&id("a")), Recall::Never);
}

#[test]
fn the_last_commits_of_stored_commands_are_known() {
    let mut memory = Memory::new(secret(1));
    for number in 0..=RECENT {
        memory.was_stored(2 * number, 7 * number);
    }
    let made_by = [0, 2, 3, 2 * RECENT].map(|committed| memory.made_by(committed));
    assert_eq!(made_by, [None, Some(7), None, Some(7 * RECENT)]);
}

/// Measured: what docs say that a million older commands take.
#[test]
fn an_older_command_takes_twelve_bytes() {
    let mut memory = Memory::new(secret(1));
    for number in 0..RECENT {
        memory.remember(accepted("x", number, number));
    }
    let before = memory.size_bytes();
    for number in 0..10_000 {
        memory.remember(accepted("x", number, number));
    }
    assert_eq!(memory.size_bytes() - before, 120_000);
}

/// Commands of the started lane's counter: `a`, then so many others. Returns the snapshots too.
fn followed(others: u64) -> (Lane, Recorded, Vec<Snapshot>) {
    let (mut lane, first) = started();
    let (mut last, mut snapshots) = (first.clone(), Vec::new());
    for number in 0..others {
        let (commit, expected) = append(lane.handle(up(&format!("n{number}"), 0, 1, false), 0));
        last = recorded(&commit, expected, last.sequence + 1);
        for action in lane.handle(appended(&last), 0) {
            if let Action::SaveSnapshot { snapshot, .. } = action {
                snapshots.push(*snapshot);
            }
        }
    }
    (lane, first, snapshots)
}

fn looked_up(result: Result<Option<RememberedCommand>, Error>) -> Input {
    Input::LookedUp { key: key(), result }
}

fn is_look_up(actions: &[Action]) -> bool {
    matches!(actions, [Action::LookUp { id, places, .. }] if id.as_str() == "a" && places == &[10])
}

#[test]
fn a_command_of_long_ago_gets_its_first_outcome() {
    let (mut lane, first, _) = followed(RECENT);
    let first = RememberedCommand::of(&first);
    let actions = lane.handle(up("a", 1, 5, false), 0);
    assert!(is_look_up(&actions), "{actions:?}");
    assert!(lane.handle(up("b", 1, 6, false), 0).is_empty(), "b waits for a");
    let actions = lane.handle(looked_up(Ok(Some(first.clone()))), 0);
    let [Action::Answer { ticket: 5, outcome }, Action::Append { .. }] = &actions[..] else {
        panic!("{actions:?}")
    };
    let Some(Outcome::Accepted { version: 1, position: Some(place), replayed: true }) = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_eq!(place.sequence, 10);

    // With another payload it is another command, and a question gets the first outcome, too.
    let (mut lane, ..) = followed(RECENT);
    lane.handle(up("a", 2, 7, false), 0);
    let answered = outcomes(&lane.handle(looked_up(Ok(Some(first))), 0));
    assert_eq!(answered, [(7, Outcome::IdMismatch)]);
    let work = Work::OutcomeOf { id: id("a"), stored: None, ticket: 8 };
    let answered = outcomes(&lane.handle(Input::Work { key: key(), work }, 0));
    assert!(matches!(answered[..], [(8, Outcome::Accepted { version: 1, .. })]), "{answered:?}");
}

#[test]
fn a_fingerprint_that_fits_by_chance_is_no_repetition() {
    let (mut lane, ..) = followed(RECENT);
    lane.handle(up("a", 1, 5, false), 0);
    let (commit, _) = append(lane.handle(looked_up(Ok(None)), 0));
    assert_eq!((commit.command_id.as_str(), commit.version()), ("a", RECENT + 2));
}

#[test]
fn who_was_never_heard_of_costs_no_look_into_the_log() {
    let (mut lane, ..) = followed(2 * RECENT);
    for name in ["x", "y"] {
        let work = Work::OutcomeOf { id: id(name), stored: None, ticket: 1 };
        let actions = lane.handle(Input::Work { key: key(), work }, 0);
        assert!(matches!(actions[..], [Action::Answer { outcome: None, .. }]), "{actions:?}");
    }
}

#[test]
fn an_outage_while_an_old_command_is_looked_up_decides_nothing() {
    let (mut lane, ..) = followed(RECENT);
    lane.handle(up("a", 1, 5, true), 0);
    lane.handle(up("a", 1, 6, false), 0);
    let actions = lane.handle(looked_up(Err(unavailable())), 0);
    assert!(matches!(&outcomes(&actions)[..], [(6, Outcome::Unavailable { .. })]), "{actions:?}");
    assert!(matches!(actions.last(), Some(Action::Load { pause, .. }) if !pause.is_zero()));
    let actions = lane.handle(loaded(vec![]), 0);
    assert!(is_look_up(&actions), "{actions:?}");
}

#[test]
fn a_damaged_log_is_told_and_decides_nothing() {
    let (mut lane, ..) = followed(RECENT);
    lane.handle(up("a", 1, 5, false), 0);
    let gone = Error::Corrupt { subject: "s".into(), sequence: 10, reason: "gone".into() };
    let answered = outcomes(&lane.handle(looked_up(Err(gone)), 0));
    assert!(matches!(answered[..], [(5, Outcome::Faulty { .. })]), "{answered:?}");
}

#[test]
fn what_is_looked_up_when_the_slot_is_left_or_the_application_changes_is_begun_anew() {
    type Change = fn(&mut Lane);
    let left: Change = |lane| {
        lane.leave(key().slot());
        assert!(lane.handle(up("d", 0, 9, false), 0).is_empty(), "taken up again: d waits");
    };
    let changed: Change = |lane| drop(lane.handle(deployed("counter"), 0));
    for change in [left, changed] {
        let (mut lane, first, _) = followed(RECENT);
        lane.handle(up("a", 1, 5, true), 0);
        change(&mut lane);
        let actions = lane.handle(looked_up(Ok(Some(RememberedCommand::of(&first)))), 0);
        assert!(
            matches!(&actions[..], [Action::Load { after, .. }] if after.sequence == 0),
            "{actions:?}"
        );
    }
}

#[test]
fn what_is_looked_up_when_something_else_is_deployed_is_told() {
    let (mut lane, first, _) = followed(RECENT);
    lane.handle(up("a", 1, 5, true), 0);
    lane.handle(deployed("other"), 0);
    let told = outcomes(&lane.handle(looked_up(Ok(Some(RememberedCommand::of(&first)))), 0));
    assert!(matches!(told[..], [(5, Outcome::Accepted { replayed: true, .. })]), "{told:?}");
}

#[test]
fn full_blocks_go_to_the_broker_once_and_come_back_with_the_snapshot() {
    let (mut lane, _, mut snapshots) = followed(RECENT + BLOCK - 1);
    let full: Vec<_> = snapshots.iter().map(|it| (it.older.full, it.older.kept)).collect();
    let count = full.len();
    assert!(full[..count - 1].iter().all(|it| *it == (0, 0)), "{full:?}");
    assert_eq!(full[count - 1], (1, 0));
    let last = snapshots.pop().unwrap();
    for (secret, kept) in [(secret(9), 0), (last.older.secret, 1)] {
        lane.handle(Input::BlocksKept { key: key(), secret, count: 1 }, 0);
        let entry = lane.entry(&key()).unwrap().snapshot();
        assert_eq!(entry.older.kept, kept, "of another memory it says nothing");
    }
    let mut fresh = self::lane();
    let actions = fresh.handle(up("a", 1, 5, false), 0);
    assert!(matches!(actions[..], [Action::Load { .. }]), "{actions:?}");
    let from = Loaded { snapshot: Some(last), commits: vec![], more: false };
    let actions = fresh.handle(Input::Loaded { key: key(), result: Ok(from) }, 0);
    assert!(is_look_up(&actions), "{actions:?}");
}
