//! Accepting tokens, or saying why not.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use flexcore_domain::{ActorName, Tenant};
use jsonwebtoken::{Algorithm, DecodingKey, jwk::JwkSet};
use lru::LruCache;
use sha2::{Digest, Sha256};

use crate::{
    Error,
    claims::{ALGORITHM, Claims, Header, TYPE},
    key::PublicKey,
    limits::{CLOCK_LEEWAY_S, LIFETIME_MAX, TOKEN_BYTES_MAX, TOKENS_CACHED_MAX},
};

/// The sender of a request, according to an accepted token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The tenant whose data the sender may use.
    pub tenant: Tenant,
    /// The sender's name.
    pub subject: ActorName,
    /// When the token ends, in seconds since 1970-01-01 UTC.
    pub expires_s: u64,
}

/// Accepts tokens of one issuer for one audience, signed by any of some keys.
pub struct Verifier {
    keys: HashMap<String, DecodingKey>,
    jwks: JwkSet,
    issuer: String,
    audience: String,
    /// By SHA-256 of the whole token, so that a token differing in one byte is another one and the
    /// cache holds no usable token.
    accepted: Mutex<LruCache<[u8; 32], Arc<Identity>>>,
}

impl Verifier {
    /// Accepts what these keys signed. Replace the verifier to rotate keys: its cache goes with it.
    #[must_use]
    pub fn new(keys: Vec<PublicKey>, issuer: &str, audience: &str) -> Self {
        let jwks = JwkSet { keys: keys.iter().map(|key| key.jwk.clone()).collect() };
        let size = NonZeroUsize::new(TOKENS_CACHED_MAX).expect("BUG: the cache has a size");
        Self {
            keys: keys.into_iter().map(|key| (key.kid, key.decoding)).collect(),
            jwks,
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            accepted: Mutex::new(LruCache::new(size)),
        }
    }

    /// Returns the bearer of this token at `now_s` (seconds since 1970-01-01 UTC). Fails with the
    /// reason when the token is not good; a token that was good is found again by its hash.
    pub fn verify(&self, token: &str, now_s: u64) -> Result<Arc<Identity>, Error> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Error::Oversize);
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        let known = self.cache().get(&hash).cloned();
        if let Some(identity) = known {
            if identity.expires_s <= now_s {
                self.cache().pop(&hash);
                return Err(Error::Expired);
            }
            return Ok(identity);
        }
        let identity = Arc::new(self.check(token, now_s)?);
        self.cache().put(hash, identity.clone());
        Ok(identity)
    }

    /// The bearer of a token that was good before and still is at `now_s`; `None`: it has to be
    /// verified. This costs no more than a look at the memory.
    #[must_use]
    pub fn remembered(&self, token: &str, now_s: u64) -> Option<Arc<Identity>> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        self.cache().get(&hash).filter(|identity| identity.expires_s > now_s).cloned()
    }

    /// The public keys as a JWKS document (RFC 7517), JSON.
    #[must_use]
    pub fn jwks(&self) -> String {
        serde_json::to_string(&self.jwks).expect("BUG: a JWKS serialises")
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, LruCache<[u8; 32], Arc<Identity>>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, token: &str, now_s: u64) -> Result<Identity, Error> {
        let (message, signature) =
            token.rsplit_once('.').ok_or(Error::Malformed("it has not three parts"))?;
        let (header, claims) =
            message.split_once('.').ok_or(Error::Malformed("it has not three parts"))?;
        let header: Header = part(header, "its header is not the expected one")?;
        let key = self.key(&header)?;
        let genuine =
            jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, Algorithm::RS256)
                .map_err(|_| Error::Malformed("its signature is not base64url"))?;
        if !genuine {
            return Err(Error::WrongSignature);
        }
        // Only now is there anything to believe.
        self.accept(&part(claims, "its claims are not the expected ones")?, now_s)
    }

    /// The key that the header names. `kid` is looked up and nothing else is done with it.
    fn key(&self, header: &Header) -> Result<&DecodingKey, Error> {
        if header.alg != ALGORITHM {
            return Err(Error::Malformed("its algorithm is not RS256"));
        }
        let typ = header.typ.to_ascii_lowercase();
        if typ.strip_prefix("application/").unwrap_or(&typ) != TYPE {
            return Err(Error::Malformed("its type is not at+jwt"));
        }
        if header.crit {
            return Err(Error::Malformed("it asks for extensions that are not understood"));
        }
        self.keys.get(&header.kid).ok_or(Error::UnknownKey)
    }

    fn accept(&self, claims: &Claims, now_s: u64) -> Result<Identity, Error> {
        if claims.iss != self.issuer {
            return Err(Error::WrongIssuer);
        }
        if !claims.aud.contains(&self.audience) {
            return Err(Error::WrongAudience);
        }
        let lifetime_s = claims.exp.checked_sub(claims.iat).ok_or(Error::Lifetime)?;
        if lifetime_s == 0 || lifetime_s > LIFETIME_MAX.as_secs() {
            return Err(Error::Lifetime);
        }
        if claims.exp <= now_s {
            return Err(Error::Expired);
        }
        if claims.iat.max(claims.nbf.unwrap_or(0)) > now_s.saturating_add(CLOCK_LEEWAY_S) {
            return Err(Error::NotYetValid);
        }
        if claims.jti.is_empty() {
            return Err(Error::Malformed("its jti is empty"));
        }
        Ok(Identity {
            tenant: Tenant::parse(&claims.tenant)
                .map_err(|_| Error::Malformed("its tenant is no name"))?,
            subject: ActorName::parse(&claims.sub)
                .ok()
                .filter(|subject| !subject.is_claimed())
                .ok_or(Error::Malformed("its sub is no name, or one of senders over NATS"))?,
            expires_s: claims.exp,
        })
    }
}

fn part<T: serde::de::DeserializeOwned>(text: &str, reason: &'static str) -> Result<T, Error> {
    let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| Error::Malformed(reason))?;
    serde_json::from_slice(&json).map_err(|_| Error::Malformed(reason))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Grant, Issuer, SigningKey};

    const NOW_S: u64 = 1_800_000_000;

    /// Whoever is pushed out is no stranger: its signature is checked again.
    #[test]
    fn of_too_many_tokens_the_one_unused_for_longest_is_forgotten_and_accepted_again() {
        let (key, _) = SigningKey::generate();
        let verifier = Verifier::new(vec![key.public().clone()], "flexcore", "flexcore");
        let issuer = Issuer::new(key, "flexcore", "flexcore");
        let grant = Grant {
            tenant: Tenant::parse("acme").unwrap(),
            subject: ActorName::parse("alice").unwrap(),
            lifetime: Duration::from_secs(3_600),
        };
        let [busy, idle] = [(); 2].map(|()| issuer.mint(&grant, NOW_S).unwrap());
        let identity = verifier.verify(&busy, NOW_S).unwrap();
        verifier.verify(&idle, NOW_S).unwrap();
        for number in 0..TOKENS_CACHED_MAX {
            let other: [u8; 32] = Sha256::digest(number.to_string()).into();
            verifier.cache().put(other, identity.clone());
            assert!(verifier.remembered(&busy, NOW_S).is_some(), "it is used all the time");
        }
        assert_eq!(verifier.cache().len(), TOKENS_CACHED_MAX);
        assert!(verifier.remembered(&idle, NOW_S).is_none());
        assert_eq!(verifier.verify(&idle, NOW_S), Ok(identity));
        assert!(verifier.remembered(&idle, NOW_S).is_some(), "it is among the last ones again");
        assert_eq!(verifier.cache().len(), TOKENS_CACHED_MAX);
    }
}
