//! Draining a member: the cluster's leader gives its places to others.

use std::time::{Duration, Instant};

use flexcore_cluster as cluster;

use crate::Error;

/// Longest wait until a member serves nothing any more.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// Between two looks at a member that is drained.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Waits until a member serves nothing. Returns how long that took. Fails when it is the only one
/// that could.
#[boxed::async_recursion]
pub async fn drained(client: &async_nats::Client, member: &str) -> Result<Duration, Error> {
    let started = Instant::now();
    loop {
        let view = cluster::look(client).await?;
        let seat = view.members.iter().find(|seat| seat.id.as_str() == member);
        if seat.is_none_or(|seat| seat.owns.values().all(Vec::is_empty)) {
            return Ok(started.elapsed());
        }
        if started.elapsed() > DRAIN_MAX {
            let (member, waited_s) = (member.to_owned(), DRAIN_MAX.as_secs());
            return Err(Error::NotDrained { member, waited_s });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
