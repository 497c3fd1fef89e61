//! Versions side by side, checkpoints and epochs.

use std::{sync::Arc, time::Duration};

use flexcore_definition::{ColumnType, Operation, ReadModelDefinition};
use flexcore_domain::Slot;
use flexcore_readmodel::{
    Ahead, Error, Move, Part, Portions, ReadModels, Rebuild, Settings, Version, VersionState,
};
use serde_json::json;
use sqlx::AssertSqlSafe;

use crate::database::{Database, catalog, change, changes, commit, data, model, part};

const COLUMNS: [(&str, ColumnType); 2] = [("k", ColumnType::Text), ("n", ColumnType::Integer)];

#[tokio::test]
async fn a_changed_declaration_is_built_beside_and_swapped_in() {
    let database = Database::new().await;
    let add = || [("sum", change(&[("n", Operation::Add, data("n"))]))];
    let old = model("sums", "old", &COLUMNS, add());
    let first = database.serving(&old).await;
    assert_eq!((first.number, first.state), (1, VersionState::Serving));
    let row = |version: &_| {
        changes(version, &commit("a", "sum", 1, &json!({"k": "x", "n": 7, "extra": 8})))
            .unwrap()
            .unwrap()
    };
    database.models.apply(&[part(&first, vec![row(&first)], 0, 1)]).await.unwrap();

    // A column more, and another order: the view cannot just be replaced.
    let columns =
        [("k", ColumnType::Text), ("extra", ColumnType::Text), ("n", ColumnType::Integer)];
    let new = model("sums", "new", &columns, add());
    let mut after = catalog([new.clone()]);
    after.declarations.insert("old".to_owned(), old.clone());
    let versions = database.models.versions(&after, &|_, _| Some(1)).await.unwrap();
    let states: Vec<_> = versions.run.iter().map(|v| (v.number, v.state)).collect();
    assert_eq!(states, [(1, VersionState::Serving), (2, VersionState::Building)]);
    let second = versions.run[1].clone();
    assert_eq!(database.one("select n::text from rm.sums").await, "7", "the old one serves");
    database.models.apply(&[part(&second, vec![row(&second)], 0, 1)]).await.unwrap();

    // A query that reads the view keeps it from being changed, and is not disturbed.
    let mut reader = database.admin.begin().await.unwrap();
    sqlx::query("select * from rm.sums").execute(&mut *reader).await.unwrap();
    assert!(!database.models.promote(&second, &mut Ahead::default()).await.unwrap());
    reader.rollback().await.unwrap();
    assert!(database.models.promote(&second, &mut Ahead::default()).await.unwrap());
    assert_eq!(
        database.one("select row_to_json(s)::text from rm.sums s").await,
        r#"{"tenant":"a","k":"x","extra":null,"n":7}"#
    );
    database.models.sweep(&|_, _| Some(1)).await.unwrap();
    assert_eq!(database.one("select to_regclass('rm.sums_v1')::text").await, "");

    // Taken back half built: the version in between leaves nothing.
    let third = model("sums", "third", &COLUMNS, add());
    assert_eq!(database.versions(&catalog([third])).await.len(), 1);
    let run = database.versions(&catalog([new])).await;
    assert_eq!(run.iter().map(|v| v.number).collect::<Vec<_>>(), [2]);
    assert_eq!(database.one("select to_regclass('rm.sums_v3')::text").await, "");

    // No longer declared.
    assert!(database.versions(&catalog([])).await.is_empty());
    assert_eq!(
        database
            .one(
                "select count(*)::text from pg_class c join pg_namespace n \
        on n.oid = c.relnamespace where n.nspname = 'rm'"
            )
            .await,
        "0"
    );
}

