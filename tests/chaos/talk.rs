//! How clients talk to the cluster, and what its answers mean to them.

use std::time::Duration;

use async_nats::{HeaderMap, jetstream};
use serde_json::Value;

use crate::{
    cluster::Cluster,
    history::{Seen, Told},
    http::{Answer, Ask, Client, Failure},
};

/// An acknowledgement of the broker that has not come after this time is not waited for.
const PUBACK_WAIT: Duration = Duration::from_secs(5);

/// A way to all gateways and to the brokers.
pub(crate) struct Talk {
    client: Client,
    gateways: Vec<String>,
    tokens: Vec<String>,
    jetstream: jetstream::Context,
}

/// Tenant, account and command.
type Target<'a> = (&'a str, &'a str, &'a str);

impl Talk {
    pub(crate) async fn new(cluster: &Cluster) -> Self {
        let gateways = (1..=cluster.shape.gateways).map(|n| cluster.gateway(n.into())).collect();
        Self {
            client: cluster.client.clone(),
            gateways,
            tokens: cluster.tokens.clone(),
            jetstream: jetstream::new(connect(&cluster.nats()).await),
        }
    }

    pub(crate) fn gateways(&self) -> usize {
        self.gateways.len()
    }

    /// Sends a command: key, payload, expected version, and whether it is to be queued. Gives what
    /// was told, and the position.
    pub(crate) async fn command(
        &self,
        gateway: usize,
        tenant: usize,
        (_, account, command): Target<'_>,
        (key, payload, if_match, queue): (&str, &str, Option<u64>, bool),
        within: Duration,
    ) -> (Told, Option<String>) {
        let mut headers = vec![("idempotency-key", key.to_owned())];
        headers.extend(if_match.map(|version| ("if-match", format!("\"{version}\""))));
        headers.extend(queue.then(|| ("prefer", "respond-async".to_owned())));
        let ask = Ask {
            method: "POST",
            path: format!("/v1/commands/account/{account}/{command}"),
            token: self.tokens[tenant].clone(),
            headers,
            body: payload.to_owned(),
        };
        match self.client.send(&self.gateways[gateway - 1], &ask, within).await {
            Ok(answer) => told(&answer),
            Err(Failure::Connect(_)) => (Told::NotSent, None),
            Err(failure) => (Told::NoAnswer { why: format!("{failure:?}") }, None),
        }
    }

    /// Publishes a command to the broker.
    pub(crate) async fn publish(
        &self,
        (tenant, account, command): Target<'_>,
        key: &str,
        payload: &str,
    ) -> Told {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", key);
        let subject = format!("cmd.{tenant}.account.{account}.{command}");
        let publish = async {
            let sent =
                self.jetstream.publish_with_headers(subject, headers, payload.to_owned().into());
            sent.await.map_err(|error| error.to_string())?.await.map_err(|error| error.to_string())
        };
        match tokio::time::timeout(PUBACK_WAIT, publish).await {
            Ok(Ok(_)) => Told::Queued,
            Ok(Err(why)) => Told::NoAnswer { why },
            Err(_) => Told::NoAnswer { why: "no acknowledgement".to_owned() },
        }
    }

    /// An account's version now, if anybody says.
    pub(crate) async fn version(
        &self,
        gateway: usize,
        tenant: usize,
        account: &str,
        within: Duration,
    ) -> Option<u64> {
        let ask = Ask::get(format!("/v1/aggregates/account/{account}"), &self.tokens[tenant]);
        let answer = self.client.send(&self.gateways[gateway - 1], &ask, within).await.ok()?;
        if answer.status != 200 {
            return None;
        }
        answer.json()["version"].as_u64()
    }

    /// The version in the one row that the query gives.
    pub(crate) async fn row(
        &self,
        gateway: usize,
        tenant: usize,
        path: &str,
        within: Duration,
    ) -> Seen {
        let ask = Ask::get(path, &self.tokens[tenant]);
        match self.client.send(&self.gateways[gateway - 1], &ask, within).await {
            Ok(answer) if answer.status == 200 => {
                Seen::Row(answer.json().pointer("/rows/0/version").and_then(Value::as_u64))
            }
            Ok(answer) => {
                let retry_after = answer.header("retry-after").is_some();
                Seen::Not { status: answer.status, retry_after }
            }
            Err(failure) => Seen::Nothing { why: format!("{failure:?}") },
        }
    }
}

/// A connection that comes back by itself.
pub(crate) async fn connect(urls: &[String]) -> async_nats::Client {
    let options = async_nats::ConnectOptions::new()
        .name("chaos")
        .ping_interval(Duration::from_secs(2))
        .retry_on_initial_connect()
        .reconnect_delay_callback(|_| Duration::from_millis(200));
    options.connect(urls).await.unwrap()
}

/// What an answer to a command means, and the position in it.
fn told(answer: &Answer) -> (Told, Option<String>) {
    let body = answer.json();
    let status = answer.status;
    let kind = body["type"].as_str().unwrap_or_default().trim_start_matches("/problems/");
    // Of a rejection the rule's own word says more.
    let code = body["code"].as_str().unwrap_or(kind).to_owned();
    let retry_after = answer.header("retry-after").is_some();
    let nothing_done = ["overloaded", "unavailable", "rate-limited"].contains(&kind);
    let told = match status {
        200 => {
            let position = body["position"].as_str();
            let sequence = position.and_then(|text| text.rsplit('-').next()?.parse().ok());
            let Some(version) = body["version"].as_u64() else {
                return (Told::Unknown { status, code, retry_after }, None);
            };
            let replayed = body["replayed"] == true;
            let position = position.map(str::to_owned);
            return (Told::Accepted { version, sequence, replayed }, position);
        }
        202 => Told::Queued,
        429 | 503 if nothing_done => Told::TurnedAway { status, code, retry_after },
        400..500 => Told::Refused { status, code },
        _ => Told::Unknown { status, code, retry_after },
    };
    (told, None)
}
