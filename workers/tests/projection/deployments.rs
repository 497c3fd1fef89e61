//! Random sequences of deployments over random logs: after each of them the rows that serve are
//! those that a rebuild gives, and those that the events say, folded here in a few lines of plain
//! Rust.

mod declared;
mod events;

use std::mem;

use flexcore_definition::Index;

use self::{declared::Declared, events::Happened};
use super::*;

/// Deployments of a run in CI, some seconds each; `FLEXCORE_TEST_DEPLOYMENTS` asks for more.
const DEPLOYMENTS: u64 = 10;

/// The seed of a run, unless `FLEXCORE_TEST_SEED` gives another; `random` is a new one. A new one in each run would
/// find its faults in changes that have nothing to do with them.
const SEED: u64 = 1;

/// Rows of a page: few, so that there are several.
const PAGE: u32 = 20;

/// A small generator: the same seed gives the same run.
struct Random(u64);

impl Random {
    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % end
    }

    fn of<T: Copy>(&mut self, some: &[T]) -> T {
        some[self.below(some.len() as u64) as usize]
    }
}

/// The number that a text gives, of a variable of the environment.
fn number(given: Option<&str>, default: u64) -> u64 {
    given.map_or(default, |text| text.parse().unwrap())
}

fn seed_of(given: Option<&str>) -> u64 {
    match given {
        Some("random") => RandomState::new().hash_one(0),
        given => number(given, SEED),
    }
}

#[expect(clippy::print_stdout, reason = "the seed is shown when the test fails")]
fn seed() -> u64 {
    let seed = seed_of(std::env::var("FLEXCORE_TEST_SEED").ok().as_deref());
    println!("rows_are_those_of_a_rebuild_whatever_was_deployed: FLEXCORE_TEST_SEED={seed}");
    seed
}

/// The log so far.
#[derive(Default)]
struct Log {
    events: Vec<Happened>,
    /// By aggregate: what its next commit follows, and its version.
    ends: BTreeMap<String, (Expected, u64)>,
    /// The last commit of each slot.
    last: BTreeMap<u16, Position>,
    /// The time, in minutes.
    minutes: u64,
}

impl Log {
    /// Records a commit of one to three events.
    async fn record(&mut self, rig: &Rig, declared: &Declared, random: &mut Random) {
        // It stays in one month, so that it is easily written as Postgres writes it.
        self.minutes = (self.minutes + random.below(20)).min(28 * 24 * 60);
        let id = Declared::account(random);
        let (expected, version) = self.ends.get(&id).copied().unwrap_or_default();
        let first = self.events.len();
        for nth in 1..random.below(3) + 2 {
            self.events.push(declared.event((id.as_str(), version + nth), self.minutes, random));
        }
        let events: Vec<Event> = self.events[first..].iter().map(Happened::event).collect();
        let count = events.len() as u64;
        let key = AggregateKey::new(tenant(), aggregate(), AggregateId::parse(&id).unwrap());
        let commit = Commit {
            time_ms: (self.minutes * 60_000).cast_signed(),
            events,
            ..paid(&key, version + 1, "", &Value::Null)
        };
        let appended = rig.store.append(&commit, expected).await.unwrap();
        let expected = Expected { sequence: appended.sequence, hash: appended.hash };
        self.ends.insert(id, (expected, version + count));
        let position = Position { slot: key.slot(), sequence: appended.sequence };
        self.last.insert(position.slot.number(), position);
    }
}

/// JSON whose numbers are all doubles: the same for each column's type.
fn floats(json: Value) -> Value {
    match json {
        Value::Array(all) => all.into_iter().map(floats).collect(),
        Value::Object(row) => row.into_iter().map(|(name, cell)| (name, floats(cell))).collect(),
        Value::Number(number) => json!(number.as_f64().unwrap()),
        other => other,
    }
}

/// Rows in an order of their own.
fn set(rows: &[Value]) -> Vec<Value> {
    let mut rows: Vec<Value> = rows.iter().cloned().map(floats).collect();
    rows.sort_by_key(|row| {
        let cells: BTreeMap<&String, &Value> = row.as_object().unwrap().iter().collect();
        format!("{cells:?}")
    });
    rows
}

/// All rows, page by page, in the order of the key or of an index.
async fn rows(rig: &Rig, model: &ReadModelDefinition, index: Option<&Index>) -> Vec<Value> {
    let (mut rows, mut cursor) = (Vec::new(), None::<String>);
    let sort = index.map(|index| {
        let sign = |descends| if descends { "-" } else { "" };
        let columns = index.columns.iter().map(|(name, down)| format!("{}{name}", sign(*down)));
        columns.collect::<Vec<_>>().join(",")
    });
    loop {
        let mut pairs = vec![("limit".to_owned(), PAGE.to_string())];
        pairs.extend(sort.clone().map(|sort| ("sort".to_owned(), sort)));
        pairs.extend(cursor.map(|cursor| ("cursor".to_owned(), cursor)));
        let page = rig.read_models.query(&tenant(), model, &pairs).await.unwrap();
        rows.extend(serde_json::from_str::<Vec<Value>>(&page.rows).unwrap());
        match page.next_cursor {
            Some(next) => cursor = Some(next),
            None => return rows,
        }
    }
}

