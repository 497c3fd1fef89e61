//! Every limit of tokens, each with its reason.

use std::time::Duration;

/// Longest token that is looked at, in bytes: ours have about 900, and hashing and decoding a
/// stranger's megabyte is work for nothing.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Longest life of a token. There is no revocation yet, so a lost token must end by itself.
pub const LIFETIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Seconds by which the issuer's clock may be ahead of ours, for `iat` and `nbf`; `exp` has none.
pub const CLOCK_LEEWAY_S: u64 = 30;

/// Verified tokens that are remembered: about 200 bytes each, and more clients than that at one
/// gateway only cost a signature check (about 20 µs) a request.
pub const TOKENS_CACHED_MAX: usize = 4_096;

/// Shortest modulus that is trusted, in bytes (2048 bits).
pub(crate) const MODULUS_BYTES_MIN: usize = 256;
