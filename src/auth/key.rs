//! RSA keys: a pair that signs, and the public half that verifies.

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey,
    jwk::{AlgorithmParameters, Jwk, PublicKeyUse, ThumbprintHash},
};

use crate::{Error, limits};

/// A key pair that signs tokens. Its `Debug` form does not show the key.
#[derive(Clone, Debug)]
pub struct SigningKey {
    encoding: EncodingKey,
    public: PublicKey,
}

/// The half that verifies.
#[derive(Clone, Debug)]
pub struct PublicKey {
    pub(crate) kid: String,
    pub(crate) decoding: DecodingKey,
    pub(crate) jwk: Jwk,
}

impl SigningKey {
    /// Makes a new pair of 3072 bits, and its PEM text (PKCS#8), which is the only copy: write it
    /// to a file that nobody else can read. Takes some 100 ms.
    ///
    /// # Panics
    /// When the operating system has no randomness to give.
    #[must_use]
    pub fn generate() -> (Self, String) {
        let pair = KeyPair::generate(KeySize::Rsa3072).expect("BUG: the system has randomness");
        let der: Pkcs8V1Der<'_> = pair.as_der().expect("BUG: a new key encodes");
        let pem = pem::encode_config(
            &pem::Pem::new("PRIVATE KEY", der.as_ref()),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        );
        let key = Self::from_pem(&pem).expect("BUG: a new key reads back");
        (key, pem)
    }

    /// Reads a key pair from PEM (PKCS#8 or PKCS#1). Fails when it is anything but an RSA private
    /// key of at least 2048 bits.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let encoding = EncodingKey::from_rsa_pem(pem.as_bytes())
            .map_err(|_| Error::InvalidKey("it does not parse"))?;
        let jwk = Jwk::from_encoding_key(&encoding, Algorithm::RS256)
            .map_err(|_| Error::InvalidKey("it is no private key"))?;
        Ok(Self { public: PublicKey::from_jwk(jwk)?, encoding })
    }

    /// The half that verifies what this signs.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(crate) fn sign(&self, message: &str) -> String {
        jsonwebtoken::crypto::sign(message.as_bytes(), &self.encoding, Algorithm::RS256)
            .expect("BUG: a key that was read signs")
    }
}

impl PublicKey {
    /// Reads a public key from PEM (`PUBLIC KEY` or `RSA PUBLIC KEY`). Fails when it is anything
    /// but an RSA public key of at least 2048 bits.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let decoding = DecodingKey::from_rsa_pem(pem.as_bytes())
            .map_err(|_| Error::InvalidKey("it does not parse"))?;
        let jwk = Jwk::from_decoding_key(&decoding, Some(Algorithm::RS256))
            .map_err(|_| Error::InvalidKey("it is no public key"))?;
        Self::from_jwk(jwk)
    }

    /// Its id: the RFC 7638 thumbprint.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    fn from_jwk(mut jwk: Jwk) -> Result<Self, Error> {
        let AlgorithmParameters::RSA(rsa) = &jwk.algorithm else {
            return Err(Error::InvalidKey("it is not RSA"));
        };
        let modulus = URL_SAFE_NO_PAD
            .decode(&rsa.n)
            .map_err(|_| Error::InvalidKey("its modulus does not decode"))?;
        if modulus.len() < limits::MODULUS_BYTES_MIN {
            return Err(Error::InvalidKey("it is too short"));
        }
        let decoding = DecodingKey::from_rsa_components(&rsa.n, &rsa.e)
            .map_err(|_| Error::InvalidKey("its numbers do not decode"))?;
        let kid = jwk
            .thumbprint(ThumbprintHash::SHA256)
            .map_err(|_| Error::InvalidKey("it has no thumbprint"))?;
        jwk.common.key_id = Some(kid.clone());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self { kid, decoding, jwk })
    }
}
