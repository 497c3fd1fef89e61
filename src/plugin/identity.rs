//! AutoMTLS: each side makes a certificate for itself, tells it to the other, and from then on
//! takes that one certificate and no other.
//!
//! The usual checks do not fit: the certificates are their own authorities, and rustls refuses an
//! authority as a peer. So the certificate is compared byte by byte, which is stricter than any
//! check of names and dates, and the handshake's signature is verified as usual. Only the owner of
//! the key can have made that, so a copy of the certificate is of no use.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SignatureAlgorithm, date_time_ymd,
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, ServerConfig,
    SignatureScheme, SupportedProtocolVersion,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
    },
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{Error, limits::DIAL_WAIT, transport::BoxIo};

/// The name in all certificates of go-plugin.
const NAME: &str = "localhost";

/// The first day of our certificates. It and the last one are fixed, since the certificate ends
/// with the process, and the other side's check shall not hang on a clock that is set meanwhile.
const FIRST_DAY: (i32, u8, u8) = (1970, 1, 1);
/// The last day.
const LAST_DAY: (i32, u8, u8) = (2099, 12, 31);

const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

/// The protocol that TLS negotiates for gRPC.
const ALPN: &[u8] = b"h2";

/// A certificate and its key, for one plugin process or one host. The key is never written
/// anywhere.
pub(crate) struct Identity {
    pem: String,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Makes one, on P-256: Python plugins refuse the P-521 of go-plugin, and it is slow.
    pub(crate) fn new() -> Result<Self, Error> {
        Self::on(&PKCS_ECDSA_P256_SHA256)
    }

    fn on(algorithm: &'static SignatureAlgorithm) -> Result<Self, Error> {
        let made = KeyPair::generate_for(algorithm)
            .and_then(|key| Ok((parameters()?.self_signed(&key)?, key)));
        let (certificate, key) = made.map_err(|error| Error::Tls(error.to_string()))?;
        Ok(Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// The certificate, as a host tells it.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate, as a plugin tells it.
    pub(crate) fn der(&self) -> &[u8] {
        &self.certificate
    }

    /// TLS with this certificate, which takes only that of the peer. Fails when the peer's is none.
    pub(crate) fn pinned(&self, peer_der: &[u8]) -> Result<Tls, Error> {
        self.pinned_in(peer_der, VERSIONS)
    }

    fn pinned_in(
        &self,
        peer_der: &[u8],
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Tls, Error> {
        let peer = CertificateDer::from(peer_der.to_vec());
        ParsedCertificate::try_from(&peer).map_err(failed)?;
        // Given to every configuration: the process may have another provider, or none.
        let provider = Arc::new(aws_lc_rs::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let pinned = Arc::new(Pinned { peer, algorithms });
        let key = provider.key_provider.load_private_key(self.key.clone_key()).map_err(failed)?;
        let own = CertifiedKey::new(vec![self.certificate.clone()], key);
        let own = Arc::new(SingleCertAndKey::from(own));
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(pinned.clone())
            .with_client_cert_resolver(own.clone());
        client.alpn_protocols = vec![ALPN.to_vec()];
        // There are few connections for one identity, each long: nothing is worth being kept.
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(failed)?
            .with_client_cert_verifier(pinned)
            .with_cert_resolver(own);
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Tls { client: Arc::new(client), server: Arc::new(server) })
    }
}

fn failed(error: rustls::Error) -> Error {
    Error::Tls(error.to_string())
}

/// What go-plugin writes into its own certificates. Go and Python check a host's as that of an
/// authority, a server and a client at once.
fn parameters() -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new([NAME.to_owned()])?;
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, NAME);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::KeyAgreement,
        KeyUsagePurpose::KeyCertSign,
    ];
    parameters.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let day = |(year, month, day)| date_time_ymd(year, month, day);
    (parameters.not_before, parameters.not_after) = (day(FIRST_DAY), day(LAST_DAY));
    Ok(parameters)
}

