//! Secrets that are stored: sealed with AES-256-GCM under a key of the installation, which is not in the broker.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    digest::{SHA256, digest},
};
use bytes::Bytes;

/// Hexadecimal digits of a key.
const DIGITS: usize = 64;

/// How a sealed value begins: in which way it is sealed.
const WAY: u8 = 1;

/// Bytes of a key's mark, which stands in what is sealed with it.
const MARK_BYTES: usize = 8;

/// Bytes before what is encrypted: the way, the key's mark, and the nonce.
const HEAD_BYTES: usize = 1 + MARK_BYTES + NONCE_LEN;

/// Bytes that a sealed value has more than what is in it.
pub const SEAL_BYTES: usize = HEAD_BYTES + 16;

/// The key that secrets of an installation are sealed with. Its `Debug` tells nothing of it.
#[derive(Clone)]
pub struct SecretsKey([u8; 32]);

/// Why a value is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// It was sealed with another key.
    #[error(
        "it was sealed with another key than this process has: give all processes the same key, by \
         FLEXCORE_SECRETS_KEY or --secrets-key-file, or set it again"
    )]
    OtherKey,
    /// It is no sealed value, was changed, or was sealed for another place.
    #[error("what is stored is not what was sealed for this place: set it again")]
    Changed,
}

impl SecretsKey {
    /// Reads 64 hexadecimal digits, with white space around them or not. Fails with the reason, which does not
    /// quote them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let count = text.chars().count();
        let wrong =
            || format!("a key has {DIGITS} hexadecimal digits, as `openssl rand -hex 32` makes");
        if count != DIGITS || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("{}; this has {count} characters", wrong()));
        }
        let mut key = [0; 32];
        for (byte, at) in key.iter_mut().zip((0..).step_by(2)) {
            let digits = text.get(at..at + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(key))
    }

    /// A new one, by chance.
    ///
    /// # Panics
    /// Where the system has no randomness.
    #[must_use]
    pub fn generate() -> Self {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).expect("BUG: the system has randomness");
        Self(key)
    }

    /// Its digits, to be kept in a file that nobody else can read.
    #[must_use]
    pub fn digits(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Seals a value for this place: it can be opened for no other.
    ///
    /// # Panics
    /// Where the system has no randomness.
    #[must_use]
    pub fn seal(&self, place: &str, value: &[u8]) -> Bytes {
        let mut encrypted = value.to_vec();
        let sealed = self.cipher().seal_in_place_append_tag(Aad::from(place), &mut encrypted);
        let nonce = sealed.expect("BUG: there is randomness, and values are small");
        let nonce: &[u8; NONCE_LEN] = nonce.as_ref();
        let mut whole = Vec::with_capacity(HEAD_BYTES + encrypted.len());
        whole.push(WAY);
        whole.extend_from_slice(&self.mark());
        whole.extend_from_slice(nonce);
        whole.extend_from_slice(&encrypted);
        whole.into()
    }

    /// The value that was sealed for this place. Fails when it was not, or with another key.
    pub fn open(&self, place: &str, sealed: &[u8]) -> Result<Bytes, Unopened> {
        let (head, encrypted) = sealed.split_at_checked(HEAD_BYTES).ok_or(Unopened::Changed)?;
        let (way, rest) = head.split_first().ok_or(Unopened::Changed)?;
        let (mark, nonce) = rest.split_at_checked(MARK_BYTES).ok_or(Unopened::Changed)?;
        if *way != WAY {
            return Err(Unopened::Changed);
        }
        if mark != self.mark() {
            return Err(Unopened::OtherKey);
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Unopened::Changed)?;
        let mut value = encrypted.to_vec();
        let opened = self.cipher().open_in_place(nonce, Aad::from(place), &mut value);
        let length = opened.map_err(|_| Unopened::Changed)?.len();
        value.truncate(length);
        Ok(value.into())
    }

    fn cipher(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, &self.0).expect("BUG: such a key has 32 bytes")
    }

    /// Tells keys apart, and nothing else: the beginning of a hash over the key.
    fn mark(&self) -> [u8; MARK_BYTES] {
        let hash = digest(&SHA256, &[b"flexcore secrets key".as_slice(), &self.0].concat());
        let mut mark = [0; MARK_BYTES];
        for (byte, hashed) in mark.iter_mut().zip(hash.as_ref()) {
            *byte = *hashed;
        }
        mark
    }
}

impl fmt::Debug for SecretsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretsKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(digit: char) -> SecretsKey {
        SecretsKey::parse(&digit.to_string().repeat(64)).unwrap()
    }

    #[test]
    fn a_value_opens_in_its_place_with_its_key_and_nowhere_else() {
        let (key, other) = (key('a'), key('b'));
        let large = vec![7; 64 * 1024];
        for value in [&b""[..], b"{}", &large] {
            let sealed = key.seal("http.acme", value);
            assert_eq!(sealed.len(), value.len() + SEAL_BYTES);
            assert_eq!(key.open("http.acme", &sealed).unwrap(), value);
            assert_eq!(key.open("http.globex", &sealed), Err(Unopened::Changed));
            assert_eq!(other.open("http.acme", &sealed), Err(Unopened::OtherKey));
        }
        assert_ne!(key.seal("p", b"x"), key.seal("p", b"x"), "each has a nonce of its own");
    }

    #[test]
    fn what_was_changed_in_any_byte_does_not_open() {
        let key = key('a');
        let sealed = key.seal("http.acme", b"secret");
        for at in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            assert!(key.open("http.acme", &changed).is_err(), "{at}");
            assert!(key.open("http.acme", &sealed[..at]).is_err(), "{at}");
        }
        let longer = [&sealed[..], b"0"].concat();
        assert_eq!(key.open("http.acme", &longer), Err(Unopened::Changed));
    }

    #[test]
    fn a_key_is_read_as_it_was_written_and_is_never_shown() {
        let made = SecretsKey::generate();
        let digits = made.digits();
        let read = SecretsKey::parse(&format!("{digits}\n")).unwrap();
        assert_eq!(read.0, made.0);
        assert_eq!(format!("{made:?}"), "SecretsKey");
        for wrong in ["", "ab", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65)] {
            let error = SecretsKey::parse(wrong).unwrap_err();
            assert!(error.contains("64 hexadecimal digits"), "{error}");
            assert!(wrong.len() < 3 || !error.contains(wrong), "{error}");
        }
    }
}
