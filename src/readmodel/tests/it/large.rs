//! Rows that are small in the log and large in the table.

use flexcore_definition::{ColumnType, Expression, Operation, RowChange};
use flexcore_readmodel::CHANGE_BYTES_MAX;
use serde_json::{Value, json};

use crate::database::{Database, change, changes, commit, data, model, part};

const COLUMNS: usize = 60;

fn names() -> Vec<String> {
    (0..COLUMNS).map(|at| format!("c{at}")).collect()
}

/// A read model of texts that an event sets so.
fn all(names: &[String], from: &Expression) -> (Vec<(String, ColumnType)>, RowChange) {
    let operations: Vec<_> =
        names.iter().map(|name| (name.as_str(), Operation::Set, from.clone())).collect();
    let columns = std::iter::once("k".to_owned()).chain(names.iter().cloned());
    (columns.map(|name| (name, ColumnType::Text)).collect(), change(&operations))
}

/// It once passed what Postgres takes in a message, and was taken for an outage.
#[tokio::test]
async fn a_batch_of_long_rows_is_written() {
    let database = Database::new().await;
    let names = names();
    let (columns, change) = all(&names, &Expression::Literal(json!("x".repeat(7_000))));
    let columns: Vec<_> = columns.iter().map(|(name, of)| (name.as_str(), *of)).collect();
    let version = database.serving(&model("things", "f", &columns, [("set", change)])).await;
    // 1.09 GB altogether.
    let changed = (0..2_600).filter_map(|at| {
        let data = json!({"k": format!("k{at}")});
        changes(&version, &commit("a", "set", 1, &data)).unwrap()
    });
    database.models.apply(&[part(&version, changed.collect(), 0, 1)]).await.unwrap();
    let found = database.one("select count(*) || ' ' || min(length(c59)) from rm.things_v1").await;
    assert_eq!(found, "2600 7000");
}

#[tokio::test]
async fn an_event_that_sets_too_much_of_its_row_does_not_fit() {
    let database = Database::new().await;
    let names = names();
    let (columns, change) = all(&names, &data("text"));
    let columns: Vec<_> = columns.iter().map(|(name, of)| (name.as_str(), *of)).collect();
    let version = database.serving(&model("things", "f", &columns, [("set", change)])).await;
    let set = |bytes: usize| {
        let data: Value = json!({"k": "k", "text": "x".repeat(bytes)});
        changes(&version, &commit("a", "set", 1, &data))
    };
    assert!(set(CHANGE_BYTES_MAX / COLUMNS - 100).unwrap().is_some());
    let refused = set(CHANGE_BYTES_MAX / COLUMNS).unwrap_err();
    assert!(refused.contains("of its row; at most 2097152"), "{refused}");
}
