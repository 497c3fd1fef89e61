//! Forced changes of the leader: its process is killed, asked to end, paused for longer than its
//! lease, cut off, or its key is deleted. Nothing may take effect under a stale epoch, and somebody
//! has to take over in time. And nothing changes while nothing fails.

use std::time::{Duration, Instant};

use rand::seq::SliceRandom as _;

use super::Extent;
use crate::{
    checker::{Verdict, answers::Stop},
    netns::{self, Cut},
    rig::{CALM, RECOVERY_MOST, Rig},
    talk,
};

/// The way to take the leadership away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Kill,
    Terminate,
    Pause,
    Cut,
    Delete,
}

/// The name and number of each kind in a full run: 200 in all.
const FULL: [(Loss, usize); 5] = [
    (Loss::Kill, 50),
    (Loss::Terminate, 60),
    (Loss::Pause, 20),
    (Loss::Cut, 20),
    (Loss::Delete, 50),
];
/// A leader that was asked to end gives up its lease: somebody takes over in this time.
const TERMINATE_MOST_MS: f64 = 1_000.0;
/// Beyond the lease of a leader that is gone.
const BEYOND_LEASE_MS: f64 = 2_000.0;
/// Time in which nothing fails, and nothing may change.
const QUIET: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

pub(crate) async fn faults(rig: &mut Rig, extent: Extent) {
    let mut losses: Vec<Loss> = Vec::new();
    for (loss, count) in FULL {
        losses.extend(std::iter::repeat_n(loss, extent.of(1, count)));
    }
    losses.shuffle(&mut rig.random);
    for loss in losses {
        change(rig, loss).await;
    }
    let lease_ms = rig.cluster.shape.lease.as_secs_f64() * 1e3;
    let section = &mut rig.section;
    let soon = "SIGTERM hands over within 1 s";
    section.hold_time(9, soon, "takeover after Terminate", TERMINATE_MOST_MS);
    let late = "SIGKILL hands over within the lease and 2 s";
    section.hold_time(9, late, "takeover after Kill", lease_ms + BEYOND_LEASE_MS);
    quiet(rig, extent.of(QUIET.0, QUIET.1)).await;
}

async fn change(rig: &mut Rig, loss: Loss) {
    let leader = rig.leadership.last().expect("somebody leads");
    let (node, lease) = (leader.node.clone(), rig.cluster.shape.lease);
    let fault = rig.fault(&format!("{loss:?} of the leader {node}, epoch {}", leader.epoch));
    let most = lease * 2 + Duration::from_secs(10);
    let mut stopped = None;
    match loss {
        Loss::Kill => rig.cluster.kill(&node),
        Loss::Terminate => {
            rig.cluster.node(&node).signal("TERM");
            stopped = Some(Instant::now());
        }
        Loss::Pause => rig.cluster.node(&node).signal("STOP"),
        Loss::Cut => netns::cut(&node, Cut::Both),
        Loss::Delete => delete_key(rig).await,
    }
    let next = rig.leadership.next(leader.epoch, most).await;
    match &next {
        Some(next) => {
            let ms = next.at_ns.saturating_sub(fault) as f64 / 1e6;
            crate::host::say(&format!("           {} leads after {ms:.0} ms", next.node));
            rig.section.time(format!("takeover after {loss:?}"), ms);
        }
        None => {
            let mut verdict = Verdict::new(9, "somebody takes over");
            verdict.hold(false, || format!("nobody leads {most:?} after {loss:?} of {node}"));
            rig.section.verdicts.push(verdict);
        }
    }
    match loss {
        Loss::Kill => rig.cluster.run(&node),
        Loss::Terminate => {
            let ended = rig.cluster.node(&node).ends(Duration::from_secs(30)).await;
            let ended = ended.map(|(status, _)| (status.code(), stopped.unwrap().elapsed()));
            rig.stops.push(Stop { node: node.clone(), gateway: None, from_ns: fault, ended });
            rig.cluster.kill(&node);
            rig.cluster.run(&node);
        }
        Loss::Pause => {
            let paused = Duration::from_nanos(rig.history.now_ns() - fault);
            tokio::time::sleep((lease * 2).saturating_sub(paused)).await;
            rig.cluster.node(&node).signal("CONT");
        }
        Loss::Cut => netns::heal(&node),
        Loss::Delete => {}
    }
    rig.recovers(&format!("{loss:?} of the leader"), fault, CALM, RECOVERY_MOST).await;
    rig.cluster.ready().await;
}

/// Deletes the leader's key, as nobody should.
async fn delete_key(rig: &Rig) {
    let client = talk::connect(&rig.cluster.nats()).await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("KV-Operation", "DEL");
    let subject = "$KV.flex_cluster.leader";
    client.publish_with_headers(subject, headers, "".into()).await.unwrap();
    client.flush().await.unwrap();
}

/// Nothing fails for a while, under load: nobody takes over.
async fn quiet(rig: &mut Rig, length: Duration) {
    let before = rig.leadership.last().map(|change| change.epoch);
    rig.fault(&format!("nothing, for {length:?}"));
    let start = Instant::now();
    while start.elapsed() < length {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let after = rig.leadership.last().map(|change| change.epoch);
    let mut verdict = Verdict::new(9, "the leader stays while nothing fails");
    verdict.hold(before == after, || format!("from {before:?} to {after:?} in {length:?}"));
    rig.section.verdicts.push(verdict);
}
