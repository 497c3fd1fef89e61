//! What a host asks of a plugin, read from the environment.

use std::{ffi::OsString, ops::RangeInclusive, path::PathBuf};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::{
    Cookie, Error,
    handshake::{CLIENT_CERTIFICATE, MULTIPLEX, PORT_MAX, PORT_MIN, SOCKET_FOLDER, VERSIONS},
};

/// A host's wishes.
pub(super) struct Invitation {
    /// The versions that it speaks, as it writes them.
    pub(super) versions: Option<String>,
    /// Its certificate as DER: with it both sides speak TLS.
    pub(super) certificate: Option<Vec<u8>>,
    pub(super) multiplex: bool,
    /// The folder for sockets.
    pub(super) folder: PathBuf,
    /// The ports for TCP; 0: any that is free.
    pub(super) ports: RangeInclusive<u16>,
}

impl Invitation {
    /// Reads the environment, which `variable` looks into. Fails without the cookie: then a person
    /// has started the plugin, or another host; and with a certificate that is none.
    pub(super) fn read(
        cookie: &Cookie,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Error> {
        if variable(&cookie.key).is_none_or(|value| value != *cookie.value) {
            return Err(Error::Contract(
                "This is a plugin. It is started by its host, and not by hand: the host sets an \
                 environment variable that is not there, or has another value."
                    .to_owned(),
            ));
        }
        let filled = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| filled(name).and_then(|value| value.into_string().ok());
        let port = |name: &str| text(name).and_then(|value| value.parse().ok());
        let certificate = match filled(CLIENT_CERTIFICATE) {
            Some(pem) => Some(der(pem.as_encoded_bytes())?),
            None => None,
        };
        let multiplex = matches!(text(MULTIPLEX).as_deref(), Some("true" | "True" | "TRUE" | "1"));
        let lowest: u16 = port(PORT_MIN).unwrap_or(0);
        Ok(Self {
            versions: text(VERSIONS),
            certificate,
            multiplex,
            folder: filled(SOCKET_FOLDER).map_or_else(std::env::temp_dir, PathBuf::from),
            ports: lowest..=port(PORT_MAX).unwrap_or(lowest),
        })
    }
}

fn der(pem: &[u8]) -> Result<Vec<u8>, Error> {
    let certificate = CertificateDer::from_pem_slice(pem)
        .map_err(|error| Error::Tls(format!("{CLIENT_CERTIFICATE} is no certificate: {error}")))?;
    Ok(certificate.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Invitation, Error> {
        let cookie = Cookie { key: "COOKIE".to_owned(), value: "v".to_owned() };
        Invitation::read(&cookie, |name| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn without_the_cookie_it_says_that_it_is_a_plugin() {
        for variables in [&[][..], &[("COOKIE", "w")], &[("COOKIE", "")]] {
            let error = read(variables).err().unwrap().to_string();
            assert!(error.starts_with("This is a plugin."), "{error}");
        }
    }

    #[test]
    fn an_old_host_asks_for_little() {
        let asked = read(&[("COOKIE", "v"), (MULTIPLEX, ""), (CLIENT_CERTIFICATE, "")]).unwrap();
        assert_eq!(asked.versions, None);
        assert_eq!(asked.certificate, None);
        assert!(!asked.multiplex);
        assert_eq!(asked.folder, std::env::temp_dir());
        assert_eq!(asked.ports, 0..=0);
    }

    #[test]
    fn a_new_host_asks_for_everything() {
        let pem = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";
        let asked = read(&[
            ("COOKIE", "v"),
            (VERSIONS, "1,2"),
            (MULTIPLEX, "true"),
            (CLIENT_CERTIFICATE, pem),
            (SOCKET_FOLDER, "/run/x"),
            (PORT_MIN, "10000"),
            (PORT_MAX, "25000"),
        ]);
        let asked = asked.unwrap();
        assert_eq!(asked.versions.as_deref(), Some("1,2"));
        assert_eq!(asked.certificate, Some(vec![0, 1, 2]));
        assert!(asked.multiplex);
        assert_eq!(asked.folder, PathBuf::from("/run/x"));
        assert_eq!(asked.ports, 10_000..=25_000);
        assert!(read(&[("COOKIE", "v"), (CLIENT_CERTIFICATE, "none")]).is_err());
    }
}
