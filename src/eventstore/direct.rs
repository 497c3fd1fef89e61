//! Direct gets: messages of a stream, read from whichever replica answers.

/// The subject on which this stream is asked.
pub(crate) fn get(stream: &str) -> String {
    format!("$JS.API.DIRECT.GET.{stream}")
}

/// Header of a reply: the message's subject.
pub(crate) const SUBJECT: &str = "Nats-Subject";
/// Header of a reply: the message's stream sequence.
pub(crate) const SEQUENCE: &str = "Nats-Sequence";
/// Header of a reply: how many more messages fit the question.
pub(crate) const PENDING: &str = "Nats-Num-Pending";
