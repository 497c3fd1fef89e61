//! A tenant who wishes the others ill: floods over every way in, the largest and the malformed, and
//! definitions that never end. Its own outcome does not matter here; the others' outcomes do.

mod malformed;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{HeaderMap, jetstream};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    checker::{
        Verdict,
        answers::{INSIDE, is_of_use},
    },
    http::{Answer, Ask, Client},
    talk::{self, Place},
};

/// The tenant. Of its aggregate `blob` two ids are known whose subjects have one hash under a known key.
pub(crate) const TENANT: &str = "demo";
const TWINS: [&str; 2] = ["85eec3d2c784313e", "00c0dce69a15679a"];
/// A debug build does a quarter of the work, and the harness is one, too: the tenant asks for a quarter.
const PART: u32 = if cfg!(debug_assertions) { 4 } else { 1 };
/// Commands that are stored each second.
const STORED_A_SECOND: u32 = 400 / PART;
/// Clients that wait for answers, and ask again at once.
const CLIENTS: u32 = 32 / PART;
/// Aggregates whose only event is to be brought to another version later.
const RELICS: u32 = 20;
/// Event streams that are opened and not read.
const STREAMS: usize = 40;
/// A query that runs on takes one of two processors from all others, whatever they are: in a debug build nothing
/// of ours could be told from that.
const STUBBORN: bool = !cfg!(debug_assertions);
/// It keeps one of Postgres's processors for ten seconds or more: time until the next, time after which an answer
/// says that it ran on, and time until it is asked again if it did not, since its read model is being built.
const STUBBORN_EVERY: Duration = Duration::from_secs(12);
const STUBBORN_LEAST: Duration = Duration::from_secs(4);
const STUBBORN_AGAIN: Duration = Duration::from_secs(1);
/// A message of the broker, and a payload over HTTP, at the most.
const MESSAGE_BYTES_MAX: usize = 1_048_576;
const PAYLOAD_BYTES_MAX: usize = 262_144;
/// Longest wait for one answer.
const WITHIN: Duration = Duration::from_secs(10);

/// The tenant at work. Dropping it ends it.
pub(crate) struct Hostile {
    tasks: JoinSet<()>,
    done: Arc<Done>,
}

/// Work that it has done so far.
#[derive(Default)]
struct Done {
    published: AtomicU64,
    answered: AtomicU64,
    served: AtomicU64,
    malformed: AtomicU64,
    /// Answers that say that something failed inside, in words.
    inside: Mutex<Vec<String>>,
}

impl Done {
    /// Counts an answer over HTTP.
    fn answer(&self, ask: &Ask, answer: &Answer) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        let served = u64::from((200..300).contains(&answer.status));
        self.served.fetch_add(served, Ordering::Relaxed);
        let retry_after = answer.header("retry-after").is_some();
        if !is_of_use(answer.status, retry_after, is_query(ask)) {
            let told = format!("{TENANT}: {} {}: {}", ask.method, ask.path, answer.status);
            self.inside.lock().unwrap().push(told);
        }
    }

    /// The check of all answers, of its own: whatever it sends, nothing fails inside.
    fn nothing_failed_inside(&self) -> Verdict {
        let n = usize::try_from(self.answered.load(Ordering::Relaxed)).unwrap();
        Verdict { n, violations: self.inside.lock().unwrap().clone(), ..Verdict::new(13, INSIDE) }
    }
}

impl Hostile {
    /// Begins with everything at once.
    pub(crate) fn start(place: &Place, token: &str, seed: u64) -> Self {
        let (mut tasks, done) = (JoinSet::new(), Arc::<Done>::default());
        tasks.spawn(store(place.nats.clone(), seed, done.clone()));
        tasks.spawn(malformed::publish(place.nats.clone(), done.clone()));
        let place = Arc::new(place.clone());
        for number in 0..CLIENTS {
            let seed = seed ^ u64::from(number);
            let number = number as usize;
            tasks.spawn(ask(place.clone(), token.to_owned(), number, seed, done.clone()));
        }
        if STUBBORN {
            tasks.spawn(ask_what_is_not_stopped(place.clone(), token.to_owned()));
        }
        tasks.spawn(hold_streams(place, token.to_owned()));
        Self { tasks, done }
    }

    /// Ends it. Gives the number of its published commands, of its answers over HTTP, of those among them
    /// that say 2xx, and of its commands that no client could have sent; and the check of its answers.
    pub(crate) async fn stop(mut self) -> ([u64; 4], Verdict) {
        self.tasks.shutdown().await;
        let Done { published, answered, served, malformed, .. } = &*self.done;
        let counts = [published, answered, served, malformed];
        let counts = counts.map(|count| count.load(Ordering::Relaxed));
        (counts, self.done.nothing_failed_inside())
    }
}

