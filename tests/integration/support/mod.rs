//! Shared parts of the tests: processes, an HTTP client, an example application.

pub(crate) mod app;
pub(crate) mod check;
pub(crate) mod cluster;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod process;

use std::time::{Duration, Instant};

pub(crate) use self::{
    http::{Answer, Http},
    process::Dev,
};

/// Long enough for anything that is going to happen, on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the condition holds; panics with its last message.
pub(crate) async fn eventually<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(last) => {
                assert!(start.elapsed() < PATIENCE, "waited in vain for {what}: {last}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The seed of a randomised test, printed so that it can be repeated.
pub(crate) fn seed(test: &str) -> u64 {
    let given = std::env::var("FLEXCORE_TEST_SEED").ok().filter(|text| text != "random");
    let seed = given.map_or_else(rand::random, |text| text.parse().unwrap());
    say(&format!("{test}: FLEXCORE_TEST_SEED={seed}"));
    seed
}

/// A line of the test's own output, shown when it fails (or with `--nocapture`).
#[expect(clippy::print_stdout, reason = "the test harness captures what is printed this way")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
