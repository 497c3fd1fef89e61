//! Shared parts of the tests: a database of their own, and read models to fill.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use flexcore_definition::{
    Application, Catalog, Column, ColumnType, Expression, FileLine, Operation, QueryDefinition,
    ReadModelDefinition, RowChange,
};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, AggregateName, CommandHash, CommandId, Commit, Event,
    EventName, Name, Provenance, Slot, Tenant,
};
use flexcore_readmodel::{Ahead, Change, Move, Part, ReadModels, Settings, Version, VersionState};
use flexcore_servers::{Options, Servers, Want};
use serde_json::{Value, value::to_raw_value};
use sqlx::{AssertSqlSafe, PgPool, Row as _};

/// The server's URL. It runs on a thread of its own, because each test has its own runtime, and ends
/// with the process.
fn server() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let cache = flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
                let options = Options { want: Want::Both, ..Options::new(cache) };
                let servers = Servers::start(&options).await.unwrap();
                sender.send(servers.postgres_url().unwrap()).unwrap();
                std::future::pending::<()>().await;
            });
        });
        receiver.recv().unwrap()
    })
}

/// A database of one test.
pub(crate) struct Database {
    pub(crate) models: ReadModels,
    /// A superuser's view.
    pub(crate) admin: PgPool,
    pub(crate) url: String,
}

impl Database {
    pub(crate) async fn empty() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let postgres = PgPool::connect(server()).await.unwrap();
        let create = format!("create database {name}");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&postgres).await.unwrap();
        postgres.close().await;
        let url = format!("{}/{name}", server().rsplit_once('/').unwrap().0);
        let models = ReadModels::connect(&url, Settings::default()).await.unwrap();
        let admin = PgPool::connect(&url).await.unwrap();
        Self { models, admin, url }
    }

    pub(crate) async fn new() -> Self {
        let database = Self::empty().await;
        database.models.migrate().await.unwrap();
        database
    }

    /// The first column of the first row, as text.
    pub(crate) async fn one(&self, sql: &str) -> String {
        let row = sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_one(&self.admin).await.unwrap();
        row.try_get::<Option<String>, _>(0).unwrap().unwrap_or_default()
    }

    /// The versions to run of this catalog.
    pub(crate) async fn versions(&self, catalog: &Catalog) -> Vec<Arc<Version>> {
        self.versions_under(1, catalog).await
    }

    /// The same, for an owner of this epoch.
    pub(crate) async fn versions_under(&self, epoch: i64, catalog: &Catalog) -> Vec<Arc<Version>> {
        let versions = self.models.versions(catalog, &|_, _| Some(epoch)).await.unwrap();
        versions.run
    }

    /// A version of the model that serves, empty.
    pub(crate) async fn serving(&self, model: &Arc<ReadModelDefinition>) -> Arc<Version> {
        let catalog = catalog([model.clone()]);
        let version = self.versions(&catalog).await.remove(0);
        assert_eq!(version.state, VersionState::Building);
        assert!(self.models.promote(&version, &mut Ahead::default()).await.unwrap());
        self.versions(&catalog).await.remove(0)
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

pub(crate) fn tenant(text: &str) -> Tenant {
    Tenant::parse(text).unwrap()
}

pub(crate) fn catalog(models: impl IntoIterator<Item = Arc<ReadModelDefinition>>) -> Catalog {
    let application = Application {
        name: name("app"),
        version: 1,
        files: Vec::new(),
        aggregates: BTreeMap::new(),
        read_models: models.into_iter().map(|model| (model.name.clone(), model)).collect(),
        queries: BTreeMap::new(),
    };
    let mut catalog = Catalog::default();
    catalog.put(application);
    catalog
}

/// A read model over the events of aggregate `thing`.
pub(crate) fn model(
    model: &str,
    fingerprint: &str,
    columns: &[(&str, ColumnType)],
    on: impl IntoIterator<Item = (&'static str, RowChange)>,
) -> Arc<ReadModelDefinition> {
    let aggregate = AggregateName::parse("thing").unwrap();
    let on = on
        .into_iter()
        .map(|(event, change)| ((aggregate.clone(), EventName::parse(event).unwrap()), change));
    Arc::new(ReadModelDefinition {
        name: name(model),
        description: String::new(),
        place: FileLine::default(),
        columns: columns
            .iter()
            .map(|(text, column_type)| Column { name: name(text), column_type: *column_type })
            .collect(),
        key: vec![name(columns[0].0)],
        indexes: Vec::new(),
        on: on.collect(),
        followed: BTreeMap::new(),
        shared: false,
        fingerprint: fingerprint.to_owned(),
    })
}

/// A named query over `things`, without parameters.
pub(crate) fn query(sql: &str) -> QueryDefinition {
    QueryDefinition {
        name: name("q"),
        description: String::new(),
        place: FileLine::default(),
        sql: sql.to_owned(),
        sql_line: 1,
        reads: vec![name("things")],
        fingerprints: vec!["f".to_owned()],
        parameters: Vec::new(),
    }
}

pub(crate) fn data(path: &str) -> Expression {
    Expression::Data(path.split('.').map(str::to_owned).collect())
}

/// A change of the row that `$.k` names.
pub(crate) fn change(operations: &[(&str, Operation, Expression)]) -> RowChange {
    let operations =
        operations.iter().map(|(column, op, from)| (name(column), *op, from.clone())).collect();
    RowChange { transform: None, key: vec![data("k")], delete: false, operations }
}

/// A commit with one event of `thing/1`.
pub(crate) fn commit(of: &str, event: &str, version: u64, data: &Value) -> Commit {
    Commit {
        key: AggregateKey::new(
            tenant(of),
            AggregateName::parse("thing").unwrap(),
            AggregateId::parse("1").unwrap(),
        ),
        command_id: CommandId::parse("c").unwrap(),
        command_hash: CommandHash::of("", ""),
        provenance: Provenance::of(ActorName::parse("a").unwrap()),
        time_ms: 1_356_998_400_123,
        events: vec![Event {
            event: EventName::parse(event).unwrap(),
            version,
            schema_version: 1,
            data: to_raw_value(data).unwrap(),
        }],
    }
}

/// The version's handling of a commit.
pub(crate) fn changes(version: &Version, commit: &Commit) -> Result<Option<Change>, String> {
    let event = &commit.events[0];
    version.plan.change(commit, event, &event.data).map_err(|unfit| unfit.to_string())
}

/// A part that moves every slot.
pub(crate) fn part(version: &Arc<Version>, changes: Vec<Change>, from: u64, to: u64) -> Part {
    let moves = Slot::all().map(|slot| Move { slot, from, to, hash: None }).collect();
    Part { version: version.clone(), changes, parked: Vec::new(), moves }
}
