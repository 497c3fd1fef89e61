//! Identity: RS256 access tokens after RFC 9068, the keys that sign and verify them, and what
//! their bearers may do. Time is an argument; nothing here reads a clock.

mod claims;
mod issuer;
mod key;
mod limits;
mod permission;
mod verifier;

pub use issuer::{Grant, Issuer};
pub use key::{PublicKey, SigningKey};
pub use limits::{CLOCK_LEEWAY_S, LIFETIME_MAX, TOKEN_BYTES_MAX, TOKENS_CACHED_MAX};
pub use permission::Permission;
pub use verifier::{Identity, Verifier};

/// Why a token was not accepted, or a key not read. No text of it holds any part of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Longer than [`TOKEN_BYTES_MAX`].
    #[error("the token is too long")]
    Oversize,
    /// Not three base64url parts with the JSON that is expected; the text says what is amiss.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Signed by a key that is not trusted here.
    #[error("the token names a signing key that is not known here")]
    UnknownKey,
    /// The signature does not fit.
    #[error("the token's signature is wrong")]
    WrongSignature,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It lives, or would live, longer than [`LIFETIME_MAX`].
    #[error("the token's lifetime is longer than allowed, or none")]
    Lifetime,
    /// Issued by somebody else.
    #[error("the token is from another issuer")]
    WrongIssuer,
    /// Issued for somebody else.
    #[error("the token is for another audience")]
    WrongAudience,
    /// Not an RSA key in PEM, or shorter than 2048 bits.
    #[error("not an RSA key of 2048 bits or more in PEM: {0}")]
    InvalidKey(&'static str),
}
