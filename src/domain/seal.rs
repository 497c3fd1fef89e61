//! Who sent a command: a gateway vouches for the bearer of a token with a seal, and what anybody else
//! says over NATS is recorded as a claim.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::{
    hash::{Digest, Secret},
    names::{ActorName, AggregateKey, CommandId, CommandName, InvalidName},
};

/// The actor of a command that says nothing of its sender and came over NATS.
const CLAIMED: &str = "nats";

impl ActorName {
    /// As whom a command is recorded that nobody vouches for: `nats`, or `nats:` and whom it names. Fails
    /// when that is no name.
    pub fn claimed(named: Option<&str>) -> Result<Self, InvalidName> {
        match named {
            None => Self::parse(CLAIMED),
            Some(named) => {
                let actor = Self::parse(named)?;
                if actor.is_claimed() {
                    Ok(actor)
                } else {
                    Self::parse(&format!("{CLAIMED}:{named}"))
                }
            }
        }
    }

    /// Whether it is such a name. No token is accepted for one.
    #[must_use]
    pub fn is_claimed(&self) -> bool {
        let rest = self.as_str().strip_prefix(CLAIMED);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    }
}

/// A worker's words for a command whose seal does not fit. It is not done as anybody's: its gateway may have
/// another secret, and reads it again at these words.
pub const WRONG_SEAL: &str =
    "the seal of its sender does not fit the secret of the workers: nothing was done";

/// What is vouched for: this actor sends this command.
#[derive(Clone, Copy, Debug)]
pub struct Vouched<'a> {
    /// Who sends it.
    pub actor: &'a str,
    /// To which aggregate.
    pub key: &'a AggregateKey,
    /// What it asks.
    pub name: &'a CommandName,
    /// Its id.
    pub id: &'a CommandId,
    /// Its payload, byte for byte.
    pub payload: &'a [u8],
}

impl Vouched<'_> {
    /// The seal: who has the secret makes it, and nobody else. HMAC-SHA-256, in hexadecimal digits.
    #[must_use]
    pub fn seal(&self, secret: &Secret) -> String {
        Digest::<32>::from(<[u8; 32]>::from(self.code(secret).finalize().into_bytes())).to_string()
    }

    /// Whether this is its seal.
    #[must_use]
    pub fn has_seal(&self, secret: &Secret, seal: &str) -> bool {
        let seal = Digest::<32>::parse(seal);
        seal.is_some_and(|seal| self.code(secret).verify_slice(seal.as_bytes()).is_ok())
    }

    fn code(&self, secret: &Secret) -> Hmac<Sha256> {
        let Self { actor, key, name, id, payload } = self;
        let code = Hmac::<Sha256>::new_from_slice(secret.as_bytes());
        let mut code = code.expect("BUG: a key may have any length");
        // No name has a line end in it.
        code.update(format!("{actor}\n{}\n{name}\n{id}\n", key.subject_part()).as_bytes());
        code.update(payload);
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{AggregateId, AggregateName, Tenant};

    #[test]
    fn who_nobody_vouches_for_is_marked() {
        let claimed = |named| ActorName::claimed(named).map(|actor| actor.to_string());
        assert_eq!(claimed(None).unwrap(), "nats");
        assert_eq!(claimed(Some("alice@x.org")).unwrap(), "nats:alice@x.org");
        for marked in ["nats", "nats:alice"] {
            assert_eq!(claimed(Some(marked)).unwrap(), marked, "marked once");
        }
        assert_eq!(claimed(Some("natsy")).unwrap(), "nats:natsy");
        for bad in ["", "a b", &"x".repeat(124)] {
            assert!(claimed(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_seal_is_for_one_command_of_one_sender() {
        let key = |id: &str| {
            let (tenant, aggregate) =
                (Tenant::parse("t").unwrap(), AggregateName::parse("a").unwrap());
            AggregateKey::new(tenant, aggregate, AggregateId::parse(id).unwrap())
        };
        let (one, other) = (key("x"), key("y"));
        let [up, down] = ["up", "down"].map(|name| CommandName::parse(name).unwrap());
        let [first, second] = ["1", "2"].map(|id| CommandId::parse(id).unwrap());
        let secret = Secret::from([7; 16]);
        let real = Vouched { actor: "alice", key: &one, name: &up, id: &first, payload: b"{}" };
        let seal = real.seal(&secret);
        assert!(real.has_seal(&secret, &seal));
        for forged in [
            Vouched { actor: "bob", ..real },
            Vouched { key: &other, ..real },
            Vouched { name: &down, ..real },
            Vouched { id: &second, ..real },
            Vouched { payload: b"[]", ..real },
        ] {
            assert!(!forged.has_seal(&secret, &seal), "{forged:?}");
        }
        assert!(!real.has_seal(&Secret::from([8; 16]), &seal));
        assert!(!real.has_seal(&secret, "") && !real.has_seal(&secret, &seal[1..]));
    }
}
