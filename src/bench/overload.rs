//! `bench overload`: ten times the connections that it can carry, none of which waits. Every request
//! is answered, the excess is turned away, nothing that was acknowledged is lost, memory is bounded.

use std::{fs, time::Duration};

use anyhow::ensure;
use flexcore_servers::Want;

use crate::{
    Figure, Run,
    client::Report,
    gateway::Gateway,
    rig::{Rig, otherwise},
    round,
};

/// Connections that it carries, see `bench http`, times ten.
const CONNECTIONS: u64 = 2_560;
/// Files that a process needs beside its connections.
const OTHER_FILES: u64 = 256;
/// Most memory that it may hold, in MiB.
const MEMORY_MIB_MAX: u64 = 512;
/// Between two looks at it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(crate) async fn run(run: &Run<'_>) -> anyhow::Result<Figure> {
    let files = files_max();
    ensure!(
        files > CONNECTIONS + OTHER_FILES,
        "{CONNECTIONS} connections need as many open files, and {files} are allowed: ulimit -n 8192"
    );
    let mut rig = Rig::start(run, Want::Both).await?;
    let gateway = Gateway::start(run, &rig).await?;
    let before = rig.store.last_sequence().await?;
    let calm_mib = memory_mib();
    let (loaded, over) = tokio::sync::oneshot::channel::<()>();
    let looking = tokio::spawn(highest_memory_mib(over));
    let report = gateway.load(run, &mut rig, CONNECTIONS, None).await?;
    drop(loaded);
    let highest_mib = looking.await?;
    let commits = rig.store.last_sequence().await? - before;
    let mut figure = Figure::new("overload", run);
    figure.rounds = 1;
    figure.ours_per_s = Some(round(report.per_s()));
    figure.p50_ms = report.p50_ms;
    figure.p99_ms = report.p99_ms;
    figure.more("connections", CONNECTIONS);
    figure.more("answers_by_status", serde_json::to_value(&report.answers)?);
    figure.more("offered_per_s", round(report.answered() as f64 / report.seconds));
    figure.more("longest_answer_ms", report.longest_answer_ms);
    figure.more("acknowledged", report.acknowledged);
    figure.more("commits_in_log", commits);
    figure.more("memory_calm_mib", calm_mib);
    figure.more("memory_highest_mib", highest_mib);
    figure.measured = format!(
        "accepted commands a second while {CONNECTIONS} connections send one after the other and come \
         back at once when they are turned away; p50 and p99 are of accepted ones"
    );
    judge(&mut figure, &report, commits, highest_mib);
    rig.meter.report(&mut figure, otherwise(run.profile()));
    gateway.stop().await?;
    rig.stop().await;
    Ok(figure)
}

fn judge(figure: &mut Figure, report: &Report, commits: u64, highest_mib: u64) {
    let unwanted = |(status, count): (&u16, &u64)| match status {
        200..300 | 429 | 503 => 0,
        _ => *count,
    };
    let unwanted: u64 = report.answers.iter().map(unwanted).sum();
    let lost = report.acknowledged.saturating_sub(commits);
    figure.errors = report.unanswered + report.refused + unwanted + lost;
    figure.goal("every request is answered", report.unanswered + report.refused == 0);
    figure.goal("the excess is 429 or 503", unwanted == 0);
    figure.goal("every refusal says when to come back", report.without_retry_after == 0);
    figure.goal("nothing that was acknowledged is lost", lost == 0);
    let bounded = highest_mib <= MEMORY_MIB_MAX;
    figure.goal(format!("memory at most {MEMORY_MIB_MAX} MiB"), bounded);
}

/// Looks at this process until the sender is dropped.
async fn highest_memory_mib(mut over: tokio::sync::oneshot::Receiver<()>) -> u64 {
    let mut highest = memory_mib();
    while tokio::time::timeout(LOOK_EVERY, &mut over).await.is_err() {
        highest = highest.max(memory_mib());
    }
    highest.max(memory_mib())
}

/// Resident memory of this process.
fn memory_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1_024
}

/// Files that this process may have open.
fn files_max() -> u64 {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|rest| rest.split_whitespace().next());
    match soft {
        Some("unlimited") => u64::MAX,
        soft => soft.and_then(|number| number.parse().ok()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_this_process_holds() {
        assert!(memory_mib() > 0);
        assert!(files_max() > 0);
    }

    #[test]
    fn what_is_lost_or_unanswered_is_an_error() {
        let mut figure = Figure::default();
        let answers = [(200, 90), (429, 5), (503, 5)].into();
        let good = Report { answers, acknowledged: 90, ..Report::default() };
        judge(&mut figure, &good, 90, 100);
        assert_eq!((figure.errors, figure.goals.iter().all(|goal| goal.reached)), (0, true));
        let mut figure = Figure::default();
        let bad = Report { unanswered: 1, answers: [(500, 2)].into(), acknowledged: 90, ..good };
        judge(&mut figure, &bad, 80, 600);
        assert_eq!(figure.errors, 13);
        let reached: Vec<bool> = figure.goals.iter().map(|goal| goal.reached).collect();
        assert_eq!(reached, [false, false, true, false, false]);
    }
}
