//! The subjects of the log, `evt.<slot>.<tenant>.<aggregate>.<id>`, of commands that clients publish,
//! `cmd.<tenant>.<aggregate>.<id>.<command>`, and of stored ones,
//! `cmdq.<slot>.<tenant>.<aggregate>.<id>.<command>`: spelt here and nowhere else.

use std::fmt::Display;

use flexcore_domain::{AggregateKey, AggregateName, CommandName, SLOTS, Slot, Tenant};

/// All of the log's.
pub(crate) const ALL: &str = "evt.>";

/// The subject of an aggregate's commits: `evt.<slot>.<tenant>.<aggregate>.<id>`.
#[must_use]
pub fn subject(key: &AggregateKey) -> String {
    format!("evt.{}", key.subject_part())
}

/// The same as AsyncAPI writes it, with parameters in braces.
#[must_use]
pub fn address(aggregate: &AggregateName) -> String {
    format!("evt.{{slot}}.{{tenant}}.{aggregate}.{{id}}")
}

/// The aggregate of a subject; `None`: it is none of the log's.
pub(crate) fn key(subject: &str) -> Option<AggregateKey> {
    AggregateKey::from_subject_part(subject.strip_prefix("evt.")?)
}

pub(crate) fn of_slot(slot: Slot) -> String {
    format!("evt.{slot}.>")
}

pub(crate) fn of_tenant(tenant: &Tenant) -> String {
    format!("evt.*.{tenant}.>")
}

/// The aggregates of this name, in a slot or in `*`, of a tenant or of `*`.
pub(crate) fn of_aggregates(
    slot: impl Display,
    tenant: impl Display,
    aggregate: &AggregateName,
) -> String {
    format!("evt.{slot}.{tenant}.{aggregate}.*")
}

/// The first token of a stored command's subject.
pub(crate) const STORED_TOKEN: &str = "cmdq";
/// All that clients publish commands to.
pub(crate) const PUBLISHED: &str = "cmd.*.*.*.*";

/// The subject that clients publish a command to: `cmd.<tenant>.<aggregate>.<id>.<command>`.
#[must_use]
pub fn command_subject(key: &AggregateKey, command: &CommandName) -> String {
    format!("cmd.{}.{}.{}.{command}", key.tenant(), key.aggregate(), key.id())
}

/// The same as AsyncAPI writes it, with parameters in braces.
#[must_use]
pub fn command_address(aggregate: &AggregateName, command: &CommandName) -> String {
    format!("cmd.{{tenant}}.{aggregate}.{{id}}.{command}")
}

/// The subject under which the stream stores what is published to [`PUBLISHED`], as a transform writes it:
/// with the slot in front.
pub(crate) fn stored_of_published() -> String {
    let wildcards: Vec<_> = (1..=4).map(|token| format!("{{{{wildcard({token})}}}}")).collect();
    format!("{STORED_TOKEN}.{{{{partition({SLOTS},1,2,3)}}}}.{}", wildcards.join("."))
}

/// The subjects of an aggregate's stored commands.
pub(crate) fn stored_of(key: &AggregateKey) -> String {
    format!("{STORED_TOKEN}.{}.*", key.subject_part())
}

/// A stored command's `<slot>.<tenant>.<aggregate>.<id>.<command>`, whatever stands there; `None`: the
/// subject is none of a stored command.
#[must_use]
pub fn stored_part(subject: &str) -> Option<&str> {
    subject.strip_prefix(STORED_TOKEN)?.strip_prefix('.')
}

/// The subject that a command was published to, by that or by the one under which it is stored; `None`:
/// the subject is none of a command.
#[must_use]
pub fn published_subject(subject: &str) -> Option<String> {
    match stored_part(subject) {
        Some(part) => part.split_once('.').map(|(_slot, rest)| format!("cmd.{rest}")),
        None => subject.starts_with("cmd.").then(|| subject.to_owned()),
    }
}

/// The tenant of an event or a command, by its subject, whatever else stands there.
pub(crate) fn tenant(subject: &str) -> Option<Tenant> {
    let published = published_subject(subject);
    let rest = match &published {
        Some(published) => published.strip_prefix("cmd.")?,
        None => subject.strip_prefix("evt.")?.split_once('.')?.1,
    };
    Tenant::parse(rest.split('.').next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_command_has_the_slot_in_front() {
        let transformed = "cmdq.{{partition(64,1,2,3)}}.\
                           {{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}.{{wildcard(4)}}";
        assert_eq!(stored_of_published(), transformed);
        let stored = "cmdq.12.demo.flight.UA1.depart";
        assert_eq!(stored_part(stored), Some("12.demo.flight.UA1.depart"));
        let published = published_subject(stored);
        assert_eq!(published.as_deref(), Some("cmd.demo.flight.UA1.depart"));
        assert_eq!(published_subject("cmd.demo.flight.UA1.depart"), published);
        for other in ["evt.12.demo.flight.UA1", "cmdq.12", "cmdq", "cmdqueue.1.a.b.c.d", "cmd"] {
            assert_eq!(published_subject(other), None, "{other}");
        }
    }

    #[test]
    fn a_subject_says_whose_message_it_is() {
        for acme in ["evt.7.acme.ship.s-1", "cmdq.7.acme.ship.s-1.go", "cmd.acme.x", "evt.?.acme"] {
            assert_eq!(tenant(acme).as_ref().map(Tenant::as_str), Some("acme"), "{acme}");
        }
        for nobody in ["cmd.Not A Name.x", "evt.7", "cmdq.7", "dead.command.acme.k1", ""] {
            assert_eq!(tenant(nobody), None, "{nobody}");
        }
    }
}