#[tokio::test]
async fn a_rebuild_is_a_new_version_of_the_same_declaration() {
    let database = Database::new().await;
    let sums = model("sums", "f", &COLUMNS, [("sum", change(&[("n", Operation::Add, data("n"))]))]);
    let first = database.serving(&sums).await;
    let row = commit("a", "sum", 1, &json!({"k": "x", "n": 7}));
    let row = changes(&first, &row).unwrap().unwrap();
    database.models.apply(&[part(&first, vec![row], 0, 9)]).await.unwrap();
    let error = database.models.request_rebuild("summs").await.unwrap_err();
    assert_eq!(error.to_string(), "no read model summs; there are: sums");
    let request = database.models.request_rebuild("sums").await.unwrap();
    assert_eq!(database.models.rebuild(request).await.unwrap(), Rebuild::Waiting);
    let run = database.versions(&catalog([sums.clone()])).await;
    assert_eq!(run.len(), 2);
    let second = &run[1];
    let building = Rebuild::Building { version: 2, position: 0, target: 9 };
    assert_eq!(database.models.rebuild(request).await.unwrap(), building);
    database.models.apply(&[part(second, Vec::new(), 0, 8)]).await.unwrap();
    assert!(
        !database.models.promote(second, &mut Ahead::default()).await.unwrap(),
        "rows would go back in time"
    );
    database.models.apply(&[part(second, Vec::new(), 8, 9)]).await.unwrap();
    assert!(database.models.promote(second, &mut Ahead::default()).await.unwrap());
    let done = Rebuild::Done { version: 2 };
    assert_eq!(database.models.rebuild(request).await.unwrap(), done);
    database.models.sweep(&|_, _| Some(1)).await.unwrap();
    assert_eq!(database.models.rebuild(request).await.unwrap(), done);
    assert_eq!(database.versions(&catalog([sums])).await.len(), 1, "one request, one rebuild");
}

#[tokio::test]
async fn checkpoints_move_once_and_never_for_an_older_epoch() {
    let database = Database::new().await;
    let add = || [("sum", change(&[("n", Operation::Add, data("n"))]))];
    let model_of = |fingerprint| model("sums", fingerprint, &COLUMNS, add());
    let model = model_of("f");
    let old = database.serving(&model).await;
    let row =
        || changes(&old, &commit("a", "sum", 1, &json!({"k": "x", "n": 1}))).unwrap().unwrap();
    assert_eq!(database.models.take_over(&old).await.unwrap(), [0; 64]);
    let slot = Slot::new(7).unwrap();
    let mut once = part(&old, vec![row()], 0, 0);
    once.moves = vec![Move { slot, from: 0, to: 5, hash: None }];
    database.models.apply(std::slice::from_ref(&once)).await.unwrap();
    let again = database.models.apply(std::slice::from_ref(&once)).await.unwrap_err();
    assert!(matches!(again, Error::Moved), "{again:?}");

    let catalog = catalog([model]);
    let new = database.versions_under(2, &catalog).await.remove(0);
    let positions = database.models.take_over(&new).await.unwrap();
    assert_eq!((positions[7], positions[8]), (5, 0));
    once.moves = vec![Move { slot, from: 5, to: 6, hash: None }];
    let fenced = |error: Error| matches!(error, Error::Fenced { held: 1, found: 2 });
    assert!(fenced(database.models.apply(&[once]).await.unwrap_err()), "rows");
    assert!(fenced(database.models.take_over(&old).await.unwrap_err()), "checkpoints");
    assert!(
        fenced(database.models.promote(&old, &mut Ahead::default()).await.unwrap_err()),
        "views"
    );
    let changed = crate::database::catalog([model_of("g")]);
    let late = database.models.versions(&changed, &|_, _| Some(1)).await.unwrap();
    assert!(fenced(late.troubles[0].1.clone()), "tables");
    assert_eq!(database.one("select n::text from rm.sums").await, "1", "applied exactly once");
}

