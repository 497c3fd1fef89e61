use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;

const PIPE_BYTES: usize = 64 * 1024;

/// Other types of frames, and flags.
const WINDOW_UPDATE: u8 = 1;
const PING: u8 = 2;
const SYN: u16 = 1;
const ACK: u16 = 2;
const FIN: u16 = 4;
const RST: u16 = 8;

/// A host's end and its plugin's.
fn pair() -> (Mux, Mux) {
    let (near, far) = duplex(PIPE_BYTES);
    (Mux::client(Box::new(near)), Mux::server(Box::new(far)))
}

async fn assert_hears(from: &mut BoxIo, to: &mut BoxIo) {
    from.write_all(b"hello").await.unwrap();
    from.flush().await.unwrap();
    let mut heard = [0; 5];
    to.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
}

/// A frame's header, as in hashicorp's description of yamux.
fn header(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let mut header = vec![0, kind];
    header.extend(flags.to_be_bytes());
    header.extend(stream.to_be_bytes());
    header.extend(length.to_be_bytes());
    header
}

/// The type, flags, stream and length of the next frame that is no question for the round trip.
async fn next(raw: &mut DuplexStream) -> (u8, u16, u32, u32) {
    loop {
        assert_eq!(raw.read_u8().await.unwrap(), 0);
        let kind = raw.read_u8().await.unwrap();
        let flags = raw.read_u16().await.unwrap();
        let frame = (kind, flags, raw.read_u32().await.unwrap(), raw.read_u32().await.unwrap());
        if (kind, flags) != (PING, SYN) {
            return frame;
        }
    }
}

#[tokio::test]
async fn streams_arrive_in_order_and_either_side_may_speak_first() {
    let (host, plugin) = pair();
    for _ in 0..2 {
        let mut near = Vec::new();
        for _ in 0..3 {
            near.push(host.open().await.unwrap());
        }
        for (number, near) in near.iter_mut().enumerate() {
            let mut far = plugin.accept().await.unwrap();
            far.write_all(&[number as u8]).await.unwrap();
            far.flush().await.unwrap();
            assert_eq!(near.read_u8().await.unwrap(), number as u8);
            assert_hears(near, &mut far).await;
        }
    }
    let mut far = plugin.open().await.unwrap();
    let mut near = host.accept().await.unwrap();
    assert_hears(&mut far, &mut near).await;
    assert_hears(&mut near, &mut far).await;
}

#[tokio::test]
async fn much_data_passes_whole() {
    let (host, plugin) = pair();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let mut near = host.open().await.unwrap();
    let mut far = plugin.accept().await.unwrap();
    let sending = async {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let (_, read) = tokio::join!(sending, far.read_to_end(&mut heard));
    assert_eq!(read.unwrap(), sent.len());
    assert!(heard == sent);
}

#[tokio::test]
async fn streams_that_nobody_takes_are_closed() {
    let (host, plugin) = pair();
    let mut kept = host.open().await.unwrap();
    let mut others = Vec::new();
    for _ in 1..MUX_ARRIVALS_MAX {
        others.push(host.open().await.unwrap());
    }
    for _ in 0..3 {
        let mut refused = host.open().await.unwrap();
        assert_eq!(refused.read(&mut [0]).await.unwrap(), 0);
    }
    let mut far = plugin.accept().await.unwrap();
    assert_hears(&mut kept, &mut far).await;
    assert_hears(&mut far, &mut kept).await;
}

#[tokio::test(start_paused = true)]
async fn there_are_only_so_many_streams() {
    let (host, plugin) = pair();
    for _ in 0..2 {
        let mut held = Vec::new();
        for _ in 0..MUX_STREAMS_MAX {
            held.push(host.open().await.unwrap());
        }
        assert!(matches!(host.open().await.err().unwrap(), Error::Late { .. }));
    }
    while plugin.accept().await.is_ok() {}
    // Those that were dropped do not count, and the session goes on.
    let mut near = host.open().await.unwrap();
    let mut far = plugin.accept().await.unwrap();
    assert_hears(&mut near, &mut far).await;
    assert!(matches!(plugin.accept().await.err().unwrap(), Error::Late { .. }));
}

#[tokio::test]
async fn a_session_ends_with_its_last_handle_and_stream() {
    let (host, plugin) = pair();
    let mut near = host.open().await.unwrap();
    let mut far = plugin.accept().await.unwrap();
    drop(host);
    assert_hears(&mut near, &mut far).await;
    drop(near);
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0);
    assert!(matches!(plugin.accept().await.err().unwrap(), Error::Ended));
    assert!(matches!(plugin.open().await.err().unwrap(), Error::Ended));
    let (near, far) = duplex(PIPE_BYTES);
    drop(near);
    let alone = Mux::client(Box::new(far));
    assert!(matches!(alone.accept().await.err().unwrap(), Error::Ended));
}

#[tokio::test]
async fn a_stream_that_hashicorps_opens_is_acknowledged() {
    let (mut raw, far) = duplex(PIPE_BYTES);
    let mux = Mux::server(Box::new(far));
    raw.write_all(&header(WINDOW_UPDATE, SYN, 1, 0)).await.unwrap();
    let mut stream = mux.accept().await.unwrap();
    assert_eq!(next(&mut raw).await, (DATA, ACK, 1, 0));
    // Its question whether we live.
    raw.write_all(&header(PING, SYN, 0, 7)).await.unwrap();
    assert_eq!(next(&mut raw).await, (PING, ACK, 0, 7));
    raw.write_all(&header(DATA, 0, 1, 5)).await.unwrap();
    raw.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
    stream.write_all(b"world").await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(next(&mut raw).await, (DATA, 0, 1, 5));
    raw.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"world");
    raw.write_all(&header(WINDOW_UPDATE, FIN, 1, 0)).await.unwrap();
    assert_eq!(stream.read(&mut heard).await.unwrap(), 0);
    stream.shutdown().await.unwrap();
    assert_eq!(next(&mut raw).await, (DATA, FIN, 1, 0));
}

