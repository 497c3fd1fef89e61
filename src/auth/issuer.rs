//! Minting tokens.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use flexcore_domain::{ActorName, Tenant};

use crate::{
    Error,
    claims::{ALGORITHM, Audience, Claims, Header, TYPE},
    key::SigningKey,
    limits::LIFETIME_MAX,
};

/// Mints tokens for one audience.
#[derive(Clone, Debug)]
pub struct Issuer {
    key: SigningKey,
    issuer: String,
    audience: String,
}

/// The content of a new token.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The tenant whose data the bearer may use.
    pub tenant: Tenant,
    /// The bearer's name.
    pub subject: ActorName,
    /// Lifetime of the token, at most [`LIFETIME_MAX`]; fractions of a second are dropped.
    pub lifetime: Duration,
}

impl Issuer {
    /// An issuer of this name that signs with this key. Verifiers must expect the same `issuer` and
    /// `audience`.
    #[must_use]
    pub fn new(key: SigningKey, issuer: &str, audience: &str) -> Self {
        Self { key, issuer: issuer.to_owned(), audience: audience.to_owned() }
    }

    /// A signed token, good from `now_s` (seconds since 1970-01-01 UTC) on. Fails with
    /// [`Error::Lifetime`] when the lifetime is under a second or over [`LIFETIME_MAX`], and with
    /// [`Error::Malformed`] when the subject is one of senders over NATS: no verifier takes it.
    pub fn mint(&self, grant: &Grant, now_s: u64) -> Result<String, Error> {
        if grant.subject.is_claimed() {
            return Err(Error::Malformed("its sub is one of senders over NATS"));
        }
        if grant.lifetime.as_secs() == 0 || grant.lifetime > LIFETIME_MAX {
            return Err(Error::Lifetime);
        }
        let header = Header {
            alg: ALGORITHM.to_owned(),
            typ: TYPE.to_owned(),
            kid: self.key.public().kid.clone(),
            crit: false,
        };
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: Audience::One(self.audience.clone()),
            sub: grant.subject.to_string(),
            tenant: grant.tenant.to_string(),
            client_id: Some(self.issuer.clone()),
            iat: now_s,
            exp: now_s + grant.lifetime.as_secs(),
            nbf: None,
            jti: random_id(),
        };
        let part = |json: serde_json::Result<Vec<u8>>| {
            URL_SAFE_NO_PAD.encode(json.expect("BUG: strings and numbers serialise"))
        };
        let message =
            format!("{}.{}", part(serde_json::to_vec(&header)), part(serde_json::to_vec(&claims)));
        let signature = self.key.sign(&message);
        Ok(format!("{message}.{signature}"))
    }
}

fn random_id() -> String {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).expect("BUG: the system has randomness");
    URL_SAFE_NO_PAD.encode(bytes)
}
