//! Where a queue ends.

use async_nats::jetstream::stream;

/// The queue's stream, and where it ended when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// When it was made, in nanoseconds since 1970: another one begins to count anew.
    pub(crate) made_ns: i64,
    /// Its last sequence.
    pub(crate) last: u64,
}

impl End {
    /// Number of commands from the first that is left on.
    pub(crate) fn from(self, first_left: Option<u64>) -> u64 {
        first_left.map_or(0, |first| self.last.max(first) - first + 1)
    }

    pub(crate) fn of(info: &stream::Info) -> Self {
        let made_ns = info.created.unix_timestamp_nanos();
        Self { made_ns: made_ns.try_into().unwrap_or(i64::MAX), last: info.state.last_sequence }
    }

    /// Sequence of the first message that a purge must leave, when this one was then found to be
    /// the first that is not settled. The places are asked one after the other: in one that was
    /// asked before, a message may have come meanwhile. Messages that were not seen stay, too.
    pub(crate) fn first_to_keep(self, first_left: Option<u64>, seen: u64) -> u64 {
        let next = self.last.min(seen) + 1;
        first_left.map_or(next, |first| first.min(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_while_the_places_were_asked_is_kept() {
        let end = End { made_ns: 0, last: 100 };
        assert_eq!(end.first_to_keep(None, 100), 101, "all was settled");
        assert_eq!(end.first_to_keep(Some(40), 100), 40);
        // 101 is in a place that had nothing when it was asked.
        assert_eq!(end.first_to_keep(Some(102), 200), 101);
    }

    #[test]
    fn what_a_deposed_leader_may_not_have_is_kept() {
        let end = End { made_ns: 0, last: 100 };
        assert_eq!(end.first_to_keep(None, 90), 91);
        assert_eq!(end.first_to_keep(Some(40), 90), 40);
        assert_eq!(end.first_to_keep(None, 0), 1, "nothing was seen");
    }
}
