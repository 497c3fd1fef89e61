//! The handshake of go-plugin: what a host tells a plugin in its environment, and the plugin's
//! first line, which answers it. Both sides; nothing here reads or writes.

use std::{ffi::OsString, fmt::Write as _, path::PathBuf};

use base64::Engine as _;

use crate::{error::Error, limits::SHOWN_CHARACTERS_MAX, transport::Address, wire::BASE64};

/// Versions that the host speaks, with commas between.
pub(crate) const VERSIONS: &str = "PLUGIN_PROTOCOL_VERSIONS";
/// `true`: all connections are to be streams of one.
pub(crate) const MULTIPLEX: &str = "PLUGIN_MULTIPLEX_GRPC";
/// The host's certificate as PEM: the plugin makes one, too, and both sides speak TLS.
pub(crate) const CLIENT_CERTIFICATE: &str = "PLUGIN_CLIENT_CERT";
/// The folder for a plugin's sockets.
pub(crate) const SOCKET_FOLDER: &str = "PLUGIN_UNIX_SOCKET_DIR";
/// The lowest port of a plugin that listens on TCP.
pub(crate) const PORT_MIN: &str = "PLUGIN_MIN_PORT";
/// The highest port of a plugin that listens on TCP.
pub(crate) const PORT_MAX: &str = "PLUGIN_MAX_PORT";

/// The cookie of FlexCore's own plugins. Plugins have it built in, so it never changes.
const FLEXCORE_KEY: &str = "FLEXCORE_PLUGIN";
const FLEXCORE_VALUE: &str = "294ee746ca7a0ad28a537fa30b00ae93";

/// The ports that the reference host names.
const PORTS: (&str, &str) = ("10000", "25000");

/// The version of the handshake itself.
const CORE_VERSION: u32 = 1;

/// Fields of the first line; later ones may mean something to others.
const FIELDS: usize = 7;

/// A shorter sixth field is no certificate: some plugins put other things there. As the reference
/// host.
const CERTIFICATE_CHARACTERS_MIN: usize = 51;

/// The magic cookie: by it a plugin knows that a host has started it, and not a person. It is no
/// secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// The name of an environment variable.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Cookie {
    /// The cookie of FlexCore's own plugins, whoever writes them.
    #[must_use]
    pub fn flexcore() -> Self {
        Self { key: FLEXCORE_KEY.to_owned(), value: FLEXCORE_VALUE.to_owned() }
    }
}

/// What a plugin says in its first line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handshake {
    /// The version that it speaks, one of those that the host offered.
    pub(crate) version: u32,
    pub(crate) address: Address,
    /// Its certificate as DER; present exactly where the host asked for TLS.
    pub(crate) certificate: Option<Vec<u8>>,
    /// True exactly where the host asked for it.
    pub(crate) multiplexed: bool,
}

/// What a host asks of a plugin.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) cookie: Cookie,
    /// The versions that the host speaks.
    pub(crate) versions: Vec<u32>,
    /// All connections are to be streams of one.
    pub(crate) multiplex: bool,
    /// With it both sides speak TLS.
    pub(crate) client_certificate_pem: Option<String>,
    pub(crate) socket_folder: PathBuf,
}

impl Asked {
    /// The environment variables that tell a plugin.
    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        let versions: Vec<String> = self.versions.iter().map(u32::to_string).collect();
        let cookie = self.cookie.clone();
        let mut variables: Vec<(OsString, OsString)> = vec![
            (cookie.key.into(), cookie.value.into()),
            (VERSIONS.into(), versions.join(",").into()),
            (PORT_MIN.into(), PORTS.0.into()),
            (PORT_MAX.into(), PORTS.1.into()),
            (SOCKET_FOLDER.into(), self.socket_folder.clone().into_os_string()),
        ];
        if self.multiplex {
            variables.push((MULTIPLEX.into(), "true".into()));
        }
        if let Some(pem) = &self.client_certificate_pem {
            variables.push((CLIENT_CERTIFICATE.into(), pem.into()));
        }
        variables
    }
}

