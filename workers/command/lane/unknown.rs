//! Commands whose clients were told that the outcome is unknown. They are sent again within seconds.

use std::collections::HashMap;

use flexcore_domain::{AggregateKey, CommandId, Slot, Tenant};
use lru::LruCache;

/// Commands that a lane remembers, some 250 bytes each. Beyond it the tenant that has most loses its
/// oldest: what one sends in an outage has nobody else's forgotten.
pub(super) const UNKNOWN_MAX: usize = 4_096;

/// Those of a lane.
#[derive(Default)]
pub(super) struct Unknown {
    of: HashMap<Tenant, LruCache<(AggregateKey, CommandId), Decided>>,
    count: usize,
}

/// A commit that the log did not answer: its time, and the stream sequence that its aggregate must end
/// with for the log to take it.
#[derive(Clone, Copy)]
pub(super) struct Decided {
    pub(super) time_ms: i64,
    pub(super) expects: u64,
}

impl Unknown {
    /// The log may have this command's commit yet.
    pub(super) fn remember(&mut self, key: AggregateKey, id: CommandId, decided: Decided) {
        let own = self.of.entry(key.tenant().clone()).or_insert_with(LruCache::unbounded);
        let replaced = own.put((key, id), decided);
        self.count += usize::from(replaced.is_none());
        if self.count <= UNKNOWN_MAX {
            return;
        }
        if let Some(most) = self.of.values_mut().max_by_key(|own| own.len()) {
            most.pop_lru();
            self.count -= 1;
        }
        self.of.retain(|_, own| !own.is_empty());
    }

    /// When the command was decided, while the log can still take the commit of then.
    pub(super) fn decided_ms(
        &mut self,
        key: &AggregateKey,
        id: &CommandId,
        ends_with: u64,
    ) -> Option<i64> {
        let own = self.of.get_mut(key.tenant())?;
        let command = (key.clone(), id.clone());
        let Decided { time_ms, expects } = *own.get(&command)?;
        if expects == ends_with {
            return Some(time_ms);
        }
        own.pop(&command);
        self.count -= 1;
        self.of.retain(|_, own| !own.is_empty());
        None
    }

    /// Drops the commands of a slot.
    pub(super) fn leave(&mut self, slot: Slot) {
        for own in self.of.values_mut() {
            let left = own.iter().filter(|((key, _), _)| key.slot() == slot);
            for command in left.map(|(command, _)| command.clone()).collect::<Vec<_>>() {
                own.pop(&command);
                self.count -= 1;
            }
        }
        self.of.retain(|_, own| !own.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::some_keys::key;

    fn id(number: usize) -> CommandId {
        CommandId::parse(&format!("c-{number}")).unwrap()
    }

    #[test]
    fn what_one_sends_in_an_outage_has_nobody_elses_forgotten() {
        let (mut unknown, calm, flood) = (Unknown::default(), key("calm", 1), key("flood", 1));
        unknown.remember(calm.clone(), id(1), Decided { time_ms: 5, expects: 7 });
        for number in 0..2 * UNKNOWN_MAX {
            unknown.remember(flood.clone(), id(number), Decided { time_ms: 6, expects: 7 });
        }
        assert_eq!(unknown.count, UNKNOWN_MAX);
        assert_eq!(unknown.decided_ms(&calm, &id(1), 7), Some(5));
        assert_eq!(unknown.decided_ms(&flood, &id(0), 7), None, "its own oldest went");
        assert_eq!(unknown.decided_ms(&flood, &id(2 * UNKNOWN_MAX - 1), 7), Some(6));
        assert_eq!(unknown.decided_ms(&calm, &id(1), 8), None, "the log can never take it");
        unknown.leave(flood.slot());
        assert_eq!((unknown.count, unknown.of.len()), (0, 0));
    }
}
