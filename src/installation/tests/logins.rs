//! Logins to the broker, on a real nats-server that asks for them, with the configuration that
//! deployments are given.
#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

use std::time::Duration;

use async_nats::{Client, jetstream};
use flexcore_cluster::Settings as Membership;
use flexcore_eventstore::{EventStore, Profile, Settings};
use flexcore_installation::{Broker, Endpoints, Installation, connect};
use flexcore_servers::{Options, Servers, Want, cache_for_tests};
use futures::{StreamExt as _, stream::select_all};
use tokio_util::sync::CancellationToken;

const PASSWORDS: &str = "\n\
    NATS_PLATFORM_PASSWORD: \"f@x/1\"\nNATS_DEMO_PASSWORD: demo\nNATS_OTHER_PASSWORD: other\n";

const ACCOUNTS: &str = include_str!("../../../deploy/nats-accounts.conf");

/// One account for all, with a tenant's login that may publish to its commands alone.
const PERMISSIONS_ALONE: &str = r#"
authorization {
  users: [
    { user: flexcore, password: "f@x/1" }
    { user: demo, password: demo
      permissions: { publish: ["cmd.demo.>"], subscribe: ["_INBOX.>"] } }
  ]
}
"#;

/// Reply subjects that are FlexCore's own: its log, its buckets, its questions, the broker's.
const FORGED: [&str; 8] = [
    "evt.32.other.ctr.victim",
    "evt.62.flexcore.application.app_c",
    "$KV.flex_queue.0",
    "$KV.flex_queue.secret",
    "$KV.flex_cluster.leader",
    "$JS.API.STREAM.PURGE.FLEX_COMMANDS",
    "ctl.command.0",
    "req.command.0",
];

async fn servers(more: &str) -> Servers {
    let cache = cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
    let options = Options { want: Want::Nats, ..Options::new(cache) };
    let mut servers = Servers::start(&options).await.unwrap();
    servers.nats.start_again_with(more).await.unwrap();
    servers
}

fn broker(servers: &Servers, login: &str) -> Broker {
    let url = servers.nats_url().replace("nats://", &format!("nats://{login}@"));
    Broker::new(&[url], None).unwrap()
}

async fn client(servers: &Servers, login: &str) -> Client {
    connect(&broker(servers, login)).await.unwrap()
}

/// The log, opened by FlexCore's own login.
async fn store(servers: &Servers) -> EventStore {
    let settings = Settings {
        profile: Profile::PowerLoss,
        replicas: 1,
        monitor_urls: vec![servers.nats_monitor_url()],
    };
    EventStore::open(client(servers, "flexcore:f%40x%2F1").await, settings).await.unwrap()
}

async fn acknowledged(tenant: &Client, subject: &str) -> Result<String, String> {
    let asked = tenant.request(subject.to_owned(), "{}".into());
    let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
    let answer = answer.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&answer.payload).into_owned())
}

/// The subjects of FlexCore's account to which commands of this tenant's client, with forged reply
/// subjects, made the broker write.
async fn written_by(store: &EventStore, tenant: &Client, wait: Duration) -> Vec<String> {
    let mut seen = Vec::new();
    for subject in FORGED {
        seen.push(store.client().subscribe(subject).await.unwrap());
    }
    store.client().flush().await.unwrap();
    let subject = "cmd.demo.ctr.a.open";
    for reply in FORGED {
        tenant.publish_with_reply(subject, reply, "{}".into()).await.unwrap();
    }
    let answer = acknowledged(tenant, subject).await.unwrap();
    assert!(answer.contains(r#""stream":"FLEX_COMMANDS""#), "{answer}");
    let mut written = Vec::new();
    let mut seen = select_all(seen);
    while let Ok(Some(message)) = tokio::time::timeout(wait, seen.next()).await {
        written.push(message.subject.to_string());
    }
    written.sort();
    written
}

async fn stored(store: &EventStore, stream: &str) -> u64 {
    let jetstream = jetstream::new(store.client().clone());
    let mut stream = jetstream.get_stream(stream).await.unwrap();
    stream.info().await.unwrap().state.last_sequence
}

#[tokio::test]
async fn a_tenant_in_an_account_of_its_own_reaches_its_commands_and_nothing_else() {
    let servers = servers(&format!("{PASSWORDS}{ACCOUNTS}")).await;
    let store = store(&servers).await;
    let tenant = client(&servers, "demo:demo").await;
    let before = stored(&store, "KV_flex_queue").await;
    let written = written_by(&store, &tenant, Duration::from_millis(500)).await;
    assert_eq!(written, [""; 0], "acknowledgements stay in the tenant's account");
    assert_eq!(stored(&store, "FLEX_COMMANDS").await, FORGED.len() as u64 + 1);
    assert_eq!(stored(&store, "FLEX_EVENTS").await, 0);
    assert_eq!(stored(&store, "KV_flex_queue").await, before);
    let other = client(&servers, "other:other").await;
    for (client, subject) in [(&tenant, "cmd.other.ctr.a.open"), (&other, "cmd.demo.ctr.a.open")] {
        acknowledged(client, subject).await.unwrap_err();
    }
    acknowledged(&tenant, "$JS.API.INFO").await.unwrap_err();
    assert_eq!(stored(&store, "FLEX_COMMANDS").await, FORGED.len() as u64 + 1);
    servers.stop().await;
}

#[tokio::test]
async fn a_login_with_permissions_alone_writes_through_reply_subjects() {
    let servers = servers(PERMISSIONS_ALONE).await;
    let store = store(&servers).await;
    let tenant = client(&servers, "demo:demo").await;
    let written = written_by(&store, &tenant, Duration::from_secs(2)).await;
    let mut forged = FORGED.to_vec();
    forged.sort_unstable();
    assert_eq!(written, forged, "this is what accounts are for");
    assert_eq!(stored(&store, "FLEX_EVENTS").await, 2);
    servers.stop().await;
}

#[tokio::test]
async fn a_refused_login_ends_the_start_and_says_what_to_do() {
    let servers = servers(PERMISSIONS_ALONE).await;
    let bare = Broker::new(&[servers.nats_url()], None).unwrap();
    for (nats, advice) in
        [(bare, "give it in --nats"), (broker(&servers, "flexcore:wr0ng"), "user")]
    {
        let endpoints = Endpoints {
            nats,
            nats_monitors: vec![servers.nats_monitor_url()],
            replicas: 1,
            postgres: "postgres://127.0.0.1:1/none".to_owned(),
            postgres_query: None,
        };
        let membership = Membership::new("test", "worker", []);
        let stop = CancellationToken::new();
        let opened =
            Installation::open_when_there(&endpoints, Profile::PowerLoss, &membership, &stop);
        let opened = tokio::time::timeout(Duration::from_secs(10), opened).await;
        let error = format!("{:#}", opened.unwrap().err().unwrap());
        assert!(error.contains("asks for a login") && error.contains(advice), "{error}");
        assert!(!error.contains("wr0ng"), "{error}");
    }
    servers.stop().await;
}
