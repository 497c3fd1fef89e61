//! The broker, NATS JetStream, as everything that stores something uses it: publishing, questions,
//! readers, sizes and room. It knows no stream by name.

pub mod acknowledged;
pub mod bucket;
mod clock;
pub mod ephemeral;
pub mod inbox;
pub mod leader;
pub mod memory;
pub mod monitoring;
pub mod publish;
mod refusal;
pub mod renewed;
pub mod room;
pub mod size;
pub mod stream;

use std::{fmt, time::Duration};

use async_nats::jetstream;

/// Longest wait for the broker's answer to one request: a leader's death takes 4 to 7 s to heal,
/// and the caller retries.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the broker did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// An expectation does not hold: somebody else has written meanwhile.
    #[error("conflict: it was changed meanwhile")]
    Conflict,
    /// The broker did not answer, or not in time. The outcome of a write is unknown then.
    #[error("the broker is unavailable: {0}")]
    Unavailable(String),
    /// The message is larger than the broker takes. Nothing was stored, and nothing will be however
    /// often it is sent.
    #[error("too large to be stored: {0}")]
    TooLarge(String),
    /// The broker's storage has no room for more. Nothing was stored: send it again later.
    #[error("the broker's storage is full: {0}")]
    NoRoom(String),
    /// A person has to mend something first.
    #[error("{0}")]
    Misconfigured(String),
}

/// An [`Error::Unavailable`] with this reason.
pub fn unavailable(error: impl fmt::Display) -> Error {
    Error::Unavailable(error.to_string())
}

/// The connection's JetStream context, whose requests wait for [`REQUEST_TIMEOUT`].
#[must_use]
pub fn context(client: &async_nats::Client) -> jetstream::Context {
    jetstream::ContextBuilder::new()
        .timeout(REQUEST_TIMEOUT)
        .ack_timeout(REQUEST_TIMEOUT)
        .build(client.clone())
}
