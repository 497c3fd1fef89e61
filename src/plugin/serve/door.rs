//! Where a plugin is reached.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
};

use tokio::net::TcpListener;

use crate::{
    Error,
    transport::{Address, BoxIo, Listener},
};

/// A listener of either kind.
pub(super) enum Door {
    Unix(Listener),
    Tcp(TcpListener, Address),
}

impl Door {
    /// A socket with a new name in the folder.
    pub(super) fn unix(folder: &Path) -> Result<Self, Error> {
        Ok(Self::Unix(Listener::bind(folder)?))
    }

    /// The first free port of these on loopback; 0 is any free one.
    pub(super) async fn tcp(ports: RangeInclusive<u16>) -> Result<Self, Error> {
        let asked = format!("{}:{}-{}", Ipv4Addr::LOCALHOST, ports.start(), ports.end());
        for port in ports {
            match TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
                Ok(listener) => {
                    let address = listener.local_addr();
                    let address = address.map_err(Error::system("read the port's number"))?;
                    return Ok(Self::Tcp(listener, Address::Tcp(address)));
                }
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                Err(error) => {
                    return Err(Error::Address { address: asked, reason: error.to_string() });
                }
            }
        }
        Err(Error::Address { address: asked, reason: "no port is free".to_owned() })
    }

    pub(super) fn address(&self) -> &Address {
        match self {
            Self::Unix(listener) => listener.address(),
            Self::Tcp(_, address) => address,
        }
    }

    pub(super) async fn accept(&self) -> io::Result<BoxIo> {
        match self {
            Self::Unix(listener) => listener.accept().await,
            Self::Tcp(listener, _) => {
                let (stream, _) = listener.accept().await?;
                // Frames are whole: waiting to fill a segment only delays them.
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_free_port_is_taken() {
        let first = Door::tcp(0..=0).await.unwrap();
        let Address::Tcp(taken) = first.address().clone() else { panic!("no TCP") };
        assert!(taken.ip().is_loopback() && taken.port() != 0);
        let full = Door::tcp(taken.port()..=taken.port()).await;
        assert!(matches!(full, Err(Error::Address { .. })));
    }
}
