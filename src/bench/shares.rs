//! `bench shares`: what one tenant's flood does to another tenant's commands. Pairs of measurements,
//! without and with the flood, since a machine is never the same twice.

use std::time::Duration;

use flexcore_domain::Tenant;
use flexcore_out as out;
use flexcore_servers::Want;

use crate::{
    Figure, Run,
    client::{ClientArgs, Report},
    gateway::Gateway,
    rig::{Rig, median, otherwise},
    round,
};

/// Connections of the tenant that is measured, and how often each of them sends: well within its share
/// of what two processors carry.
const CALM: u64 = 8;
const CALM_EVERY_MS: u64 = 50;
/// Connections of the one that floods: waiting for each command, and having them stored.
const FLOOD: u64 = 1_536;
const FLOOD_STORED: u64 = 256;
/// Time for which the measured tenant is there before it is measured: a flood that was alone has
/// its own pipeline full, which others wait for once.
const BEFORE: Duration = Duration::from_secs(3);
/// The flood comes after one part in so many of it.
const FLOOD_AFTER: u32 = 6;
/// The goal: so much more, in hundredths.
const GOAL_PERCENT: f64 = 10.0;

/// The kind of flood.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flood {
    /// Over HTTP, through the gateway.
    Http,
    /// Commands published to NATS past the gateway, which nobody but the broker could hold back.
    Nats,
}

type Change = Box<dyn FnOnce(ClientArgs) -> ClientArgs + Send>;

/// The measurement beside a kind of flood.
#[derive(Default)]
struct Pairs {
    alone: Vec<Report>,
    beside: Vec<Report>,
    /// Answers to the flood, and commands that were stored over NATS.
    flooded: Vec<f64>,
}

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let mut rig = Rig::start(run, Want::Both).await?;
    let gateway = Gateway::start(run, &rig).await?;
    let bar = out::progress(3 * run.rounds() as u64, "shares");
    let (mut paced, mut busy, mut past) = (Pairs::default(), Pairs::default(), Pairs::default());
    for _ in 0..run.rounds() {
        paced.measure(run, &mut rig, &gateway, Flood::Http, CALM_EVERY_MS).await?;
        bar.inc(1);
        busy.measure(run, &mut rig, &gateway, Flood::Http, 0).await?;
        bar.inc(1);
        past.measure(run, &mut rig, &gateway, Flood::Nats, CALM_EVERY_MS).await?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut figure = Figure::new("shares", run);
    judge(&mut figure, &paced);
    busy.report(&mut figure, "busy");
    past.report(&mut figure, "past_the_gateway");
    figure.errors += busy.errors() + past.errors();
    figure.measured = format!(
        "synchronous commands of one tenant over {CALM} connections, one in {CALM_EVERY_MS} ms on \
         each, while another one sends over {FLOOD} connections and has commands stored over \
         {FLOOD_STORED}; busy: the first one sends as fast as it can, too; past_the_gateway: the \
         other one publishes stored commands to NATS as fast as the broker takes them"
    );
    figure.raw = "the same commands without the flood".to_owned();
    rig.meter.report(&mut figure, otherwise(run.profile()));
    gateway.stop().await?;
    rig.stop().await;
    Ok(figure)
}

