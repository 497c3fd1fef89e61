//! `bench commands`: asynchronous commands over NATS, from the first publish until each one's
//! outcome is durable.

use flexcore_eventstore::{Profile, catalog, topology};
use flexcore_out as out;
use flexcore_servers::Want;
use tokio_util::sync::CancellationToken;

use crate::{
    Figure, Run,
    counter::{self, PER_AGGREGATE, payload},
    processing::{WINDOW, process},
    raw_log::{Publish, RawLog},
    rig::{Rig, median, otherwise},
};

/// Commands of a round.
const COMMANDS: u64 = 40_000;

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Nats).await?;
    let mut raw = RawLog::open(&rig).await?;
    let stop = CancellationToken::new();
    let catalog = catalog::watch(&rig.store).await?;
    let settings = flexcore_workers::command::Settings::default();
    let (store, member) = (rig.store.clone(), rig.member().await?);
    let worker = flexcore_workers::command::run(store, catalog, member, settings, stop.clone());
    let worker = tokio::spawn(worker);
    counter::deploy(&rig.store).await?;
    let how = match run.profile() {
        Profile::Relaxed => Publish::Plain,
        Profile::PowerLoss => Publish::Expecting,
    };
    let size = payload(0).len();
    let count = run.scale(COMMANDS);
    let (mut ours_per_s, mut publish_per_s, mut raw_per_s) = (vec![], vec![], vec![]);
    let bar = out::progress(run.rounds() as u64, "commands");
    let mut first = 0;
    process(&rig.store, &mut first, count / 10).await?;
    raw.publish(how, size, WINDOW, run.measure() / 5).await?;
    for _ in 0..run.rounds() {
        let store = rig.store.clone();
        let processed = rig.meter.during(process(&store, &mut first, count)).await?;
        ours_per_s.push(processed.per_s);
        publish_per_s.push(processed.published_per_s);
        raw_per_s.push(raw.publish(how, size, WINDOW, run.measure()).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    stop.cancel();
    worker.await??;
    let mut figure = Figure::new("commands", run);
    figure.rates(median(ours_per_s), median(raw_per_s));
    let dead = rig.store.jetstream().get_stream(topology::DEAD).await?;
    figure.errors = dead.cached_info().state.messages;
    figure.more("published_per_s", crate::round(median(publish_per_s)));
    figure.measured = format!(
        "{count} asynchronous commands of {size} bytes, {PER_AGGREGATE} an aggregate, {WINDOW} in \
         flight, decided in JavaScript; from the first publish until all commits are in the log and \
         the queue is settled"
    );
    figure.raw = match how {
        Publish::Plain => format!("messages of {size} bytes published, {WINDOW} in flight"),
        Publish::Expecting => {
            format!("the same published with an expected sequence, {WINDOW} in flight")
        }
    };
    let goal = if run.profile() == Profile::Relaxed { 0.2 } else { 2.0 };
    let reached = figure.ratio.is_some_and(|ratio| ratio >= goal);
    figure.goal(format!("ratio at least {goal}"), reached);
    rig.meter.report(&mut figure, otherwise(run.profile()));
    rig.stop().await;
    Ok(figure)
}
