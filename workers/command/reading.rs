//! Commands as they come over NATS, read into what a lane decides.

use async_nats::HeaderMap;
use flexcore_domain::{
    AggregateKey, Command, CommandHash, CommandId, CommandName, Outcome, Payload, Provenance,
    Secret, Violation, Vouched, WRONG_SEAL, command::header, names::ActorName,
};
use flexcore_eventstore::{EventStore, catalog, headers};

/// Why a message is no command for a lane.
#[derive(Debug, PartialEq)]
enum Unread {
    /// This is the answer to give.
    Refused(Outcome),
    /// Its sender has a seal that does not fit the secret.
    WrongSeal,
}

/// Reads `<slot>.<tenant>.<aggregate>.<id>.<command>` with headers and payload. Where a seal does not fit,
/// the secret is read again first. Fails with the answer to give.
pub(super) async fn read_command(
    store: &EventStore,
    rest: &str,
    headers: Option<&HeaderMap>,
    payload: &[u8],
) -> Result<Command, Outcome> {
    let now = || parse(store.secret().as_ref(), rest, headers, payload);
    let mut read = now();
    if matches!(read, Err(Unread::WrongSeal)) {
        if let Err(error) = store.read_secret_again().await {
            tracing::debug!(%error, "the secret that seals senders cannot be read again");
        }
        read = now();
    }
    read.map_err(|unread| match unread {
        Unread::Refused(outcome) => outcome,
        Unread::WrongSeal => {
            metrics::counter!("flexcore_seals_wrong_total").increment(1);
            Outcome::Unavailable { message: WRONG_SEAL.to_owned() }
        }
    })
}

/// The command. The actor is whom a gateway vouches for, with a seal that takes the secret; without a seal
/// it is a claim.
fn parse(
    secret: Option<&Secret>,
    rest: &str,
    headers: Option<&HeaderMap>,
    payload: &[u8],
) -> Result<Command, Unread> {
    let invalid = |field: &str, reason: String| {
        let violations = vec![Violation { field: field.to_owned(), reason }];
        Unread::Refused(Outcome::InvalidPayload { violations })
    };
    let subject = |reason: String| invalid("subject", reason);
    let (part, name) =
        rest.rsplit_once('.').ok_or_else(|| subject("it has too few parts".to_owned()))?;
    let name = CommandName::parse(name).map_err(|error| subject(error.to_string()))?;
    let key = AggregateKey::from_subject_part(part).ok_or_else(|| {
        subject("tenant and aggregate are [a-z][a-z0-9_]{0,39}, id [A-Za-z0-9_-]{1,128}".to_owned())
    })?;
    if catalog::is_reserved(&key) {
        let reason = "this aggregate is the platform's own, and takes no commands";
        return Err(subject(reason.to_owned()));
    }
    if let Some(name) = headers::doubled(headers) {
        return Err(invalid(name, "it is given more than once".to_owned()));
    }
    let header = |name: &str| headers.and_then(|headers| headers.get(name)).map(|v| v.as_str());
    let id_of = |name: &str| {
        let parsed = header(name).map(CommandId::parse).transpose();
        parsed.map_err(|error| invalid(name, error.to_string()))
    };
    let id = id_of(headers::of_id(headers))?.ok_or_else(|| {
        let reason = format!("every command needs an id, here or in {}", header::OWN_COMMAND_ID);
        invalid(header::COMMAND_ID, reason)
    })?;
    let actor = header(header::ACTOR);
    let actor = match (header(header::ACTOR_SEAL), secret, actor) {
        (None, ..) => ActorName::claimed(actor),
        (Some(seal), Some(secret), Some(actor))
            if Vouched { actor, key: &key, name: &name, id: &id, payload }
                .has_seal(secret, seal) =>
        {
            ActorName::parse(actor)
        }
        // Never a claim: a gateway has vouched for somebody, or it is forged.
        (Some(_), ..) => return Err(Unread::WrongSeal),
    };
    let (payload, canonical) = Payload::parse_canonical(payload)
        .map_err(|violations| Unread::Refused(Outcome::InvalidPayload { violations }))?;
    let provenance = actor
        .map_err(|error| (header::ACTOR, error))
        .and_then(|actor| Provenance::read(actor, header));
    let expected = header(header::EXPECTED_VERSION).map(str::parse).transpose();
    Ok(Command {
        hash: CommandHash::of(name.as_str(), &canonical),
        payload,
        provenance: provenance.map_err(|(name, error)| invalid(name, error.to_string()))?,
        expected_version: expected
            .map_err(|_| invalid(header::EXPECTED_VERSION, "it is not a number".to_owned()))?,
        key,
        name,
        id,
    })
}