/// TLS between two sides that know each other's certificates. A cheap clone.
#[derive(Clone)]
pub(crate) struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// The side that dials. Fails when the other one is not the peer, and after [`DIAL_WAIT`]. In
    /// TLS 1.3 a peer that refuses our certificate says so only when the connection is read.
    pub(crate) async fn connect(&self, io: BoxIo) -> Result<BoxIo, Error> {
        let name = ServerName::try_from(NAME).expect("BUG: it is the name of a host");
        let connecting = TlsConnector::from(Arc::clone(&self.client)).connect(name, io);
        Ok(Box::new(shaken(timeout(DIAL_WAIT, connecting).await)?))
    }

    /// The side that listens. Fails when the other one is not the peer, and after [`DIAL_WAIT`].
    pub(crate) async fn accept(&self, io: BoxIo) -> Result<BoxIo, Error> {
        let accepting = TlsAcceptor::from(Arc::clone(&self.server)).accept(io);
        Ok(Box::new(shaken(timeout(DIAL_WAIT, accepting).await)?))
    }
}

fn shaken<T>(result: Result<std::io::Result<T>, tokio::time::error::Elapsed>) -> Result<T, Error> {
    let result = result.map_err(|_| Error::Late { what: "a TLS handshake", limit: DIAL_WAIT })?;
    result.map_err(|error| Error::Tls(error.to_string()))
}

/// Takes one certificate, and verifies that the peer has its key.
#[derive(Debug)]
struct Pinned {
    peer: CertificateDer<'static>,
    /// They include P-521, which plugins in Go use.
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug, thiserror::Error)]
#[error("the other side has another certificate than it told before")]
struct Another;

