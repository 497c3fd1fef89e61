//! A token's two JSON parts as types. Deserialising into structs is what refuses duplicates of
//! every member that means something here, arrays for strings, and fractions for seconds.

use serde::{Deserialize, Serialize};

/// Media type of RFC 9068.
pub(crate) const TYPE: &str = "at+jwt";

/// The one algorithm: with no choice there is none to confuse.
pub(crate) const ALGORITHM: &str = "RS256";

#[derive(Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) alg: String,
    pub(crate) typ: String,
    pub(crate) kid: String,
    /// Present at all means refused: no extension is understood here.
    #[serde(default, deserialize_with = "present", skip_serializing)]
    pub(crate) crit: bool,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) aud: Audience,
    pub(crate) sub: String,
    /// Ours: whose data the bearer may use.
    pub(crate) tenant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) client_id: Option<String>,
    pub(crate) iat: u64,
    pub(crate) exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nbf: Option<u64>,
    pub(crate) jti: String,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    pub(crate) fn contains(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}
