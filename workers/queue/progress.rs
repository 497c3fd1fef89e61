//! Looks whether the claims of a queue's places still hold.

use std::time::Duration;

use flexcore_queue::Queue;
use flexcore_resilience::lasts;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Time between looks. Until the next one nothing is settled in a place whose claim has gone.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// When the stream was made that holds how far each place is settled, once that is known. It changes
/// when the stream is made anew.
pub type ProgressMade = watch::Receiver<Option<i128>>;

/// Tells a worker's readers, until the token is cancelled, when the claims of their places have gone with the
/// stream that held them: a place in which nothing happens would not notice, and what was settled there would
/// count as waiting.
#[boxed::async_recursion]
pub async fn watch_progress(
    queue: Queue,
    made: watch::Sender<Option<i128>>,
    stop: CancellationToken,
) {
    let stream = queue.described.progress;
    let mut failures = 0;
    loop {
        match queue.progress_made_ns().await {
            Ok(now) => {
                failures = 0;
                if let Some(now) = now {
                    made.send_if_modified(|known| is_another(known, now));
                }
            }
            Err(error) => {
                failures += 1;
                // What is just away passes without a word.
                if lasts(failures) {
                    tracing::error!(%error, stream, failures, "claims are not looked after");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Notes when the stream was made. Returns true if it was another one before.
fn is_another(known: &mut Option<i128>, now: i128) -> bool {
    known.replace(now).is_some_and(|before| before != now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_go_with_the_stream_and_with_nothing_else() {
        let mut known = None;
        let found = [5, 5, 9, 9, 3].map(|now| is_another(&mut known, now));
        assert_eq!(found, [false, false, true, false, true]);
    }
}
