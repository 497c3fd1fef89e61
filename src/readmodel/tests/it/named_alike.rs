//! Columns that are named like what our statements name.

use flexcore_definition::{ColumnType, Expression, Operation, RowChange};
use flexcore_readmodel::Select;
use serde_json::{Value, json};

use crate::database::{Database, change, changes, commit, data, model, part, tenant};

/// The names of tables, outputs and so on in statements that touch a read model's rows, less the `_` that no
/// column's name begins with; and words of SQL that stand beside them.
const NAMES: [&str; 15] = [
    "k",
    "t",
    "m",
    "u",
    "o0",
    "row",
    "after",
    "place",
    "tenant_id",
    "ordinality",
    "excluded",
    "rm",
    "select",
    "order",
    "things",
];

/// A key column `place` once stopped its read model at the first deletion.
#[tokio::test]
async fn columns_may_be_named_like_anything_in_our_statements() {
    use Operation::{Add, Max, Min, Set};
    let columns: Vec<_> = NAMES.iter().map(|name| (*name, ColumnType::Number)).collect();
    let all = |op| {
        let rest = NAMES[1..].iter().map(|name| (*name, op, data(name)));
        rest.collect::<Vec<_>>()
    };
    for (at, key) in NAMES.iter().enumerate() {
        let keyed = |operations: &[(&str, Operation, Expression)]| {
            let others = operations.iter().filter(|(name, ..)| name != key);
            RowChange { key: vec![data(key)], ..change(&others.cloned().collect::<Vec<_>>()) }
        };
        let first = (NAMES[0], Set, data(NAMES[0]));
        let others: Vec<_> = all(Set).into_iter().chain([first]).collect();
        let events = [
            ("set", keyed(&others)),
            ("add", keyed(&all(Add))),
            ("low", keyed(&all(Min))),
            ("high", keyed(&all(Max))),
            ("gone", RowChange { delete: true, ..keyed(&[]) }),
        ];
        let database = Database::new().await;
        let mut columns = columns.clone();
        columns.swap(0, at);
        let things = model("things", "f", &columns, events);
        let version = database.serving(&things).await;
        let values: Value = NAMES.iter().map(|name| ((*name).to_owned(), json!(1))).collect();
        let mut position = 0;
        let mut apply = async |events: &[&str]| {
            let of = |event: &&str| changes(&version, &commit("a", event, 1, &values)).unwrap();
            let changed = events.iter().filter_map(of).collect();
            let part = part(&version, changed, position, position + 1);
            position += 1;
            database.models.apply(&[part]).await.unwrap_or_else(|error| panic!("{key}: {error}"));
        };
        // Each alone, so that each reaches the table; a sum of numbers reads the old value.
        for event in ["set", "add", "low", "high"] {
            apply(&[event]).await;
        }
        apply(&["set", "add", "low", "high"]).await;
        let sort = vec![(things.columns[1].name.clone(), true)];
        let select = Select { sort, limit: 1, ..Select::default() };
        let page = database.models.select(&tenant("a"), &things, &select).await.unwrap();
        let rows: Value = serde_json::from_str(&page.rows).unwrap();
        assert_eq!(rows.as_array().map(Vec::len), Some(1), "{key}: {rows}");
        apply(&["gone"]).await;
        let page = database.models.select(&tenant("a"), &things, &select).await.unwrap();
        assert_eq!(page.rows, "[]", "{key}");
        database.models.close().await;
        database.admin.close().await;
    }
}
