//! The headers that a command is read by. Each has one value: a sender who gives two says two things, and
//! each reader might take another one.

use async_nats::{HeaderMap, HeaderValue};
use flexcore_domain::{Provenance, command::header};

/// Names a stored command by its sequence in the queue: in a question for what came of it, and in its outcome. No
/// command is read by it.
pub const QUEUE_SEQUENCE: &str = "Flexcore-Queue-Sequence";

/// All of them, the id first. A requeued command needs them more than any other header.
pub(crate) fn read() -> impl Iterator<Item = &'static str> {
    let own = [header::OWN_COMMAND_ID, header::ACTOR, header::ACTOR_SEAL, header::EXPECTED_VERSION];
    own.into_iter().chain(Provenance::IDS).chain([header::TRACEPARENT])
}

/// The header that a command's id is in: `Nats-Msg-Id` where there is no `Flexcore-Command-Id`.
#[must_use]
pub fn of_id(headers: Option<&HeaderMap>) -> &'static str {
    match headers.and_then(|headers| headers.get(header::OWN_COMMAND_ID)) {
        Some(_) => header::OWN_COMMAND_ID,
        None => header::COMMAND_ID,
    }
}

/// The id of a command as its sender wrote it; `None`: it has none, or more than one.
#[must_use]
pub fn command_id(headers: Option<&HeaderMap>) -> Option<&str> {
    let mut given = headers?.get_all(of_id(headers));
    given.next().filter(|_| given.next().is_none()).map(HeaderValue::as_str)
}

/// The first header that the command is read by and has more than once; `None`: it has none twice.
#[must_use]
pub fn doubled(headers: Option<&HeaderMap>) -> Option<&'static str> {
    let given = headers?;
    let mut read =
        read().map(|name| if name == header::OWN_COMMAND_ID { of_id(headers) } else { name });
    read.find(|name| given.get_all(*name).nth(1).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(given: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, *value);
        }
        headers
    }

    #[test]
    fn a_command_has_one_id() {
        let id = |given: &[(&str, &str)]| command_id(Some(&map(given))).map(str::to_owned);
        let [own, brokers] = [header::OWN_COMMAND_ID, header::COMMAND_ID];
        assert_eq!(id(&[(brokers, "a")]).as_deref(), Some("a"));
        assert_eq!(id(&[(brokers, "a"), (brokers, "b"), (own, "c")]).as_deref(), Some("c"));
        assert_eq!(id(&[(brokers, "a"), (own, "b"), (own, "c")]), None);
        assert_eq!(id(&[(brokers, "a"), (brokers, "a")]), None);
        assert_eq!(command_id(None), None);
    }

    #[test]
    fn what_is_read_is_given_once() {
        for name in read().chain(Provenance::IDS) {
            let headers = map(&[(name, "1"), (header::COMMAND_ID, "2"), ("Other", "3")]);
            assert_eq!(doubled(Some(&headers)), None, "{name}");
            let headers = map(&[(name, "1"), ("Other", "2"), ("Other", "3"), (name, "1")]);
            assert_eq!(doubled(Some(&headers)), Some(name));
        }
        let twice = [(header::COMMAND_ID, "1"), (header::COMMAND_ID, "2")];
        assert_eq!(doubled(Some(&map(&twice))), Some(header::COMMAND_ID));
        let own = [&twice[..], &[(header::OWN_COMMAND_ID, "3")]].concat();
        assert_eq!(doubled(Some(&map(&own))), None, "the broker's is not read then");
    }
}
