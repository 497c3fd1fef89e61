//! The real docker-compose.yml, on a Docker engine: scaled, restarted and killed under load.
//!
//! `FLEXCORE_DOCKER=1 cargo test --test compose -- --nocapture` needs root, and a Debian machine or
//! one with dockerd, docker-compose and debootstrap. It compiles the image's executable first.
//! `FLEXCORE_COMPOSE="docker compose"` takes Compose v2 in place of docker-compose; with
//! `DOCKER_HOST` the containers run on that engine, and its images are used as they are.
#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

#[path = "../integration/support/mod.rs"]
#[expect(dead_code, reason = "shared with the integration tests, which use all of it")]
mod support;

mod cluster;
mod engine;
mod load;
mod settings;

use std::time::Instant;

use serde_json::json;

use cluster::Cluster;
use engine::Engine;
use load::Load;
use support::{app, load::open, say, seed};

/// Everything that takes a cluster runs on one, one after another: it is one machine's two cores.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_command_is_lost_whatever_container_goes() {
    if std::env::var("FLEXCORE_DOCKER").as_deref() != Ok("1") {
        say("skipped: FLEXCORE_DOCKER=1 runs it, as root, in three to six minutes");
        return;
    }
    let seed = seed("compose");
    let engine = Engine::start();
    let cluster = Cluster::up(&engine);
    cluster.is_confined();
    let (_folder, bank) = app::bank().write();
    cluster.flexcore(&["apply", &bank]);
    let target = cluster.place().target;
    open(&target).await;
    let load = Load::start(seed, target.clone());
    load.goes_on(50).await;
    cluster.scale(&load).await;
    cluster.restart(&load).await;
    cluster.kill_one_of_each(&load).await;
    let history = load.finish().await;
    let settled = Instant::now();
    cluster.place().check(&history).await;
    say(&format!("log, rows and history agree ({:.0} s)", settled.elapsed().as_secs_f64()));
    cluster.flights();
    let verified = cluster.cli(&["verify", "--json"]);
    assert_eq!(verified["broken"], json!(null), "{verified}");
    say(&format!("flexcore verify: {verified}"));
    cluster.drains();
    cluster.down();
}
