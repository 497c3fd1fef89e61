//! Connections to the broker that come back by themselves.

use std::time::Duration;

use anyhow::Context;
use flexcore_resilience::Backoff;

/// A cut connection is noticed after two of these; the client's own default takes minutes.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// Between two tries to reach a server. The first moments of an outage look like many quick tries.
pub(crate) const RETRY: Backoff =
    Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(5) };
/// Requests that may wait inside the client: what the gateway and the lanes have under way.
const CLIENT_CAPACITY: usize = 65_536;
/// Longest wait for one server to take a connection: another one may.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection to one of these servers, that comes back by itself, with backoff and jitter.
pub async fn connect(urls: &[String]) -> anyhow::Result<async_nats::Client> {
    async_nats::ConnectOptions::new()
        .name("flexcore")
        .ping_interval(PING_INTERVAL)
        .connection_timeout(CONNECT_TIMEOUT)
        .client_capacity(CLIENT_CAPACITY)
        .subscription_capacity(CLIENT_CAPACITY)
        .reconnect_delay_callback(|tries| {
            let tries = u32::try_from(tries).unwrap_or(u32::MAX);
            RETRY.jittered(tries.saturating_add(1))
        })
        .connect(urls)
        .await
        .with_context(|| format!("no connection to the broker at {}", urls.join(", ")))
}
