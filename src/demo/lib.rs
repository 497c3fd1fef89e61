//! `flexcore demo`: real flights through the whole path, checked against the data set.

mod dataset;
mod flights;
mod report;

use std::{
    collections::{HashMap, VecDeque},
    io::Write,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, Command, CommandId, Name, Outcome, Tenant,
    command::header,
};
use flexcore_eventstore::{
    self as eventstore,
    commands::{CommandPublisher, SentCommand},
};
use flexcore_installation::{Dev, dev, stop_at_signals};
use flexcore_operations::{application, deploy};
use flexcore_out as out;
use flexcore_readmodel::{self as readmodel, VersionState};
use flexcore_script as script;
use futures::{StreamExt, stream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{dataset::Dataset, report::Figures};

/// January: a month is the demo, the year is `--full`.
const MONTH: u8 = 1;
/// Commands in flight while they are published as fast as the broker takes them.
const WINDOW: usize = 2_048;
/// Commands at the end that are sent at a steady rate, to measure the time until a row is readable
/// without the queue of a bulk load in it.
const PACED: usize = 2_000;
/// That rate, a second.
const PACED_PER_S: u32 = 500;
/// Pause before something is tried again that failed in passing.
const AGAIN_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for the next sign of progress of the read models.
const STALLED: Duration = Duration::from_secs(60);

/// Run a month of real flights through everything, and keep serving
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore demo
  flexcore demo --exit --json
  flexcore demo --full --profile relaxed")]
pub struct Args {
    /// The whole year, about a million commands, in place of January
    #[arg(long)]
    pub full: bool,
    /// The sample in the repository, 1 January, with nothing to download
    #[arg(long, conflicts_with = "full")]
    pub sample: bool,
    /// End after the tables in place of serving on
    #[arg(long)]
    pub exit: bool,
    /// Print the figures as JSON
    #[arg(long)]
    pub json: bool,
    /// The application's folder
    #[arg(long, value_name = "DIR", default_value = "schemas/flights")]
    pub application: PathBuf,
}

/// Runs it, and serves on until it is told to stop. Returns whether every number equals the data set's
/// own.
#[boxed::async_recursion(?Send)]
pub async fn run(
    settings: dev::Settings,
    args: &Args,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let (cache, profile) = (settings.cache.clone(), settings.profile);
    let sample = args.sample;
    let application = application::read(&args.application, script::check)
        .context("the demo deploys schemas/flights: start it in a clone, or give --application")?;
    let loading =
        tokio::task::spawn_blocking(
            move || {
                if sample { Dataset::sample() } else { Dataset::load(&cache) }
            },
        );
    let dev = Dev::start(settings, stop.clone()).await?;
    let dataset = loading.await.context("reading the data set")??;
    let month = (!args.full).then_some(MONTH);
    let work = async {
        let deployed = deploy::deploy(&dev.installation.store, &application).await?;
        ensure!(
            deployed.picked_up_ms.is_some(),
            "the command worker did not pick the application up"
        );
        let demo = Demo { dev: &dev, tenant: dev.ready.tenant.clone() };
        let figures = demo.run_through(&dataset, month, profile.to_string()).await?;
        let equal = report::print(&dev, &dataset, month, &figures, args, out).await?;
        anyhow::Ok(equal)
    };
    let result = tokio::select! {
        result = work => result,
        () = stop.cancelled() => Ok(true),
    };
    if args.exit || result.is_err() {
        stop.cancel();
    }
    let served = dev.serve().await?;
    Ok(result? && served)
}

type UnderWay = (dataset::Command, Result<SentCommand, eventstore::Error>);

struct Demo<'a> {
    dev: &'a Dev,
    tenant: Tenant,
}

