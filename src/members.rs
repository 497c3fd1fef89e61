//! `flexcore cluster`: shows the cluster, and moves members' work.

use std::io::Write;

use anyhow::Context;
use comfy_table::Table;
use flexcore_cluster::{self as cluster, Seat};
use flexcore_operations::{
    drain::drained,
    report::{Health, Report, report},
};
use flexcore_readmodel::{ReadModels, Settings};
use flexcore_workers::ALL_WORK;

use crate::{config::Config, out};

/// Show the cluster: members, leader, who owns which slots, lag, servers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore cluster
  flexcore cluster --json
  flexcore cluster drain worker-1-0a1b2c3d

Exit code 0: there is a leader, every slot and every share of the read models has an owner, Postgres
answers, and every copy of the log is up to date; 1: not so, or not known.")]
pub(crate) struct Cluster {
    #[command(subcommand)]
    pub(crate) action: Option<ClusterAction>,
    /// Answer in JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// Actions on a member.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ClusterAction {
    /// Move everything that a member serves to others, and give it nothing more; it stays a member
    Drain {
        /// Its id
        member: String,
        /// Return at once, and not when it serves nothing any more
        #[arg(long)]
        no_wait: bool,
    },
    /// Take a drain back
    Undrain {
        /// Its id
        member: String,
    },
}

pub(crate) async fn run(
    config: &Config,
    args: &Cluster,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    let store = config.event_store().await?;
    match &args.action {
        None => {
            let read_models = ReadModels::connect(&config.postgres()?, Settings::default()).await?;
            let report = report(&store, &read_models).await?;
            if args.json {
                writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
            } else {
                show(&report, out)?;
            }
            Ok(report.is_well())
        }
        Some(ClusterAction::Drain { member, no_wait }) => {
            cluster::drain(store.client(), member).await?;
            let left = if *no_wait { None } else { Some(drained(store.client(), member).await?) };
            if args.json {
                let took_s = left.map(|left| left.as_secs_f64());
                writeln!(out, "{}", serde_json::json!({"member": member, "drained_in_s": took_s}))?;
            } else if let Some(left) = left {
                writeln!(
                    out,
                    "{member} serves nothing any more, after {:.1} s",
                    left.as_secs_f64()
                )?;
            } else {
                writeln!(out, "{member} is being drained")?;
            }
            Ok(true)
        }
        Some(ClusterAction::Undrain { member }) => {
            cluster::undrain(store.client(), member).await?;
            if args.json {
                writeln!(out, "{}", serde_json::json!({"member": member, "draining": false}))?;
            } else {
                writeln!(out, "{member} takes part again")?;
            }
            Ok(true)
        }
    }
}

fn show(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "{}", members(&report.view.members))?;
    match (&report.view.leader, report.view.epoch) {
        (Some(leader), Some(epoch)) => writeln!(out, "leader {leader}, epoch {epoch}")?,
        _ => writeln!(out, "no leader just now")?,
    }
    for (kind, places) in report.view.unowned.iter().filter(|(_, places)| !places.is_empty()) {
        writeln!(out, "without an owner: {kind} {}", ranges(places))?;
    }
    let mut projections = out::table([
        "read model",
        "version",
        "state",
        "lag (commits)",
        "parked",
        "held back",
        "trouble",
    ]);
    for one in &report.projections {
        let state = serde_json::to_value(one.state)?;
        let state = state.as_str().context("BUG: a state is a word")?;
        let [version, lag, parked, held] =
            [u64::from(one.version.unsigned_abs()), one.lag, one.parked, one.held]
                .map(|number| number.to_string());
        let name = one.read_model.as_str();
        let trouble = one.trouble.as_deref().unwrap_or_default();
        projections.add_row([name, &version, state, &lag, &parked, &held, trouble]);
    }
    writeln!(out, "\n{projections}")?;
    for (name, what) in &report.unmade {
        writeln!(out, "not made yet: {name}: {what}")?;
    }
    let nats = &report.nats;
    let leader = nats.leader.as_deref().unwrap_or("one server");
    writeln!(out, "\nNATS: {}; {} commits, led by {leader}", words(&nats.health), nats.messages)?;
    for replica in &nats.replicas {
        let state = if replica.current && !replica.offline { "up to date" } else { "behind" };
        writeln!(out, "  copy on {}: {state}, lacks {}", replica.name, replica.lag)?;
    }
    writeln!(out, "Postgres: {}", words(&report.postgres))?;
    Ok(())
}

/// The members, with a column for each kind of work.
fn members(seats: &[Seat]) -> Table {
    let kinds = ALL_WORK.map(|kind| kind.heading);
    let head = ["member", "role", "version"].into_iter().chain(kinds).chain(["state"]);
    let mut table = out::table(head);
    for seat in seats {
        let owns = ALL_WORK
            .map(|kind| seat.owns.get(kind.name).map_or_else(|| "-".to_owned(), |all| ranges(all)));
        let own = [seat.id.as_str(), &seat.role, &seat.version];
        let row = own.into_iter().chain(owns.iter().map(String::as_str)).chain([state(seat)]);
        table.add_row(row);
    }
    table
}

fn state(seat: &Seat) -> &'static str {
    match (seat.leads, seat.draining) {
        (true, true) => "leads, draining",
        (true, false) => "leads",
        (false, true) => "draining",
        (false, false) => "",
    }
}

fn words(health: &Health) -> String {
    match &health.problem {
        None => "well".to_owned(),
        Some(problem) => format!("NOT WELL: {problem}"),
    }
}

/// Numbers as ranges: `0-31 40`.
fn ranges(numbers: &[u16]) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let words = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    let words: Vec<_> = words.collect();
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use flexcore_cluster::{MemberId, WorkKind};

    use super::*;

    #[test]
    fn a_member_has_a_column_for_each_kind_of_work() {
        let owned = |(kind, first): (&WorkKind, u16)| (kind.name.into(), vec![first, first + 1]);
        let seat = Seat {
            id: MemberId::new("worker", "1"),
            role: "worker".to_owned(),
            version: "0.1.0".to_owned(),
            started_s: 0,
            leads: true,
            draining: false,
            owns: ALL_WORK.iter().zip((10..).step_by(10)).map(owned).collect(),
        };
        let table = members(&[seat]).to_string();
        for (kind, first) in ALL_WORK.iter().zip((10..).step_by(10)) {
            assert!(table.contains(kind.heading), "{table}");
            assert!(table.contains(&format!("{first}-{}", first + 1)), "{table}");
        }
        let columns = table.lines().nth(1).unwrap_or_default().matches('┆').count() + 1;
        assert_eq!(columns, 4 + ALL_WORK.len(), "{table}");
    }

    #[test]
    fn neighbours_are_shown_as_ranges() {
        assert_eq!(ranges(&[]), "-");
        assert_eq!(ranges(&[7]), "7");
        assert_eq!(ranges(&[0, 1, 2, 5, 8, 9]), "0-2 5 8-9");
    }
}
