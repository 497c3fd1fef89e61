//! Hashes: what chains an aggregate's commits, and what tells a command from another of the same id.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The first bytes of a SHA-256 digest; as text two hexadecimal digits each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest<const BYTES: usize>([u8; BYTES]);

/// A link of an aggregate's hash chain: a whole digest.
pub type Hash = Digest<32>;

/// What a command is recognised by, beside its id: half a digest, since it guards against mistakes
/// within one aggregate, and stands in every event and a thousand times in a snapshot.
pub type CommandHash = Digest<16>;

impl Hash {
    /// What precedes an aggregate's first commit.
    pub const ZERO: Self = Self([0; 32]);

    /// Link of a commit: SHA-256 of the previous link and the body.
    #[must_use]
    pub fn chain(previous: &Self, body: &[u8]) -> Self {
        Self(Sha256::new().chain_update(previous.0).chain_update(body).finalize().into())
    }
}

/// Makes fingerprints that only who knows it can foresee.
pub type Secret = Digest<16>;

impl Secret {
    /// Four bytes of the SHA-256 of the secret and the text.
    #[must_use]
    pub fn fingerprint(&self, text: &str) -> u32 {
        let digest = Sha256::new().chain_update(self.0).chain_update(text).finalize();
        u32::from_le_bytes([digest[0], digest[1], digest[2], digest[3]])
    }
}

impl CommandHash {
    /// SHA-256 of a name, a zero byte and text: of a command its payload's canonical text, so that it is
    /// the same however the payload's value is written.
    #[must_use]
    pub fn of(name: &str, payload: &str) -> Self {
        let hasher = Sha256::new().chain_update(name).chain_update([0]).chain_update(payload);
        let mut half = [0; 16];
        half.copy_from_slice(&hasher.finalize()[..16]);
        Self(half)
    }
}

impl<const BYTES: usize> From<[u8; BYTES]> for Digest<BYTES> {
    fn from(bytes: [u8; BYTES]) -> Self {
        Self(bytes)
    }
}

impl<const BYTES: usize> Digest<BYTES> {
    /// The bytes, for a place that keeps them as they are.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; BYTES] {
        &self.0
    }

    /// The digest of these bytes; `None` when there are more or fewer.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(bytes.try_into().ok()?))
    }

    /// Reads two hexadecimal digits a byte; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let mut digest = [0; BYTES];
        if bytes.len() != 2 * BYTES {
            return None;
        }
        for (byte, pair) in digest.iter_mut().zip(bytes.chunks_exact(2)) {
            let digit = |b: u8| char::from(b).to_digit(16);
            *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
        }
        Some(Self(digest))
    }
}

impl<const BYTES: usize> fmt::Display for Digest<BYTES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [[0; 2]; BYTES];
        for (pair, byte) in text.iter_mut().zip(self.0) {
            *pair = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        f.write_str(str::from_utf8(text.as_flattened()).expect("BUG: hexadecimal digits are ASCII"))
    }
}

impl<const BYTES: usize> fmt::Debug for Digest<BYTES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const BYTES: usize> TryFrom<String> for Digest<BYTES> {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("not the hexadecimal digits of a digest")
    }
}

impl<const BYTES: usize> From<Digest<BYTES>> for String {
    fn from(digest: Digest<BYTES>) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_round_trip_as_text() {
        let hash = CommandHash::of("a", "b");
        assert_eq!(CommandHash::parse(&hash.to_string()), Some(hash));
        let link = Hash::chain(&Hash::ZERO, b"a");
        assert_eq!(Hash::parse(&link.to_string()), Some(link));
        assert_eq!(Hash::parse(&hash.to_string()), None);
        assert_eq!(Hash::parse("zz"), None);
    }
}