/// A view of somebody else on a removed read model once stopped the management of all.
#[tokio::test]
async fn what_stands_in_one_read_models_way_is_its_own_trouble() {
    let database = Database::new().await;
    let of = |name, fingerprint| model(name, fingerprint, &COLUMNS, []);
    let all = |changed| [of("hung_on", "1"), of("in_use", "1"), of("changed", changed)];
    for model in all("1") {
        database.serving(&model).await;
    }
    let run = database.versions(&catalog(all("1"))).await;
    for version in &run {
        database.models.promote(version, &mut Ahead::default()).await.unwrap();
    }
    let sql = "create view public.theirs as select k from rm.hung_on";
    sqlx::raw_sql(sql).execute(&database.admin).await.unwrap();
    let mut reader = database.admin.begin().await.unwrap();
    sqlx::query("select * from rm.in_use").execute(&mut *reader).await.unwrap();

    let [_, _, changed] = all("2");
    let after = catalog([changed]);
    let began = std::time::Instant::now();
    let versions = database.models.versions(&after, &|_, _| Some(1)).await.unwrap();
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "nobody waits behind a reader");
    let built: Vec<_> = versions.run.iter().map(|v| (v.read_model.as_str(), v.number)).collect();
    assert_eq!(built, [("changed", 2)], "the others go on");
    let said: Vec<String> =
        versions.troubles.iter().map(|(name, error)| format!("{name}: {error}")).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("view theirs depends on view rm.hung_on"), "{said:?}");
    assert!(said[1].starts_with("in_use: ") && said[1].contains("it is in use"), "{said:?}");

    let troubles = said.iter().filter_map(|said| said.split_once(": "));
    let mut troubles: std::collections::BTreeMap<String, String> =
        troubles.map(|(name, what)| (name.to_owned(), what.to_owned())).collect();
    database.models.note_troubles(&|_, _| Some(1), &troubles).await.unwrap();
    assert_eq!(database.models.troubles().await.unwrap(), troubles);
    let status = database.models.status().await.unwrap();
    let told = status.iter().find(|status| status.read_model.as_str() == "hung_on").unwrap();
    assert!(told.trouble.as_ref().unwrap().contains("theirs"), "{told:?}");

    reader.rollback().await.unwrap();
    sqlx::raw_sql("drop view public.theirs").execute(&database.admin).await.unwrap();
    let versions = database.models.versions(&after, &|_, _| Some(1)).await.unwrap();
    assert!(versions.troubles.is_empty(), "{:?}", versions.troubles);
    let left = "select string_agg(distinct read_model, ' ') from flexcore.projections";
    assert_eq!(database.one(left).await, "changed");
    troubles.clear();
    database.models.note_troubles(&|_, _| Some(1), &troubles).await.unwrap();
    assert_eq!(database.models.troubles().await.unwrap(), troubles);
}

#[tokio::test]
async fn read_models_of_others_are_left_alone() {
    let database = Database::new().await;
    let of = |name, fingerprint| model(name, fingerprint, &COLUMNS, []);
    let both = catalog([of("mine", "1"), of("theirs", "1")]);
    let mine = |name: &flexcore_domain::Name, _| (name.as_str() == "mine").then_some(1);
    let run = database.models.versions(&both, &mine).await.unwrap().run;
    assert_eq!(run.len(), 1);
    assert_eq!(
        database.one("select string_agg(read_model, ' ') from flexcore.projections").await,
        "mine"
    );
    database.versions(&both).await;
    let none = database.models.versions(&catalog([of("mine", "1")]), &mine).await.unwrap();
    assert_eq!(none.run.len(), 1);
    let left = "select string_agg(read_model, ' ' order by read_model) from flexcore.projections";
    assert_eq!(database.one(left).await, "mine theirs", "not declared, and not ours to drop");
}

#[tokio::test]
async fn a_database_that_acknowledges_before_it_writes_is_refused() {
    let database = Database::empty().await;
    database.models.check_durable().await.unwrap();
    let name = database.one("select current_database()").await;
    let alter = AssertSqlSafe(format!("alter database {name} set synchronous_commit = off"));
    sqlx::raw_sql(alter).execute(&database.admin).await.unwrap();
    let models = ReadModels::connect(&database.url, Settings::default()).await.unwrap();
    let error = models.check_durable().await.unwrap_err();
    assert!(matches!(error, Error::Misconfigured(_)), "{error}");
    assert!(error.to_string().contains("alter system set synchronous_commit = on"), "{error}");
}

