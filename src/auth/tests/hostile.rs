//! Tokens that somebody made up, forged, bent or kept too long.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

use std::{sync::LazyLock, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use flexcore_auth::{
    CLOCK_LEEWAY_S, Error, Grant, Issuer, LIFETIME_MAX, PublicKey, SigningKey, Verifier,
};
use flexcore_domain::{ActorName, Tenant};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Validation};

const NOW_S: u64 = 1_800_000_000;

/// One pair for all tests, since making one takes a while, and its PEM.
static KEY: LazyLock<(SigningKey, String)> = LazyLock::new(SigningKey::generate);

fn verifier() -> Verifier {
    Verifier::new(vec![KEY.0.public().clone()], "flexcore", "flexcore")
}

fn grant() -> Grant {
    Grant {
        tenant: Tenant::parse("acme").unwrap(),
        subject: ActorName::parse("alice@example.com").unwrap(),
        lifetime: Duration::from_secs(3600),
    }
}

fn minted() -> String {
    Issuer::new(KEY.0.clone(), "flexcore", "flexcore").mint(&grant(), NOW_S).unwrap()
}

/// A token of these JSON texts, signed with our own key.
fn signed(header: &str, claims: &str) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = format!("{}.{}", encode(header), encode(claims));
    let key = EncodingKey::from_rsa_pem(KEY.1.as_bytes()).unwrap();
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::RS256).unwrap();
    format!("{message}.{signature}")
}

