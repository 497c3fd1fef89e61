//! Whom a plugin trusts at the other end of TLS.

use std::sync::Arc;

use flexcore_sdk::Failure;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// Most certificates that a configuration may name. 64: a company has a few.
const CERTIFICATES_MAX: usize = 64;

/// TLS 1.2 and 1.3 to servers that these authorities vouch for: those that browsers trust, or the
/// ones in this PEM text alone. Fails where the text has no certificate, or one that is none.
pub(crate) fn client(authorities: Option<&str>) -> Result<ClientConfig, Failure> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new("no_tls", error))?;
    Ok(config.with_root_certificates(roots(authorities)?).with_no_client_auth())
}

/// The one crypto stack.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The authorities themselves. They are part of the executable: a plugin's sandbox need not let it
/// read the machine's.
pub(crate) fn roots(authorities: Option<&str>) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = authorities else {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok(roots);
    };
    let bad = || {
        let most = CERTIFICATES_MAX;
        let message = format!("`authorities` has to be certificates in PEM, {most} at most");
        Failure::new("bad_authorities", message)
    };
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        if roots.len() >= CERTIFICATES_MAX {
            return Err(bad());
        }
        roots.add(certificate.map_err(|_| bad())?).map_err(|_| bad())?;
    }
    if roots.is_empty() { Err(bad()) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_the_known_ones_or_the_named_ones() {
        assert!(roots(None).unwrap().len() > 50);
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let pem = own.cert.pem();
        assert_eq!(roots(Some(&pem)).unwrap().len(), 1);
        client(Some(&pem)).unwrap();
        let many = pem.repeat(CERTIFICATES_MAX + 1);
        for bad in ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", &many]
        {
            assert_eq!(roots(Some(bad)).unwrap_err().code, "bad_authorities");
        }
    }
}
