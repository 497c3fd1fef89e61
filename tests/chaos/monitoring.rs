//! Reports of the brokers at their monitoring addresses, and of the system about its processes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    checker::{Verdict, resources},
    http::Ask,
    rig::{REST_WAIT, Rig},
};

/// Number of looks at held resources, a second apart, until they are back: a reader that was left
/// to its broker goes after half a minute, and after a minute more when that broker could not tell
/// the others.
const HELD_LOOKS: usize = 120;

impl Rig {
    /// The broker that leads the log's stream.
    pub(crate) async fn log_leader(&self) -> String {
        loop {
            for node in ["nats-1", "nats-2", "nats-3"] {
                let Ok(jsz) = self.monitor(node, "/jsz?streams=true").await else { continue };
                let streams =
                    jsz.pointer("/account_details/0/stream_detail").and_then(Value::as_array);
                let found = streams.into_iter().flatten().find(|s| s["name"] == "FLEX_EVENTS");
                let leader = found.and_then(|stream| stream.pointer("/cluster/leader")?.as_str());
                if let Some(leader) = leader.filter(|leader| !leader.is_empty()) {
                    return leader.to_owned();
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn monitor(&self, node: &str, path: &str) -> Result<Value, String> {
        let ask = Ask::get(path, "");
        let monitor = self.cluster.monitor(node);
        let answer = self.cluster.client.send(&monitor, &ask, Duration::from_secs(5)).await;
        Ok(answer.map_err(|error| format!("{node}{path}: {error:?}"))?.json())
    }

    /// The log's state on each broker, once they are level or have had the time for it.
    pub(crate) async fn level_replicas(&self) -> Result<BTreeMap<String, (u64, u64, u64)>, String> {
        let start = Instant::now();
        loop {
            let replicas = self.replicas().await;
            let states = replicas.iter().flat_map(BTreeMap::values);
            let level = replicas.is_ok() && states.collect::<BTreeSet<_>>().len() == 1;
            if level || start.elapsed() > REST_WAIT {
                return replicas;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// The log's state on each broker.
    async fn replicas(&self) -> Result<BTreeMap<String, (u64, u64, u64)>, String> {
        let mut replicas = BTreeMap::new();
        for node in ["nats-1", "nats-2", "nats-3"] {
            let jsz = self.monitor(node, "/jsz?streams=true").await?;
            let streams = jsz.pointer("/account_details/0/stream_detail").and_then(Value::as_array);
            let found = streams.into_iter().flatten().find(|s| s["name"] == "FLEX_EVENTS");
            let state = &found.ok_or(format!("{node} has no log"))?["state"];
            let number = |field: &str| state[field].as_u64().unwrap_or(0);
            let counts = (number("messages"), number("num_deleted"), number("last_seq"));
            replicas.insert(node.to_owned(), counts);
        }
        Ok(replicas)
    }

    /// The resources that are held right now.
    pub(crate) async fn held(&self) -> Result<resources::Held, String> {
        let mut held = resources::Held::new();
        for node in ["nats-1", "nats-2", "nats-3"] {
            let varz = self.monitor(node, "/varz").await?;
            for what in ["connections", "subscriptions"] {
                // A client may be at any of the three.
                let sum = held.entry(format!("brokers' {what}")).or_default();
                *sum += varz[what].as_i64().unwrap_or(0);
            }
            let jsz = self.monitor(node, "/jsz?streams=true").await?;
            let streams = jsz.pointer("/account_details/0/stream_detail").and_then(Value::as_array);
            for stream in streams.into_iter().flatten() {
                let name = stream["name"].as_str().unwrap_or_default();
                if name == "KV_flex_cluster" {
                    // We follow that one ourselves.
                    continue;
                }
                let count = stream.pointer("/state/consumer_count").and_then(Value::as_i64);
                // Each has one server, wherever there was room.
                let sum = held.entry(format!("{name} consumers")).or_default();
                *sum += count.unwrap_or(0);
            }
        }
        for (node, process) in &self.cluster.nodes {
            if let Some((descriptors, threads)) = process.held() {
                held.insert(format!("{node} descriptors"), descriptors.try_into().unwrap());
                let broker = if node.starts_with("nats") { " broker" } else { "" };
                held.insert(format!("{node}{broker} threads"), threads.try_into().unwrap());
            }
        }
        Ok(held)
    }

    /// Checks that held resources are back where they were; looks for a while, since some things
    /// end by time.
    pub(crate) async fn held_verdict(&self) -> Verdict {
        self.cluster.client.close();
        let mut verdict = Verdict::new(18, resources::HELD);
        for _ in 0..HELD_LOOKS {
            tokio::time::sleep(Duration::from_secs(1)).await;
            match self.held().await {
                Ok(held) => verdict = resources::returns_to_the_base_line(&self.held, &held),
                Err(error) => verdict.violations = vec![error],
            }
            if verdict.violations.is_empty() {
                break;
            }
        }
        if verdict.violations.iter().any(|violation| violation.contains("consumers")) {
            verdict.violations.push(self.readers().await);
        }
        verdict
    }

    /// The readers that each broker has, by name, which says whose they are: of several of one slot
    /// only the one with the greatest epoch is in use. Somebody reads those with something pulled.
    async fn readers(&self) -> String {
        let mut all = Vec::new();
        for node in ["nats-1", "nats-2", "nats-3"] {
            let jsz = self.monitor(node, "/jsz?consumers=true").await.unwrap_or_default();
            let streams = jsz.pointer("/account_details/0/stream_detail").and_then(Value::as_array);
            for stream in streams.into_iter().flatten() {
                let of = stream["name"].as_str().unwrap_or_default();
                let readers = stream["consumer_detail"].as_array().into_iter().flatten();
                all.extend(readers.map(|reader| {
                    let (name, pulled) = (&reader["name"], &reader["num_waiting"]);
                    format!("{of} {name} at {node}, {pulled} pulled")
                }));
            }
        }
        all.sort();
        all.join(", ")
    }
}
