//! A second durable queue, beside that of commands, on a real broker: all that one has to write.

#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::jetstream::stream::Config;
use flexcore_cluster::{Member, WorkKind};
use flexcore_eventstore::{Error, EventStore, Profile};
use flexcore_queue::{Descriptor, Queue, Queued};
use flexcore_servers::{Options, Servers, Sync, Want};
use flexcore_workers::{
    places::{self, ServedPlace},
    queue::{self, Handler, PlaceReader},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const PARCELS: WorkKind = WorkKind { name: "parcel", places: 4, heading: "parcels" };

const STORED: Descriptor = Descriptor {
    stream: "PARCELS",
    subject: "parcel",
    progress: "KV_parcels",
    places: PARCELS.places,
};

/// Where it is said of a message's number that it is delivered.
type Told = mpsc::UnboundedSender<(u64, ())>;

/// Delivers parcels.
#[derive(Clone, Default)]
struct Deliver {
    /// Subjects in the order in which they were begun with.
    begun: Arc<Mutex<Vec<String>>>,
    /// Sequences. Every owner sees them.
    delivered: Arc<Mutex<BTreeSet<u64>>>,
    /// Subjects of those on which it never hears more.
    silent: &'static [&'static str],
    /// Subjects of those that take long.
    slow: &'static [&'static str],
    /// Where those would say that they are delivered.
    under_way: Arc<Mutex<Vec<Told>>>,
}

impl Handler for Deliver {
    type Outcome = ();

    async fn begin(
        &self,
        number: u64,
        message: &Queued,
        _: bool,
        to: &mpsc::UnboundedSender<(u64, ())>,
    ) {
        self.begun.lock().unwrap().push(message.subject.clone());
        if self.slow.contains(&message.subject.as_str()) {
            return self.under_way.lock().unwrap().push(to.clone());
        }
        if !self.silent.contains(&message.subject.as_str()) {
            to.send((number, ())).unwrap();
        }
    }

    async fn is_done(&self, message: &Queued, _: bool) -> Result<bool, Error> {
        Ok(self.delivered.lock().unwrap().contains(&message.sequence))
    }

    fn was_done(&self) {}

    fn hear(&self, _: &()) -> bool {
        false
    }

    async fn keep(&self, message: &Queued, _: &mut ()) -> Result<(), Error> {
        self.delivered.lock().unwrap().insert(message.sequence);
        Ok(())
    }
}

/// Serves the queue until the token is cancelled.
async fn work(queue: Queue, handler: Deliver, member: Member, stop: CancellationToken) {
    let (made, progress_made) = watch::channel(None);
    let watching = queue::watch_progress(queue.clone(), made, stop.clone());
    let waiting = || metrics::gauge!("parcels_waiting");
    let purging = queue::purge(queue.clone(), member.clone(), PARCELS, waiting, stop.clone());
    let serving = places::follow(&member, PARCELS, stop, |place: ServedPlace| {
        let (queue, handler) = (queue.clone(), handler.clone());
        let (progress_made, guard) = (progress_made.clone(), member.guard());
        let reader = PlaceReader { queue, handler, progress_made, guard, place: place.clone() };
        Some(async move { place.until_left(reader.run()).await })
    });
    tokio::join!(watching, purging, serving);
}

async fn start() -> (Servers, EventStore, Queue) {
    let cache = flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
    let options = Options { sync: Sync::Lazy, want: Want::Nats, ..Options::new(cache) };
    let servers = Servers::start(&options).await.unwrap();
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let settings = flexcore_eventstore::Settings {
        profile: Profile::Relaxed,
        replicas: 1,
        monitor_urls: vec![servers.nats_monitor_url()],
    };
    let store = EventStore::open(client, settings).await.unwrap();
    let parcels = Config {
        name: STORED.stream.to_owned(),
        subjects: vec!["parcel.>".to_owned()],
        ..Config::default()
    };
    let progress = Config {
        name: STORED.progress.to_owned(),
        subjects: vec!["$KV.parcels.*".to_owned()],
        max_messages_per_subject: 1,
        allow_direct: true,
        ..Config::default()
    };
    for config in [parcels, progress] {
        store.jetstream().create_stream(config).await.unwrap();
    }
    let queue = Queue { described: STORED, ..store.command_queue().clone() };
    (servers, store, queue)
}

async fn join(store: &EventStore) -> Member {
    let settings = flexcore_cluster::Settings::new("test", "worker", [PARCELS]);
    Member::join(store.client(), settings).await.unwrap()
}

async fn put(store: &EventStore, subjects: &[&'static str]) {
    for subject in subjects {
        let sent = store.jetstream().publish(*subject, "parcel".into()).await.unwrap();
        sent.await.unwrap();
    }
}

async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "not in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_queue_is_read_in_order_settled_and_purged() {
    let (servers, store, queue) = start().await;
    put(&store, &["parcel.0.a", "parcel.3.b", "parcel.0.c", "parcel.1.d"]).await;
    let (handler, stop) = (Deliver::default(), CancellationToken::new());
    let working = work(queue.clone(), handler.clone(), join(&store).await, stop.clone());
    let worker = tokio::spawn(working);
    until(async || queue.depth().await.unwrap() == 0).await;
    let mut begun = handler.begun.lock().unwrap().clone();
    assert!(begun.iter().filter(|it| it.starts_with("parcel.0")).is_sorted(), "{begun:?}");
    begun.sort();
    assert_eq!(begun, ["parcel.0.a", "parcel.0.c", "parcel.1.d", "parcel.3.b"]);
    until(async || {
        let stream = store.jetstream().get_stream(STORED.stream).await.unwrap();
        stream.cached_info().state.messages == 0
    })
    .await;
    stop.cancel();
    worker.await.unwrap();
    servers.stop().await;
}

