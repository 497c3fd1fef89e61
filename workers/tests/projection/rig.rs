//! Shared parts of the tests: servers, a log that accounts are paid in, and a worker.

use super::*;

/// Long enough for a server that starts again on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

pub(crate) fn tenant() -> Tenant {
    Tenant::parse("acme").unwrap()
}

/// `sums`: how often and how much, by the aggregate's group; `fingerprint` makes it another version.
pub(crate) fn sums(fingerprint: &str) -> ReadModelDefinition {
    let column = |text, column_type| Column { name: name(text), column_type };
    let data = |text: &str| Expression::Data(vec![text.to_owned()]);
    let change = RowChange {
        transform: None,
        key: vec![data("group")],
        delete: false,
        operations: vec![
            (name("count"), Operation::Add, Expression::Literal(json!(1))),
            (name("total"), Operation::Add, data("amount")),
        ],
    };
    ReadModelDefinition {
        name: name("sums"),
        description: String::new(),
        place: FileLine::default(),
        columns: vec![
            column("group", ColumnType::Text),
            column("count", ColumnType::Integer),
            column("total", ColumnType::Integer),
        ],
        key: vec![name("group")],
        indexes: Vec::new(),
        on: BTreeMap::from([((aggregate(), EventName::parse("paid").unwrap()), change)]),
        followed: BTreeMap::new(),
        shared: false,
        fingerprint: fingerprint.to_owned(),
    }
}

pub(crate) fn aggregate() -> AggregateName {
    AggregateName::parse("account").unwrap()
}

/// The deployment after the declarations were put in force one after the other.
pub(crate) fn catalog(models: impl IntoIterator<Item = ReadModelDefinition>) -> Arc<Catalog> {
    let mut catalog = Catalog::default();
    models.into_iter().for_each(|model| catalog.put(bank(model)));
    Arc::new(catalog)
}

pub(crate) fn bank(model: ReadModelDefinition) -> Application {
    Application {
        name: name("bank"),
        version: 1,
        files: Vec::new(),
        aggregates: BTreeMap::new(),
        read_models: BTreeMap::from([(model.name.clone(), Arc::new(model))]),
        queries: BTreeMap::new(),
    }
}

pub(crate) struct Rig {
    pub(crate) servers: Servers,
    pub(crate) store: EventStore,
    pub(crate) read_models: ReadModels,
    pub(crate) catalog: watch::Sender<Arc<Catalog>>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        let cache = flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
        let options = Options { sync: Sync::Lazy, ..Options::new(cache) };
        let servers = Servers::start(&options).await.unwrap();
        let client = async_nats::connect(servers.nats_url()).await.unwrap();
        let settings = flexcore_eventstore::Settings {
            profile: Profile::Relaxed,
            replicas: 1,
            monitor_urls: vec![servers.nats_monitor_url()],
        };
        let store = EventStore::open(client, settings).await.unwrap();
        let url = servers.postgres_url().unwrap();
        let settings = flexcore_readmodel::Settings::default();
        let read_models = ReadModels::connect(&url, settings).await.unwrap();
        read_models.migrate().await.unwrap();
        let catalog = watch::channel(catalog([sums("1")])).0;
        Self { servers, store, read_models, catalog }
    }

    /// A worker that is a member of its own until it is told to stop.
    pub(crate) async fn work(&self) -> (CancellationToken, JoinHandle<()>) {
        self.work_as(projection::Settings::default()).await
    }

    pub(crate) async fn work_as(
        &self,
        settings: projection::Settings,
    ) -> (CancellationToken, JoinHandle<()>) {
        let membership = flexcore_cluster::Settings::new("test", "worker", [PROJECTIONS]);
        let member = Member::join(self.store.client(), membership).await.unwrap();
        let stop = CancellationToken::new();
        let running = projection::run(
            self.store.clone(),
            self.read_models.clone(),
            self.catalog.subscribe(),
            member.clone(),
            settings,
            stop.clone(),
        );
        let worker = tokio::spawn(async move {
            running.await.unwrap();
            member.leave().await;
        });
        (stop, worker)
    }

    /// Records that the account was paid these amounts, each in a commit of its own.
    pub(crate) async fn pay(&self, id: &str, group: &str, amounts: &[Value]) -> Position {
        self.pay_as(1, id, group, amounts).await
    }

    /// The same, in this version of the event's schema.
    pub(crate) async fn pay_as(
        &self,
        schema_version: u32,
        id: &str,
        group: &str,
        amounts: &[Value],
    ) -> Position {
        let key = AggregateKey::new(tenant(), aggregate(), AggregateId::parse(id).unwrap());
        let mut expected = Expected::default();
        for (version, amount) in (1..).zip(amounts) {
            let mut commit = paid(&key, version, group, amount);
            commit.events[0].schema_version = schema_version;
            // Without a connection an append is refused at once.
            let connected = async_nats::connection::State::Connected;
            while self.store.client().connection_state() != connected {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let appended = self.store.append(&commit, expected).await.unwrap();
            expected = Expected { sequence: appended.sequence, hash: appended.hash };
        }
        Position { slot: key.slot(), sequence: expected.sequence }
    }

    pub(crate) async fn rows(&self) -> Value {
        let model = sums("any");
        let page = self.read_models.select(&tenant(), &model, &Select::default()).await.unwrap();
        serde_json::from_str(&page.rows).unwrap()
    }

    /// Waits until read models serve and have passed the position.
    pub(crate) async fn caught_up(&self, position: Position) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let wait = self.read_models.wait(&[name("sums")], &[position], PATIENCE).await;
            match wait {
                Ok(()) => return,
                Err(error) if tokio::time::Instant::now() > deadline => panic!("{error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the read model has passed the position.
pub(crate) async fn passes(rig: &Rig, model: &str, position: Position) {
    let wait = async || {
        let short = Duration::from_millis(200);
        rig.read_models.wait(&[name(model)], &[position], short).await.is_ok()
    };
    until(&format!("{model} stands still"), wait).await;
}

pub(crate) fn ones(count: usize) -> Vec<Value> {
    vec![json!(1); count]
}

/// Accounts whose amounts are whole units in version 1 of the event, and hundredths in version 2; the
/// read model is declared alike in both.
pub(crate) fn units(version: u32) -> Application {
    let upcast = "version: 2
    upcast:
      1: \"(data) => ({ ...data, amount: data.amount * 100 })\"";
    let version = if version == 2 { upcast } else { "version: 1" };
    let text = format!(
        "aggregate: account
commands:
  pay: {{ decide: '() => []' }}
events:
  paid:
    {version}
    data: {{ type: object }}
    evolve: (state) => state
---
read_model: sums
columns: {{ group: text, count: integer, total: integer }}
key: [group]
on:
  account.paid:
    key: {{ group: $.group }}
    add: {{ count: 1, total: $.amount }}
"
    );
    let files = vec![SourceFile { path: "bank.yaml".to_owned(), text }];
    Application::read(name("bank"), files).unwrap()
}

/// The account was paid.
pub(crate) fn paid(key: &AggregateKey, version: u64, group: &str, amount: &Value) -> Commit {
    Commit {
        key: key.clone(),
        command_id: CommandId::parse(&format!("{}-{version}", key.id())).unwrap(),
        command_hash: CommandHash::of("", ""),
        provenance: Provenance::of(ActorName::parse("a").unwrap()),
        time_ms: 0,
        events: vec![Event {
            event: EventName::parse("paid").unwrap(),
            version,
            schema_version: 1,
            data: to_raw_value(&json!({"group": group, "amount": amount})).unwrap(),
        }],
    }
}
