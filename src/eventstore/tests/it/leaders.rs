//! Questions to the leaders of streams: so many of a process at once.

use std::time::Duration;

use flexcore_broker::{
    inbox::Inbox,
    leader::{ASKED_AT_ONCE_MAX, Leaders},
};
use flexcore_eventstore::topology;

use crate::{PATIENCE, start};

#[tokio::test]
async fn beyond_so_many_questions_the_next_waits_for_one_of_them_and_is_answered() {
    let (servers, store) = start().await;
    let leaders = Leaders::over(Inbox::open(store.client()).await.unwrap());
    let ask = || Box::pin(leaders.last_on(topology::EVENTS, "evt.>", 0));
    let mut under_way: Vec<_> = (0..ASKED_AT_ONCE_MAX).map(|_| ask()).collect();
    for question in &mut under_way {
        // It is sent, and nobody takes its answer.
        assert!(futures::poll!(question.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    let short = Duration::from_millis(300);
    let (mut next, mut last) = (ask(), ask());
    assert!(futures::poll!(next.as_mut()).is_pending());
    assert!(tokio::time::timeout(short, &mut last).await.is_err(), "more are under way at once");

    // First come, first served: one place is for the one that came first.
    drop(under_way.pop());
    assert!(tokio::time::timeout(short, &mut last).await.is_err(), "it is not its turn");
    assert_eq!(tokio::time::timeout(PATIENCE, next).await.unwrap().unwrap(), 0);
    assert_eq!(tokio::time::timeout(PATIENCE, last).await.unwrap().unwrap(), 0);
    drop(under_way);
    servers.stop().await;
}
