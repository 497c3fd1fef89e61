//! Random sequences of deployments over random logs: after each of them the rows that serve are
//! those that a rebuild gives, and those that the events say, folded here in a few lines of plain
//! Rust.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Map;

use super::*;

/// Deployments of a run in CI, which takes some seconds; `FLEXCORE_TEST_DEPLOYMENTS` asks for more.
const DEPLOYMENTS: u64 = 8;

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

    fn of<'a>(&mut self, some: &[&'a str]) -> &'a str {
        some[self.below(some.len() as u64) as usize]
    }
}

fn number(variable: &str, default: impl FnOnce() -> u64) -> u64 {
    std::env::var(variable).map_or_else(|_| default(), |text| text.parse().unwrap())
}

/// Uses of an event by a column, by its type.
const WAYS: [(&str, &str, &str); 8] = [
    ("integer", "add", "$.amount"),
    ("integer", "max", "$.amount"),
    ("integer", "min", "$.amount"),
    ("integer", "set", "$version"),
    ("text", "set", "$.note"),
    ("text", "max", "$id"),
    ("number", "add", "$.amount"),
    ("timestamp", "max", "$time"),
];

/// Uses of the data by an upcast: in JavaScript, and in Rust.
type Upcast = (&'static str, fn(&mut Paid));

const UPCASTS: [Upcast; 4] = [
    ("({ ...data, amount: data.amount * 100 })", |paid| paid.amount *= 100),
    ("({ ...data, amount: data.amount + 1 })", |paid| paid.amount += 1),
    ("({ ...data, note: 'n' + data.amount })", |paid| {
        paid.note = Some(format!("n{}", paid.amount))
    }),
    ("({ ...data, group: data.group + 'z' })", |paid| paid.group.push('z')),
];

/// Most of the upcasts that multiply: amounts stay among the integers that are exact.
const HUNDREDFOLD_MAX: usize = 5;

/// An event as it was recorded, or brought to a later version.
#[derive(Clone)]
struct Paid {
    /// Of its schema.
    version: u32,
    id: String,
    group: String,
    amount: i64,
    note: Option<String>,
}

/// The deployment.
#[derive(Default)]
struct Declared {
    /// The columns, each with one of [`WAYS`]; `None`: the read model is not declared.
    columns: Option<Vec<(String, usize)>>,
    /// From each version of the event to the next.
    upcasts: Vec<Upcast>,
}

impl Declared {
    /// Another deployment: a column more, renamed, gone or of another type, an upcast, or the read
    /// model removed or back again.
    fn change(&mut self, random: &mut Random) -> String {
        let way = random.below(WAYS.len() as u64) as usize;
        let Some(columns) = &mut self.columns else {
            self.columns = Some(vec![(random.of(&["a", "b", "c"]).to_owned(), way)]);
            return "read model is back".to_owned();
        };
        let at = random.below(columns.len().max(1) as u64) as usize;
        let fresh = ["a", "b", "c", "d", "e"].iter().find(|n| columns.iter().all(|(c, _)| c != *n));
        match (random.below(10), fresh) {
            (0, _) => {
                self.columns = None;
                "read model is removed".to_owned()
            }
            (1..=3, Some(fresh)) => {
                columns.push(((*fresh).to_owned(), way));
                format!("column {fresh} is {:?}", WAYS[way])
            }
            (4, Some(fresh)) => {
                (*fresh).clone_into(&mut columns[at].0);
                format!("a column is renamed to {fresh}")
            }
            (5, _) if columns.len() > 1 => format!("column {} is gone", columns.remove(at).0),
            (6, _) => {
                columns[at].1 = way;
                format!("column {} becomes {:?}", columns[at].0, WAYS[way])
            }
            _ => {
                let hundredfold =
                    self.upcasts.iter().filter(|(text, _)| *text == UPCASTS[0].0).count();
                let first = u64::from(hundredfold >= HUNDREDFOLD_MAX);
                let which = first + random.below(UPCASTS.len() as u64 - first);
                let upcast = UPCASTS[which as usize];
                self.upcasts.push(upcast);
                format!("upcast {}", upcast.0)
            }
        }
    }

    fn version(&self) -> u32 {
        1 + u32::try_from(self.upcasts.len()).unwrap()
    }

    fn application(&self) -> Application {
        let mut text = format!(
            "aggregate: account\ncommands:\n  pay: {{ decide: '() => []' }}\nevents:\n  paid:\n    \
             version: {}\n    data: {{ type: object }}\n    evolve: (state) => state\n",
            self.version()
        );
        if !self.upcasts.is_empty() {
            text += "    upcast:\n";
            for (from, (upcast, _)) in (1..).zip(&self.upcasts) {
                writeln!(text, "      {from}: \"(data) => {upcast}\"").unwrap();
            }
        }
        if let Some(columns) = &self.columns {
            text += "---\nread_model: sums\ncolumns:\n  group: text\n";
            for (column, way) in columns {
                writeln!(text, "  {column}: {}", WAYS[*way].0).unwrap();
            }
            text += "key: [group]\non:\n  account.paid:\n    key: { group: $.group }\n";
            for operation in ["set", "add", "min", "max"] {
                let those = columns.iter().filter(|(_, way)| WAYS[*way].1 == operation);
                let those: Vec<String> =
                    those.map(|(column, way)| format!("{column}: {}", WAYS[*way].2)).collect();
                if !those.is_empty() {
                    writeln!(text, "    {operation}: {{ {} }}", those.join(", ")).unwrap();
                }
            }
        }
        let files = vec![SourceFile { path: "bank.yaml".to_owned(), text }];
        Application::read(name("bank"), files).unwrap_or_else(|problems| panic!("{problems:?}"))
    }
}

impl Declared {
    /// The rows that the events say, by nothing that the projection is made of.
    fn rows_of(&self, log: &[Paid]) -> Value {
        let columns = self.columns.as_deref().unwrap_or_default();
        let mut rows: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
        for recorded in log {
            let mut paid = recorded.clone();
            self.upcasts.iter().skip(paid.version as usize - 1).for_each(|(_, up)| up(&mut paid));
            let row = rows.entry(paid.group.clone()).or_default();
            row.insert("group".to_owned(), json!(paid.group));
            for (column, way) in columns {
                let (_, operation, of) = WAYS[*way];
                let new = match of {
                    "$.amount" => json!(paid.amount),
                    "$.note" => json!(paid.note),
                    "$id" => json!(paid.id),
                    "$time" => json!("1970-01-01T00:00:00+00:00"),
                    _ => json!(1),
                };
                let old = row.get(column).cloned().unwrap_or_default();
                row.insert(column.clone(), folded(operation, old, new));
            }
        }
        rows.into_values().map(Value::Object).collect()
    }
}

/// A cell after an operation.
fn folded(operation: &str, old: Value, new: Value) -> Value {
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    let is_less = match (old.as_str(), new.as_str()) {
        (Some(old), Some(new)) => old < new,
        _ => number(&old) < number(&new),
    };
    match operation {
        "add" => json!(number(&old) + number(&new)),
        "max" if !old.is_null() && !is_less => old,
        "min" if !old.is_null() && is_less => old,
        _ => new,
    }
}

/// The numbers of rows as integers: the same for each column's type.
fn whole(rows: Value) -> Value {
    match rows {
        Value::Array(all) => all.into_iter().map(whole).collect(),
        Value::Object(row) => row.into_iter().map(|(name, cell)| (name, whole(cell))).collect(),
        Value::Number(number) => json!(number.as_f64().unwrap() as i64),
        other => other,
    }
}

/// Waits until the version that serves is the declared one and has read the whole log; returns its rows.
async fn settled(rig: &Rig, application: &Application, last: u64, story: &[String]) -> Value {
    let model = &application.read_models["sums"];
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let status = rig.read_models.status().await.unwrap();
        let serves = status.iter().any(|s| {
            let is_it = s.state == VersionState::Serving && s.fingerprint == model.fingerprint;
            is_it && s.position >= last
        });
        if serves && status.len() == 1 {
            let page = rig.read_models.query(&tenant(), model, &[]).await.unwrap();
            return serde_json::from_str(&page.rows).unwrap();
        }
        assert!(tokio::time::Instant::now() < deadline, "{status:?} after {story:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn rebuilt(rig: &Rig, application: &Application, last: u64, story: &[String]) -> Value {
    let request = rig.read_models.request_rebuild("sums").await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !matches!(rig.read_models.rebuild(request).await.unwrap(), Rebuild::Done { .. }) {
        assert!(tokio::time::Instant::now() < deadline, "no rebuild after {story:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    settled(rig, application, last, story).await
}

#[expect(clippy::print_stdout, reason = "the seed is shown when the test fails")]
fn seed() -> u64 {
    let seed = number("FLEXCORE_TEST_SEED", || RandomState::new().hash_one(0));
    println!("rows_are_those_of_a_rebuild_whatever_was_deployed: FLEXCORE_TEST_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_those_of_a_rebuild_whatever_was_deployed() {
    let mut random = Random(seed());
    let deployments = number("FLEXCORE_TEST_DEPLOYMENTS", || DEPLOYMENTS);
    let rig = Rig::start().await;
    let mut declared = Declared { columns: Some(vec![("a".to_owned(), 0)]), ..Default::default() };
    let mut catalog = Catalog::default();
    catalog.put(declared.application());
    rig.catalog.send_replace(Arc::new(catalog.clone()));
    let (stop, worker) = rig.work().await;
    let (mut story, mut log, mut compared) = (Vec::new(), Vec::new(), 0);
    for deployment in 0..deployments {
        let application = declared.application();
        let commits = random.below(40);
        let mut last = 0;
        for _ in 0..commits {
            // A worker that has not heard of the deployment yet records by its own catalog.
            let newest = u64::from(declared.version());
            let version = if random.below(4) == 0 { 1 + random.below(newest) } else { newest };
            let paid = Paid {
                version: u32::try_from(version).unwrap(),
                id: format!("p{}", log.len()),
                group: random.of(&["x", "y", "z"]).to_owned(),
                amount: random.below(1_000).cast_signed(),
                note: None,
            };
            let amounts = [json!(paid.amount)];
            last = rig.pay_as(paid.version, &paid.id, &paid.group, &amounts).await.sequence;
            log.push(paid);
        }
        story.push(format!("{commits} commits"));
        // Now and then the next deployment comes before this one is built.
        let is_last = deployment + 1 == deployments;
        if declared.columns.is_some() && (is_last || random.below(3) > 0) {
            let rows = settled(&rig, &application, last, &story).await;
            let anew = rebuilt(&rig, &application, last, &story).await;
            assert_eq!(rows, anew, "after {story:#?}");
            assert_eq!(whole(rows), declared.rows_of(&log), "after {story:#?}");
            compared += 1;
        }
        story.push(declared.change(&mut random));
        catalog.put(declared.application());
        rig.catalog.send_replace(Arc::new(catalog.clone()));
    }
    assert!(compared > 0, "nothing was compared: {story:#?}");
    stop.cancel();
    worker.await.unwrap();
    rig.servers.stop().await;
}
