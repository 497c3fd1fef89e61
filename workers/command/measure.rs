//! The cost for an aggregate of remembering its command ids: for `flexcore bench ids`.

use std::time::{Duration, Instant};

use flexcore_domain::{CommandHash, CommandId};
use flexcore_eventstore::snapshot::{OlderCommands, RememberedCommand};

use super::memory::{Memory, Recall, random_secret};

/// An aggregate's memory of so many commands.
pub struct Remembered {
    /// Its size in memory.
    pub size_bytes: usize,
    /// Time for remembering all of them.
    pub remembering: Duration,
    /// Time for the questions about commands that never were.
    pub asking: Duration,
    /// Those of the questions for which the log would have been asked.
    pub in_vain: u64,
    /// As a snapshot has it: the recent commands, and the older ones.
    pub saved: (Vec<RememberedCommand>, OlderCommands),
}

/// Remembers so many commands, then asks for so many others.
#[must_use]
pub fn remember(commands: u64, questions: u64) -> Remembered {
    let id = |kind: &str, number: u64| {
        CommandId::parse(&format!("{kind}-{number}")).expect("BUG: a command id")
    };
    let mut memory = Memory::new(random_secret());
    let began = Instant::now();
    for number in 1..=commands {
        memory.remember(RememberedCommand {
            id: id("was", number),
            hash: CommandHash::of("", ""),
            version: number,
            sequence: number,
        });
    }
    let remembering = began.elapsed();
    let never: Vec<CommandId> = (0..questions).map(|number| id("never", number)).collect();
    let began = Instant::now();
    let looks = never.iter().filter(|id| matches!(memory.recall(id), Recall::Perhaps(_)));
    let in_vain = looks.count() as u64;
    let asking = began.elapsed();
    let (size_bytes, saved) = (memory.size_bytes(), memory.save());
    Remembered { size_bytes, remembering, asking, in_vain, saved }
}
