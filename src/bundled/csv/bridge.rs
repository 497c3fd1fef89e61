//! The way to a broker. Its library takes a message of any size into memory, and knows no other limit;
//! so it is given a port of this machine, and what the broker sends is counted on its way there. TLS
//! goes through, and holds the broker to its name.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::copy,
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};
use uuid::Uuid;

use crate::meter::{Meter, carry};

/// Bytes that the broker may send for one question. 12 MiB: the largest chunk that is taken has 8 MiB,
/// and a stream's leader sends it in base64.
const RECEIVED_BYTES_MAX: usize = 12 << 20;
/// The same until the first question. 64 KiB: the broker says who it is, and shows certificates. The
/// library looks through all of an endless line again with each piece of it.
const LOGIN_BYTES_MAX: usize = 64 << 10;
/// Longest time for the connection to end by itself. 1 s: the library closes it at once, and would take
/// one that ends before for an outage.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// A way to a broker, for one connection. Soon after it is dropped, it is closed.
pub(super) struct Way {
    /// Where it begins.
    pub(super) address: SocketAddr,
    /// The address that the connection has to come from.
    pub(super) from: SocketAddr,
    pub(super) meter: Arc<Meter>,
    _held: oneshot::Sender<()>,
}

impl Way {
    /// Over a stream that leads to the broker.
    pub(super) async fn over(broker: TcpStream) -> io::Result<Self> {
        // Requests are whole: waiting to fill a segment only delays them. Without it, they are slower.
        let _ = broker.set_nodelay(true);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let from = own_address().await;
        let meter = Arc::new(Meter::beginning(LOGIN_BYTES_MAX, RECEIVED_BYTES_MAX));
        let (held, is_held) = oneshot::channel();
        tokio::spawn(carried_while(is_held, listener, from, broker, Arc::clone(&meter)));
        Ok(Self { address, from: SocketAddr::new(from, 0), meter, _held: held })
    }
}

/// An address of this machine that nobody else guesses: other programs reach the port, too.
async fn own_address() -> IpAddr {
    let [a, b, c, ..] = Uuid::new_v4().into_bytes();
    // Neither the first nor the last of a network.
    let address = Ipv4Addr::new(127, a, b, (c & 0x7f) | 1);
    // Elsewhere than on Linux, 127.0.0.1 alone is this machine's.
    let is_ours = TcpListener::bind((address, 0)).await.is_ok();
    IpAddr::V4(if is_ours { address } else { Ipv4Addr::LOCALHOST })
}

async fn carried_while(
    is_held: oneshot::Receiver<()>,
    listener: TcpListener,
    from: IpAddr,
    broker: TcpStream,
    meter: Arc<Meter>,
) {
    let mut carried = pin!(carried(listener, from, broker, meter));
    tokio::select! {
        _ = &mut carried => return,
        _ = is_held => {}
    }
    // How it ends is of no interest any more.
    let _ = timeout(CLOSE_WAIT, carried).await;
}

/// Ends when one of the two sides does.
async fn carried(
    listener: TcpListener,
    from: IpAddr,
    broker: TcpStream,
    meter: Arc<Meter>,
) -> io::Result<()> {
    let (mut client, mut peer) = listener.accept().await?;
    while peer.ip() != from {
        (client, peer) = listener.accept().await?;
    }
    drop(listener);
    client.set_nodelay(true)?;
    let (mut from_client, to_client) = client.into_split();
    let (from_broker, mut to_broker) = broker.into_split();
    tokio::select! {
        sent = copy(&mut from_client, &mut to_broker) => sent.map(drop),
        received = carry(from_broker, to_client, |bytes| meter.take(bytes.len())) => received,
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpSocket,
    };

    use super::*;

    /// A way, and its other end.
    async fn way() -> (Way, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (broker, _) = listener.accept().await.unwrap();
        (Way::over(there).await.unwrap(), broker)
    }

    async fn dialled(way: &Way, from: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(from).unwrap();
        socket.connect(way.address).await.unwrap()
    }

    #[tokio::test]
    async fn only_the_one_it_is_for_gets_through() {
        let (way, mut broker) = way().await;
        if way.from.ip() == Ipv4Addr::LOCALHOST {
            return;
        }
        broker.write_all(b"INFO").await.unwrap();
        let mut other = dialled(&way, "127.0.0.1:0".parse().unwrap()).await;
        let mut own = dialled(&way, way.from).await;
        own.write_all(b"CONNECT").await.unwrap();
        let mut bytes = [0; 7];
        broker.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"CONNECT");
        own.read_exact(&mut bytes[..4]).await.unwrap();
        assert_eq!(&bytes[..4], b"INFO");
        // It is closed, or reset.
        assert!(matches!(other.read(&mut bytes).await, Ok(0) | Err(_)), "others hear nothing");
    }

    #[tokio::test]
    async fn a_broker_that_sends_too_much_is_cut_off() {
        let (way, mut broker) = way().await;
        way.meter.reset();
        let mut own = dialled(&way, way.from).await;
        let sends = tokio::spawn(async move {
            let zeros = vec![0; 1 << 20];
            while broker.write_all(&zeros).await.is_ok() {}
        });
        let mut received = Vec::new();
        let read = timeout(Duration::from_secs(20), own.read_to_end(&mut received));
        // It is closed, or reset.
        drop(read.await.expect("it ends"));
        assert!(received.len() <= RECEIVED_BYTES_MAX, "{}", received.len());
        assert!(way.meter.is_over());
        sends.await.unwrap();
    }
}