impl Handshake {
    /// Reads a plugin's first line. Fails where it is none of go-plugin's, where the plugin speaks
    /// another version or net/rpc, and where it does not do what was asked: TLS, multiplexing.
    pub(crate) fn parse(line: &[u8], asked: &Asked) -> Result<Self, Error> {
        let text = std::str::from_utf8(line).map_err(|_| wrong(line, "it is no text in UTF-8"))?;
        let fields: Vec<&str> = text.trim().split('|').take(FIELDS).collect();
        let [core, version, network, address, rest @ ..] = fields.as_slice() else {
            return Err(wrong(line, "it has fewer than four fields; is this a go-plugin plugin?"));
        };
        if number(core) != Some(CORE_VERSION) {
            return Err(wrong(line, "its core version is not 1"));
        }
        let version = number(version)
            .ok_or_else(|| wrong(line, "its version, the second field, is no number"))?;
        speaks_grpc(rest.first().copied()).map_err(|reason| wrong(line, reason))?;
        if !asked.versions.contains(&version) {
            return Err(Error::Version { chosen: version, offered: asked.versions.clone() });
        }
        if address.is_empty() {
            return Err(wrong(line, "its address, the fourth field, is empty"));
        }
        let address = Address::parse(network, address)?;
        let tls = asked.client_certificate_pem.is_some();
        let certificate = certificate(rest.get(1).copied().unwrap_or_default(), tls)
            .map_err(|reason| wrong(line, reason))?;
        let multiplexed = multiplexed(rest.get(2).copied(), asked.multiplex)
            .map_err(|reason| wrong(line, reason))?;
        Ok(Self { version, address, certificate, multiplexed })
    }

    /// A plugin's first line, with its end. Its seventh field is for hosts that asked for it:
    /// others may not expect it.
    pub(crate) fn line(&self, multiplex_asked: bool) -> String {
        let (network, address) = self.address.parts();
        let certificate = self.certificate.as_deref().map(|der| BASE64.encode(der));
        let certificate = certificate.unwrap_or_default();
        let version = self.version;
        let mut line = format!("{CORE_VERSION}|{version}|{network}|{address}|grpc|{certificate}");
        if multiplex_asked {
            write!(line, "|{}", self.multiplexed).expect("BUG: a String takes all");
        }
        line.push('\n');
        line
    }
}

/// The version that a plugin chooses: the highest that both sides speak, else its own lowest, which
/// the host then refuses with a clear word. `own` must not be empty; `offered` is the value of
/// [`VERSIONS`], which very old hosts do not set.
pub(crate) fn negotiate(own: &[u32], offered: Option<&str>) -> u32 {
    let offered = offered.unwrap_or_default().split(',').filter_map(|one| one.trim().parse().ok());
    let common = offered.filter(|version| own.contains(version)).max();
    common.or_else(|| own.iter().copied().min()).unwrap_or_default()
}

/// Digits alone: Rust would take a sign before them.
fn number(field: &str) -> Option<u32> {
    field.parse().ok().filter(|_| field.bytes().all(|byte| byte.is_ascii_digit()))
}

fn speaks_grpc(protocol: Option<&str>) -> Result<(), &'static str> {
    match protocol {
        Some("grpc") => Ok(()),
        // Without the field it is the protocol of go-plugin's first years.
        None | Some("" | "netrpc") => {
            Err("it speaks net/rpc, and this host only gRPC; serve the plugin over gRPC")
        }
        Some(_) => Err("its protocol, the fifth field, is not grpc"),
    }
}

fn certificate(field: &str, tls: bool) -> Result<Option<Vec<u8>>, &'static str> {
    match (field.len() >= CERTIFICATE_CHARACTERS_MIN, tls) {
        (false, false) => Ok(None),
        (true, true) => match BASE64.decode(field) {
            Ok(der) => Ok(Some(der)),
            Err(_) => Err("its certificate, the sixth field, is no base64"),
        },
        (false, true) => {
            Err("it has no certificate, though TLS was asked for; start this plugin without TLS")
        }
        (true, false) => {
            Err("it has a certificate, though TLS was not asked for; start this plugin with TLS")
        }
    }
}

fn multiplexed(field: Option<&str>, asked: bool) -> Result<bool, &'static str> {
    match (field, asked) {
        (Some("true"), true) => Ok(true),
        (None | Some("" | "false"), false) => Ok(false),
        (None | Some("" | "false"), true) => {
            Err("multiplexing was asked for and is not granted; it takes go-plugin 1.6 or newer")
        }
        (Some("true"), false) => Err("it multiplexes, though that was not asked for"),
        (Some(_), _) => Err("its seventh field is neither true nor false"),
    }
}