#[cfg(test)]
mod tests {
    use flexcore_domain::{AggregateId, AggregateName, Tenant};

    use super::*;

    /// An application that had an aggregate `plugin` before this name was reserved took commands of the
    /// platform's tenant, which are events between those of installations.
    #[test]
    fn the_platforms_own_aggregates_take_no_commands() {
        let is_taken = |tenant: &str, aggregate: &str| {
            let key = AggregateKey::new(
                Tenant::parse(tenant).unwrap(),
                AggregateName::parse(aggregate).unwrap(),
                AggregateId::parse("greeter").unwrap(),
            );
            let mut headers = HeaderMap::new();
            headers.insert(header::COMMAND_ID, "1");
            parse(None, &format!("{}.add", key.subject_part()), Some(&headers), b"{}").is_ok()
        };
        for reserved in catalog::RESERVED {
            assert!(!is_taken(Tenant::PLATFORM, reserved), "{reserved}");
            assert!(is_taken("acme", reserved), "{reserved}");
        }
        assert!(is_taken(Tenant::PLATFORM, "counter"));
    }

    #[test]
    fn nobody_is_somebody_else_by_saying_so_and_a_wrong_seal_is_no_claim() {
        let secret = Secret::from([7; 16]);
        let key = AggregateKey::new(
            Tenant::parse("acme").unwrap(),
            AggregateName::parse("counter").unwrap(),
            AggregateId::parse("c1").unwrap(),
        );
        let rest = format!("{}.add", key.subject_part());
        let (name, id) = (CommandName::parse("add").unwrap(), CommandId::parse("1").unwrap());
        let (actor, payload) = ("alice", &b" {}"[..]);
        let seal = Vouched { actor, key: &key, name: &name, id: &id, payload }.seal(&secret);
        let read = |secret, actor: Option<&str>, seal: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COMMAND_ID, "1");
            let given = [(header::ACTOR, actor), (header::ACTOR_SEAL, seal)];
            for (name, value) in given.into_iter().filter_map(|(name, value)| Some((name, value?)))
            {
                headers.insert(name, value);
            }
            let command = parse(secret, &rest, Some(&headers), payload);
            command.map(|command| command.provenance.actor.to_string())
        };
        let (own, seal) = (Some(&secret), Some(seal.as_str()));
        let named = |name: &str| Ok(name.to_owned());
        assert_eq!(read(own, Some("alice"), seal), named("alice"));
        assert_eq!(read(own, Some("alice"), None), named("nats:alice"));
        assert_eq!(read(own, None, None), named("nats"));
        assert!(matches!(read(own, Some("a b"), None), Err(Unread::Refused(_))));
        let other = Secret::from([8; 16]);
        for (secret, actor, seal) in [
            (own, Some("bob"), seal),
            (own, None, seal),
            (own, Some("alice"), Some("")),
            (Some(&other), Some("alice"), seal),
            (None, Some("alice"), seal),
        ] {
            assert_eq!(read(secret, actor, seal), Err(Unread::WrongSeal), "{actor:?} {seal:?}");
        }
    }
}