fn header(more: &str) -> String {
    format!(r#"{{"alg":"RS256","typ":"at+jwt","kid":"{}"{more}}}"#, KEY.0.public().kid())
}

/// Good claims but for the replacements, each of a member's name by its new value as JSON.
fn claims(replace: &[(&str, &str)]) -> String {
    let exp = (NOW_S + 600).to_string();
    let iat = NOW_S.to_string();
    let mut members = vec![
        ("iss", r#""flexcore""#),
        ("aud", r#""flexcore""#),
        ("sub", r#""alice""#),
        ("tenant", r#""acme""#),
        ("iat", &iat),
        ("exp", &exp),
        ("jti", r#""1""#),
    ];
    members.retain(|(name, _)| replace.iter().all(|(other, _)| other != name));
    members.extend(replace.iter().filter(|(_, value)| !value.is_empty()));
    let members: Vec<_> =
        members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", members.join(","))
}

fn refusal(token: &str) -> Error {
    verifier().verify(token, NOW_S).expect_err("accepted")
}

#[test]
fn a_minted_token_is_accepted_until_it_ends() {
    let verifier = verifier();
    let token = minted();
    let identity = verifier.verify(&token, NOW_S).unwrap();
    assert_eq!(identity.tenant.as_str(), "acme");
    assert_eq!(identity.subject.as_str(), "alice@example.com");
    assert_eq!(identity.expires_s, NOW_S + 3600);
    assert_eq!(verifier.verify(&token, NOW_S + 3599).unwrap(), identity);
    assert_eq!(verifier.verify(&token, NOW_S + 3600).unwrap_err(), Error::Expired);
    assert_eq!(verifier.verify(&token, NOW_S + 3600).unwrap_err(), Error::Expired);
}

#[test]
fn only_a_token_that_was_good_is_remembered_and_until_it_ends() {
    let (verifier, token) = (verifier(), minted());
    assert!(verifier.remembered(&token, NOW_S).is_none());
    let identity = verifier.verify(&token, NOW_S).unwrap();
    assert_eq!(verifier.remembered(&token, NOW_S + 3599), Some(identity));
    assert!(verifier.remembered(&token, NOW_S + 3600).is_none());
    let bad = format!("{token}x");
    assert!(verifier.verify(&bad, NOW_S).is_err());
    assert!(verifier.remembered(&bad, NOW_S).is_none());
    assert!(verifier.remembered(&"x".repeat(1 << 20), NOW_S).is_none());
}

#[test]
fn an_independent_implementation_accepts_it_with_the_published_key() {
    let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&verifier().jwks()).unwrap();
    let token = minted();
    let header = jsonwebtoken::decode_header(&token).unwrap();
    assert_eq!(header.typ.as_deref(), Some("at+jwt"));
    let key = DecodingKey::from_jwk(jwks.find(&header.kid.unwrap()).unwrap()).unwrap();
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&["flexcore"]);
    validation.set_issuer(&["flexcore"]);
    let read = jsonwebtoken::decode::<serde_json::Value>(&token, &key, &validation).unwrap().claims;
    assert_eq!(read["tenant"], "acme");
    assert!(!verifier().jwks().contains("\"d\""), "a private number was published");
}

#[test]
fn good_claims_by_hand_are_accepted() {
    for more in [&[][..], &[("aud", r#"["other","flexcore"]"#)], &[("scope", r#""a b""#)]] {
        verifier().verify(&signed(&header(""), &claims(more)), NOW_S).unwrap();
    }
    let typ = header("").replace("at+jwt", "application/AT+JWT");
    verifier().verify(&signed(&typ, &claims(&[])), NOW_S).unwrap();
}

#[test]
fn other_algorithms_are_refused() {
    let none = header("").replace("RS256", "none");
    let unsigned =
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(none), URL_SAFE_NO_PAD.encode(claims(&[])));
    assert_eq!(refusal(&unsigned), Error::Malformed("its algorithm is not RS256"));

    let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_str(&verifier().jwks()).unwrap();
    let secret = serde_json::to_vec(&jwks.keys[0]).unwrap();
    let mut hs256 = jsonwebtoken::Header::new(Algorithm::HS256);
    hs256.typ = Some("at+jwt".to_owned());
    hs256.kid = Some(KEY.0.public().kid().to_owned());
    let claims: serde_json::Value = serde_json::from_str(&claims(&[])).unwrap();
    let token = jsonwebtoken::encode(&hs256, &claims, &EncodingKey::from_secret(&secret)).unwrap();
    assert_eq!(refusal(&token), Error::Malformed("its algorithm is not RS256"));
    let renamed = token.split_once('.').unwrap().1;
    let relabelled = format!("{}.{renamed}", URL_SAFE_NO_PAD.encode(header("")));
    assert_eq!(refusal(&relabelled), Error::WrongSignature);
}

#[test]
fn wrong_headers_are_refused() {
    let typ = Error::Malformed("its type is not at+jwt");
    assert_eq!(refusal(&signed(&header("").replace("at+jwt", "JWT"), &claims(&[]))), typ);
    for crit in [r#"["b64"]"#, "[]", "null"] {
        let token = signed(&header(&format!(",\"crit\":{crit}")), &claims(&[]));
        let expected = "it asks for extensions that are not understood";
        assert_eq!(refusal(&token), Error::Malformed(expected), "{crit}");
    }
    for more in [r#","alg":"RS256""#, r#","kid":"x""#] {
        assert!(matches!(refusal(&signed(&header(more), &claims(&[]))), Error::Malformed(_)));
    }
    let kid = header("").replace(KEY.0.public().kid(), "../../etc/passwd");
    assert_eq!(refusal(&signed(&kid, &claims(&[]))), Error::UnknownKey);
}

#[test]
fn wrong_claims_are_refused() {
    let malformed = Error::Malformed("its claims are not the expected ones");
    let no_sender = Error::Malformed("its sub is no name, or one of senders over NATS");
    let millennium = (NOW_S + 1000 * 366 * 86_400).to_string();
    let future = (NOW_S + CLOCK_LEEWAY_S + 1).to_string();
    let now = NOW_S.to_string();
    let ago = (NOW_S - 10).to_string();
    let cases: &[(&[(&str, &str)], Error)] = &[
        (&[("aud", r#""somebody""#)], Error::WrongAudience),
        (&[("aud", "[]")], Error::WrongAudience),
        (&[("aud", "")], malformed),
        (&[("iss", r#""somebody""#)], Error::WrongIssuer),
        (&[("iss", r#"["flexcore"]"#)], malformed),
        (&[("iss", "")], malformed),
        (&[("sub", "")], malformed),
        (&[("sub", r#""a b""#)], no_sender),
        (&[("sub", r#""nats""#)], no_sender),
        (&[("sub", r#""nats:ann""#)], no_sender),
        (&[("exp", "")], malformed),
        (&[("exp", &millennium)], Error::Lifetime),
        (&[("exp", "18446744073709551615")], Error::Lifetime),
        (&[("exp", "1e300")], malformed),
        (&[("exp", "-1")], malformed),
        (&[("exp", &now), ("iat", &ago)], Error::Expired),
        (&[("exp", &ago)], Error::Lifetime),
        (&[("iat", "")], malformed),
        (&[("iat", &future)], Error::NotYetValid),
        (&[("nbf", &future)], Error::NotYetValid),
        (&[("jti", "")], malformed),
        (&[("jti", r#""""#)], Error::Malformed("its jti is empty")),
        (&[("tenant", "")], malformed),
        (&[("tenant", r#""a.b""#)], Error::Malformed("its tenant is no name")),
        (&[("tenant", r#""*""#)], Error::Malformed("its tenant is no name")),
        (&[("tenant", r#""acme\u0000""#)], Error::Malformed("its tenant is no name")),
        (&[("tenant", r#""acme""#), ("tenant", r#""other""#)], malformed),
        (&[("exp", "1"), ("exp", &millennium)], malformed),
    ];
    for (replace, expected) in cases {
        assert_eq!(refusal(&signed(&header(""), &claims(replace))), *expected, "{replace:?}");
    }
}

#[test]
fn no_token_is_minted_that_no_verifier_takes() {
    let issuer = Issuer::new(KEY.0.clone(), "flexcore", "flexcore");
    for subject in ["nats", "nats:ann"] {
        let subject = ActorName::parse(subject).unwrap();
        let minted = issuer.mint(&Grant { subject, ..grant() }, NOW_S);
        assert!(matches!(minted, Err(Error::Malformed(_))), "{minted:?}");
    }
}

#[test]
fn no_flipped_byte_is_accepted() {
    let token = minted();
    let verifier = verifier();
    verifier.verify(&token, NOW_S).unwrap();
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] ^= 1;
        if let Ok(text) = String::from_utf8(bytes) {
            assert!(verifier.verify(&text, NOW_S).is_err(), "byte {at}");
        }
    }
}

#[test]
fn text_that_is_no_token_is_refused() {
    assert_eq!(refusal(&"a".repeat(1 << 20)), Error::Oversize);
    for text in ["", ".", "..", "...", "a.b.c", "\0\r\n", "é.é.é", &minted()[1..]] {
        assert!(matches!(refusal(text), Error::Malformed(_)), "{text:?}");
    }
    let four = format!("{}.x", minted());
    assert!(matches!(refusal(&four), Error::Malformed(_) | Error::WrongSignature));
}

#[test]
fn another_key_is_refused_even_under_our_key_id() {
    let (other, _) = SigningKey::generate();
    let issuer = Issuer::new(other.clone(), "flexcore", "flexcore");
    let token = issuer.mint(&grant(), NOW_S).unwrap();
    assert_eq!(refusal(&token), Error::UnknownKey);
    let rest = token.split_once('.').unwrap().1;
    let disguised = format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header("")));
    assert_eq!(refusal(&disguised), Error::WrongSignature);
    let both =
        Verifier::new(vec![KEY.0.public().clone(), other.public().clone()], "flexcore", "flexcore");
    assert!(both.verify(&token, NOW_S).is_ok() && both.verify(&minted(), NOW_S).is_ok());
}

#[test]
fn lifetimes_out_of_bounds_are_not_minted() {
    let issuer = Issuer::new(KEY.0.clone(), "flexcore", "flexcore");
    for lifetime in [Duration::from_millis(999), LIFETIME_MAX + Duration::from_secs(1)] {
        let error = issuer.mint(&Grant { lifetime, ..grant() }, NOW_S).unwrap_err();
        assert_eq!(error, Error::Lifetime);
    }
    issuer.mint(&Grant { lifetime: LIFETIME_MAX, ..grant() }, NOW_S).unwrap();
}

#[test]
fn keys_round_trip_and_bad_ones_are_refused() {
    let (key, pem) = &*KEY;
    assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert_eq!(SigningKey::from_pem(pem).unwrap().public().kid(), key.public().kid());
    assert!(!format!("{key:?}").contains(pem.lines().nth(3).unwrap()));
    for text in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
        assert!(matches!(SigningKey::from_pem(text), Err(Error::InvalidKey(_))));
        assert!(matches!(PublicKey::from_pem(text), Err(Error::InvalidKey(_))));
    }
}