#[tokio::test]
async fn hashicorps_hears_of_a_stream_before_anything_is_written() {
    let (mut raw, far) = duplex(PIPE_BYTES);
    let mux = Mux::client(Box::new(far));
    let mut first = mux.open().await.unwrap();
    assert_eq!(next(&mut raw).await, (DATA, SYN, 1, 0));
    let second = mux.open().await.unwrap();
    assert_eq!(next(&mut raw).await, (DATA, SYN, 3, 0));
    raw.write_all(&header(WINDOW_UPDATE, ACK, 1, 0)).await.unwrap();
    raw.write_all(&header(DATA, 0, 1, 1)).await.unwrap();
    raw.write_all(b"!").await.unwrap();
    assert_eq!(first.read_u8().await.unwrap(), b'!');
    drop(second);
    assert_eq!(next(&mut raw).await, (DATA, RST, 3, 0));
    // A stream that was reset by the other side is at its end.
    raw.write_all(&header(WINDOW_UPDATE, RST, 1, 0)).await.unwrap();
    assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
    assert!(first.write_all(b"?").await.is_err());
}

#[tokio::test]
async fn one_byte_a_frame_ends_the_session() {
    let (mut raw, far) = duplex(PIPE_BYTES);
    let mux = Mux::server(Box::new(far));
    raw.write_all(&header(WINDOW_UPDATE, SYN, 1, 0)).await.unwrap();
    let _unread = mux.accept().await.unwrap();
    let frame = [header(DATA, 0, 1, 1), b"x".to_vec()].concat();
    raw.write_all(&frame.repeat(MUX_SCRAPS_MAX as usize + 1)).await.unwrap();
    assert!(matches!(mux.accept().await.err().unwrap(), Error::Ended));
}

#[tokio::test]
async fn a_rule_that_is_broken_ends_the_session() {
    let syn = || header(WINDOW_UPDATE, SYN, 1, 0);
    // A host's streams have odd numbers.
    let foreign = vec![header(WINDOW_UPDATE, SYN, 2, 0)];
    let twice = vec![syn(), syn()];
    let mut large = header(DATA, 0, 1, DEFAULT_CREDIT + 1);
    large.extend(vec![0; DEFAULT_CREDIT as usize + 1]);
    for broken in [foreign, twice, vec![syn(), large]] {
        let (mut raw, far) = duplex(PIPE_BYTES);
        let mux = Mux::server(Box::new(far));
        let mut held = Vec::new();
        for frame in broken {
            raw.write_all(&frame).await.unwrap();
            held.extend(mux.accept().await);
        }
        assert!(matches!(mux.accept().await.err().unwrap(), Error::Ended));
    }
}

#[tokio::test]
async fn an_end_in_good_order_is_told() {
    let (mut raw, far) = duplex(PIPE_BYTES);
    drop(Mux::client(Box::new(far)));
    assert_eq!(next(&mut raw).await, (GO_AWAY, 0, 0, NO_ERROR));
}

#[test]
fn the_word_that_a_rule_is_broken_is_found_wherever_the_bytes_are_cut() {
    // Data may look like a header.
    let mut sent = header(DATA, 0, 1, HEADER_BYTES as u32);
    sent.extend(header(GO_AWAY, 0, 0, 1));
    sent.extend(header(WINDOW_UPDATE, SYN, 1, 1));
    sent.extend(header(GO_AWAY, 0, 0, NO_ERROR));
    let broken = header(GO_AWAY, 0, 0, 1);
    for cut in [1, 5, HEADER_BYTES, usize::MAX] {
        let mut headers = Headers::default();
        let mut see = |bytes: &[u8]| {
            let cut = cut.min(bytes.len());
            bytes.chunks(cut).try_for_each(|bytes| headers.see(bytes, no_rule_is_broken))
        };
        see(&sent).unwrap();
        assert!(see(&broken).is_err());
    }
}

#[test]
fn scraps_are_counted_wherever_the_bytes_are_cut() {
    let mut scrap = header(DATA, 0, 1, SCRAP_BYTES_MAX);
    scrap.extend([0; SCRAP_BYTES_MAX as usize]);
    let mut large = header(DATA, 0, 1, LARGE_BYTES_MIN);
    large.extend([0; LARGE_BYTES_MIN as usize]);
    // Neither has data that is kept.
    let others = [header(WINDOW_UPDATE, SYN, 1, 1), header(DATA, ACK, 1, 0)].concat();
    for cut in [1, 5, HEADER_BYTES, usize::MAX] {
        let mut scraps = Scraps::default();
        let mut see = |bytes: &[u8]| {
            let cut = cut.min(bytes.len());
            bytes.chunks(cut).try_for_each(|bytes| scraps.see(bytes))
        };
        for _ in 0..MUX_SCRAPS_MAX {
            see(&scrap).unwrap();
            see(&others).unwrap();
        }
        for _ in 0..10 {
            see(&large).unwrap();
            see(&scrap).unwrap();
        }
        assert!(see(&scrap).is_err());
    }
}