/// Waits until the versions that serve are the declared ones, and there are no others, and they have
/// read the whole log.
async fn settled(rig: &Rig, application: &Application, log: &Log, told: &str) {
    let models = &application.read_models;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let status = rig.read_models.status().await.unwrap();
        let serves = |model: &Arc<ReadModelDefinition>| {
            let mut own = status.iter().filter(|s| s.read_model == model.name);
            own.any(|s| s.state == VersionState::Serving && s.fingerprint == model.fingerprint)
        };
        if status.len() == models.len() && models.values().all(serves) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{status:?} {told}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let names: Vec<Name> = models.keys().cloned().collect();
    let positions: Vec<Position> = log.last.values().copied().collect();
    let waited = rig.read_models.wait(&names, &positions, PATIENCE).await;
    waited.unwrap_or_else(|error| panic!("{error} {told}"));
    let status = rig.read_models.status().await.unwrap();
    assert!(status.iter().all(|s| s.parked == 0), "{status:?} {told}");
}

/// Holds the rows of each read model to what the events say, and to those of a rebuild.
async fn compare(rig: &Rig, declared: &Declared, log: &Log, story: &[String]) {
    let application = declared.application();
    let told = format!("after {story:#?}\nwith\n{}", application.files[0].text);
    settled(rig, &application, log, &told).await;
    let (mut before, mut rebuilds) = (Vec::new(), Vec::new());
    for model in application.read_models.values() {
        let name = model.name.as_str();
        let (found, expected) = (rows(rig, model, None).await, declared.rows_of(name, &log.events));
        assert_eq!(floats(Value::Array(found.clone())), Value::Array(expected.clone()), "{told}");
        for index in &model.indexes {
            let sorted = rows(rig, model, Some(index)).await;
            assert_eq!(set(&sorted), set(&expected), "{name} by {index} {told}");
        }
        let query = &application.queries[format!("all_{name}").as_str()];
        let answer = rig.read_models.run_query(&tenant(), query, &[]).await.unwrap();
        let answer: Vec<Value> = serde_json::from_str(&answer).unwrap();
        assert_eq!(set(&answer), set(&expected), "the query of {name} {told}");
        before.push((model, found));
        rebuilds.push(rig.read_models.request_rebuild(name).await.unwrap());
    }
    let deadline = tokio::time::Instant::now() + PATIENCE;
    for rebuild in rebuilds {
        while !matches!(rig.read_models.rebuild(rebuild).await.unwrap(), Rebuild::Done { .. }) {
            assert!(tokio::time::Instant::now() < deadline, "no rebuild {told}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    settled(rig, &application, log, &told).await;
    for (model, before) in before {
        assert_eq!(rows(rig, model, None).await, before, "a rebuild {told}");
    }
}

type Worker = (CancellationToken, JoinHandle<()>);

async fn end(workers: Vec<Worker>) {
    workers.iter().for_each(|(stop, _)| stop.cancel());
    for (_, worker) in workers {
        worker.await.unwrap();
    }
}

fn deploy(rig: &Rig, catalog: &mut Catalog, declared: &Declared) {
    catalog.put(declared.application());
    rig.catalog.send_replace(Arc::new(catalog.clone()));
}

#[test]
fn a_run_has_the_same_seed_unless_another_is_asked_for() {
    assert_eq!([seed_of(None), seed_of(Some("7"))], [SEED, 7]);
    assert_ne!(seed_of(Some("random")), seed_of(Some("random")));
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_those_of_a_rebuild_whatever_was_deployed() {
    let mut random = Random(seed());
    let given = std::env::var("FLEXCORE_TEST_DEPLOYMENTS").ok();
    let deployments = number(given.as_deref(), DEPLOYMENTS);
    let rig = Rig::start().await;
    let (mut declared, mut catalog) = (Declared::any(&mut random), Catalog::default());
    deploy(&rig, &mut catalog, &declared);
    let (mut workers, mut log) = (Vec::<Worker>::new(), Log::default());
    let mut story = Vec::new();
    for deployment in 0..deployments {
        // Once for sure, in the middle.
        let ends = deployment == deployments / 2 || random.below(5) == 0;
        if ends && !workers.is_empty() {
            end(mem::take(&mut workers)).await;
            story.push("the workers end".to_owned());
        }
        for _ in 0..random.below(25) {
            log.record(&rig, &declared, &mut random).await;
        }
        story.push(format!("{} events in all", log.events.len()));
        // Now and then the next deployment comes before this one is built, or before there is a worker.
        let is_edge = deployment == 0 || deployment + 1 == deployments;
        let compares = is_edge || random.below(3) > 0;
        if workers.is_empty() && (compares || random.below(2) == 0) {
            // A process that starts knows no former deployment.
            catalog = Catalog::default();
            deploy(&rig, &mut catalog, &declared);
            for _ in 0..=random.below(2) {
                workers.push(rig.work().await);
            }
            story.push(format!("{} workers begin", workers.len()));
        }
        if compares {
            compare(&rig, &declared, &log, &story).await;
            story.push("compared".to_owned());
        }
        story.push(declared.change(&mut random));
        deploy(&rig, &mut catalog, &declared);
    }
    end(workers).await;
    rig.servers.stop().await;
}
