//! Panics of an author's code are failures of one call, and lines in the log.

use std::{
    future::Future,
    panic::{self, AssertUnwindSafe},
};

use futures::FutureExt as _;

use crate::Failure;

/// Logs each panic, with the fields of the call that it is in, in place of text in several lines.
pub(crate) fn log() {
    panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

/// What a future gives; a panic of it is a failure.
pub(crate) async fn caught<T>(
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    // What it was at work on is dropped with it.
    AssertUnwindSafe(future).catch_unwind().await.unwrap_or_else(|_| Err(panicked()))
}

/// What some work gives; a panic of it is a failure.
pub(crate) fn caught_now<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|_| panicked())
}

/// Without the panic's text, which may have anything in it.
fn panicked() -> Failure {
    Failure::new("panicked", "the plugin's code panicked; its log says where")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        assert_eq!(caught_now(|| 1), Ok(1));
        let failure = caught_now(|| -> u8 { panic!("s3cr3t") }).unwrap_err();
        assert_eq!(failure.code, "panicked");
        assert!(!failure.message.contains("s3cr3t"));
        assert_eq!(caught(async { Ok(1) }).await, Ok(1));
        let failure = caught(async {
            tokio::task::yield_now().await;
            panic!("here")
        });
        let failure: Result<u8, Failure> = failure.await;
        assert_eq!(failure.unwrap_err().code, "panicked");
    }
}