/// A worker that is gone left its portion behind: the rows that serve were locked for most of the time until
/// it had another owner, and every batch waited.
#[tokio::test]
async fn what_serves_is_not_held_up_for_a_portion_that_stands_still() {
    let database = Database::new().await;
    let of = |fingerprint| {
        let add = [("sum", change(&[("n", Operation::Add, data("n"))]))];
        let model = Arc::unwrap_or_clone(model("sums", fingerprint, &COLUMNS, add));
        Arc::new(ReadModelDefinition { shared: true, ..model })
    };
    let old = of("old");
    let first = database.serving(&old).await;
    let mut after = catalog([of("new")]);
    after.declarations.insert("old".to_owned(), old);
    // The owner that manages the read model has all portions but one.
    let owned = |_: &_, portion| (portion != 5).then_some(1);
    let second = database.models.versions(&after, &owned).await.unwrap().run[1].clone();
    let moves = |version: &Arc<Version>, portions: std::ops::Range<u16>, from, to| {
        let moves = portions.filter(|portion| version.portions.epochs.contains_key(portion));
        let moves =
            moves.map(|portion| Move { slot: Portions::row(portion), from, to, hash: None });
        Part { moves: moves.collect(), ..part(version, Vec::new(), from, to) }
    };
    let row = commit("a", "sum", 1, &json!({"k": "x", "n": 7}));
    let row = changes(&first, &row).unwrap().unwrap();
    let count = first.portions.count;
    let serves = Part { changes: vec![row], ..moves(&first, 0..count, 0, 9) };
    database.models.apply(&[serves]).await.unwrap();
    database.models.apply(&[moves(&second, 0..count, 0, 9)]).await.unwrap();
    // A lock on a row leaves its transaction's number there, also when that was rolled back.
    let locked = format!(
        "select count(*)::text from flexcore.checkpoints where xmax <> 0 and projection_id = {}",
        first.id()
    );
    let mut ahead = Ahead::default();
    for _ in 0..5 {
        assert!(!database.models.promote(&second, &mut ahead).await.unwrap());
    }
    assert_eq!(database.one(&locked).await, "0");
    let all = database.models.versions(&after, &|_, _| Some(1)).await.unwrap().run[1].clone();
    database.models.apply(&[moves(&all, 5..6, 0, 9)]).await.unwrap();
    assert!(database.models.promote(&second, &mut ahead).await.unwrap());
    assert_ne!(database.one(&locked).await, "0", "they stand still for the swap");
}

/// Whoever locked one table once had the batch wait as long, and with it every read model of its worker.
#[tokio::test]
async fn a_batch_waits_for_a_locked_table_for_a_moment_and_says_which_it_is() {
    let database = Database::new().await;
    let add = || [("sum", change(&[("n", Operation::Add, data("n"))]))];
    let both = [("free", "1"), ("locked", "2")];
    let both = catalog(both.map(|(name, print)| model(name, print, &COLUMNS, add())));
    for version in database.versions(&both).await {
        assert!(database.models.promote(&version, &mut Ahead::default()).await.unwrap());
    }
    let [free, locked]: [_; 2] = database.versions(&both).await.try_into().unwrap();
    let row = |version: &Version| {
        changes(version, &commit("a", "sum", 1, &json!({"k": "x", "n": 7}))).unwrap().unwrap()
    };
    let batch =
        |from, to| [&free, &locked].map(|version| part(version, vec![row(version)], from, to));
    let lock = async || {
        let mut somebody = database.admin.begin().await.unwrap();
        let sql = "lock table rm.locked_v1 in share mode";
        sqlx::raw_sql(sql).execute(&mut *somebody).await.unwrap();
        somebody
    };
    let (somebody, first) = (lock().await, batch(0, 9));
    let applied = tokio::time::timeout(Duration::from_secs(30), database.models.apply(&first));
    let error = applied.await.expect("it waits for no end").unwrap_err();
    let is_told = |error: &Error| {
        matches!(error, Error::Locked { version, read_model }
            if *version == locked.id() && read_model.as_str() == "locked")
    };
    assert!(is_told(&error) && error.is_passing(), "{error:?}");
    let sums = "select (select count(*) from rm.free) || ' ' || (select count(*) from rm.locked)";
    assert_eq!(database.one(sums).await, "0 0", "nothing of the batch was written");
    database.models.apply(&first[..1]).await.unwrap();
    somebody.rollback().await.unwrap();
    database.models.apply(&first[1..]).await.unwrap();

    // A short lock is none of anybody's trouble.
    let somebody = lock().await;
    let (batch, models) = (batch(9, 10), database.models.clone());
    let applied = tokio::spawn(async move { models.apply(&batch).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    somebody.rollback().await.unwrap();
    applied.await.unwrap().unwrap();
    let sums = "select (select n from rm.free) || ' ' || (select n from rm.locked)";
    assert_eq!(database.one(sums).await, "14 14", "each once");
}
