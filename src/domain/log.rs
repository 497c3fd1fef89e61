//! Checks that rows belong to a log: compares their marks with the log.

use std::collections::BTreeMap;

use crate::{hash::Hash, names::Name};

/// Marks in the rows of the log that they were folded from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogMarks {
    /// The log's identity; `None`: no log was noted yet.
    pub identity: Option<String>,
    /// The last commit that each version of a read model has read.
    pub read: Vec<ReadMark>,
}

/// The last commit that a read model has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadMark {
    /// The read model.
    pub read_model: Name,
    /// Stream sequence of the commit.
    pub sequence: u64,
    /// Its link in the hash chain; `None`: read before this was kept.
    pub hash: Option<Hash>,
}

/// A log, as it is asked about marks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogEnd {
    /// The log's identity, different from every other log's.
    pub identity: String,
    /// Stream sequence of its last message; 0 when it is empty.
    pub last_sequence: u64,
}

/// The way out where rows are not those of a log, in commands.
pub const ADVICE: &str = "Connect the log and the Postgres that belong together (--nats, --postgres), or \
                      have every read model built anew from this log: `flexcore rebuild \
                      --from-this-log`";

/// Why rows are not those of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OtherLog {
    /// It is another one.
    #[error("the read models are of the log {rows}, and this is the log {log}. {ADVICE}")]
    Identity {
        /// Identity of the log that the rows are of.
        rows: String,
        /// Identity of the log at hand.
        log: String,
    },
    /// It ends before the last place that was read from it.
    #[error(
        "the log ends at {last}, and {read_model} has read up to {sequence}: the log lost its end, or \
         an older backup of it was restored. {ADVICE}"
    )]
    Shorter {
        /// Stream sequence of the log's last message.
        last: u64,
        /// A read model.
        read_model: Name,
        /// The last place that it has read.
        sequence: u64,
    },
    /// It says something else where it was read.
    #[error(
        "the log has another commit at {sequence} than {read_model} has read there: an older backup of \
         it was restored and went on. {ADVICE}"
    )]
    History {
        /// A read model.
        read_model: Name,
        /// The place in the log.
        sequence: u64,
    },
}

impl LogMarks {
    /// The places of the log whose hashes decide, each once.
    #[must_use]
    pub fn places(&self, end: &LogEnd) -> Vec<u64> {
        let known = self.read.iter().filter(|mark| mark.hash.is_some());
        let mut places: Vec<u64> = known.map(|mark| mark.sequence).collect();
        places.retain(|sequence| *sequence <= end.last_sequence);
        places.sort_unstable();
        places.dedup();
        places
    }

    /// True if the rows are of this log, whose commits at [`LogMarks::places`] have these hashes; a
    /// place without one has no commit.
    pub fn judge(&self, end: &LogEnd, found: &BTreeMap<u64, Hash>) -> Result<(), OtherLog> {
        if let Some(rows) = &self.identity
            && *rows != end.identity
        {
            return Err(OtherLog::Identity { rows: rows.clone(), log: end.identity.clone() });
        }
        for ReadMark { read_model, sequence, hash } in &self.read {
            let (read_model, sequence) = (read_model.clone(), *sequence);
            if sequence > end.last_sequence {
                return Err(OtherLog::Shorter { last: end.last_sequence, read_model, sequence });
            }
            if hash.is_some_and(|hash| found.get(&sequence) != Some(&hash)) {
                return Err(OtherLog::History { read_model, sequence });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_belong_to_the_log_that_has_what_they_read() {
        let hash = |text: &str| Hash::chain(&Hash::ZERO, text.as_bytes());
        let name = Name::parse("sums").unwrap();
        let mark = |sequence, hash| ReadMark { read_model: name.clone(), sequence, hash };
        let marks = |identity: Option<&str>, read: &[ReadMark]| LogMarks {
            identity: identity.map(str::to_owned),
            read: read.to_vec(),
        };
        let end = LogEnd { identity: "a".to_owned(), last_sequence: 10 };
        let found = BTreeMap::from([(7, hash("seven")), (9, hash("nine"))]);
        let read = [mark(7, Some(hash("seven"))), mark(9, Some(hash("nine"))), mark(8, None)];
        let ours = marks(Some("a"), &read);
        assert_eq!(ours.places(&end), [7, 9]);
        assert_eq!(ours.judge(&end, &found), Ok(()));
        assert_eq!(marks(None, &[]).judge(&end, &found), Ok(()), "nothing read yet");
        let refused = |marks: LogMarks| marks.judge(&end, &found).unwrap_err();
        assert!(matches!(refused(marks(Some("b"), &[])), OtherLog::Identity { .. }));
        let beyond = marks(Some("a"), &[mark(11, None)]);
        assert!(matches!(refused(beyond), OtherLog::Shorter { last: 10, sequence: 11, .. }));
        for (sequence, text) in [(7, "nine"), (8, "eight")] {
            let other = marks(Some("a"), &[mark(sequence, Some(hash(text)))]);
            assert!(matches!(refused(other), OtherLog::History { .. }), "{sequence}");
        }
    }
}