impl Pinned {
    fn check(&self, end_entity: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        if end_entity.as_ref() == self.peer.as_ref() {
            return Ok(());
        }
        Err(CertificateError::Other(OtherError(Arc::new(Another))).into())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A client without a certificate is refused: that is what this trait does unless told otherwise.
impl ClientCertVerifier for Pinned {
    /// None: a client in Go sends its only certificate, whoever it is for.
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::PKCS_ECDSA_P521_SHA512;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const PIPE_BYTES: usize = 64 * 1024;

    /// Each version by itself, and as it is.
    const ALL: [&[&SupportedProtocolVersion]; 3] = [&[&TLS12], &[&TLS13], VERSIONS];

    /// The two ends of a handshake.
    async fn shake(client: &Tls, server: &Tls) -> (Result<BoxIo, Error>, Result<BoxIo, Error>) {
        let (near, far) = duplex(PIPE_BYTES);
        tokio::join!(client.connect(Box::new(near)), server.accept(Box::new(far)))
    }

    async fn assert_works(client: &Tls, server: &Tls) {
        let (near, far) = shake(client, server).await;
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        let mut heard = [0; 4];
        near.write_all(b"ping").await.unwrap();
        near.flush().await.unwrap();
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ping");
        far.write_all(b"pong").await.unwrap();
        far.flush().await.unwrap();
        near.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"pong");
    }

    async fn assert_client_refuses(client: &Tls, server: &Tls) {
        let (near, far) = shake(client, server).await;
        assert!(matches!(near.err().unwrap(), Error::Tls(_)));
        assert!(matches!(far.err().unwrap(), Error::Tls(_)));
    }

    /// The client may have shaken hands already, but it gets nothing.
    async fn assert_server_refuses(client: &Tls, server: &Tls) {
        let (near, far) = shake(client, server).await;
        assert!(matches!(far.err().unwrap(), Error::Tls(_)));
        if let Ok(mut near) = near {
            assert!(near.read_u8().await.is_err());
        }
    }

    /// The certificate of one with the key of the other.
    fn forged(certificate: &Identity, key: &Identity) -> Identity {
        Identity {
            pem: certificate.pem.clone(),
            certificate: certificate.certificate.clone(),
            key: key.key.clone_key(),
        }
    }

    #[tokio::test]
    async fn two_that_know_each_other_talk() {
        let (host, plugin) = (Identity::new().unwrap(), Identity::new().unwrap());
        assert_ne!(host.der(), plugin.der());
        assert!(host.pem().starts_with("-----BEGIN CERTIFICATE-----"));
        for versions in ALL {
            let client = host.pinned_in(plugin.der(), versions).unwrap();
            let server = plugin.pinned_in(host.der(), versions).unwrap();
            assert_works(&client, &server).await;
        }
        let client = host.pinned(plugin.der()).unwrap();
        let server = plugin.pinned(host.der()).unwrap();
        // A callback: the host listens.
        assert_works(&server, &client).await;
    }

    #[tokio::test]
    async fn a_plugin_in_go_has_a_key_on_p_521() {
        let host = Identity::new().unwrap();
        let plugin = Identity::on(&PKCS_ECDSA_P521_SHA512).unwrap();
        for versions in ALL {
            let ours = host.pinned_in(plugin.der(), versions).unwrap();
            let theirs = plugin.pinned_in(host.der(), versions).unwrap();
            assert_works(&ours, &theirs).await;
            assert_works(&theirs, &ours).await;
        }
    }

    #[tokio::test]
    async fn the_right_certificate_with_a_wrong_key_is_refused() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P521_SHA512] {
            let (host, plugin) =
                (Identity::on(algorithm).unwrap(), Identity::on(algorithm).unwrap());
            let thief = Identity::on(algorithm).unwrap();
            for versions in ALL {
                let client = host.pinned_in(plugin.der(), versions).unwrap();
                let server = forged(&plugin, &thief).pinned_in(host.der(), versions).unwrap();
                assert_client_refuses(&client, &server).await;
                let client = forged(&host, &thief).pinned_in(plugin.der(), versions).unwrap();
                let server = plugin.pinned_in(host.der(), versions).unwrap();
                assert_server_refuses(&client, &server).await;
            }
        }
    }

    #[tokio::test]
    async fn another_certificate_is_refused() {
        let (host, plugin) = (Identity::new().unwrap(), Identity::new().unwrap());
        let other = Identity::new().unwrap();
        for versions in ALL {
            let client = host.pinned_in(plugin.der(), versions).unwrap();
            let server = other.pinned_in(host.der(), versions).unwrap();
            assert_client_refuses(&client, &server).await;
            let client = other.pinned_in(plugin.der(), versions).unwrap();
            let server = plugin.pinned_in(host.der(), versions).unwrap();
            assert_server_refuses(&client, &server).await;
        }
        let garbage = host.pinned(b"no certificate");
        assert!(matches!(garbage.err().unwrap(), Error::Tls(_)));
    }

    #[tokio::test]
    async fn a_client_without_a_certificate_is_refused() {
        let (host, plugin) = (Identity::new().unwrap(), Identity::new().unwrap());
        for versions in ALL {
            let mut client = host.pinned_in(plugin.der(), versions).unwrap();
            let provider = Arc::new(aws_lc_rs::default_provider());
            let pinned = Pinned {
                peer: plugin.certificate.clone(),
                algorithms: provider.signature_verification_algorithms,
            };
            let config = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(versions)
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(pinned))
                .with_no_client_auth();
            client.client = Arc::new(config);
            let server = plugin.pinned_in(host.der(), versions).unwrap();
            assert_server_refuses(&client, &server).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_speaks_no_tls_is_refused_in_time() {
        let (host, plugin) = (Identity::new().unwrap(), Identity::new().unwrap());
        let tls = plugin.pinned(host.der()).unwrap();
        let (mut near, far) = duplex(PIPE_BYTES);
        near.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let spoken = tls.accept(Box::new(far)).await;
        assert!(matches!(spoken.err().unwrap(), Error::Tls(_)));
        let (near, far) = duplex(PIPE_BYTES);
        let silent = tls.accept(Box::new(far)).await;
        assert!(matches!(silent.err().unwrap(), Error::Late { .. }));
        drop(near);
        let (_near, far) = duplex(PIPE_BYTES);
        let silent = tls.connect(Box::new(far)).await;
        assert!(matches!(silent.err().unwrap(), Error::Late { .. }));
        let (near, far) = duplex(PIPE_BYTES);
        drop(near);
        let gone = tls.connect(Box::new(far)).await;
        assert!(matches!(gone.err().unwrap(), Error::Tls(_)));
    }
}
