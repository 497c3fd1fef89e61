//! The results of the glue's calls, as text.

use flexcore_domain::{
    json::{PRIVATE_KEY, beyond_exact},
    limits::{INTEGER_EXACT_MAX, JSON_DEPTH_MAX},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The result of one call.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Returned<'a> {
    /// Events, and the state after them.
    Decided {
        #[serde(borrow)]
        events: Vec<Decided<'a>>,
        #[serde(borrow)]
        state: &'a RawValue,
    },
    /// The result of a fold or an upcast.
    #[serde(borrow)]
    Folded(&'a RawValue),
    /// `reject` was called.
    Rejected { code: String, message: String },
    /// It threw, or returned something forbidden.
    Faulty {
        /// The event whose `evolve` it was; empty: the called function itself.
        at: String,
        message: String,
        stack: String,
    },
}

/// An event that `decide` returned.
#[derive(Deserialize)]
pub(crate) struct Decided<'a> {
    pub(crate) event: &'a str,
    #[serde(borrow)]
    pub(crate) data: &'a RawValue,
}

/// Requirements of serde_json and every strict reader: no deeper than [`JSON_DEPTH_MAX`], no half
/// of a surrogate pair, none of the keys that serde_json gives a meaning of its own, and no integer
/// that the script may have rounded. Fails with what is wrong.
pub(crate) fn check_json(text: &str) -> Result<(), String> {
    let (mut depth, mut deepest, mut quoted, mut suspicious) = (0_usize, 0, false, false);
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => quoted = !quoted,
            b'\\' => {
                at += 1;
                // JSON.stringify writes whole pairs as they are, and halves as escapes.
                suspicious |= bytes[at..].starts_with(b"ud");
            }
            b'$' => suspicious |= bytes[at..].starts_with(PRIVATE_KEY.as_bytes()),
            b'{' | b'[' if !quoted => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !quoted => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    if deepest > JSON_DEPTH_MAX {
        return Err(format!("nested deeper than {JSON_DEPTH_MAX} levels"));
    }
    if suspicious {
        return Err("a text in it is half a character, or a key that is reserved".to_owned());
    }
    if let Some(number) = beyond_exact(text) {
        return Err(format!(
            "{number} is an integer beyond 2^53 - 1 ({INTEGER_EXACT_MAX}), up to which JavaScript counts \
             exactly: keep it as a string, or reckon in larger units"
        ));
    }
    Ok(())
}
