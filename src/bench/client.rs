//! The load on the gateway: connections that send one request after the other. It runs in a process
//! of its own (`flexcore bench-client`, hidden), so that it shares no threads with what is measured.

use std::{
    collections::{BTreeMap, VecDeque},
    io::Write,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use async_nats::HeaderMap;
use flexcore_domain::{AggregateId, AggregateKey, AggregateName, CommandId, Tenant};
use flexcore_eventstore::Profile;
use flexcore_http::{Bytes, Connection, Method, Request, header};
use flexcore_installation as installation;
use flexcore_out as out;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, process, task::JoinSet, time::timeout};

use crate::{
    counter::{PER_AGGREGATE, command, payload},
    rig::{Latencies, process_s},
};

/// Load the gateway, for `bench`
#[derive(Clone, Debug, clap::Args)]
pub struct ClientArgs {
    /// HOST:PORT of the gateway
    #[arg(long)]
    pub(crate) authority: String,
    /// Connections, each with one request at a time
    #[arg(long)]
    pub(crate) connections: u64,
    /// Duration, in milliseconds
    #[arg(long)]
    pub(crate) lasting_ms: u64,
    /// Duration before that without counting, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub(crate) warm_up_ms: u64,
    /// First letters of the aggregates' ids: others each time
    #[arg(long, default_value = "c")]
    pub(crate) prefix: String,
    /// Between two requests of a connection, in milliseconds, when the answer comes sooner
    #[arg(long, default_value_t = 0)]
    pub(crate) every_ms: u64,
    /// Have the commands stored
    #[arg(long)]
    pub(crate) stored: bool,
    /// Publish the commands to this broker, past the gateway, as fast as it takes them
    #[arg(long)]
    pub(crate) nats: Option<String>,
    /// Get this path in place of sending commands
    #[arg(long)]
    pub(crate) get: Option<String>,
}

/// Stored commands that a flood over NATS keeps on their way to the broker.
const STORED_AT_ONCE: usize = 256;
/// Longest wait for an answer, and for a connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Pause before a connection that was refused is made again.
const RECONNECT_AFTER: Duration = Duration::from_millis(50);

/// The answers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Processor time that the load took, over all.
    pub(crate) processor_s: f64,
    /// Measured time.
    pub(crate) seconds: f64,
    /// Answers in the measured time, by status.
    pub(crate) answers: BTreeMap<u16, u64>,
    /// Requests without an answer, over all.
    pub(crate) unanswered: u64,
    /// Connections that were refused or closed before a request was sent on them, over all.
    pub(crate) refused: u64,
    /// Successes over all, those of the warm-up included.
    pub(crate) acknowledged: u64,
    /// Refusals over all that lack `Retry-After`.
    pub(crate) without_retry_after: u64,
    /// Of successes in the measured time.
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p99_ms: Option<f64>,
    pub(crate) longest_ms: Option<f64>,
    /// Of every answer in the measured time.
    pub(crate) longest_answer_ms: Option<f64>,
}

