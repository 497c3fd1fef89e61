//! The clients' requests to the cluster, and the meaning of its answers.

use std::time::Duration;

use async_nats::{HeaderMap, jetstream};
use serde_json::Value;

use crate::{
    checker::stored::Outcome,
    evidence::{Change, Row},
    history::{Seen, Told},
    http::{Answer, Ask, Client, Failure},
};

/// An acknowledgement of the broker that has not come after this time is not waited for.
const PUBACK_WAIT: Duration = Duration::from_secs(5);

/// Where an installation is, and who may ask there.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) client: Client,
    /// `HOST:PORT` of each gateway.
    pub(crate) gateways: Vec<String>,
    /// A bearer token of each tenant.
    pub(crate) tokens: Vec<String>,
    pub(crate) nats: Vec<String>,
    pub(crate) postgres: String,
}

/// A way to all gateways and to the brokers.
pub(crate) struct Talk {
    place: Place,
    jetstream: jetstream::Context,
}

/// Tenant, account and command.
type Target<'a> = (&'a str, &'a str, &'a str);

impl Talk {
    pub(crate) async fn new(place: &Place) -> Self {
        let jetstream = jetstream::new(connect(&place.nats).await);
        Self { place: place.clone(), jetstream }
    }

    pub(crate) fn gateways(&self) -> usize {
        self.place.gateways.len()
    }

    /// Sends a command: key, payload, expected version, and whether it is to be queued. Gives the
    /// answer, and the position.
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
            token: self.place.tokens[tenant].clone(),
            headers,
            body: payload.to_owned(),
        };
        match self.send(gateway, &ask, within).await {
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

    async fn send(&self, gateway: usize, ask: &Ask, within: Duration) -> Result<Answer, Failure> {
        self.place.client.send(&self.place.gateways[gateway - 1], ask, within).await
    }

    /// Asks one gateway for something of a tenant, and reads the result when it answers.
    async fn seen(
        &self,
        gateway: usize,
        tenant: usize,
        path: &str,
        within: Duration,
        read: impl FnOnce(&Answer) -> Option<Seen>,
    ) -> Seen {
        let ask = Ask::get(path, &self.place.tokens[tenant]);
        match self.send(gateway, &ask, within).await {
            Ok(answer) if answer.status == 200 => {
                let why = || Seen::Nothing { why: format!("strange: {answer:?}") };
                read(&answer).unwrap_or_else(why)
            }
            Ok(answer) => {
                let retry_after = answer.header("retry-after").is_some();
                Seen::Not { status: answer.status, retry_after }
            }
            Err(failure) => Seen::Nothing { why: format!("{failure:?}") },
        }
    }

    /// An account's state now.
    pub(crate) async fn state(
        &self,
        gateway: usize,
        tenant: usize,
        account: &str,
        within: Duration,
    ) -> Seen {
        let path = format!("/v1/aggregates/account/{account}");
        let read = |answer: &Answer| {
            let body = answer.json();
            Some(Seen::State {
                version: body["version"].as_u64()?,
                branch: body["state"]["branch"].as_str()?.to_owned(),
                balance: body["state"]["balance"].as_i64()?,
            })
        };
        self.seen(gateway, tenant, &path, within, read).await
    }

    /// An account's events after a version, as many as one page has.
    pub(crate) async fn events(
        &self,
        gateway: usize,
        tenant: usize,
        (account, after): (&str, u64),
        within: Duration,
    ) -> Seen {
        let path = format!("/v1/aggregates/account/{account}/events?after_version={after}");
        let read = |answer: &Answer| {
            let body = answer.json();
            let event = |event: &Value| {
                let name = event["type"].as_str()?.strip_prefix("account.")?;
                Some((event["sequence"].as_u64()?, Change::of(name, &event["data"])))
            };
            let events: Option<Vec<_>> = body.as_array()?.iter().map(event).collect();
            Some(Seen::Events { events: events?, more: answer.header("link").is_some() })
        };
        self.seen(gateway, tenant, &path, within, read).await
    }

    /// The rows of `balances` that the query gives.
    pub(crate) async fn rows(
        &self,
        gateway: usize,
        tenant: usize,
        path: &str,
        within: Duration,
    ) -> Seen {
        let read = |answer: &Answer| {
            let body = answer.json();
            let row = |row: &Value| {
                let text = |name: &str| row[name].as_str().map(str::to_owned);
                let number = |name: &str| row[name].as_i64();
                let row = Row {
                    branch: text("branch")?,
                    changes: number("changes")?,
                    deposited: number("deposited")?,
                    withdrawn: number("withdrawn")?,
                    version: number("version")?,
                };
                Some((text("account")?, row))
            };
            let rows: Option<Vec<_>> = body["rows"].as_array()?.iter().map(row).collect();
            Some(Seen::Rows(rows?))
        };
        self.seen(gateway, tenant, path, within, read).await
    }

    /// The answer about a stored command.
    pub(crate) async fn outcome(
        &self,
        gateway: usize,
        tenant: usize,
        (account, key): (&str, &str),
        within: Duration,
    ) -> Outcome {
        let path = format!("/v1/commands/{key}?aggregate=account&id={account}");
        let ask = Ask::get(path, &self.place.tokens[tenant]);
        let answer = match self.send(gateway, &ask, within).await {
            Ok(answer) => answer,
            Err(failure) => return Outcome::Strange(format!("{failure:?}")),
        };
        let body = answer.json();
        let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
        match (answer.status, text("status").as_str()) {
            (202, _) => Outcome::Pending,
            (200, "accepted") => Outcome::Accepted {
                version: body["version"].as_u64().unwrap_or(0),
                sequence: sequence(&body),
            },
            (200, "rejected") => Outcome::Refused { code: text("code") },
            (200, "conflict") => Outcome::Refused { code: "conflict".to_owned() },
            (200, "dead") => Outcome::Dead { reason: text("reason") },
            (status, _) => Outcome::Strange(format!("{status} {body}")),
        }
    }
}

/// The place in the log that an answer names.
fn sequence(body: &Value) -> Option<u64> {
    body["position"].as_str()?.rsplit('-').next()?.parse().ok()
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

/// The meaning of an answer to a command, and the position in it.
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
            let (position, sequence) = (body["position"].as_str(), sequence(&body));
            let Some(version) = body["version"].as_u64() else {
                return (Told::Unknown { status, code, retry_after }, None);
            };
            let replayed = body["replayed"] == true;
            let position = position.map(str::to_owned);
            return (Told::Accepted { version, sequence, replayed }, position);
        }
        202 => Told::Queued,
        // A full store is reported as full, in any words.
        507 => Told::TurnedAway { status, code, retry_after },
        429 | 503 if nothing_done => Told::TurnedAway { status, code, retry_after },
        400..500 => Told::Refused { status, code },
        _ => Told::Unknown { status, code, retry_after },
    };
    (told, None)
}