impl Demo<'_> {
    async fn run_through(
        &self,
        dataset: &Dataset,
        month: Option<u8>,
        profile: String,
    ) -> anyhow::Result<Figures> {
        let commands = dataset.commands(month);
        let total = commands.len();
        let paced = PACED.min(total / 4);
        let mut commands = commands;
        let bulk = total - paced;
        let started = Instant::now();
        self.publish(commands.by_ref().take(bulk), bulk).await?;
        let published = started.elapsed();
        self.caught_up("projecting").await?;
        let readable = started.elapsed();
        let mut latencies = self.paced(commands).await?;
        self.caught_up("projecting").await?;
        latencies.sort_unstable();
        let percentile = |percent: usize| {
            let at = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
            latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1_000.0)
        };
        Ok(Figures {
            profile,
            flights: dataset.flights(month).count() as u64,
            commands: total as u64,
            only_sample: dataset.only_sample.clone(),
            published_per_s: bulk as f64 / published.as_secs_f64(),
            readable_per_s: bulk as f64 / readable.as_secs_f64(),
            end_to_end_p50_ms: percentile(50),
            end_to_end_p99_ms: percentile(99),
            paced_per_s: PACED_PER_S,
            equal_to_data_set: false,
        })
    }

    /// Publishes asynchronous commands in order, as fast as the broker takes them.
    async fn publish(
        &self,
        commands: impl Iterator<Item = dataset::Command>,
        total: usize,
    ) -> anyhow::Result<()> {
        let bar = out::progress(total as u64, "publishing");
        let publisher = self.dev.installation.store.command_publisher();
        let mut under_way = VecDeque::with_capacity(WINDOW);
        for command in commands {
            if under_way.len() == WINDOW {
                self.settle(&publisher, &mut under_way).await?;
                bar.set_position(bar.position() + 1);
            }
            let sent = self.send(&publisher, &command).await;
            under_way.push_back((command, sent));
        }
        while !under_way.is_empty() {
            self.settle(&publisher, &mut under_way).await?;
        }
        bar.set_position(total as u64);
        bar.finish();
        Ok(())
    }

    async fn send(
        &self,
        publisher: &CommandPublisher,
        command: &dataset::Command,
    ) -> Result<SentCommand, eventstore::Error> {
        let unusable = |error: anyhow::Error| eventstore::Error::Misconfigured(error.to_string());
        let (key, id) = self.address(command).map_err(unusable)?;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(header::ACTOR, "demo");
        publisher.send(&key, &command.name, &id, headers, command.payload.clone()).await
    }

    /// Waits until the oldest command is stored. When that is unknown, it and all after it are sent
    /// again: in their order, under their ids, so none is applied twice.
    async fn settle(
        &self,
        publisher: &CommandPublisher,
        under_way: &mut VecDeque<UnderWay>,
    ) -> anyhow::Result<()> {
        let Some((command, sent)) = under_way.pop_front() else { return Ok(()) };
        let stored = match sent {
            Ok(sent) => sent.stored().await,
            Err(error) => Err(error),
        };
        let error = match stored {
            Ok(()) => return Ok(()),
            Err(error) if !error.is_passing() => return Err(error.into()),
            Err(error) => error,
        };
        tracing::warn!(%error, "publishing again");
        tokio::time::sleep(AGAIN_PAUSE).await;
        let again: Vec<_> = std::iter::once(command)
            .chain(under_way.drain(..).map(|(command, _)| command))
            .collect();
        for command in again {
            let sent = self.send(publisher, &command).await;
            under_way.push_back((command, sent));
        }
        Ok(())
    }

    /// The same command has the same id in every run, so a second demo on the same data changes
    /// nothing.
    fn address(&self, command: &dataset::Command) -> anyhow::Result<(AggregateKey, CommandId)> {
        let id = CommandId::parse(&format!("{}:{}", command.id, command.name))?;
        Ok((flight(&self.tenant, command.id.clone()), id))
    }

    /// Waits until the queue is empty and every read model has read the whole log.
    async fn caught_up(&self, what: &'static str) -> anyhow::Result<()> {
        let mut bar: Option<indicatif::ProgressBar> = None;
        let mut last = (u64::MAX, u64::MAX, Instant::now());
        loop {
            let (waiting, behind, end) = through_outages(|| self.left()).await?;
            if waiting == 0 && behind == 0 {
                if let Some(bar) = bar {
                    bar.finish();
                }
                return Ok(());
            }
            let bar = bar.get_or_insert_with(|| out::progress(0, what));
            bar.set_length(end + waiting);
            bar.set_position(end - behind.min(end));
            if (waiting, behind) != (last.0, last.1) {
                last = (waiting, behind, Instant::now());
            } else if last.2.elapsed() > STALLED {
                bail!(
                    "{waiting} commands and {behind} commits are left, and nothing moves: see the log"
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Commands that wait, commits that the slowest read model has yet to read, and the end of the log.
    async fn left(&self) -> anyhow::Result<(u64, u64, u64)> {
        let store = &self.dev.installation.store;
        let waiting = store.queue_depth().await?;
        let end = store.last_sequence().await?;
        Ok((waiting, self.behind(end).await?, end))
    }

    /// Commits that the slowest read model has yet to read.
    async fn behind(&self, end: u64) -> anyhow::Result<u64> {
        let statuses = self.dev.installation.read_models.status().await?;
        let behind = report::read_models(self.dev).into_iter().map(|name| {
            let serving = statuses
                .iter()
                .find(|status| status.read_model == name && status.state == VersionState::Serving);
            serving.map_or(end, |status| status.lag(end))
        });
        Ok(behind.max().unwrap_or(end))
    }

    /// Sends commands at the steady rate. Returns, for each, the time from sending it until its row
    /// was readable.
    async fn paced(
        &self,
        commands: impl Iterator<Item = dataset::Command>,
    ) -> anyhow::Result<Vec<Duration>> {
        let read_models: Arc<[Name]> = Arc::from([Name::parse("flights")?]);
        let commands: Vec<_> = commands.collect();
        let bar = out::progress(commands.len() as u64, "pacing");
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / PACED_PER_S);
        let mut under_way = stream::FuturesUnordered::new();
        let mut latencies = Vec::with_capacity(commands.len());
        let mut commands = commands.into_iter();
        // Requests may overtake each other, and a flight can't arrive before it has departed.
        let mut answered: HashMap<AggregateId, oneshot::Receiver<()>> = HashMap::new();
        loop {
            tokio::select! {
                _ = ticks.tick(), if commands.len() > 0 => {
                    if let Some(command) = commands.next() {
                        let (answers, next) = oneshot::channel();
                        let before = answered.insert(command.id.clone(), next);
                        let turn = Turn { before, answers };
                        under_way.push(self.until_readable(command, turn, read_models.clone()));
                    }
                }
                Some(latency) = under_way.next() => {
                    latencies.push(latency?);
                    bar.inc(1);
                }
                else => break,
            }
        }
        bar.finish();
        Ok(latencies)
    }

    async fn until_readable(
        &self,
        command: dataset::Command,
        turn: Turn,
        read_models: Arc<[Name]>,
    ) -> anyhow::Result<Duration> {
        if let Some(before) = turn.before {
            // It ends when its sender is dropped.
            let _ = before.await;
        }
        let installation = &self.dev.installation;
        let (key, id) = self.address(&command)?;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(header::COMMAND_ID, id.as_str());
        headers.insert(header::ACTOR, ActorName::parse("demo")?.as_str());
        let sent = Instant::now();
        let question =
            |epoch, _| (Command::request_subject(epoch, &key, &command.name), headers.clone());
        let reply = installation.ask(&key, command.payload.into(), question).await?;
        let position = match serde_json::from_slice(&reply.payload)? {
            Outcome::Accepted { position, .. } => position,
            other => bail!("{key}: {other:?}"),
        };
        drop(turn.answers);
        if let Some(position) = position {
            let positions = [position];
            through_outages(async || {
                Ok(installation.read_models.wait(&read_models, &positions, STALLED).await?)
            })
            .await?;
        }
        Ok(sent.elapsed())
    }
}

/// Asks again while the servers are away or too busy to answer, for as long as [`STALLED`].
async fn through_outages<T>(ask: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        match ask().await {
            Err(error) if passes(&error) && started.elapsed() < STALLED => {
                tracing::warn!(error = format!("{error:#}"), "asking again");
            }
            answer => return answer,
        }
        tokio::time::sleep(AGAIN_PAUSE).await;
    }
}

fn passes(error: &anyhow::Error) -> bool {
    let log = error.downcast_ref().is_some_and(eventstore::Error::is_passing);
    log || error.downcast_ref().is_some_and(readmodel::Error::is_passing)
}

/// The order of one flight's commands: each is sent when the one before is answered.
struct Turn {
    before: Option<oneshot::Receiver<()>>,
    answers: oneshot::Sender<()>,
}

fn flight(tenant: &Tenant, id: AggregateId) -> AggregateKey {
    let aggregate = AggregateName::parse("flight").expect("BUG: a valid name");
    AggregateKey::new(tenant.clone(), aggregate, id)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// The demo ended when Postgres had no connection for two seconds.
    #[tokio::test(start_paused = true)]
    async fn a_passing_error_does_not_end_the_demo() {
        let asked = Cell::new(0);
        let busy = || readmodel::Error::Unavailable("no connection in time".to_owned());
        let answer = through_outages(async || {
            asked.set(asked.get() + 1);
            if asked.get() < 3 { Err(busy().into()) } else { Ok(asked.get()) }
        });
        assert_eq!(answer.await.unwrap(), 3);
        let refused = through_outages(async || {
            asked.set(asked.get() + 1);
            Err::<(), _>(eventstore::Error::Misconfigured("why".to_owned()).into())
        });
        refused.await.unwrap_err();
        assert_eq!(asked.get(), 4);
    }
}
