//! TLS with the certificate of a plugin's first line alone: another certificate is refused, and so
//! is the right one in the hands of somebody without its key. The same at a service of the host's.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use flexcore_plugin::Error;
use rustls::{
    ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::service::Routes;

use crate::{
    PATIENCE,
    base::run,
    contract::{HostAdder, Transform},
    fixtures::{self, fault},
    harness::{How, start, within},
};

/// A certificate as go-plugin makes them, and its key.
struct Pair {
    certificate: CertificateDer<'static>,
    key: rcgen::KeyPair,
}

impl Pair {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap().der().clone();
        Self { certificate, key }
    }
}

/// It presents what it was given, whether it fits together or not.
#[derive(Debug)]
struct Presents(Arc<CertifiedKey>);

impl ResolvesServerCert for Presents {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

fn presents(
    certificate: &Pair,
    key: &Pair,
    version: &'static SupportedProtocolVersion,
) -> TlsAcceptor {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = PrivatePkcs8KeyDer::from(key.key.serialize_der());
    let key = provider.key_provider.load_private_key(key.into()).unwrap();
    let both = CertifiedKey::new(vec![certificate.certificate.clone()], key);
    let config = ServerConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(&[version]).unwrap().with_no_client_auth();
    let mut config = config.with_cert_resolver(Arc::new(Presents(Arc::new(both))));
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// Starts a plugin that says the first certificate, at whose address this process answers. Returns
/// whether the host took part in the whole TLS handshake, and the error of the start: there is no
/// plugin behind it.
async fn asked(said: &Pair, acceptor: TlsAcceptor) -> (bool, Error) {
    let folder = tempfile::tempdir().unwrap();
    let address = folder.path().join("s");
    let listener = UnixListener::bind(&address).unwrap();
    let answers = async {
        let (stream, _) = listener.accept().await.unwrap();
        acceptor.accept(stream).await.is_ok()
    };
    let line = line(&address, said);
    let program = fault("says.sh", &[line.as_str()]);
    let starts = start(&program, How::tls());
    let (answered, started) = within(PATIENCE, futures::future::join(answers, starts)).await;
    (answered, started.err().expect("nobody is behind it"))
}

fn line(address: &Path, said: &Pair) -> String {
    let certificate = STANDARD_NO_PAD.encode(&said.certificate);
    format!("1|1|unix|{}|grpc|{certificate}", address.display())
}

#[test]
fn the_right_certificate_with_its_key_is_trusted() {
    run(async {
        for version in [&TLS12, &TLS13] {
            let pair = Pair::new();
            let (answered, error) = asked(&pair, presents(&pair, &pair, version)).await;
            assert!(answered, "{version:?}: {error:?}");
        }
    });
}

#[test]
fn another_certificate_is_refused() {
    run(async {
        for version in [&TLS12, &TLS13] {
            let (pair, other) = (Pair::new(), Pair::new());
            let (answered, error) = asked(&pair, presents(&other, &other, version)).await;
            assert!(!answered, "{version:?}");
            assert!(matches!(error, Error::Tls(_)), "{version:?}: {error:?}");
        }
    });
}

#[test]
fn the_right_certificate_with_another_key_is_refused() {
    run(async {
        for version in [&TLS12, &TLS13] {
            let (pair, other) = (Pair::new(), Pair::new());
            let (answered, error) = asked(&pair, presents(&pair, &other, version)).await;
            assert!(!answered, "{version:?}");
            assert!(matches!(error, Error::Tls(_)), "{version:?}: {error:?}");
        }
    });
}

/// It takes any host: what the host takes is in question.
#[derive(Debug)]
struct TakesAll;

impl ServerCertVerifier for TakesAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client with this certificate, or none.
fn dials(own: Option<&Pair>, version: &'static SupportedProtocolVersion) -> TlsConnector {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(&[version]).unwrap().dangerous();
    let config = config.with_custom_certificate_verifier(Arc::new(TakesAll));
    let mut config = match own {
        Some(pair) => {
            let key = PrivatePkcs8KeyDer::from(pair.key.serialize_der());
            config.with_client_auth_cert(vec![pair.certificate.clone()], key.into()).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// True if the host says anything to this client behind the handshake: its settings come at once.
async fn is_heard(address: &Path, client: TlsConnector) -> bool {
    let stream = UnixStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let Ok(mut stream) = client.connect(name, stream).await else { return false };
    // In TLS 1.3 the client is through before the host has looked at its certificate.
    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    stream.read(&mut [0; 9]).await.is_ok_and(|count| count > 0)
}

#[test]
fn a_service_of_the_host_takes_its_plugin_alone() {
    run(async {
        let started = start(&fixtures::rust(), How::tls()).await.unwrap();
        let (broker, folder) = (started.plugin.broker(), started.folder().unwrap());
        let files = || -> BTreeSet<_> {
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect()
        };
        let (before, id) = (files(), broker.next_id());
        let accepted = broker.accept(id, Routes::new(HostAdder)).await.unwrap();
        let after = files();
        let address = after.difference(&before).next().expect("the service has a socket");
        let stranger = Pair::new();
        for version in [&TLS12, &TLS13] {
            for own in [None, Some(&stranger)] {
                let heard = within(PATIENCE, is_heard(address, dials(own, version))).await;
                assert!(!heard, "{version:?}, with a certificate: {}", own.is_some());
            }
        }
        let note = within(PATIENCE, Transform::of(&started.plugin).call_back(id)).await.unwrap();
        assert_eq!(note, "host says 42");
        drop(accepted);
        within(PATIENCE, started.plugin.stop()).await;
    });
}
