//! Several workers: who owns what, and owners that are paused, drained and killed under load.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

use crate::support::{
    Http,
    cluster::{Cluster, free_address},
    eventually,
    load::{self, Load},
    process::{flexcore, texts},
    seed,
};

/// Short, so that a test can outlast it.
const LEASE: Duration = Duration::from_secs(3);
const SHORT: &[&str] = &["--lease", "3"];
const SLOTS: usize = 64;

/// Slots by the name of their owner.
fn slots(view: &Value) -> BTreeMap<String, usize> {
    let members = view["members"].as_array().map_or(&[][..], Vec::as_slice);
    let owned = |member: &Value| {
        let name = member["id"].as_str()?.rsplit_once('-')?.0.to_owned();
        Some((name, member["owns"]["command"].as_array()?.len()))
    };
    members.iter().filter_map(owned).collect()
}

async fn owners(cluster: &Cluster, expected: &[(&str, usize)]) -> Value {
    eventually("the slots to have these owners", async || {
        let view = cluster.view();
        let found = slots(&view);
        let same = expected.len() == found.len()
            && expected.iter().all(|(name, count)| found.get(*name) == Some(count));
        if same { Ok(view) } else { Err(format!("{found:?}\n{}", cluster.tails())) }
    })
    .await
}

fn id_of(view: &Value, name: &str) -> String {
    let mut ids = view["members"].as_array().unwrap().iter().filter_map(|m| m["id"].as_str());
    ids.find(|id| id.starts_with(name)).unwrap().to_owned()
}

