//! Why a call has no output.

use flexcore_plugin::{
    Error,
    contract::{Failure, is_unknown},
};
use tonic::Code;

/// The failure of a call.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PoolError {
    /// Every instance has as many calls under way as it may have. Nothing was sent.
    #[error("the plugin has as many calls under way as it may have")]
    Busy,
    /// No instance is ready, for this reason. Nothing was sent.
    #[error("the plugin is away: {0}")]
    Away(String),
    /// The time is over; what was asked for may have been done.
    #[error("the plugin did not answer in time")]
    Late,
    /// The instance ended during the call, or refused it: it may have been done.
    #[error("the plugin gave no answer, and may have done it: {0}")]
    Unknown(String),
    /// The plugin has no such function, or method.
    #[error("the plugin has no such function")]
    UnknownFunction,
    /// The input or the output is beyond the contract's limit.
    #[error("the input or the output is too large")]
    TooLarge,
    /// The plugin's answer, or the pool's while calls of the tenant are refused (`ended_under_calls`): it
    /// was not done.
    #[error("{0}")]
    Failed(Failure),
    /// The plugin said what its contract does not allow; what was asked for may have been done.
    #[error("the plugin broke its contract: {0}")]
    Faulty(String),
}

/// Why a version that was to be put in the place of another is not ready.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{why}")]
pub struct ChangeError {
    /// The reason.
    pub why: PoolError,
    /// It is in the place of the other all the same, and is tried again as any other.
    pub in_place: bool,
}

impl PoolError {
    /// Of a call of the contract.
    pub(crate) fn of_call(error: &Error) -> Self {
        match error {
            Error::TooLarge { .. } => Self::TooLarge,
            Error::Late { .. } => Self::Late,
            Error::Contract(fault) => Self::Faulty(fault.clone()),
            Error::Status { status, .. } if is_unmet(status.code()) => Self::UnknownFunction,
            Error::Status { status, .. } if !is_unknown(error) => match status.code() {
                // It has no room for one more: nothing was done, and it passes.
                code @ Code::ResourceExhausted => {
                    Self::Failed(Failure::passing(word(code), status.message()))
                }
                _ => Self::Faulty(error.to_string()),
            },
            _ => Self::Unknown(error.to_string()),
        }
    }

    /// Of a call by reflection. A status is the plugin's own answer unless its instance `died`.
    pub(crate) fn of_method(error: &Error, died: bool) -> Self {
        match error {
            Error::TooLarge { .. } => Self::TooLarge,
            Error::Late { .. } => Self::Late,
            // What does not fit is named by its place: `input.a[3]`.
            Error::Contract(fault) if fault.starts_with("input") => {
                Self::Failed(Failure::new("invalid_input", fault))
            }
            Error::Contract(fault) => Self::Faulty(fault.clone()),
            Error::Status { status, .. } if !died => match status.code() {
                Code::DeadlineExceeded => Self::Late,
                Code::Unimplemented => Self::UnknownFunction,
                code => Self::Failed(Failure {
                    temporary: matches!(
                        code,
                        Code::Unavailable | Code::ResourceExhausted | Code::Aborted
                    ),
                    ..Failure::new(word(code), status.message())
                }),
            },
            _ => Self::Unknown(error.to_string()),
        }
    }
}

fn is_unmet(code: Code) -> bool {
    matches!(code, Code::NotFound | Code::Unimplemented)
}

/// `NotFound` as `not_found`: the code of a failure.
fn word(code: Code) -> String {
    let mut word = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(letter.to_ascii_lowercase());
    }
    word
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flexcore_plugin::contract::is_word;
    use tonic::Status;

    use super::*;

    fn status(status: Status) -> Error {
        Error::Status { method: "a.B/C".to_owned(), status: Box::new(status) }
    }

    #[test]
    fn a_call_tells_what_may_have_been_done() {
        let late = Error::Late { what: "the plugin's answer", limit: Duration::from_secs(1) };
        let large = Error::TooLarge { what: "an input", size: 2, limit: 1 };
        assert_eq!(PoolError::of_call(&late), PoolError::Late);
        assert_eq!(PoolError::of_call(&large), PoolError::TooLarge);
        let none = status(Status::not_found("no such function"));
        assert_eq!(PoolError::of_call(&none), PoolError::UnknownFunction);
        let refused = PoolError::of_call(&status(Status::invalid_argument("too deep")));
        assert!(matches!(refused, PoolError::Faulty(_)), "{refused}");
        // Its threads are all taken, and it was said to have broken its contract.
        let full = PoolError::of_call(&status(Status::resource_exhausted("32 calls already")));
        let PoolError::Failed(failure) = full else { panic!("{full}") };
        assert_eq!((&*failure.code, failure.temporary), ("resource_exhausted", true));
        for unknown in [Error::Ended, status(Status::unavailable("gone"))] {
            let told = PoolError::of_call(&unknown);
            assert!(matches!(told, PoolError::Unknown(_)), "{told}");
        }
    }

    #[test]
    fn a_status_of_a_foreign_plugin_is_its_answer_unless_it_died() {
        let gone = status(Status::unavailable("gone"));
        let PoolError::Failed(failure) = PoolError::of_method(&gone, false) else { panic!() };
        assert_eq!((&*failure.code, &*failure.message), ("unavailable", "gone"));
        assert!(failure.temporary);
        assert!(matches!(PoolError::of_method(&gone, true), PoolError::Unknown(_)));
        let wrong = Error::Contract("input.name: no text".to_owned());
        let PoolError::Failed(failure) = PoolError::of_method(&wrong, false) else { panic!() };
        assert_eq!(failure.code, "invalid_input");
        let broken = Error::Contract("a.B/C did not answer with one message".to_owned());
        assert!(matches!(PoolError::of_method(&broken, false), PoolError::Faulty(_)));
    }

    #[test]
    fn the_code_of_a_status_is_one_of_a_failure() {
        for code in 0..=16 {
            let word = word(Code::from_i32(code));
            assert!(is_word(&word), "{word}");
        }
        assert_eq!(word(Code::FailedPrecondition), "failed_precondition");
    }
}
