//! The clients' calls and their answers: every call, in memory and in a file of JSON lines.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    sync::{Arc, Mutex},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use rand::{RngExt as _, rngs::StdRng};
use serde::Serialize;
use serde_json::{Value, json};

use crate::evidence::{Change, Row};

/// Name of an account that is used from the begin to the end of a run; the others take turns.
pub(crate) const HOT: &str = "hot";

/// True if an account is never left for a new one.
pub(crate) fn is_hot(account: &str) -> bool {
    account == HOT
}

/// A command sent once; the same command sent again is another call with the same key.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Call {
    pub(crate) tenant: &'static str,
    pub(crate) account: String,
    pub(crate) wanted: Wanted,
    pub(crate) key: String,
    /// Tells two payloads under one key apart; the events carry it.
    pub(crate) tag: String,
    pub(crate) if_match: Option<u64>,
    pub(crate) way: Way,
    /// The gateway that was asked; 0: the broker.
    pub(crate) gateway: usize,
    /// Nanoseconds on the harness's own clock.
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) told: Told,
}

/// A command's demand on an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Wanted {
    Open { branch: String },
    Deposit { amount: i64, parts: u64 },
    Withdraw { amount: i64 },
}

impl Wanted {
    /// The command's name.
    pub(crate) fn command(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::Deposit { .. } => "deposit",
            Self::Withdraw { .. } => "withdraw",
        }
    }

    /// The command's payload.
    pub(crate) fn payload(&self, tag: &str) -> Value {
        match self {
            Self::Open { branch } => json!({"branch": branch, "tag": tag}),
            Self::Deposit { amount, parts } => {
                json!({"amount": amount, "parts": parts, "tag": tag})
            }
            Self::Withdraw { amount } => json!({"amount": amount, "tag": tag}),
        }
    }
}

/// The way of sending a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Way {
    /// POST, and the answer is the outcome.
    Wait,
    /// POST with `Prefer: respond-async`.
    Queue,
    /// Published to the broker.
    Publish,
}

/// An answer to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Told {
    /// 200 with version and place in the log.
    Accepted { version: u64, sequence: Option<u64>, replayed: bool },
    /// 202, or the broker's acknowledgement: it will be processed.
    Queued,
    /// 4xx, and the problem's code.
    Refused { status: u16, code: String },
    /// 429, 503 or 507 that says that nothing was done.
    TurnedAway { status: u16, code: String, retry_after: bool },
    /// Any other 5xx: the outcome is unknown.
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

/// A question about an account.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Read {
    pub(crate) tenant: &'static str,
    pub(crate) account: String,
    pub(crate) asked: Asked,
    pub(crate) gateway: usize,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) seen: Seen,
}

/// The subject of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Asked {
    /// Its row, which has to show an own command: `min_position` belongs to this version.
    Row { least: u64 },
    /// Its state now.
    State,
    /// Its events after this version.
    Events { after: u64 },
}

/// The result of a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Seen {
    /// Every row that was given, with its account.
    Rows(Vec<(String, Row)>),
    State {
        version: u64,
        branch: String,
        balance: i64,
    },
    /// Events with their versions, and whether more follow.
    Events {
        events: Vec<(u64, Change)>,
        more: bool,
    },
    /// It said that it could not, with this status.
    Not {
        status: u16,
        retry_after: bool,
    },
    /// No answer.
    Nothing {
        why: String,
    },
}

impl Seen {
    /// It is neither an answer nor a word that something is wrong with the question.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Not { status, .. } => matches!(status, 429 | 500..),
            Self::Nothing { .. } => true,
            Self::Rows(_) | Self::State { .. } | Self::Events { .. } => false,
        }
    }
}

/// One wish of a client, with all its calls until its outcome was known.
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
    /// Where calls about hot accounts are among the others.
    hot: Vec<usize>,
    reads: Vec<Read>,
    wishes: Vec<Wish>,
    file: BufWriter<File>,
}

impl History {
    pub(crate) fn new(file: &Path) -> Self {
        let file = BufWriter::new(File::create(file).unwrap());
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let inner = Inner {
            calls: Vec::new(),
            hot: Vec::new(),
            reads: Vec::new(),
            wishes: Vec::new(),
            file,
        };
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
        if is_hot(&call.account) {
            let place = inner.calls.len();
            inner.hot.push(place);
        }
        inner.calls.push(call);
    }

    /// Some call about a hot account, from any time since the begin.
    pub(crate) fn old_call(&self, random: &mut StdRng) -> Option<Call> {
        let inner = self.inner.lock().unwrap();
        let place = inner.hot.get(random.random_range(0..inner.hot.len().max(1)))?;
        Some(inner.calls[*place].clone())
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

    /// The outcome of a wish is known, or nobody waits any more.
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