/// A gateway and two workers that share the slots, and the bank.
async fn two_workers(options: &[&str]) -> Cluster {
    let mut cluster = Cluster::new().await;
    cluster.with(options);
    for (role, name) in [("gateway", "gateway"), ("worker", "one"), ("worker", "two")] {
        cluster.start(role, name);
    }
    cluster.readiness("ready", "").await;
    cluster.deploy_bank().await;
    owners(&cluster, &[("one", SLOTS / 2), ("two", SLOTS / 2)]).await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_owner_that_wakes_up_does_no_harm() {
    let seed = seed("cluster");
    let cluster = two_workers(SHORT).await;
    let target = cluster.target();
    load::open(&target).await;
    let load = Load::start(seed, 6, 2, target);
    for paused in [1, 2] {
        load.goes_on(20).await;
        let other = if paused == 1 { "two" } else { "one" };
        cluster.roles[paused].signal("STOP");
        owners(&cluster, &[(other, SLOTS)]).await;
        load.goes_on(50).await;
        tokio::time::sleep(LEASE).await;
        // It wakes up with requests in its socket, batches half done, and a lease long over.
        cluster.roles[paused].signal("CONT");
        owners(&cluster, &[("one", SLOTS / 2), ("two", SLOTS / 2)]).await;
    }
    load.goes_on(50).await;
    let history = load.finish().await;
    let accepted =
        history.iter().filter(|sent| matches!(sent.fate, load::Fate::Accepted(_))).count();
    assert!(accepted > 100, "there was load: {accepted}");
    cluster.place().check(&history).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_drained_and_a_killed_one_is_replaced() {
    let mut cluster = two_workers(SHORT).await;
    let view = owners(&cluster, &[("one", SLOTS / 2), ("two", SLOTS / 2)]).await;
    let (one, leader) = (id_of(&view, "one"), view["leader"].as_str().unwrap().to_owned());
    let drained = cluster.run(&["cluster", "drain", &one, "--json"]);
    assert!(drained.contains("drained_in_s"), "{drained}");
    let view = owners(&cluster, &[("one", 0), ("two", SLOTS)]).await;
    assert_eq!(view["leader"], leader.as_str(), "draining is not the end of a leadership");
    cluster.run(&["cluster", "undrain", &one]);
    owners(&cluster, &[("one", SLOTS / 2), ("two", SLOTS / 2)]).await;

    let mut command = flexcore();
    command.args(cluster.options()).args(["cluster", "drain", "nobody"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let (_, err) = texts(&output);
    assert!(err.contains("no member \"nobody\"") && err.contains(&one), "{err}");

    let table = cluster.run(&["cluster"]);
    assert!(table.contains(&one) && table.contains("Postgres: well"), "{table}");

    cluster.roles[1].kill();
    owners(&cluster, &[("two", SLOTS)]).await;
    cluster.roles[2].terminate();
    let mut command = flexcore();
    let output = command.args(cluster.options()).arg("cluster").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "nobody serves: {}", texts(&output).0);
}

/// Workers come and are told to stop under load, a leader among them: nobody who waits sees it, and
/// nothing of the queue that was processed is processed again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_told_to_stop_leaves_nothing_open() {
    let seed = seed("stop");
    let mut cluster = two_workers(&[]).await;
    let target = cluster.target();
    load::open(&target).await;
    let load = Load::start(seed, 6, 2, target);
    let mut successors = Vec::new();
    for (number, (stops, comes)) in [("one", "three"), ("two", "four")].into_iter().enumerate() {
        load.goes_on(50).await;
        let address = free_address();
        cluster.start_with("worker", comes, &["--metrics-http", &address]);
        successors.push(Http::new(&address, ""));
        let stays = if number == 0 { "two" } else { "three" };
        let share = SLOTS / 3;
        eventually("three to share", async || {
            let found = slots(&cluster.view());
            let all = [stops, stays, comes].map(|name| found.get(name).copied().unwrap_or(0));
            if all.iter().all(|slots| *slots >= share) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        load.goes_on(50).await;
        cluster.roles[1 + number].terminate();
        owners(&cluster, &[(stays, SLOTS / 2), (comes, SLOTS / 2)]).await;
    }
    load.goes_on(50).await;
    let history = load.finish().await;
    let open: Vec<_> = history.iter().filter(|sent| sent.unknown > 0).collect();
    assert!(open.is_empty(), "{} of {}: {open:?}", open.len(), history.len());
    let queued = history.iter().filter(|sent| sent.fate == load::Fate::Queued).count();
    assert!(queued > 100, "there was a queue: {queued}");
    cluster.place().check(&history).await;
    for successor in successors {
        // Looked at every 5 s.
        let metrics = eventually("the queue to be told of as empty", async || {
            let answer = successor.try_send("GET", "/metrics", &[], "").await?;
            let metrics = String::from_utf8(answer.body.to_vec()).unwrap();
            if metrics.contains("\nflexcore_commands_waiting 0\n") {
                Ok(metrics)
            } else {
                Err(metrics)
            }
        })
        .await;
        let of = |outcome: &str| {
            let name = format!("flexcore_commands_total{{outcome=\"{outcome}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok())
        };
        assert!(of("accepted").is_some_and(|count| count > 0), "{metrics}");
        assert_eq!(of("replayed"), None, "processed again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_go_to_the_next_gateway_and_ask_for_health_without_a_shell() {
    let cluster = two_workers(SHORT).await;
    let http = cluster.target().http;
    let both = format!("127.0.0.1:1,{http}");
    let rows = cluster.run(&["query", "accounts", "--http", &both, "--json"]);
    assert!(rows.contains("\"rows\""), "{rows}");
    // It takes connections, and answers nobody.
    let hangs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let both = format!("{},{http}", hangs.local_addr().unwrap());
    let began = std::time::Instant::now();
    let rows = cluster.run(&["query", "accounts", "--http", &both, "--json"]);
    assert!(rows.contains("\"rows\""), "{rows}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    let well = cluster.run(&["healthcheck", &http]);
    assert!(well.starts_with("200"), "{well}");
    let output = flexcore().args(["healthcheck", "127.0.0.1:1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).1.contains("127.0.0.1:1"), "{:?}", texts(&output));
}
