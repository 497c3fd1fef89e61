//! What the clients did and what they were told: every call, in memory and in a file of JSON lines.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    sync::{Arc, Mutex},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

/// A command sent once; the same command sent again is another call with the same key.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Call {
    pub(crate) tenant: &'static str,
    pub(crate) account: String,
    pub(crate) command: &'static str,
    pub(crate) key: String,
    /// Tells two payloads under one key apart; the events carry it.
    pub(crate) tag: String,
    /// Events that the command makes when it is accepted.
    pub(crate) parts: u64,
    pub(crate) if_match: Option<u64>,
    pub(crate) way: Way,
    /// Which gateway was asked; 0: the broker.
    pub(crate) gateway: usize,
    /// Nanoseconds on the harness's own clock.
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) told: Told,
}

/// How a command is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Way {
    /// POST, and the answer is the outcome.
    Wait,
    /// POST with `Prefer: respond-async`.
    Queue,
    /// Published to the broker.
    Publish,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Told {
    /// 200 with version and place in the log.
    Accepted { version: u64, sequence: Option<u64>, replayed: bool },
    /// 202, or the broker's acknowledgement: it will be processed.
    Queued,
    /// 4xx, and the problem's code.
    Refused { status: u16, code: String },
    /// 429 or 503 that says that nothing was done.
    TurnedAway { status: u16, code: String, retry_after: bool },
    /// Any other 5xx: it is not known what came of it.
    Unknown { status: u16, code: String, retry_after: bool },
    /// No connection could be made: nothing was sent.
    NotSent,
    /// No answer: the connection broke, or time was up.
    NoAnswer { why: String },
}

impl Told {
    /// The client need not ask again.
    pub(crate) fn is_known(&self) -> bool {
        matches!(self, Self::Accepted { .. } | Self::Queued | Self::Refused { .. })
    }
}

/// A query that had to see an own command.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Read {
    pub(crate) tenant: &'static str,
    pub(crate) account: String,
    /// The account's version that `min_position` belongs to.
    pub(crate) least: u64,
    pub(crate) gateway: usize,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) seen: Seen,
}

/// What a query showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Seen {
    /// The row's version; `None`: there was no row.
    Row(Option<u64>),
    /// It said that it could not, with this status.
    Not { status: u16, retry_after: bool },
    /// No answer.
    Nothing { why: String },
}

/// One wish of a client, with all its calls until it was known what came of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Wish {
    pub(crate) start_ns: u64,
    /// When it was known; `None`: not yet, or never.
    pub(crate) known_ns: Option<u64>,
    pub(crate) given_up: bool,
}

/// The record, shared by all clients.
#[derive(Clone)]
pub(crate) struct History {
    begun: Instant,
    /// Milliseconds since 1970 at the begin.
    pub(crate) begun_ms: u64,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    calls: Vec<Call>,
    reads: Vec<Read>,
    wishes: Vec<Wish>,
    file: BufWriter<File>,
}

impl History {
    pub(crate) fn new(file: &Path) -> Self {
        let file = BufWriter::new(File::create(file).unwrap());
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let inner = Inner { calls: Vec::new(), reads: Vec::new(), wishes: Vec::new(), file };
        Self {
            begun: Instant::now(),
            begun_ms: u64::try_from(since.as_millis()).unwrap(),
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// Nanoseconds since the begin.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap()
    }

    pub(crate) fn call(&self, call: Call) {
        let mut inner = self.inner.lock().unwrap();
        line(&mut inner.file, &call);
        inner.calls.push(call);
    }

    pub(crate) fn read(&self, read: Read) {
        let mut inner = self.inner.lock().unwrap();
        line(&mut inner.file, &read);
        inner.reads.push(read);
    }

    /// A client begins to wish for something; gives the wish's number.
    pub(crate) fn wish(&self) -> usize {
        let mut inner = self.inner.lock().unwrap();
        inner.wishes.push(Wish { start_ns: self.now_ns(), known_ns: None, given_up: false });
        inner.wishes.len() - 1
    }

    /// It is known what came of a wish, or nobody waits any more.
    pub(crate) fn settle(&self, number: usize, known: bool) {
        let mut inner = self.inner.lock().unwrap();
        let wish = &mut inner.wishes[number];
        wish.known_ns = known.then(|| self.now_ns());
        wish.given_up = !known;
    }

    /// Writes the file out.
    pub(crate) fn flush(&self) {
        self.inner.lock().unwrap().file.flush().unwrap();
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.inner.lock().unwrap().calls.clone()
    }

    pub(crate) fn reads(&self) -> Vec<Read> {
        self.inner.lock().unwrap().reads.clone()
    }

    /// Wishes that began at this time or later, in order of their begin.
    pub(crate) fn wishes(&self, from_ns: u64) -> Vec<Wish> {
        let inner = self.inner.lock().unwrap();
        let first = inner.wishes.partition_point(|wish| wish.start_ns < from_ns);
        inner.wishes[first..].to_vec()
    }
}

fn line(file: &mut BufWriter<File>, record: &impl Serialize) {
    serde_json::to_writer(&mut *file, record).unwrap();
    file.write_all(b"\n").unwrap();
}
