//! However events fall into batches, the rows are the same as those of one event at a time.

use std::sync::Arc;

use flexcore_definition::{ColumnType, Expression, Operation, RowChange};
use flexcore_readmodel::{Change, Error, Version};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};

use crate::database::{Database, catalog, change, changes, commit, data, model, part};

const COLUMNS: [(&str, ColumnType); 9] = [
    ("k", ColumnType::Text),
    ("s", ColumnType::Text),
    ("n", ColumnType::Integer),
    ("m", ColumnType::Integer),
    ("f", ColumnType::Number),
    ("b", ColumnType::Boolean),
    ("t", ColumnType::Timestamp),
    ("d", ColumnType::Date),
    ("order", ColumnType::Number),
];

fn events() -> [(&'static str, RowChange); 6] {
    use Operation::{Add, Max, Min, Set};
    let all =
        |op| ["s", "n", "m", "f", "b", "t", "d", "order"].map(|column| (column, op, data(column)));
    [
        ("set", change(&all(Set))),
        ("low", change(&all(Min))),
        ("high", change(&all(Max))),
        ("some", change(&[("s", Set, data("s")), ("n", Set, Expression::Version)])),
        ("sum", change(&[("n", Add, data("n")), ("m", Add, data("m")), ("f", Add, data("f"))])),
        ("gone", RowChange { delete: true, ..change(&[]) }),
    ]
}

fn value(strategy: impl Strategy<Value = Value> + 'static) -> BoxedStrategy<Value> {
    prop_oneof![1 => Just(Value::Null), 4 => strategy].boxed()
}

fn event() -> impl Strategy<Value = (&'static str, &'static str, Value)> {
    let integer = || value((-1_000_i64..1_000).prop_map(Value::from));
    // Sums of these depend on their order.
    let number = || value((-1e6_f64..1e6).prop_map(|n| json!(n / 3.0)));
    let time = value(
        (1..28_u32, 0..999_999_u32)
            .prop_map(|(day, micros)| json!(format!("2013-01-{day:02}T05:15:00.{micros:06}Z"))),
    );
    let date = value((1..28_u32).prop_map(|day| json!(format!("2013-02-{day:02}"))));
    let text = value("[a-zA-Zé ]{0,6}".prop_map(Value::from));
    let flag = value(any::<bool>().prop_map(Value::from));
    let kind = prop::sample::select(vec!["set", "low", "high", "some", "sum", "sum", "gone"]);
    let of = prop::sample::select(vec!["a", "b"]);
    let key = 0..4_u8;
    let values = (text, integer(), integer(), number(), flag, time, date, number());
    (of, kind, key, values).prop_map(|(of, kind, key, (s, n, m, f, b, t, d, order))| {
        let data = json!({"k": format!("k{key}"), "s": s, "n": n, "m": m, "f": f, "b": b, "t": t,
                          "d": d, "order": order});
        (of, kind, data)
    })
}

/// A seed to tell where a case fails, and what makes cases of it.
fn runner() -> ([u8; 32], TestRunner) {
    let seed = std::array::from_fn(|at| (std::process::id() >> (at % 4 * 8)) as u8);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    (seed, TestRunner::new_with_rng(Config::default(), rng))
}

/// Versions of two read models that differ in name alone.
async fn two_alike() -> (Database, Vec<Arc<Version>>) {
    let database = Database::new().await;
    let both = catalog(["folded", "one"].map(|name| model(name, "f", &COLUMNS, events())));
    let versions = database.versions(&both).await;
    (database, versions)
}

const EMPTY: &str =
    "truncate rm.one_v1, rm.folded_v1; update flexcore.checkpoints set position = 0";

const ROWS: &str = "select coalesce(json_agg(r order by r.tenant, r.k), '[]')::text from ";

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_any_size_give_the_same_rows() {
    let (seed, mut runner) = runner();
    let (database, versions) = two_alike().await;
    let [folded, one] = versions.as_slice() else { panic!("two read models") };
    for round in 0..40 {
        let length = 1 + round * 5;
        let list = prop::collection::vec(event(), length..=length);
        let list = list.new_tree(&mut runner).unwrap().current();
        let cuts = prop::collection::vec(1..=length, 1..4).new_tree(&mut runner).unwrap().current();
        sqlx::raw_sql(EMPTY).execute(&database.admin).await.unwrap();
        let all: Vec<Change> = list
            .iter()
            .enumerate()
            .map(|(at, (of, kind, data))| {
                changes(one, &commit(of, kind, at as u64 + 1, data)).unwrap().unwrap()
            })
            .collect();
        for (at, change) in (0..).zip(&all) {
            let part = part(one, vec![change.clone()], at, at + 1);
            database.models.apply(&[part]).await.unwrap();
        }
        let (mut from, mut rest, mut cut) = (0, all.as_slice(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (batch, left) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
            let to = from + batch.len() as u64;
            let part = part(folded, batch.to_vec(), from, to);
            database.models.apply(&[part]).await.unwrap();
            (from, rest) = (to, left);
        }
        let expected = database.one(&format!("{ROWS} rm.one_v1 r")).await;
        let got = database.one(&format!("{ROWS} rm.folded_v1 r")).await;
        assert_eq!(got, expected, "seed {seed:?}, cuts {cuts:?} of {list:?}");
    }
}

#[tokio::test]
async fn what_the_table_refuses_is_found_and_the_rest_applies() {
    let database = Database::new().await;
    let version = database.serving(&model("one", "f", &COLUMNS, events())).await;
    let sum = |key: &str, at, n: i64| {
        let commit = commit("a", "sum", at, &json!({"k": key, "n": n}));
        changes(&version, &commit).unwrap().unwrap()
    };
    database.models.apply(&[part(&version, vec![sum("x", 1, i64::MAX)], 0, 1)]).await.unwrap();
    let batch = vec![sum("y", 2, 1), sum("x", 3, 1), sum("z", 4, 1)];
    let mut part = part(&version, batch, 1, 4);
    let error = database.models.apply(std::slice::from_ref(&part)).await.unwrap_err();
    let Error::Unappliable { part: 0, changes } = error else { panic!("{error:?}") };
    assert_eq!(changes.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1]);
    assert!(changes[0].1.contains("out of range"), "{changes:?}");
    part.changes.remove(1);
    database.models.apply(&[part]).await.unwrap();
    assert_eq!(
        database.one("select string_agg(k || n, ' ' order by k) from rm.one").await,
        format!("x{} y1 z1", i64::MAX)
    );
}

#[tokio::test]
async fn values_that_do_not_fit_are_refused_before_sql() {
    let database = Database::new().await;
    let version = database.serving(&model("one", "f", &COLUMNS, events())).await;
    let refused = |data: Value| changes(&version, &commit("a", "set", 1, &data)).unwrap_err();
    assert!(refused(json!({"k": null})).contains("key column k: no value"));
    assert!(refused(json!({"k": "x".repeat(3_000)})).contains("at most 2000"));
    for (column, value) in [
        ("s", json!("a\u{0}b")),
        ("s", json!({"a": 1})),
        ("s", json!(["a"])),
        ("n", json!(u64::MAX)),
        ("n", json!(1e300)),
        ("n", json!("1")),
        ("f", json!("1.0")),
        ("b", json!(1)),
        ("t", json!("yesterday")),
        ("d", json!("2013-02-30")),
    ] {
        let error = refused(json!({"k": "x", column: value}));
        assert!(error.starts_with(&format!("column {column}: the value is not")), "{error}");
    }
}

/// A sum that came near 64 bits on its way stopped a read model for ever: no change was to blame
/// alone.
#[tokio::test(flavor = "multi_thread")]
async fn sums_pass_64_bits_at_the_same_change_in_batches_of_any_size() {
    let (seed, mut runner) = runner();
    let (database, versions) = two_alike().await;
    let [folded, one] = versions.as_slice() else { panic!("two read models") };
    let far = (1_i64 << 53) - 1;
    let number = prop::sample::select(vec![
        i64::MAX,
        i64::MIN,
        i64::MAX / 2 + 1,
        -(i64::MAX / 2) - 1,
        far * 900,
        -far * 900,
        far,
        -far,
        1,
        -1,
    ]);
    let kind = prop::sample::select(vec!["sum", "sum", "sum", "sum", "sum", "low"]);
    let event = (kind, 0..2_u8, number);
    let mut parked_in_all = 0;
    for round in 0..12 {
        let length = 2 + round * 3;
        let list = prop::collection::vec(event.clone(), length..=length);
        let list = list.new_tree(&mut runner).unwrap().current();
        let cuts = prop::collection::vec(1..=length, 1..4).new_tree(&mut runner).unwrap().current();
        sqlx::raw_sql(EMPTY).execute(&database.admin).await.unwrap();
        let all: Vec<Change> = list
            .iter()
            .enumerate()
            .map(|(at, (kind, key, n))| {
                let data = json!({"k": format!("k{key}"), "n": n});
                changes(one, &commit("a", kind, at as u64 + 1, &data)).unwrap().unwrap()
            })
            .collect();
        let mut parked = Vec::new();
        for (version, cuts) in [(one, &vec![1]), (folded, &cuts)] {
            parked.push(apply_all(&database, version, &all, cuts).await);
        }
        let expected = database.one(&format!("{ROWS} rm.one_v1 r")).await;
        let got = database.one(&format!("{ROWS} rm.folded_v1 r")).await;
        let told = format!("seed {seed:?}, cuts {cuts:?} of {list:?}");
        assert_eq!((&got, &parked[1]), (&expected, &parked[0]), "{told}");
        parked_in_all += parked[0].len();
    }
    assert!(parked_in_all > 5, "{parked_in_all}");
}

/// Applies the changes in batches of these sizes, without those that the table refuses. Returns which
/// these were.
async fn apply_all(
    database: &Database,
    version: &Arc<Version>,
    all: &[Change],
    cuts: &[usize],
) -> Vec<usize> {
    let (mut from, mut cut, mut parked) = (0, cuts.iter().cycle(), Vec::new());
    while from < all.len() {
        let to = (from + *cut.next().unwrap()).min(all.len());
        let mut left: Vec<usize> = (from..to).collect();
        loop {
            let chosen = left.iter().map(|at| all[*at].clone()).collect();
            let part = part(version, chosen, from as u64, to as u64);
            match database.models.apply(&[part]).await {
                Ok(()) => break,
                Err(Error::Unappliable { changes, .. }) => {
                    assert!(!changes.is_empty());
                    parked.extend(changes.into_iter().rev().map(|(at, _)| left.remove(at)));
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        from = to;
    }
    parked.sort_unstable();
    parked
}