fn wrong(line: &[u8], reason: &str) -> Error {
    let line =
        String::from_utf8_lossy(line).trim_end().chars().take(SHOWN_CHARACTERS_MAX).collect();
    Error::Handshake { reason: reason.to_owned(), line }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 60 bytes, as a certificate for those who do not look inside.
    const DER: [u8; 60] = [7; 60];

    fn asked(tls: bool, multiplex: bool) -> Asked {
        Asked {
            cookie: Cookie { key: "K".to_owned(), value: "v".to_owned() },
            versions: vec![3, 4],
            multiplex,
            client_certificate_pem: tls.then(|| "PEM".to_owned()),
            socket_folder: PathBuf::from("/run/x"),
        }
    }

    fn unix(certificate: Option<Vec<u8>>, multiplexed: bool) -> Handshake {
        let address = Address::parse("unix", "/run/x/s").unwrap();
        Handshake { version: 4, address, certificate, multiplexed }
    }

    fn der() -> String {
        BASE64.encode(DER)
    }

    #[test]
    fn what_plugins_print_is_understood() {
        let der = der();
        let padded = format!("{}=", BASE64.encode([7_u8; 59]));
        for (line, tls, multiplex, expected) in [
            ("1|4|unix|/run/x/s|grpc\n".to_owned(), false, false, unix(None, false)),
            ("  1|4|unix|/run/x/s|grpc| \r\n".to_owned(), false, false, unix(None, false)),
            ("1|4|unix|/run/x/s|grpc|short".to_owned(), false, false, unix(None, false)),
            ("1|4|unix|/run/x/s|grpc||false|more|x".to_owned(), false, false, unix(None, false)),
            ("1|4|unix|/run/x/s|grpc||true".to_owned(), false, true, unix(None, true)),
            (format!("1|4|unix|/run/x/s|grpc|{der}"), true, false, unix(Some(DER.into()), false)),
            (
                format!("1|4|unix|/run/x/s|grpc|{der}|true"),
                true,
                true,
                unix(Some(DER.into()), true),
            ),
            (
                format!("1|4|unix|/run/x/s|grpc|{padded}"),
                true,
                false,
                unix(Some(vec![7; 59]), false),
            ),
        ] {
            let read = Handshake::parse(line.as_bytes(), &asked(tls, multiplex)).unwrap();
            assert_eq!(read, expected, "{line}");
        }
        let tcp = Handshake::parse(b"1|3|tcp|127.0.0.1:1234|grpc", &asked(false, false)).unwrap();
        assert_eq!(tcp.address, Address::Tcp("127.0.0.1:1234".parse().unwrap()));
    }

    #[test]
    fn a_malformed_line_says_which_part_is_wrong() {
        let der = der();
        let (plain, tls, mux) = (asked(false, false), asked(true, false), asked(false, true));
        let cases: &[(&[u8], &Asked, &str)] = &[
            (b"", &plain, "fewer than four"),
            (b"\n", &plain, "fewer than four"),
            (b"This binary is a plugin.", &plain, "fewer than four"),
            (b"1|4|unix", &plain, "fewer than four"),
            (b"|||", &plain, "core version"),
            (b"2|4|unix|/s|grpc", &plain, "core version"),
            (b"x|4|unix|/s|grpc", &plain, "core version"),
            (b"-1|4|unix|/s|grpc", &plain, "core version"),
            (b"+1|4|unix|/s|grpc", &plain, "core version"),
            (b"99999999999|4|unix|/s|grpc", &plain, "core version"),
            (b"\xff|4|unix|/s|grpc", &plain, "UTF-8"),
            (b"1|4|unix|/s\xc3|grpc", &plain, "UTF-8"),
            (b"1||unix|/s|grpc", &plain, "second field"),
            (b"1|x|unix|/s|grpc", &plain, "second field"),
            (b"1|-4|unix|/s|grpc", &plain, "second field"),
            (b"1|+4|unix|/s|grpc", &plain, "second field"),
            (b"1| 4|unix|/s|grpc", &plain, "second field"),
            (b"1|4294967296|unix|/s|grpc", &plain, "second field"),
            (b"1|4|unix||grpc", &plain, "fourth field"),
            (b"1|4|unix|/s", &plain, "net/rpc"),
            (b"1|4|unix|/s|", &plain, "net/rpc"),
            (b"1|4|unix|/s|netrpc", &plain, "net/rpc"),
            (b"1|4|unix|/s|GRPC", &plain, "fifth field"),
            (b"1|4|unix|/s|http", &plain, "fifth field"),
            (b"1|4|unix|/run/x/s|grpc", &tls, "no certificate"),
            (b"1|4|unix|/run/x/s|grpc|", &tls, "no certificate"),
            (b"1|4|unix|/run/x/s|grpc|c2hvcnQ", &tls, "no certificate"),
            (b"1|4|unix|/run/x/s|grpc", &mux, "not granted"),
            (b"1|4|unix|/run/x/s|grpc|", &mux, "not granted"),
            (b"1|4|unix|/run/x/s|grpc||", &mux, "not granted"),
            (b"1|4|unix|/run/x/s|grpc||false", &mux, "not granted"),
            (b"1|4|unix|/run/x/s|grpc||True", &mux, "seventh field"),
            (b"1|4|unix|/run/x/s|grpc||yes", &plain, "seventh field"),
            (b"1|4|unix|/run/x/s|grpc||true", &plain, "not asked for"),
        ];
        for (line, asked, reason) in cases {
            let error = Handshake::parse(line, asked).unwrap_err();
            let shown = String::from_utf8_lossy(line);
            assert!(matches!(error, Error::Handshake { .. }), "{shown}: {error}");
            assert!(error.to_string().contains(reason), "{shown}: {error}");
        }
        let unasked = format!("1|4|unix|/run/x/s|grpc|{der}");
        let error = Handshake::parse(unasked.as_bytes(), &plain).unwrap_err();
        assert!(error.to_string().contains("TLS was not asked for"), "{error}");
        let broken = format!("1|4|unix|/run/x/s|grpc|{}!", der);
        let error = Handshake::parse(broken.as_bytes(), &tls).unwrap_err();
        assert!(error.to_string().contains("no base64"), "{error}");
    }

    #[test]
    fn other_versions_and_strange_addresses_are_errors_of_their_own() {
        for version in ["0", "5", "4294967295"] {
            let line = format!("1|{version}|unix|/run/x/s|grpc");
            let error = Handshake::parse(line.as_bytes(), &asked(false, false)).unwrap_err();
            let offered = [3_u32, 4];
            let fits = matches!(&error, Error::Version { offered: found, .. } if *found == offered);
            assert!(fits, "{line}: {error}");
        }
        for (network, address) in
            [("udp", "127.0.0.1:1"), ("", "/s"), ("tcp", "127.0.0.1"), ("tcp", "8.8.8.8:53")]
        {
            let line = format!("1|4|{network}|{address}|grpc");
            let error = Handshake::parse(line.as_bytes(), &asked(false, false)).unwrap_err();
            assert!(matches!(error, Error::Address { .. }), "{line}: {error}");
        }
    }

    #[test]
    fn a_long_line_of_no_text_is_shown_in_part() {
        let line = [&[b'a'; 150][..], &[0xff; 10_000][..]].concat();
        let Error::Handshake { line, .. } =
            Handshake::parse(&line, &asked(false, false)).unwrap_err()
        else {
            panic!("it is an error of the handshake");
        };
        assert_eq!(line.chars().count(), SHOWN_CHARACTERS_MAX);
    }

    #[test]
    fn a_plugins_line_is_what_a_host_reads() {
        for (tls, multiplex) in [(false, false), (false, true), (true, false), (true, true)] {
            let said = unix(tls.then(|| DER.to_vec()), multiplex);
            let line = said.line(multiplex);
            assert!(line.ends_with('\n') && !line.contains('='), "{line}");
            assert_eq!(line.matches('|').count(), if multiplex { 6 } else { 5 }, "{line}");
            assert_eq!(Handshake::parse(line.as_bytes(), &asked(tls, multiplex)).unwrap(), said);
        }
        assert_eq!(unix(None, false).line(false), "1|4|unix|/run/x/s|grpc|\n");
    }

    #[test]
    fn the_environment_tells_what_is_asked() {
        let told = |asked: &Asked| {
            let pairs = asked.environment().into_iter();
            let texts = pairs.map(|(key, value)| {
                format!("{}={}", key.to_str().unwrap(), value.to_str().unwrap())
            });
            texts.collect::<Vec<_>>()
        };
        let always = [
            "K=v",
            "PLUGIN_PROTOCOL_VERSIONS=3,4",
            "PLUGIN_MIN_PORT=10000",
            "PLUGIN_MAX_PORT=25000",
            "PLUGIN_UNIX_SOCKET_DIR=/run/x",
        ];
        assert_eq!(told(&asked(false, false)), always);
        let all = [&always[..], &["PLUGIN_MULTIPLEX_GRPC=true", "PLUGIN_CLIENT_CERT=PEM"]].concat();
        assert_eq!(told(&asked(true, true)), all);
    }

    #[test]
    fn a_plugin_takes_the_highest_common_version_or_its_lowest() {
        let cases: [(&[u32], Option<&str>, u32); 8] = [
            (&[1], Some("1"), 1),
            (&[1, 2, 3], Some("1,2"), 2),
            (&[3, 1, 2], Some("2, 1 ,7"), 2),
            (&[2, 5], Some("5,2,5"), 5),
            (&[2, 5], Some("3,4"), 2),
            (&[5, 2], None, 2),
            (&[5, 2], Some(""), 2),
            (&[5, 2], Some("five,,-5,99999999999999,5x"), 2),
        ];
        for (own, offered, chosen) in cases {
            assert_eq!(negotiate(own, offered), chosen, "{own:?} {offered:?}");
        }
    }
}
