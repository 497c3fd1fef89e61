//! The breaker and failover against sockets: a fake downstream on loopback that errs, hangs, drips,
//! resets, is gone, fails half of the time, and recovers.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use flexcore_resilience::{
    Breaker, CircuitState, Deadline, Endpoints, Error, Order, Verdict,
    policy::{BreakerPolicy, Policy},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Short, so that the test is; the numbers that decide are the defaults.
fn brisk() -> BreakerPolicy {
    BreakerPolicy {
        slow_call: Duration::from_millis(150),
        pause_min: Duration::from_millis(100),
        pause_max: Duration::from_millis(400),
        ..BreakerPolicy::default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Answer,
    Err,
    Hang,
    /// A byte now and then, for ever.
    Drip,
    Reset,
    /// Nobody listens.
    Gone,
    /// Every other call.
    ErrHalf,
}

/// State that its connections share.
#[derive(Debug)]
struct Seen {
    does: Mutex<Does>,
    calls: AtomicUsize,
    at_once: AtomicUsize,
    at_once_max: AtomicUsize,
}

/// A downstream whose behaviour the test chooses.
struct FakeDownstream {
    address: SocketAddr,
    seen: Arc<Seen>,
    listening: Option<JoinHandle<()>>,
}

impl FakeDownstream {
    async fn start() -> Self {
        let seen = Arc::new(Seen {
            does: Mutex::new(Does::Answer),
            calls: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            at_once_max: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listening = Some(tokio::spawn(accept(listener, seen.clone())));
        Self { address, seen, listening }
    }

    async fn does(&mut self, does: Does) {
        *self.seen.does.lock().unwrap() = does;
        if does == Does::Gone {
            if let Some(listening) = self.listening.take() {
                listening.abort();
                listening.await.unwrap_err();
            }
        } else if self.listening.is_none() {
            let listener = TcpListener::bind(self.address).await.unwrap();
            self.listening = Some(tokio::spawn(accept(listener, self.seen.clone())));
        }
    }

    /// Calls since it was asked last.
    fn calls(&self) -> usize {
        self.seen.calls.swap(0, Ordering::SeqCst)
    }

    /// Most calls at once since it was asked last.
    fn at_once_max(&self) -> usize {
        self.seen.at_once_max.swap(0, Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, seen: Arc<Seen>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(serve(stream, seen.clone()));
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Seen>) {
    let number = seen.calls.fetch_add(1, Ordering::SeqCst);
    let at_once = seen.at_once.fetch_add(1, Ordering::SeqCst) + 1;
    seen.at_once_max.fetch_max(at_once, Ordering::SeqCst);
    let _ = stream.read_u8().await;
    let does = *seen.does.lock().unwrap();
    // The client may have gone by now: that is its affair.
    let _ = match does {
        Does::Err => stream.write_all(b"error\n").await,
        Does::ErrHalf if number.is_multiple_of(2) => stream.write_all(b"error\n").await,
        Does::Answer | Does::ErrHalf => {
            // Long enough that a crowd's calls would be seen beside each other.
            tokio::time::sleep(Duration::from_millis(10)).await;
            stream.write_all(b"ok\n").await
        }
        Does::Drip => loop {
            if stream.write_all(b".").await.is_err() {
                break Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        },
        // Until the client closes.
        Does::Hang => stream.read_u8().await.map(drop),
        Does::Reset | Does::Gone => stream.set_zero_linger(),
    };
    seen.at_once.fetch_sub(1, Ordering::SeqCst);
}

async fn ask(address: SocketAddr) -> Result<(), String> {
    let told = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"?").await?;
        let mut line = String::new();
        stream.read_to_string(&mut line).await?;
        std::io::Result::Ok(line)
    };
    match told.await.map_err(|error| error.to_string())?.as_str() {
        "ok\n" => Ok(()),
        other => Err(other.to_owned()),
    }
}

fn judge(result: &Result<(), String>) -> Verdict {
    if result.is_ok() { Verdict::Success } else { Verdict::Failure }
}

async fn call(breaker: &Breaker, address: SocketAddr) -> Result<(), Error<String>> {
    breaker
        .call(
            Deadline::after(Duration::from_secs(2)).within(brisk().slow_call),
            judge,
            ask(address),
        )
        .await
}

/// Calls until it opens; returns how many calls that took.
async fn until_open(breaker: &Breaker, address: SocketAddr) -> usize {
    for calls in 1..=20 {
        let _ = call(breaker, address).await;
        if breaker.state() == CircuitState::Open {
            return calls;
        }
    }
    panic!("still {:?} after 20 calls", breaker.state());
}

async fn crowd(breaker: &Breaker, address: SocketAddr) -> Vec<Result<(), Error<String>>> {
    futures::future::join_all((0..50).map(|_| call(breaker, address))).await
}

#[tokio::test]
async fn it_opens_on_every_fault_fails_at_once_probes_alone_and_recovers() {
    let mut downstream = FakeDownstream::start().await;
    let address = downstream.address;
    let breaker = Breaker::new("fake downstream", brisk());
    let faults = [Does::Err, Does::Hang, Does::Drip, Does::Reset, Does::Gone, Does::ErrHalf];
    for fault in faults {
        downstream.does(fault).await;
        let calls = until_open(&breaker, address).await;
        assert!(calls == 5 || fault == Does::ErrHalf, "{fault:?}: {calls}");
        downstream.calls();

        let began = Instant::now();
        let refused = crowd(&breaker, address).await;
        assert!(refused.iter().all(|r| matches!(r, Err(Error::Open { .. }))), "{refused:?}");
        assert!(began.elapsed() < Duration::from_millis(10), "{fault:?}: {:?}", began.elapsed());
        assert_eq!(downstream.calls(), 0, "{fault:?}: nothing was sent");

        downstream.does(Does::Answer).await;
        downstream.at_once_max();
        let began = Instant::now();
        while breaker.state() != CircuitState::Closed {
            tokio::time::sleep(breaker.rests_for()).await;
            let passed = crowd(&breaker, address).await.iter().filter(|r| r.is_ok()).count();
            assert!(passed <= 1, "{fault:?}: {passed} of a crowd went through");
            assert!(began.elapsed() < Duration::from_secs(5), "{fault:?}: it does not recover");
        }
        assert_eq!((downstream.calls(), downstream.at_once_max()), (3, 1), "{fault:?}: the probes");
        let served = crowd(&breaker, address).await;
        assert!(served.iter().all(Result::is_ok), "{fault:?}: {served:?}");
    }
}

#[tokio::test]
async fn a_target_that_stays_away_gets_a_probe_a_pause_and_no_more() {
    let mut downstream = FakeDownstream::start().await;
    let address = downstream.address;
    let breaker = Breaker::new("fake downstream", brisk());
    downstream.does(Does::Err).await;
    until_open(&breaker, address).await;
    downstream.calls();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        crowd(&breaker, address).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Pauses of 50–100, 100–200, then 200–400 ms.
    let calls = downstream.calls();
    assert!((5..=12).contains(&calls), "{calls} calls in 2 s, of some 100,000");
    assert_eq!(downstream.at_once_max(), 1);
}

#[tokio::test]
async fn calls_go_to_the_endpoint_that_works() {
    let mut downstreams = [FakeDownstream::start().await, FakeDownstream::start().await];
    let addresses = downstreams.iter().map(|downstream| downstream.address).collect();
    let policy = Policy { breaker: brisk(), ..Policy::default() };
    let all = Endpoints::new("fake downstreams", addresses, Order::Preferred, policy);
    for fault in [Does::Err, Does::Hang, Does::Reset, Does::Gone] {
        downstreams[0].does(fault).await;
        for number in 0..20 {
            let deadline = Deadline::after(Duration::from_secs(2));
            let answer = all.call(deadline, judge, |_| true, |address| ask(*address)).await;
            assert_eq!(answer, Ok(()), "{fault:?}, call {number}");
        }
        downstreams[0].does(Does::Answer).await;
        tokio::time::sleep(brisk().pause_max).await;
        downstreams[0].calls();
        for _ in 0..5 {
            let deadline = Deadline::after(Duration::from_secs(2));
            all.call(deadline, judge, |_| true, |address| ask(*address)).await.unwrap();
        }
        assert_eq!(downstreams[0].calls(), 5, "{fault:?}: preferred again");
    }
}
