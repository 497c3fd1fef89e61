//! The tokens of an installation: minted and accepted under one issuer and audience.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use flexcore_auth::{Grant, Issuer, PublicKey, SigningKey, Verifier};
use flexcore_domain::{ActorName, Tenant};

/// `iss` of the tokens that are minted and accepted here.
const ISSUER: &str = "flexcore";
/// `aud` of these tokens.
const AUDIENCE: &str = "flexcore";

/// Accepts tokens that one of these keys has signed.
pub fn verifier(keys: Vec<PublicKey>) -> Verifier {
    Verifier::new(keys, ISSUER, AUDIENCE)
}

/// Mints tokens that this key signs.
pub fn issuer(key: SigningKey) -> Issuer {
    Issuer::new(key, ISSUER, AUDIENCE)
}

/// A token. Fails when the lifetime is longer than allowed.
pub fn mint(
    issuer: &Issuer,
    tenant: &Tenant,
    subject: &ActorName,
    lifetime: Duration,
) -> anyhow::Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let grant = Grant { tenant: tenant.clone(), subject: subject.clone(), lifetime };
    let most = flexcore_auth::LIFETIME_MAX.as_secs();
    let minted = issuer.mint(&grant, now.as_secs());
    minted.with_context(|| format!("minting a token of {lifetime:?} (1 to {most} seconds)"))
}
