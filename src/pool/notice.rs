//! Word to the instances of a group that nobody wants them any more, and how long their calls may go on.

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// The end that says so. When it is dropped, nobody wants them either, and their calls have no more time.
#[derive(Debug, Default)]
pub(crate) struct Notice(watch::Sender<Option<Instant>>);

/// The end that hears it. A cheap clone.
#[derive(Clone, Debug)]
pub(crate) struct Noticed(watch::Receiver<Option<Instant>>);

impl Notice {
    /// Nobody wants them any more. Calls under way have until then; less, if that was said before.
    pub(crate) fn give(&self, until: Instant) {
        self.0.send_if_modified(|held| {
            let is_sooner = held.is_none_or(|before| until < before);
            if is_sooner {
                *held = Some(until);
            }
            is_sooner
        });
    }

    pub(crate) fn heard(&self) -> Noticed {
        Noticed(self.0.subscribe())
    }
}

impl Noticed {
    /// Somebody still wants them.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// Returns when nobody wants them any more.
    pub(crate) async fn unwanted(&self) {
        let mut said = self.0.clone();
        drop(said.wait_for(Option::is_some).await);
    }

    /// Returns when nobody wants them any more, and the time of their calls is over.
    pub(crate) async fn over(&self) {
        let mut said = self.0.clone();
        loop {
            let until = said.wait_for(Option::is_some).await.map(|until| *until);
            let Ok(Some(until)) = until else { return };
            tokio::select! {
                () = sleep_until(until) => return,
                // It may be sooner.
                changed = said.changed() => if changed.is_err() { return },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_have_their_time_and_less_if_that_is_said_later() {
        let (second, began) = (Duration::from_secs(1), Instant::now());
        let notice = Notice::default();
        let noticed = notice.heard();
        assert!(noticed.is_wanted());
        notice.give(began + second * 300);
        noticed.unwanted().await;
        assert!(!noticed.is_wanted() && began.elapsed() < second);
        let sooner = async {
            tokio::time::sleep(second).await;
            notice.give(began + second * 2);
            notice.give(began + second * 9);
        };
        tokio::join!(noticed.over(), sooner);
        assert!((second * 2..second * 3).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}
