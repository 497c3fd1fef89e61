//! Queries while a changed declaration is built: by the columns of the version that serves.

use flexcore_definition::{ColumnType, Operation, ReadModelDefinition};
use flexcore_readmodel::{Ahead, Error};
use serde_json::{Value, json};

use crate::database::{Database, catalog, change, changes, commit, data, model, part, tenant};

async fn query(
    database: &Database,
    declared: &ReadModelDefinition,
    pairs: &[(&str, &str)],
) -> Result<Value, Error> {
    let pairs: Vec<_> =
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    database.models.check(declared, &pairs).await?;
    let page = database.models.query(&tenant("a"), declared, &pairs).await?;
    Ok(serde_json::from_str(&page.rows).unwrap())
}

/// Adding or renaming a column once answered every query with "being built" until the swap.
#[tokio::test]
async fn the_version_in_use_serves_by_its_own_columns_until_the_swap() {
    use ColumnType::{Integer, Text};
    let database = Database::new().await;
    let set = |columns: &[&str]| {
        change(&columns.iter().map(|c| (*c, Operation::Set, data(c))).collect::<Vec<_>>())
    };
    let columns = [("k", Text), ("n", Integer), ("kept", Integer)];
    let old = model("things", "old", &columns, [("set", set(&["n", "kept"]))]);
    // One column renamed, one more, and one of another type.
    let columns = [("k", Text), ("renamed", Integer), ("kept", Text), ("more", Text)];
    let changed = [("set", set(&["renamed", "kept", "more"]))];
    let new = model("things", "new", &columns, changed);
    let first = database.serving(&old).await;
    let of_old = json!({"k": "x", "n": 7, "kept": 1});
    let row = changes(&first, &commit("a", "set", 1, &of_old)).unwrap().unwrap();
    database.models.apply(&[part(&first, vec![row], 0, 1)]).await.unwrap();
    assert_eq!(query(&database, &old, &[("n", "7")]).await.unwrap(), json!([of_old]));

    let mut after = catalog([new.clone()]);
    after.declarations.insert("old".to_owned(), old.clone());
    let second = database.versions(&after).await.remove(1);
    let of_new = json!({"k": "x", "renamed": 7, "kept": "one", "more": "m"});
    let row = changes(&second, &commit("a", "set", 1, &of_new)).unwrap().unwrap();
    database.models.apply(&[part(&second, vec![row], 0, 1)]).await.unwrap();
    for pairs in [&[][..], &[("n", "7"), ("sort", "-n")], &[("kept", "1"), ("fields", "k,n,kept")]]
    {
        let rows = query(&database, &new, pairs).await;
        assert_eq!(rows.unwrap(), json!([of_old]), "{pairs:?}");
    }
    for pairs in [[("renamed", "7")], [("fields", "more")], [("sort", "-more")]] {
        let error = query(&database, &new, &pairs).await.unwrap_err();
        assert!(matches!(error, Error::ColumnNotBuilt { .. }), "{pairs:?}: {error}");
    }
    let error = query(&database, &new, &[("gone", "7")]).await.unwrap_err().to_string();
    assert_eq!(error, "things has no column gone; it has: k, n, kept");
    assert!(matches!(
        query(&database, &new, &[("kept", "one")]).await,
        Err(Error::InvalidValue { .. })
    ));

    // Swapped: at once, and for a process that has not heard of the deployment yet as well.
    assert!(database.models.promote(&second, &mut Ahead::default()).await.unwrap());
    for declared in [&old, &new] {
        for pairs in [&[][..], &[("kept", "one")]] {
            let rows = query(&database, declared, pairs).await;
            assert_eq!(rows.unwrap(), json!([of_new]), "{} {pairs:?}", declared.fingerprint);
        }
    }
}