impl Pairs {
    async fn measure(
        &mut self,
        run: &Run<'_>,
        rig: &mut Rig,
        gateway: &Gateway,
        flood: Flood,
        every_ms: u64,
    ) -> anyhow::Result<()> {
        let before = if run.quick { BEFORE / 10 } else { BEFORE };
        let lasting = run.measure() + before + Duration::from_secs(1);
        let before_ms = u64::try_from(before.as_millis())?;
        let calm = |args| ClientArgs { connections: CALM, every_ms, warm_up_ms: before_ms, ..args };
        self.alone.push(gateway.load_as(run, rig, calm).await?);
        let token = gateway.token_of(&Tenant::parse("flood")?)?;
        let urls = rig.endpoints()?.nats;
        let floods: Vec<Change> = match flood {
            Flood::Http => vec![
                Box::new(|args| ClientArgs { connections: FLOOD, ..args }),
                Box::new(|args| ClientArgs { connections: FLOOD_STORED, stored: true, ..args }),
            ],
            Flood::Nats => {
                vec![Box::new(move |args| ClientArgs { nats: Some(urls.to_string()), ..args })]
            }
        };
        let flooding = async {
            // The other one is there before.
            tokio::time::sleep(before / FLOOD_AFTER).await;
            let mut children = Vec::new();
            for change in floods {
                children.push(gateway.flood(run, &token, lasting, change).await?);
            }
            let mut per_s = 0.0;
            for child in children {
                per_s += child.report().await?.per_s();
            }
            Ok::<f64, anyhow::Error>(per_s)
        };
        let (beside, flooded) = tokio::join!(gateway.load_as(run, rig, calm), flooding);
        self.beside.push(beside?);
        self.flooded.push(flooded?);
        // Its rest would be in the way of the next measurement.
        while rig.store.queue_depth().await? > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    fn of(reports: &[Report], value: fn(&Report) -> Option<f64>) -> f64 {
        round(median(reports.iter().filter_map(value).collect()))
    }

    fn errors(&self) -> u64 {
        let failed = |report: &Report| report.answered() - report.successes() + report.unanswered;
        self.alone.iter().chain(&self.beside).map(failed).sum()
    }

    /// Extra time of the 99th part of a hundred beside the flood, in percent.
    fn more_percent(&self) -> Vec<f64> {
        let pairs = self.alone.iter().zip(&self.beside);
        let more = |(alone, beside): (&Report, &Report)| {
            Some(round(100.0 * (beside.p99_ms? / alone.p99_ms? - 1.0)))
        };
        pairs.filter_map(more).collect()
    }

    fn report(&self, figure: &mut Figure, kind: &str) {
        let mut more = |name: &str, value: f64| figure.more(&format!("{kind}_{name}"), value);
        more("p50_alone_ms", Self::of(&self.alone, |report| report.p50_ms));
        more("p50_ms", Self::of(&self.beside, |report| report.p50_ms));
        more("p99_alone_ms", Self::of(&self.alone, |report| report.p99_ms));
        more("p99_ms", Self::of(&self.beside, |report| report.p99_ms));
        more("per_s_alone", Self::of(&self.alone, |report| Some(report.per_s())));
        more("per_s", Self::of(&self.beside, |report| Some(report.per_s())));
        more("flood_per_s", round(median(self.flooded.clone())));
        figure.more(&format!("{kind}_p99_more_percent_by_pair"), self.more_percent());
    }
}

fn judge(figure: &mut Figure, pairs: &Pairs) {
    let rate = |reports: &[Report]| median(reports.iter().map(Report::per_s).collect());
    figure.rates(rate(&pairs.beside), rate(&pairs.alone));
    figure.p50_ms = Some(Pairs::of(&pairs.beside, |report| report.p50_ms));
    figure.p99_ms = Some(Pairs::of(&pairs.beside, |report| report.p99_ms));
    pairs.report(figure, "paced");
    figure.errors = pairs.errors();
    figure.goal("the flood has the other tenant refused nothing", figure.errors == 0);
    let more = median(pairs.more_percent());
    figure.goal(format!("its p99 at most {GOAL_PERCENT} % higher"), more <= GOAL_PERCENT);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_the_calm_tenant_is_an_error_and_pairs_are_compared() {
        let report = |p99_ms, refused| Report {
            seconds: 1.0,
            answers: [(200, 100), (503, refused)].into(),
            p50_ms: Some(1.0),
            p99_ms: Some(p99_ms),
            ..Report::default()
        };
        let alone = || vec![report(10.0, 0), report(20.0, 0), report(10.0, 0)];
        let mut figure = Figure::default();
        let beside = vec![report(10.5, 0), report(21.0, 0), report(90.0, 0)];
        judge(&mut figure, &Pairs { alone: alone(), beside, flooded: vec![1.0] });
        assert_eq!(figure.errors, 0);
        assert!(figure.goals.iter().all(|goal| goal.reached), "{:?}", figure.goals);
        let mut figure = Figure::default();
        let beside = vec![report(12.0, 0), report(24.0, 3), report(12.0, 0)];
        judge(&mut figure, &Pairs { alone: alone(), beside, flooded: vec![1.0] });
        assert_eq!(figure.errors, 3);
        assert!(figure.goals.iter().all(|goal| !goal.reached), "{:?}", figure.goals);
    }
}
