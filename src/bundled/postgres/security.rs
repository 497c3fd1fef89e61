//! TLS with a database, as `sslmode` says. sqlx has it, too; but then nobody between sees the lengths
//! of messages before sqlx makes room for them.

use std::{io, sync::Arc};

use flexcore_sdk::Failure;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sqlx::postgres::PgSslMode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::trusted;

/// Asks a database for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// How connections to a database are kept from others.
pub(super) enum Security {
    /// They are not.
    Open,
    Tls(Box<Secure>),
}

/// The server's name, and whom to believe that it is the one.
pub(super) struct Secure {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Security {
    /// For this host. Fails where TLS cannot have its name, and where authorities are none.
    pub(super) fn new(
        mode: PgSslMode,
        host: &str,
        authorities: Option<&str>,
    ) -> Result<Self, Failure> {
        let config = match mode {
            PgSslMode::Disable => {
                trusted::roots(authorities)?;
                return Ok(Self::Open);
            }
            PgSslMode::VerifyCa => lenient(authorities, true)?,
            PgSslMode::Require => lenient(authorities, false)?,
            PgSslMode::Allow | PgSslMode::Prefer | PgSslMode::VerifyFull => {
                trusted::client(authorities)?
            }
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            let message = "the host of the database's `url` is no name that a certificate can have";
            Failure::new("bad_configuration", message)
        })?;
        Ok(Self::Tls(Box::new(Secure { config: Arc::new(config), name })))
    }
}

impl Secure {
    /// Changes to TLS. Fails where the database does not offer it, or is not the one.
    pub(super) async fn secured(
        &self,
        mut stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        stream.write_all(&SSL_REQUEST).await.map_err(|error| away(&error))?;
        // What comes behind it in the clear is taken for TLS, and is none.
        match stream.read_u8().await.map_err(|error| away(&error))? {
            b'S' => {}
            b'N' => return Err(Failure::new("no_tls", "database: it does not offer TLS")),
            _ => return Err(Failure::new("broken_answer", "database: this is no Postgres")),
        }
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let connected = connector.connect(self.name.clone(), stream).await;
        connected.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
            match inner {
                // It stays so, until somebody does something.
                Some(inner) if matches!(inner, TlsError::InvalidCertificate(_)) => {
                    Failure::new("not_trusted", format!("database: {inner}"))
                }
                _ => away(&error),
            }
        })
    }
}

fn away(error: &io::Error) -> Failure {
    Failure::passing("no_connection", format!("database: {error}"))
}

/// TLS with whoever has a certificate of these authorities, or any certificate.
fn lenient(authorities: Option<&str>, checks_authority: bool) -> Result<ClientConfig, Failure> {
    let roots = Arc::new(trusted::roots(authorities)?);
    let inner = WebPkiServerVerifier::builder_with_provider(roots, trusted::provider()).build();
    let inner = inner.map_err(|error| Failure::new("bad_authorities", error))?;
    let config = ClientConfig::builder_with_provider(trusted::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new("no_tls", error))?;
    let verifier = Arc::new(Lenient { inner, checks_authority });
    Ok(config.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Checks less than all of a certificate, as `sslmode` says.
#[derive(Debug)]
struct Lenient {
    inner: Arc<WebPkiServerVerifier>,
    checks_authority: bool,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if !self.checks_authority {
            return Ok(ServerCertVerified::assertion());
        }
        let inner = &self.inner;
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last.
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
