//! Deployments on a real broker.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flexcore_definition::{Application, Catalog, SourceFile};
use flexcore_domain::{ActorName, Name};
use flexcore_eventstore::{
    Error, EventStore, Expected,
    catalog::{declarations, deploy, deployment, former_query, watch},
};
use serde_json::value::to_raw_value;
use tokio::{sync::watch::Receiver, time::timeout};

use crate::{PATIENCE, broker::commit, start};

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// An application with one aggregate, and one read model with this column and a query for it.
pub(crate) fn application(app: &str, aggregate: &str, column: &str) -> Application {
    let text = format!(
        "aggregate: {aggregate}\n\
         description: One.\n\
         commands:\n  add:\n    description: Adds.\n    decide: |\n      () => [{{ event: \"added\", data: {{}} }}]\n\
         events:\n  added:\n    evolve: |\n      (state) => state\n\
         ---\n\
         read_model: {aggregate}s\n\
         description: Rows.\n\
         columns: {{ id: text, {column}: integer }}\n\
         key: [id]\n\
         on:\n  {aggregate}.added:\n    key: {{ id: $id }}\n    add: {{ {column}: 1 }}\n\
         ---\n\
         query: all_{aggregate}s\n\
         reads: [{aggregate}s]\n\
         sql: select {column} from rm.{aggregate}s\n"
    );
    let files = vec![SourceFile { path: "app.yaml".to_owned(), text }];
    Application::read(name(app), files).unwrap()
}

pub(crate) async fn deployed(store: &EventStore, application: &Application) -> Result<u32, Error> {
    let before = deployment(store, &application.name).await?;
    deploy(store, application, &before, &ActorName::parse("apply").unwrap(), 0).await
}

/// Both looked, and saw a name that nobody had.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_applications_that_take_one_name_at_once_one_is_deployed() {
    let (servers, store) = start().await;
    let actor = ActorName::parse("apply").unwrap();
    let (one, other) = (application("one", "thing", "n"), application("other", "thing", "n"));
    let before_one = deployment(&store, &one.name).await.unwrap();
    let before_other = deployment(&store, &other.name).await.unwrap();
    assert_eq!(deploy(&store, &one, &before_one, &actor, 0).await.unwrap(), 1);
    let refused = deploy(&store, &other, &before_other, &actor, 0).await;
    assert!(matches!(refused, Err(Error::Conflict)), "{refused:?}");
    // A second look shows its owner.
    let catalog: Catalog = watch(&store).await.unwrap().borrow().as_ref().clone();
    let problems = catalog.with(other).unwrap_err();
    assert!(problems[0].to_string().contains("belongs to application `one`"), "{problems:?}");
    // With a name of its own it goes through, and so does the next version of each.
    for app in [application("other", "item", "n"), one, application("other", "item", "m")] {
        deployed(&store, &app).await.unwrap();
    }
    let catalog = watch(&store).await.unwrap().borrow().clone();
    let versions: Vec<_> = catalog.applications.values().map(|app| app.version).collect();
    assert_eq!(versions, [2, 2]);
    servers.stop().await;
}

/// A process that starts once read and compiled every deployment that there ever was.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_starts_reads_what_is_in_force_and_former_ones_on_demand() {
    let (servers, store) = start().await;
    for version in 1..=20 {
        deployed(&store, &application("one", "thing", &format!("n{version}"))).await.unwrap();
    }
    deployed(&store, &application("other", "item", "n")).await.unwrap();
    let mut receiver = watch(&store).await.unwrap();
    let catalog = receiver.borrow_and_update().clone();
    assert_eq!(catalog.applications[&name("one")].version, 20);
    assert_eq!(catalog.declarations.len(), 2, "one for each read model in force");
    let fingerprint = |version: u32| {
        let application = application("one", "thing", &format!("n{version}"));
        application.read_models[&name("things")].fingerprint.clone()
    };
    let wanted = BTreeSet::from([fingerprint(3), fingerprint(19), "nobody's".to_owned()]);
    let found = declarations(&store, &name("one"), wanted).await.unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[&fingerprint(3)].columns[1].name, name("n3"));
    let former = async |fingerprint| {
        let serving = BTreeMap::from([(name("things"), fingerprint)]);
        let found = former_query(&store, &name("one"), &name("all_things"), &serving).await;
        found.unwrap().map(|query| query.sql.clone())
    };
    assert_eq!(former(fingerprint(7)).await.as_deref(), Some("select n7 from rm.things"));
    assert_eq!(former("nobody's".to_owned()).await, None);
    // Later deployments are taken up.
    deployed(&store, &application("one", "thing", "n21")).await.unwrap();
    timeout(PATIENCE, receiver.changed()).await.unwrap().unwrap();
    assert_eq!(receiver.borrow().applications[&name("one")].version, 21);
    servers.stop().await;
}

/// One such deployment once ended the following of all, and no process started any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_cannot_be_read_leaves_the_one_before_it_and_all_others_in_force() {
    let (servers, store) = start().await;
    deployed(&store, &application("one", "thing", "n")).await.unwrap();
    let mut receiver = watch(&store).await.unwrap();
    let log = store.jetstream().get_stream("FLEX_EVENTS").await.unwrap();
    let subject = log.get_raw_message(1).await.unwrap().subject;
    for junk in ["junk", "[]", "{}"] {
        store.jetstream().publish(subject.clone(), junk.into()).await.unwrap().await.unwrap();
    }
    deployed(&store, &application("other", "item", "n")).await.unwrap();
    let followed = async |receiver: &mut Receiver<Arc<Catalog>>| loop {
        let catalog = receiver.borrow_and_update().clone();
        if catalog.applications.contains_key(&name("other")) {
            return catalog;
        }
        receiver.changed().await.unwrap();
    };
    let live = timeout(PATIENCE, followed(&mut receiver)).await.unwrap();
    let started = timeout(PATIENCE, watch(&store)).await.unwrap().unwrap().borrow().clone();
    for catalog in [live, started] {
        assert_eq!(catalog.applications[&name("one")].version, 1);
        let unreadable: Vec<_> = catalog.unreadable.keys().map(Name::as_str).collect();
        assert_eq!(unreadable, ["one"]);
    }
    servers.stop().await;
}

/// A tool does not watch the broker's room as servers do.
#[tokio::test(flavor = "multi_thread")]
async fn a_tool_deploys_nothing_while_only_the_reserve_is_left() {
    let (mut servers, store) = start().await;
    let mut filler = commit("filler");
    filler.events[0].data = to_raw_value(&"x".repeat(900_000)).unwrap();
    store.append(&filler, Expected::default()).await.unwrap();
    servers.nats.start_again_with_room(980_000).await.unwrap();
    let tool = async || {
        let client = async_nats::connect(servers.nats_url()).await.unwrap();
        let settings = store.settings().clone();
        EventStore::attach(client, settings).await.unwrap()
    };
    let deploy = async |store: &EventStore| loop {
        match deployed(store, &application("one", "thing", "n")).await {
            Err(Error::Unavailable(_)) => {}
            told => return told,
        }
    };
    let refused = timeout(PATIENCE, deploy(&tool().await)).await.unwrap();
    assert!(matches!(refused, Err(Error::NoRoom(_))), "{refused:?}");
    servers.nats.raise_room(64 << 30).unwrap();
    let until_there_is_room = async {
        while deploy(&tool().await).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, until_there_is_room).await.unwrap();
    servers.stop().await;
}
