//! What comes of the messages that a reader has begun with, and until when it is listened to once the place
//! is to be left.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

/// Time for what the handler was given, once the place is to be left. As a rule all of it is done by then, and
/// the next owner finds nothing to do twice.
const DONE_WAITED: Duration = Duration::from_secs(1);
/// Longest time for a handler to say that it begins nothing more.
const GIVE_BACK_MAX: Duration = Duration::from_secs(1);
/// Time from then on for what is under way. The rest is given back: somebody else may have to wait for the
/// place, and nobody waits for a stored message.
const UNDER_WAY_WAITED: Duration = Duration::from_millis(500);

/// The outcomes of one reader's messages, with the messages' numbers.
pub(super) struct Outcomes<'a, O> {
    to: mpsc::UnboundedSender<(u64, O)>,
    from: mpsc::UnboundedReceiver<(u64, O)>,
    /// Ready when no more are heard; `None`: the place is not to be left.
    ends: Option<BoxFuture<'a, ()>>,
    /// No more are heard.
    is_over: bool,
    /// It was said that there are no more.
    is_told: bool,
}

impl<'a, O> Outcomes<'a, O> {
    pub(super) fn new() -> Self {
        let (to, from) = mpsc::unbounded_channel();
        Self { to, from, ends: None, is_over: false, is_told: false }
    }

    /// Where they are sent.
    pub(super) fn sender(&self) -> &mpsc::UnboundedSender<(u64, O)> {
        &self.to
    }

    /// True as long as the place is not to be left.
    pub(super) fn is_open(&self) -> bool {
        self.ends.is_none()
    }

    /// The place is to be left: what was begun with has a moment yet, and what is under way when the handler
    /// begins nothing more another one.
    pub(super) fn end(&mut self, gives_back: impl Future<Output = ()> + Send + 'a) {
        // Nobody listens to this one. So the other one ends with what was begun.
        self.to = mpsc::unbounded_channel().0;
        self.ends = Some(Box::pin(async move {
            sleep(DONE_WAITED).await;
            // A handler that does not answer has no more to say in the next second either.
            let _ = timeout(GIVE_BACK_MAX, gives_back).await;
            sleep(UNDER_WAY_WAITED).await;
        }));
    }

    /// The next outcome. `None`, and that once: the place is to be left, no more are heard, and `all_kept`
    /// says that those before are durable. An outcome that was heard may have been told to somebody.
    pub(super) async fn next(&mut self, all_kept: bool) -> Option<(u64, O)> {
        if !self.is_over {
            let heard = match &mut self.ends {
                None => self.from.recv().await,
                Some(ends) => tokio::select! {
                    biased;
                    heard = self.from.recv() => heard,
                    () = ends => None,
                },
            };
            if heard.is_some() {
                return heard;
            }
            self.is_over = true;
        }
        if self.is_told || !all_kept {
            return std::future::pending().await;
        }
        self.is_told = true;
        None
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::Instant;

    use super::*;

    /// Longer than anything that is waited for.
    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_place_is_left_at_once_when_all_that_was_begun_is_heard_or_dropped() {
        let mut outcomes = Outcomes::new();
        let (heard, dropped) = (outcomes.sender().clone(), outcomes.sender().clone());
        heard.send((0, "done")).unwrap();
        outcomes.end(pending());
        assert!(!outcomes.is_open());
        assert_eq!(outcomes.next(true).await, Some((0, "done")));
        drop((heard, dropped));
        let began = Instant::now();
        assert_eq!(outcomes.next(true).await, None);
        assert!(began.elapsed() < GIVE_BACK_MAX, "{:?}", began.elapsed());
        assert!(timeout(UNDER_WAY_WAITED, outcomes.next(true)).await.is_err(), "once");
    }

    #[tokio::test]
    async fn what_is_under_way_has_its_time_and_no_more() {
        let mut outcomes = Outcomes::new();
        let slow = outcomes.sender().clone();
        outcomes.end(ready(()));
        sleep(UNDER_WAY_WAITED / 4).await;
        slow.send((7, ())).unwrap();
        assert_eq!(outcomes.next(true).await, Some((7, ())));
        assert_eq!(timeout(LONG, outcomes.next(true)).await, Ok(None), "the sender is there");
        slow.send((8, ())).unwrap();
        assert!(timeout(UNDER_WAY_WAITED / 4, outcomes.next(true)).await.is_err(), "too late");
    }

    #[tokio::test]
    async fn a_handler_that_does_not_say_when_it_begins_nothing_more_is_not_waited_for() {
        let mut outcomes = Outcomes::new();
        let _begun = outcomes.sender().clone();
        outcomes.end(pending());
        let ended: Result<Option<(u64, ())>, _> = timeout(LONG, outcomes.next(true)).await;
        assert_eq!(ended, Ok(None));
    }

    /// It may be known to a client, and would be decided again, behind later ones.
    #[tokio::test]
    async fn what_was_heard_is_made_durable_first() {
        let mut outcomes = Outcomes::new();
        outcomes.sender().send((0, ())).unwrap();
        outcomes.end(ready(()));
        assert_eq!(outcomes.next(true).await, Some((0, ())));
        let early = timeout(UNDER_WAY_WAITED / 4, outcomes.next(false)).await;
        assert!(early.is_err(), "it is not kept yet");
        assert_eq!(outcomes.next(true).await, None);
    }
}