/// Publishes commands to the broker: many, and among them the largest and malformed ones.
async fn store(nats: Vec<String>, seed: u64, done: Arc<Done>) {
    let client = talk::connect(&nats).await;
    let jetstream = jetstream::new(client);
    let mut random = StdRng::seed_from_u64(seed);
    let mut clock = tokio::time::interval(Duration::from_secs(1) / STORED_A_SECOND);
    for number in 0_u64.. {
        clock.tick().await;
        let (subject, headers, payload) = message(number, &mut random);
        // The broker may take it or not; nobody waits for it.
        if jetstream.publish_with_headers(subject, headers, payload.into()).await.is_ok() {
            done.published.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One message: mostly a command that is well formed.
fn message(number: u64, random: &mut StdRng) -> (String, HeaderMap, Vec<u8>) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("h{number}-{}", random.random_range(0..u32::MAX)));
    let id = match random.random_range(0..10) {
        0..2 => TWINS[random.random_range(0..2)].to_owned(),
        2..5 => "one".to_owned(),
        _ => format!("b{}", random.random_range(0..5_000)),
    };
    let command = match random.random_range(0..1_000) {
        0..2 => "spin",
        2..4 => "hog",
        4..6 => "swell",
        6..8 => "nest",
        8..20 => "fall",
        20..30 => "nothing",
        30 => "compare",
        _ => "put",
    };
    let aggregate = if command == "compare" { "snag" } else { "blob" };
    let subject = format!("cmd.{TENANT}.{aggregate}.{id}.{command}");
    let payload = match random.random_range(0..400) {
        // One less, as much as fits, and one more, with headers.
        0 => {
            let id = headers.get("Nats-Msg-Id").map_or(0, |id| id.as_str().len());
            let size = "NATS/1.0\r\nNats-Msg-Id: \r\n\r\n".len() + id;
            let size = MESSAGE_BYTES_MAX - size + random.random_range(0..3) - 1;
            large(size)
        }
        1 => large(PAYLOAD_BYTES_MAX),
        2 => b"{".to_vec(),
        3 => vec![0xff, 0xfe, 0x00],
        4 => vec![b'['; 200_000],
        5 => br#"{"a":1,"a":2,"b":1e999,"c":9007199254740993}"#.to_vec(),
        6 => {
            headers = HeaderMap::new();
            b"{}".to_vec()
        }
        7 => {
            headers.insert("Flexcore-Expected-Version", "-1");
            headers.insert("Flexcore-Actor", "x".repeat(4_000));
            b"{}".to_vec()
        }
        _ => b"{}".to_vec(),
    };
    (subject, headers, payload)
}

/// A payload of this many bytes.
fn large(bytes: usize) -> Vec<u8> {
    let mut text = br#"{"text":""#.to_vec();
    text.resize(bytes - 2, b'x');
    text.extend(b"\"}");
    text
}

/// A client that asks without a pause, for all that there is.
async fn ask(place: Arc<Place>, token: String, number: usize, seed: u64, done: Arc<Done>) {
    let client = Client::default();
    let mut random = StdRng::seed_from_u64(seed);
    let gateway = place.gateways[number % place.gateways.len()].clone();
    // The tenant's places for queries there are left to the one that is not stopped: behind clients that ask
    // without a pause it never had one in time.
    let leaves_queries = STUBBORN && gateway == stubborn_at(&place);
    for turn in 0_u64.. {
        let ask = request(&token, format!("c{number}-{turn}-{seed}"), &mut random);
        if leaves_queries && is_query(&ask) {
            continue;
        }
        match client.send(&gateway, &ask, WITHIN).await {
            Ok(answer) => done.answer(&ask, &answer),
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

fn request(token: &str, key: String, random: &mut StdRng) -> Ask {
    let get = |path: &str| Ask::get(path, token);
    let send = |target: &str, body: Vec<u8>| Ask {
        method: "POST",
        path: format!("/v1/commands/{target}"),
        token: token.to_owned(),
        headers: vec![("idempotency-key", key.clone())],
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let put = |command: &str, body: Vec<u8>| send(&format!("blob/one/{command}"), body);
    match random.random_range(0..100) {
        0 => put("spin", b"{}".to_vec()),
        1 => put("hog", b"{}".to_vec()),
        2 => put("swell", b"{}".to_vec()),
        3 => put("nest", b"{}".to_vec()),
        4..6 => put("put", large(PAYLOAD_BYTES_MAX)),
        6 => put("put", large(PAYLOAD_BYTES_MAX + 1)),
        7 => put("put", vec![b'['; 200_000]),
        8 => put("put", b"{".to_vec()),
        9..15 => get("/v1/commands/never-heard-of?aggregate=blob&id=one"),
        15..20 => get("/v1/aggregates/blob/one?at_version=1"),
        20..25 => get("/v1/aggregates/blob/one/events?after_version=0&limit=1000"),
        25..30 => get("/v1/queries/all_blobs"),
        30..35 => get("/v1/query/blobs?limit=1000&sort=-size"),
        35 => get("/v1/events?after=1-0-18446744073709551615"),
        36 => get("/v1/query/blobs?min_position=1-0-18446744073709551615&wait_ms=10000"),
        37 => get("/v1/aggregates/blob/one?at_version=18446744073709551615"),
        38 => get("/v1/query/balances?limit=1000"),
        39 => send("snag/one/compare", b"{}".to_vec()),
        40..42 => send(&format!("relic/r{}/keep", random.random_range(0..RELICS)), b"{}".to_vec()),
        42 => get(&format!("/v1/aggregates/relic/r{}", random.random_range(0..RELICS))),
        _ => put("put", b"{}".to_vec()),
    }
}

/// True if it is answered by Postgres, and has a place among the tenant's queries.
fn is_query(ask: &Ask) -> bool {
    ask.path.starts_with("/v1/query/") || ask.path.starts_with("/v1/queries/")
}

/// The gateway that is asked for the query that Postgres does not stop.
fn stubborn_at(place: &Place) -> &str {
    place.gateways.last().unwrap()
}

/// Asks for a query that Postgres does not stop, now and then: not many, but its place stays taken.
async fn ask_what_is_not_stopped(place: Arc<Place>, token: String) {
    let client = Client::default();
    let ask = Ask::get("/v1/queries/stubborn", &token);
    loop {
        let begun = Instant::now();
        // It goes on, whatever the answer says.
        drop(client.send(stubborn_at(&place), &ask, WITHIN).await);
        let ran_on = begun.elapsed() > STUBBORN_LEAST;
        sleep(if ran_on { STUBBORN_EVERY } else { STUBBORN_AGAIN }).await;
    }
}

/// Opens event streams and reads nothing of them.
async fn hold_streams(place: Arc<Place>, token: String) {
    use tokio::{io::AsyncWriteExt as _, net::TcpStream};
    let mut open = Vec::new();
    for number in 0..STREAMS {
        let gateway = &place.gateways[number % place.gateways.len()];
        let Ok(mut stream) = TcpStream::connect(gateway).await else { continue };
        let head = format!(
            "GET /v1/events?after=1-0-0 HTTP/1.1\r\nhost: {gateway}\r\n\
             authorization: Bearer {token}\r\n\r\n"
        );
        if stream.write_all(head.as_bytes()).await.is_ok() {
            open.push(stream);
        }
    }
    std::future::pending::<()>().await;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn answer(status: u16) -> Answer {
        Answer { status, headers: hyper::HeaderMap::new(), body: bytes::Bytes::new() }
    }

    #[test]
    fn queries_are_known_by_their_paths() {
        let mut random = StdRng::seed_from_u64(1);
        let asks = (0..1_000).map(|_| request("", String::new(), &mut random));
        let paths: BTreeMap<String, bool> =
            asks.map(|ask| (ask.path.clone(), is_query(&ask))).collect();
        for (path, expected) in [
            ("/v1/queries/all_blobs", true),
            ("/v1/query/balances?limit=1000", true),
            ("/v1/commands/blob/one/put", false),
            ("/v1/aggregates/blob/one?at_version=1", false),
        ] {
            assert_eq!(paths.get(path), Some(&expected), "{path}");
        }
    }

    #[test]
    fn an_answer_to_it_that_something_failed_inside_is_found() {
        let done = Done::default();
        let ask = Ask::get("/v1/query/blobs", "");
        for status in [200, 400, 422, 500, 504] {
            done.answer(&ask, &answer(status));
        }
        // A state does not take too long, nor does a command.
        for path in ["/v1/aggregates/blob/one", "/v1/commands/blob/one/put"] {
            done.answer(&Ask::get(path, ""), &answer(504));
        }
        let verdict = done.nothing_failed_inside();
        let found = ["query/blobs: 500", "aggregates/blob/one: 504", "commands/blob/one/put: 504"];
        let found = found.map(|what| format!("demo: GET /v1/{what}"));
        assert_eq!((verdict.n, verdict.violations), (7, found.to_vec()));
        assert_eq!(done.served.load(Ordering::Relaxed), 1);
    }
}
