//! Calls whose worker says from time to time that they are under way, so that its end is noticed before their time is
//! over.
//!
//! Their subjects are their own. Versions of FlexCore without these words take no such calls, so that silence means
//! something. They take calls of [`call_subject`](super::call_subject), as all workers do.

use std::time::Duration;

/// How the subjects of such calls begin. What follows is the subject of a call.
const TOLD: &str = "told.";

/// Header names of such calls.
pub mod header {
    /// The inbox to which the worker says that the call is under way: an empty message, again and again. It is not
    /// the one for the answer, so that the answer stays the only message there. A call of any subject may have it.
    pub const WORDS: &str = "Flexcore-Words";
    /// The call was sent to another worker before, which is gone, and may have done it. So only a function that may
    /// be repeated is called. Workers that do not know this header take no calls of these subjects.
    pub const REPEATED: &str = "Flexcore-Repeated";
}

/// Time after which the worker says it first: most calls are over by then, and cost nothing more.
pub const FIRST_WORD_AFTER: Duration = Duration::from_secs(1);

/// Time between two of these words.
pub const WORD_EVERY: Duration = Duration::from_secs(2);

/// Time without a word after which the worker is taken to be gone: three words are missing then.
pub const SILENCE_MAX: Duration = Duration::from_secs(6);

/// The subject of such a call, or of all of a plugin, by that of a call without words.
#[must_use]
pub fn subject(call: &str) -> String {
    format!("{TOLD}{call}")
}

/// The subject of the call without words.
#[must_use]
pub fn call(subject: &str) -> &str {
    subject.strip_prefix(TOLD).unwrap_or(subject)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        names::Name,
        plugin::{call_subject, call_subjects, called_function},
    };

    #[test]
    fn a_call_has_one_subject_with_words_and_one_without() {
        let plugin = Name::parse("told").unwrap();
        let plain = call_subject(&plugin, "my.v1.Told/Tell").unwrap();
        let told = subject(&plain);
        assert_eq!(told, "told.plug.told.my.v1.Told/Tell");
        assert_eq!((call(&told), call(&plain)), (&*plain, &*plain));
        assert_eq!(called_function(&told), None, "nobody takes one for the other");
        assert_eq!(subject(&call_subjects(&plugin)), "told.plug.told.>");
    }

    #[test]
    fn a_word_that_is_lost_is_no_silence() {
        assert!(FIRST_WORD_AFTER + WORD_EVERY < SILENCE_MAX);
        assert!(WORD_EVERY * 2 < SILENCE_MAX);
    }
}
