//! Names, checked once at the edge: no dot, star, arrow, space or control character ever reaches a
//! subject, and no further check is needed inside.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::slot::Slot;

/// A name that does not follow its rule. The text says which rule, and never repeats more than 40
/// characters of the input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must match {rule}; got {got}")]
pub struct InvalidName {
    /// What was named: `tenant`, `aggregate`, …
    pub what: &'static str,
    /// The rule, as a regular expression.
    pub rule: &'static str,
    /// The start of what was given, escaped.
    pub got: String,
}

fn invalid(what: &'static str, rule: &'static str, text: &str) -> InvalidName {
    let mut got: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    if text.chars().nth(40).is_some() {
        got.push('…');
    }
    InvalidName { what, rule, got: format!("\"{got}\" ({} bytes)", text.len()) }
}

fn is_lower_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.first(), Some(b'a'..=b'z'))
        && bytes.len() <= 40
        && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

fn is_id(text: &str, more: &[u8]) -> bool {
    (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || more.contains(&b))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The rule that it follows from its first character to its last, as a regular expression.
            pub const RULE: &'static str = $rule;

            /// Checks the text. Fails when it does not follow the rule of this kind of name.
            pub fn parse(text: &str) -> Result<Self, InvalidName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.into())) } else { Err(invalid($what, Self::RULE, text)) }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::parse(&text)
            }
        }

        impl std::str::FromStr for $type {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::parse(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// Whose data it is. `[a-z][a-z0-9_]{0,39}`. Over HTTP it comes from the token, never from a path; over
    /// NATS from the subject.
    Tenant, "tenant", "[a-z][a-z0-9_]{0,39}", is_lower_name
);
name!(
    /// A kind of aggregate, such as `flight`. `[a-z][a-z0-9_]{0,39}`.
    AggregateName, "aggregate", "[a-z][a-z0-9_]{0,39}", is_lower_name
);
name!(
    /// One aggregate among its kind. `[A-Za-z0-9_-]{1,128}`.
    AggregateId, "aggregate id", "[A-Za-z0-9_-]{1,128}", |text| is_id(text, b"")
);
name!(
    /// A command that an aggregate accepts, such as `depart`. `[a-z][a-z0-9_]{0,39}`.
    CommandName, "command", "[a-z][a-z0-9_]{0,39}", is_lower_name
);
name!(
    /// An event of an aggregate, such as `departed`. `[a-z][a-z0-9_]{0,39}`.
    EventName, "event", "[a-z][a-z0-9_]{0,39}", is_lower_name
);
name!(
    /// Any other declared name: an application, a read model, a column, a query, a parameter.
    Name, "name", "[a-z][a-z0-9_]{0,39}", is_lower_name
);
name!(
    /// What makes a command the same command when it is sent again: `Idempotency-Key` over HTTP,
    /// `Flexcore-Command-Id` or `Nats-Msg-Id` over NATS. `[A-Za-z0-9_:-]{1,128}`.
    CommandId, "command id", "[A-Za-z0-9_:-]{1,128}", |text| is_id(text, b":")
);
name!(
    /// Who sent a command: the `sub` of the token, or `nats:…` where nobody vouches for the sender.
    /// `[A-Za-z0-9_:.@-]{1,128}`.
    ActorName, "actor", "[A-Za-z0-9_:.@-]{1,128}", |text| is_id(text, b":.@")
);

impl Tenant {
    /// The platform's own tenant, to which applications belong: a token of it sees the cluster.
    pub const PLATFORM: &'static str = "flexcore";
}

/// One aggregate of one tenant: what a commit belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AggregateKey {
    tenant: Tenant,
    aggregate: AggregateName,
    id: AggregateId,
}

impl AggregateKey {
    /// The key of these three names.
    #[must_use]
    pub fn new(tenant: Tenant, aggregate: AggregateName, id: AggregateId) -> Self {
        Self { tenant, aggregate, id }
    }

    /// Whose it is.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Its kind.
    #[must_use]
    pub fn aggregate(&self) -> &AggregateName {
        &self.aggregate
    }

    /// Its id among its kind.
    #[must_use]
    pub fn id(&self) -> &AggregateId {
        &self.id
    }

    /// Its slot.
    #[must_use]
    pub fn slot(&self) -> Slot {
        Slot::of([self.tenant.as_str(), self.aggregate.as_str(), self.id.as_str()])
    }

    /// `<slot>.<tenant>.<aggregate>.<id>`: the part that its subjects share.
    #[must_use]
    pub fn subject_part(&self) -> String {
        format!("{}.{}.{}.{}", self.slot(), self.tenant, self.aggregate, self.id)
    }

    /// Reads `<slot>.<tenant>.<aggregate>.<id>`, the slot being checked against the names.
    /// `None` when it is anything else.
    #[must_use]
    pub fn from_subject_part(part: &str) -> Option<Self> {
        let mut tokens = part.split('.');
        let slot: u16 = tokens.next()?.parse().ok()?;
        let key = Self {
            tenant: Tenant::parse(tokens.next()?).ok()?,
            aggregate: AggregateName::parse(tokens.next()?).ok()?,
            id: AggregateId::parse(tokens.next()?).ok()?,
        };
        (tokens.next().is_none() && key.slot().number() == slot).then_some(key)
    }
}

impl fmt::Display for AggregateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.aggregate, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        let long = "a".repeat(1 << 20);
        for text in ["", ".", "a.b", "*", ">", "a b", "a\0", "a\r\nb", "%2e", "ä", "A", "1a", &long]
        {
            assert!(Tenant::parse(text).is_err(), "{}", text.escape_debug());
        }
        for text in ["", ".", "a.b", "*", ">", "a b", "a\0", "a\r\nb", "%2e", "ä", &long] {
            let error = AggregateId::parse(text).expect_err("hostile id").to_string();
            assert!(error.len() < 400 && !error.contains(['\r', '\n', '\0']), "{error:?}");
        }
    }

    #[test]
    fn a_subject_of_the_longest_names_is_short() {
        let text = |length: usize| "a".repeat(length);
        let key = |name: usize, id: usize| {
            Some(AggregateKey::new(
                Tenant::parse(&text(name)).ok()?,
                AggregateName::parse(&text(name)).ok()?,
                AggregateId::parse(&text(id)).ok()?,
            ))
        };
        let longest = key(40, 128).unwrap();
        assert!(longest.subject_part().len() <= "63".len() + 3 + 2 * 40 + 128);
        assert!(key(41, 1).is_none() && key(1, 129).is_none());
    }

    #[test]
    fn subject_part_round_trips_and_checks_its_slot() {
        let key = AggregateKey::new(
            Tenant::parse("acme").unwrap(),
            AggregateName::parse("flight").unwrap(),
            AggregateId::parse("UA1545-20130101-EWR").unwrap(),
        );
        let part = key.subject_part();
        assert_eq!(AggregateKey::from_subject_part(&part), Some(key.clone()));
        let wrong = (key.slot().number() + 1) % crate::SLOTS;
        let moved = format!("{wrong}.acme.flight.UA1545-20130101-EWR");
        assert_eq!(AggregateKey::from_subject_part(&moved), None);
    }
}
