//! What a host needs to know for taking over a plugin that runs already, as the reference host
//! writes it: `{"Protocol":"grpc","ProtocolVersion":1,"Pid":7,"Test":false,"Addr":{…}}`.

use serde::{Deserialize, Serialize};

use crate::{Error, transport::Address};

const GRPC: &str = "grpc";

/// A running plugin, without TLS and without a multiplexer: of these a host that did not start it
/// has not what it needs. In JSON it looks as in the reference host and in Terraform.
///
/// Nothing in it ties the address to the process, or the process to the moment: behind a restart of
/// the machine or the container both may be somebody else's, and a stop signals the process. So it
/// is not to be kept longer than the plugin runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Reattach {
    /// The version that it speaks.
    pub version: u32,
    /// The address at which it listens.
    pub address: Address,
    /// Its process.
    pub pid: u32,
    /// True if it runs under somebody else's control, in a debugger for instance: then it is never
    /// told to end, and not killed.
    pub test: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Written {
    protocol: String,
    #[serde(default)]
    protocol_version: u32,
    pid: u32,
    #[serde(default)]
    test: bool,
    addr: WrittenAddress,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WrittenAddress {
    network: String,
    string: String,
}

impl TryFrom<Written> for Reattach {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self, Error> {
        let Written { protocol, protocol_version, pid, test, addr } = written;
        let address = Address::parse(&addr.network, &addr.string)?;
        if protocol != GRPC {
            let reason = format!("its protocol is {protocol:?}, and only {GRPC:?} is spoken here");
            return Err(Error::Unreachable { address: addr.string, reason });
        }
        Ok(Self { version: protocol_version, address, pid, test })
    }
}

impl From<Reattach> for Written {
    fn from(reattach: Reattach) -> Self {
        let Reattach { version, address, pid, test } = reattach;
        let (network, string) = address.parts();
        let addr = WrittenAddress { network: network.to_owned(), string };
        Self { protocol: GRPC.to_owned(), protocol_version: version, pid, test, addr }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: &str = concat!(
        r#"{"Protocol":"grpc","ProtocolVersion":5,"Pid":3382870,"Test":true,"#,
        r#""Addr":{"Network":"unix","String":"/tmp/plugin713096927"}}"#,
    );

    #[test]
    fn it_is_written_as_the_reference_does() {
        let reattach: Reattach = serde_json::from_str(WRITTEN).unwrap();
        let address = Address::Unix("/tmp/plugin713096927".into());
        assert_eq!(reattach, Reattach { version: 5, address, pid: 3_382_870, test: true });
        assert_eq!(serde_json::to_string(&reattach).unwrap(), WRITTEN);
    }

    #[test]
    fn what_cannot_be_taken_over_is_refused() {
        for (from, to, reason) in [
            ("grpc", "netrpc", "netrpc"),
            ("unix", "udp", "network"),
            (r#""Network":"unix","String":"/tmp/plugin713096927""#, r#""Network":"tcp""#, "String"),
            ("3382870", "-1", "u32"),
        ] {
            let written = WRITTEN.replace(from, to);
            let error = serde_json::from_str::<Reattach>(&written).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
