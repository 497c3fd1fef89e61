//! Questions for decisions of installed plugins: the words that command workers and plugin workers speak over
//! NATS.

use super::PluginRefusal;
use crate::names::Name;

/// How the subjects of questions for decisions begin.
const DECISIONS: &str = "plugd.";

/// Header names of replies to questions for decisions.
pub mod header {
    /// There are no decisions, and in a word why ([`super::PluginRefusal::word`]). The body is a sentence for
    /// people then. It is a header so that a body without it is the contract's `DecideResponse` to the byte, as
    /// that of the question is its `DecideRequest`.
    pub const REFUSAL: &str = "Flexcore-Refusal";
}

/// Codes of failures among decisions that are the worker's words and not the plugin's. The contract allows no dot in
/// a plugin's codes, so that no plugin can say them.
pub mod host_code {
    /// The plugin did not answer in time.
    pub const LATE: &str = "host.late";
    /// The plugin ended under the question, and again when it was asked once more.
    pub const ENDED: &str = "host.ended";
    /// The plugin broke its contract.
    pub const FAULTY: &str = "host.faulty";
    /// The plugin cannot be asked now. Always temporary.
    pub const AWAY: &str = "host.away";
    /// The decision has no room beside the others in the reply: to be asked for alone.
    pub const ALONE: &str = "host.alone";
}

/// Most questions for decisions in one message. 64: enough that a message costs each of them little, and few enough
/// that none waits long for the others.
pub const QUESTIONS_MAX: usize = 64;

/// Largest message of several questions, in bytes. 256 KiB: a larger one would hold them all up on its way.
pub const QUESTIONS_BYTES_MAX: usize = 256 * 1024;

/// Largest message of a single question, in bytes: the largest state and payload, as one message of the broker.
pub const QUESTION_BYTES_MAX: usize = 960 * 1024;

/// Largest reply with decisions, in bytes: one message of the broker, too.
pub const DECISIONS_BYTES_MAX: usize = 960 * 1024;

/// The subject of questions for decisions of a plugin: `plugd.<plugin>`. All questions in one message are of one
/// tenant.
#[must_use]
pub fn subject(plugin: &Name) -> String {
    format!("{DECISIONS}{plugin}")
}

impl PluginRefusal {
    /// As it stands in a header: the word that it has in JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::NotInstalled => "not_installed",
            Self::UnknownFunction => "unknown_function",
            Self::InvalidInput => "invalid_input",
            Self::TooLarge => "too_large",
            Self::NotForTenant => "not_for_tenant",
            Self::OtherVersion => "other_version",
            Self::Busy => "busy",
            Self::Away => "away",
            Self::Late => "late",
            Self::Faulty => "faulty",
            Self::Unknown => "unknown",
        }
    }

    /// Reads such a word. One of a later version is [`Self::Unknown`].
    #[must_use]
    pub fn of_word(word: &str) -> Self {
        serde_json::from_value(serde_json::Value::from(word)).unwrap_or(Self::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{PAYLOAD_BYTES_MAX, STATE_BYTES_MAX};

    #[test]
    fn the_largest_question_fits_its_message() {
        // Names and a context around them.
        let around = 8 * 1024;
        const { assert!(QUESTIONS_BYTES_MAX < QUESTION_BYTES_MAX) };
        assert!(PAYLOAD_BYTES_MAX + STATE_BYTES_MAX + around < QUESTION_BYTES_MAX);
        assert_eq!(subject(&Name::parse("greeter").unwrap()), "plugd.greeter");
    }

    #[test]
    fn no_plugin_can_say_the_workers_words() {
        use host_code::{ALONE, AWAY, ENDED, FAULTY, LATE};
        for word in [ALONE, AWAY, ENDED, FAULTY, LATE] {
            assert!(word.starts_with("host."), "{word}");
        }
    }

    #[test]
    fn a_refusal_has_one_word_in_headers_and_in_json() {
        use PluginRefusal as R;
        // A new one does not compile until it is here.
        let next = |refusal: &R| match refusal {
            R::NotInstalled => Some(R::UnknownFunction),
            R::UnknownFunction => Some(R::InvalidInput),
            R::InvalidInput => Some(R::TooLarge),
            R::TooLarge => Some(R::NotForTenant),
            R::NotForTenant => Some(R::OtherVersion),
            R::OtherVersion => Some(R::Busy),
            R::Busy => Some(R::Away),
            R::Away => Some(R::Late),
            R::Late => Some(R::Faulty),
            R::Faulty => Some(R::Unknown),
            R::Unknown => None,
        };
        for refusal in std::iter::successors(Some(R::NotInstalled), next) {
            assert_eq!(serde_json::to_value(refusal).unwrap(), refusal.word());
            assert_eq!(PluginRefusal::of_word(refusal.word()), refusal);
        }
        assert_eq!(PluginRefusal::of_word("a_later_word"), R::Unknown);
    }
}