impl Report {
    pub(crate) fn successes(&self) -> u64 {
        self.answers.iter().filter(|(status, _)| (200..300).contains(*status)).map(|(_, n)| n).sum()
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    pub(crate) fn per_s(&self) -> f64 {
        self.successes() as f64 / self.seconds.max(f64::EPSILON)
    }
}

/// Runs the load in a child process.
pub(crate) async fn spawn(args: &ClientArgs, token: &str) -> anyhow::Result<Child> {
    let mut command = process::Command::new(std::env::current_exe()?);
    command
        .args(["bench-client", "--authority", &args.authority])
        .args(["--connections", &args.connections.to_string()])
        .args(["--lasting-ms", &args.lasting_ms.to_string()])
        .args(["--warm-up-ms", &args.warm_up_ms.to_string()])
        .args(["--prefix", &args.prefix])
        .args(["--every-ms", &args.every_ms.to_string()])
        .env("FLEXCORE_TOKEN", token)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    if let Some(path) = &args.get {
        command.args(["--get", path]);
    }
    if args.stored {
        command.arg("--stored");
    }
    if let Some(url) = &args.nats {
        command.args(["--nats", url]);
    }
    Ok(Child(command.spawn().context("starting the load")?))
}

pub(crate) struct Child(process::Child);

impl Child {
    pub(crate) async fn report(mut self) -> anyhow::Result<Report> {
        let mut text = Vec::new();
        let mut output = self.0.stdout.take().context("BUG: the output is piped")?;
        output.read_to_end(&mut text).await?;
        let status = self.0.wait().await?;
        if !status.success() {
            bail!("the load ended with {status}");
        }
        serde_json::from_slice(&text).context("the load's report")
    }
}

/// Loads the gateway or the broker, in the child, and prints what was answered. Fails without a token for
/// the gateway.
pub async fn run(
    profile: Profile,
    token: Option<&str>,
    args: &ClientArgs,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    if let Some(url) = &args.nats {
        let stored = store(profile, url, args).await?;
        out::json(out, &stored)?;
        return Ok(true);
    }
    let token = token.context("FLEXCORE_TOKEN is missing")?;
    let start = Instant::now() + Duration::from_millis(args.warm_up_ms);
    let plan = Arc::new(Plan {
        args: args.clone(),
        authorization: format!("Bearer {token}"),
        start,
        end: start + Duration::from_millis(args.lasting_ms),
    });
    let mut connections = JoinSet::new();
    for number in 0..args.connections {
        connections.spawn(connection(plan.clone(), number));
    }
    let mut all = Counts::default();
    while let Some(ended) = connections.join_next().await {
        all.add(ended?);
    }
    all.report.seconds = plan.start.elapsed().as_secs_f64();
    all.report.processor_s = process_s(std::process::id());
    all.report.p50_ms = all.successes.percentile_ms(50);
    all.report.p99_ms = all.successes.percentile_ms(99);
    all.report.longest_ms = all.successes.percentile_ms(100);
    all.report.longest_answer_ms = all.answers.percentile_ms(100);
    out::json(out, &all.report)?;
    Ok(true)
}

/// In a child process: publishes commands of the flooding tenant for as long as it is told.
async fn store(profile: Profile, url: &str, args: &ClientArgs) -> anyhow::Result<Report> {
    let settings = flexcore_eventstore::Settings { profile, replicas: 1, monitor_urls: Vec::new() };
    let urls: Vec<String> = url.split(',').map(str::to_owned).collect();
    let client = installation::connect(&installation::Broker::new(&urls, None)?).await?;
    let store = flexcore_eventstore::EventStore::attach(client, settings).await?;
    let publisher = store.command_publisher();
    let aggregate = AggregateName::parse("counter")?;
    let (mut sent, mut number) = (VecDeque::new(), 0_u64);
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(args.lasting_ms) {
        let id = AggregateId::parse(&format!("{}-{number}", args.prefix))?;
        let key = AggregateKey::new(Tenant::parse("flood")?, aggregate.clone(), id);
        let id = CommandId::parse(&format!("stored:{number}"))?;
        let body = payload(number);
        sent.push_back(publisher.send(&key, &command(), &id, HeaderMap::new(), body).await?);
        number += 1;
        if sent.len() == STORED_AT_ONCE
            && let Some(first) = sent.pop_front()
        {
            first.stored().await?;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(Report { seconds, answers: [(200, number)].into(), ..Report::default() })
}

struct Plan {
    args: ClientArgs,
    authorization: String,
    start: Instant,
    end: Instant,
}

#[derive(Default)]
struct Counts {
    report: Report,
    successes: Latencies,
    answers: Latencies,
}

impl Counts {
    fn add(&mut self, other: Self) {
        for (status, count) in other.report.answers {
            *self.report.answers.entry(status).or_default() += count;
        }
        self.report.unanswered += other.report.unanswered;
        self.report.refused += other.report.refused;
        self.report.acknowledged += other.report.acknowledged;
        self.report.without_retry_after += other.report.without_retry_after;
        self.successes.append(other.successes);
        self.answers.append(other.answers);
    }
}

/// One connection, made anew when it breaks, until the time is over.
async fn connection(plan: Arc<Plan>, number: u64) -> Counts {
    let mut counts = Counts::default();
    let mut kept: Option<Connection> = None;
    let mut nth = 0;
    while Instant::now() < plan.end {
        let ready = match kept.take() {
            Some(mut open) => open.is_ready().await.then_some(open),
            None => None,
        };
        let mut open = match ready {
            Some(open) => open,
            None => match timeout(ANSWER_WITHIN, Connection::open(&plan.args.authority)).await {
                Ok(Ok(open)) => open,
                Ok(Err(_)) | Err(_) => {
                    counts.report.refused += 1;
                    tokio::time::sleep(RECONNECT_AFTER).await;
                    continue;
                }
            },
        };
        if nth == 0 && plan.args.every_ms > 0 {
            // Not all at once.
            let part = plan.args.every_ms * number / plan.args.connections.max(1);
            tokio::time::sleep(Duration::from_millis(part)).await;
        }
        let request = plan.request(number, nth);
        nth += 1;
        let sent = Instant::now();
        match timeout(ANSWER_WITHIN, exchange(&mut open, request)).await {
            Ok(Ok((status, has_retry_after))) => {
                counts.answered(status, has_retry_after, sent, &plan);
                kept = Some(open);
            }
            Ok(Err(_)) | Err(_) => counts.report.unanswered += 1,
        }
        if plan.args.every_ms > 0 {
            let every = Duration::from_millis(plan.args.every_ms);
            tokio::time::sleep_until((sent + every).into()).await;
        }
    }
    counts
}

impl Counts {
    fn answered(&mut self, status: u16, has_retry_after: bool, sent: Instant, plan: &Plan) {
        let success = (200..300).contains(&status);
        self.report.acknowledged += u64::from(success);
        let refusal = matches!(status, 429 | 503);
        self.report.without_retry_after += u64::from(refusal && !has_retry_after);
        // Requests that were sent in time count; so does the time until their answers.
        if sent < plan.start {
            return;
        }
        *self.report.answers.entry(status).or_default() += 1;
        self.answers.add(sent.elapsed());
        if success {
            self.successes.add(sent.elapsed());
        }
    }
}

/// The status, and whether the answer says when to come back.
async fn exchange(
    connection: &mut Connection,
    request: Request<Bytes>,
) -> anyhow::Result<(u16, bool)> {
    let answer = connection.send(request, usize::MAX).await?;
    Ok((answer.status().as_u16(), answer.headers().contains_key(header::RETRY_AFTER)))
}

impl Plan {
    fn request(&self, connection: u64, nth: u64) -> Request<Bytes> {
        let request = Request::builder().header(header::AUTHORIZATION, &self.authorization);
        let request = match &self.args.get {
            Some(path) => request.uri(path).body(Bytes::new()),
            None => {
                let aggregate = nth / PER_AGGREGATE;
                let id = format!("{}-{connection}-{aggregate}", self.args.prefix);
                let stored = self.args.stored;
                let request =
                    if stored { request.header("prefer", "respond-async") } else { request };
                request
                    .method(Method::POST)
                    .uri(format!("/v1/commands/counter/{id}/add"))
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(payload(nth).into())
            }
        };
        request.expect("BUG: the request is well-formed")
    }
}
