//! Hosts whose clocks differ.

use super::*;

const HOUR_MS: i64 = 3_600_000;
const MINUTE_MS: i64 = 60_000;

fn system() -> i64 {
    (command::Settings::default().clock)()
}

fn ahead() -> i64 {
    system() + HOUR_MS
}

fn behind() -> i64 {
    system() - HOUR_MS
}

/// An event that was before the one that it follows: deciders and read models reckon with times.
#[tokio::test(flavor = "multi_thread")]
async fn times_do_not_go_back_when_a_host_with_another_clock_takes_over() {
    let rig = Rig::start().await;
    let began = system();
    let clocks = [("ahead", ahead as fn() -> i64), ("behind", behind), ("right", system)];
    for (id, clock) in clocks {
        let (member, stop) = (rig.member(LEASE).await, CancellationToken::new());
        let native: command::NativeDeciders = Arc::new(|_| Some(Box::new(Accepts(1))));
        let settings = command::Settings { native, clock, ..command::Settings::default() };
        let worker = rig.work_with(member.clone(), settings, stop.clone());
        rig.put(id).await;
        rig.settled().await;
        stop.cancel();
        worker.await.unwrap().unwrap();
        member.leave().await;
    }
    let commits = rig.store.load(&rig.key, 0).await.unwrap();
    let times: Vec<i64> = commits.iter().map(|recorded| recorded.commit.time_ms).collect();
    // The broker is on this host. A clock's lead stays with the aggregate, so it is bounded.
    let ahead_ms = times[0] - began;
    assert!((MINUTE_MS..2 * MINUTE_MS).contains(&ahead_ms), "the first clock's: {ahead_ms}");
    assert_eq!(times[1..], [times[0], times[0]], "time stands still until clocks catch up");
    assert_eq!(rig.recorded().await, ["ahead", "behind", "right"]);
    rig.servers.stop().await;
}