/// Reads the first place under this epoch, until the token is cancelled.
fn owner(
    queue: &Queue,
    handler: &Deliver,
    member: &Member,
    epoch: u64,
    leave: &CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let (leave, lost) = (leave.clone(), CancellationToken::new());
    let (queue, handler, guard) = (queue.clone(), handler.clone(), member.guard());
    let (_, progress_made) = watch::channel(None);
    let place = ServedPlace { number: 0, epoch, leave, lost };
    tokio::spawn(PlaceReader { queue, handler, progress_made, guard, place }.run())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_owner_in_a_second_queue_does_what_is_left() {
    let (servers, store, queue) = start().await;
    put(&store, &["parcel.0.a", "parcel.0.b", "parcel.0.c"]).await;
    let member = join(&store).await;
    let first = Deliver { silent: &["parcel.0.b"], ..Deliver::default() };
    let stays = CancellationToken::new();
    let killed = owner(&queue, &first, &member, 1, &stays);
    until(async || first.delivered.lock().unwrap().len() == 2).await;
    killed.abort();
    assert!(killed.await.unwrap_err().is_cancelled());
    assert!(queue.depth().await.unwrap() > 0);
    let next = Deliver { begun: Arc::default(), silent: &[], ..first.clone() };
    let reading = owner(&queue, &next, &member, 2, &stays);
    until(async || queue.depth().await.unwrap() == 0).await;
    assert_eq!(*next.begun.lock().unwrap(), ["parcel.0.b"]);
    reading.abort();
    servers.stop().await;
}

/// Ten that had left in good order had a message put aside as if it had killed them.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_leaves_waits_for_nothing_and_has_not_died_of_it() {
    let (servers, store, queue) = start().await;
    put(&store, &["parcel.0.a", "parcel.0.b"]).await;
    let member = join(&store).await;
    let first = Deliver { silent: &["parcel.0.a"], ..Deliver::default() };
    let leave = CancellationToken::new();
    let left = owner(&queue, &first, &member, 1, &leave);
    until(async || first.delivered.lock().unwrap().len() == 1).await;
    leave.cancel();
    let left = tokio::time::timeout(Duration::from_secs(5), left).await;
    left.expect("it waits for what it never hears of").unwrap();
    let claim = queue.claim(0, 2).await.unwrap();
    assert_eq!(claim.first(), Some((1, 0)), "nobody has died");
    let next = Deliver { begun: Arc::default(), silent: &[], ..first.clone() };
    let reading = owner(&queue, &next, &member, 3, &CancellationToken::new());
    until(async || queue.depth().await.unwrap() == 0).await;
    assert_eq!(*next.begun.lock().unwrap(), ["parcel.0.a"], "the other one was delivered");
    reading.abort();
    servers.stop().await;
}

/// It records nothing any more, and is not waited for either.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_leaves_after_another_one_has_come_changes_nothing() {
    let (servers, store, queue) = start().await;
    put(&store, &["parcel.0.a"]).await;
    let member = join(&store).await;
    let first = Deliver { silent: &["parcel.0.a"], ..Deliver::default() };
    let leave = CancellationToken::new();
    let left = owner(&queue, &first, &member, 1, &leave);
    until(async || !first.begun.lock().unwrap().is_empty()).await;
    let second = queue.claim(0, 2).await.unwrap().begin().await.unwrap();
    assert_eq!(second.first(), Some((1, 2)), "both have begun with it");
    leave.cancel();
    let left = tokio::time::timeout(Duration::from_secs(5), left).await;
    left.expect("it waits for what it never hears of").unwrap();
    assert_eq!(queue.claim(0, 3).await.unwrap().first(), Some((1, 2)));
    servers.stop().await;
}

/// A process that ends just after it has left its places may have no time to have its readers deleted.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_leaves_gives_its_reader_back_while_something_is_under_way() {
    let (servers, store, queue) = start().await;
    put(&store, &["parcel.0.a"]).await;
    let member = join(&store).await;
    let handler = Deliver { slow: &["parcel.0.a"], ..Deliver::default() };
    let leave = CancellationToken::new();
    let leaving = owner(&queue, &handler, &member, 1, &leave);
    let readers = async || {
        let stream = store.jetstream().get_stream(STORED.stream).await.unwrap();
        stream.cached_info().state.consumer_count
    };
    until(async || !handler.begun.lock().unwrap().is_empty()).await;
    assert_eq!(readers().await, 1);
    leave.cancel();
    until(async || readers().await == 0).await;
    assert!(!leaving.is_finished(), "it waits for what is under way");
    let left = tokio::time::timeout(Duration::from_secs(5), leaving).await;
    left.expect("it waits for too long").unwrap();
    servers.stop().await;
}
