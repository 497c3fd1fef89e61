//! Deployments while a worker runs.

use std::sync::atomic::Ordering;

use flexcore_definition::{Application, SourceFile};
use flexcore_domain::{Name, StateReply};

use super::*;
use crate::shares::{ask, key_of};

/// An application whose one aggregate has that name.
fn application(version: u32, aggregate: &str, decide: &str, evolve: &str) -> Application {
    let text = format!(
        "aggregate: {aggregate}
commands:
  add:
    decide: |
      {decide}
events:
  added:
    data: {{ type: object }}
    evolve: |
      {evolve}
"
    );
    let files = vec![SourceFile { path: "a.yaml".to_owned(), text }];
    let name = Name::parse(&format!("{aggregate}s")).unwrap();
    Application { version, ..Application::read(name, files).unwrap() }
}

/// A worker of one lane, and what is deployed for it.
struct Deploying {
    rig: Rig,
    deployed: watch::Sender<Arc<Catalog>>,
    epochs: BTreeMap<u16, u64>,
    stop: CancellationToken,
}

impl Deploying {
    async fn start(rig: Rig, applications: impl IntoIterator<Item = Application>) -> Self {
        let mut catalog = Catalog::default();
        for application in applications {
            catalog.put(application);
        }
        let (deployed, catalog) = watch::channel(Arc::new(catalog));
        let (member, stop) = (rig.member(LEASE).await, CancellationToken::new());
        let settings = command::Settings { lanes: 1, ..command::Settings::default() };
        let running =
            command::run(rig.store.clone(), catalog, member.clone(), settings, stop.clone());
        tokio::spawn(running);
        let epochs = everything(&member).await;
        Self { rig, deployed, epochs, stop }
    }

    /// Puts this in place of the application of its name, and waits until the worker has it in force.
    async fn deploy(&self, application: Application) {
        let subject = format!("ctl.catalog.{}", application.name);
        let version = application.version.to_string();
        let mut catalog = Catalog::clone(&self.deployed.borrow());
        catalog.put(application);
        self.deployed.send_replace(Arc::new(catalog));
        until(async || {
            let said = self.rig.store.client().request(subject.clone(), "".into()).await.ok()?;
            (said.payload[..] == *version.as_bytes()).then_some(())
        })
        .await;
    }

    /// The aggregate's state, and the bytes that come from the broker for the question.
    async fn state(&self) -> (StateReply, u64) {
        let (client, key) = (self.rig.store.client(), &self.rig.key);
        let subject = Command::state_subject(self.epochs[&key.slot().number()], key);
        let bytes = || client.statistics().in_bytes.load(Ordering::Relaxed);
        let (answer, before) = until(async || {
            let before = bytes();
            // Nobody may have subscribed yet.
            let answer = client.request(subject.clone(), "".into()).await.ok()?;
            Some((answer, before))
        })
        .await;
        (serde_json::from_slice(&answer.payload).unwrap(), bytes() - before)
    }

    async fn end(self) {
        self.stop.cancel();
        self.rig.servers.stop().await;
    }
}

fn is_found(reply: &StateReply, expected: &str) -> bool {
    matches!(reply, StateReply::Found { state, .. } if state.get() == expected)
}

/// Each deployment once had every aggregate loaded again.
#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_has_those_aggregates_loaded_that_it_changes_and_no_others() {
    // Beside a megabyte of them what a worker reads meanwhile is nothing.
    const EVENTS: u64 = 2_000;
    const DECIDE: &str = "() => [{ event: 'added', data: {} }]";
    const COUNT: &str = "(state) => (state ?? 0) + 1";
    let rig = Rig::start().await;
    rig.append_to(EVENTS, Expected::default(), 0).await;
    let log = rig.store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let log_bytes = log.cached_info().state.bytes;
    let counters = |version, decide, evolve| application(version, "counter", decide, evolve);
    let running = Deploying::start(rig, [counters(1, DECIDE, COUNT)]).await;
    let counted = EVENTS.to_string();
    let (reply, _) = running.state().await;
    assert!(is_found(&reply, &counted), "{reply:?}");

    for deployed in [
        application(1, "other", DECIDE, COUNT),
        application(2, "other", DECIDE, "() => 0"),
        counters(2, "() => []", COUNT),
    ] {
        let what = format!("{} {}", deployed.name, deployed.version);
        running.deploy(deployed).await;
        let (reply, read) = running.state().await;
        assert!(is_found(&reply, &counted), "{what}: {reply:?}");
        assert!(read < log_bytes / 4, "{what}: {read} bytes of the log's {log_bytes}");
    }

    running.deploy(counters(3, DECIDE, "(state) => (state ?? 0) + 2")).await;
    let (reply, read) = running.state().await;
    assert!(is_found(&reply, &(2 * EVENTS).to_string()), "{reply:?}");
    assert!(read > log_bytes / 2, "{read} bytes of the log's {log_bytes}");

    let mut gone = application(4, "another", DECIDE, COUNT);
    gone.name = Name::parse("counters").unwrap();
    running.deploy(gone).await;
    let (reply, _) = running.state().await;
    assert!(matches!(reply, StateReply::Faulty { .. }), "{reply:?}");
    running.end().await;
}

/// The lane's thread was told of a deployment with the first call after it. Where that one was refused, as
/// functions are that have run away, the thread went on with the former functions of everybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_is_in_force_for_all_when_the_first_call_after_it_is_refused() {
    const KEEP: &str = "(state) => state ?? null";
    // A few steps of milliseconds each: the engine looks at the time every 10,000.
    const HOSTILE: &str = "() => { const s = 'a'.repeat(1e3).repeat(1e4), t = s.slice(1) + 'a'; \
                           for (let n = 0; n < 4000; n++) { s === t; } return []; }";
    let accepts = "() => [{ event: 'added', data: {} }]";
    let applications =
        [application(1, "counter", accepts, KEEP), application(1, "bad", HOSTILE, KEEP)];
    let running = Deploying::start(Rig::start().await, applications).await;
    let (client, epochs) = (running.rig.store.client(), &running.epochs);
    let hostile = AggregateKey::new(
        Tenant::parse("hostile").unwrap(),
        AggregateName::parse("bad").unwrap(),
        AggregateId::parse("b1").unwrap(),
    );
    let is_refused = |message: &str| message.contains("far more time than it may");
    let mut calls = 0;
    loop {
        // One that comes back late is forgiven, a second one is not.
        let ran_away = ask(client, epochs, hostile.clone()).await;
        let Outcome::Faulty { message } = &ran_away else { panic!("{ran_away:?}") };
        if is_refused(message) {
            break;
        }
        calls += 1;
        assert!(calls < 5, "{message}");
    }
    let before = ask(client, epochs, key_of("calm", 1)).await;
    assert!(matches!(before, Outcome::Accepted { position: Some(_), .. }), "{before:?}");

    running.deploy(application(2, "counter", "() => []", KEEP)).await;
    let refused = ask(client, epochs, hostile).await;
    assert!(matches!(&refused, Outcome::Faulty { message } if is_refused(message)), "{refused:?}");
    let after = ask(client, epochs, key_of("calm", 2)).await;
    assert!(matches!(after, Outcome::Accepted { position: None, .. }), "{after:?}");
    running.end().await;
}
