//! SIGKILL of `flexcore dev` at random points under load, and a restart on the same data each time:
//! nothing that was acknowledged is lost, and nothing happens twice.

use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::support::{
    Dev, app,
    check::Place,
    load::{self, Load, Target},
    say, seed,
};

/// Number of kills.
const KILLS: usize = 20;

fn place(dev: &Dev) -> Place {
    let target = Target {
        http: dev.ready.http.clone(),
        token: dev.ready.token.clone(),
        nats: dev.ready.nats.clone(),
        tenant: dev.ready.tenant.clone(),
    };
    let options = vec!["--data".to_owned(), dev.data().to_str().unwrap().to_owned()];
    Place { target, postgres: dev.ready.postgres.clone(), options }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_doubled_by_sigkill() {
    let seed = seed("kill");
    let mut random = StdRng::seed_from_u64(seed);
    let mut dev = Dev::start(&[]);
    app::deploy_bank(&dev);
    let target = place(&dev).target;
    load::open(&target).await;
    let load = Load::start(seed, 6, 2, target);
    let started = Instant::now();
    let mut checkpoints = place(&dev).checkpoints().await;
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(random.random_range(20..1_200))).await;
        dev.kill();
        load.point(None);
        dev = tokio::task::spawn_blocking(move || {
            dev.start_again();
            dev
        })
        .await
        .unwrap();
        let place = place(&dev);
        load.point(Some(place.target.clone()));
        let now = place.checkpoints().await;
        for (slot, position) in &checkpoints {
            assert!(
                now[slot] >= *position,
                "the checkpoint of {slot:?} went back to {}",
                now[slot]
            );
        }
        checkpoints = now;
    }
    say(&format!("{KILLS} kills in {:.1} s", started.elapsed().as_secs_f64()));
    load.goes_on(20).await;
    let history = load.finish().await;
    assert!(history.len() > KILLS * 20, "there was load: {}", history.len());
    place(&dev).check(&history).await;
}
