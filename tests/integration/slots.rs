//! Slots: the same function here and in the broker.

use std::{future::IntoFuture as _, time::Duration};

use async_nats::jetstream;
use flexcore_domain::{AggregateId, AggregateKey, AggregateName, Tenant};
use futures::{StreamExt as _, future::try_join_all, stream};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::support::{Dev, seed};

/// Keys that are compared.
const KEYS: usize = 2_000;

fn word(random: &mut StdRng, first: &[u8], rest: &[u8], longest: usize) -> String {
    let length = random.random_range(1..=longest);
    let pick =
        |random: &mut StdRng, from: &[u8]| char::from(from[random.random_range(0..from.len())]);
    let head = pick(random, first);
    std::iter::once(head).chain((1..length).map(|_| pick(random, rest))).collect()
}

fn key(random: &mut StdRng) -> AggregateKey {
    let lower = b"abcdefghijklmnopqrstuvwxyz";
    let name = [lower.as_slice(), b"0123456789_"].concat();
    let id = [name.as_slice(), b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-"].concat();
    AggregateKey::new(
        Tenant::parse(&word(random, lower, &name, 40)).unwrap(),
        AggregateName::parse(&word(random, lower, &name, 40)).unwrap(),
        AggregateId::parse(&word(random, &id, &id, 128)).unwrap(),
    )
}

#[tokio::test]
async fn a_key_has_the_slot_that_the_broker_gives_it() {
    let mut random = StdRng::seed_from_u64(seed("slots"));
    let dev = Dev::shared();
    let jetstream = jetstream::new(dev.nats().await);
    let commands = jetstream.get_stream("FLEX_COMMANDS").await.unwrap();
    let transform = commands.cached_info().config.subject_transform.clone().unwrap();
    assert!(transform.destination.contains("partition(64,1,2,3)"), "{transform:?}");
    // The very transform of the queue, on a stream of which nothing is processed.
    let source = transform.source.replacen("cmd.", "slottest.", 1);
    let config = jetstream::stream::Config {
        name: "SLOT_TEST".to_owned(),
        subjects: vec![source.clone()],
        subject_transform: Some(jetstream::stream::SubjectTransform { source, ..transform }),
        storage: jetstream::stream::StorageType::Memory,
        ..Default::default()
    };
    let stream = jetstream.create_stream(config).await.unwrap();
    let keys: Vec<AggregateKey> = (0..KEYS).map(|_| key(&mut random)).collect();
    let mut stored = Vec::with_capacity(KEYS);
    for key in &keys {
        let subject = format!("slottest.{}.{}.{}.go", key.tenant(), key.aggregate(), key.id());
        stored.push(jetstream.publish(subject, "".into()).await.unwrap().into_future());
    }
    try_join_all(stored).await.unwrap();
    let consumer = stream.create_consumer(jetstream::consumer::pull::OrderedConfig::default());
    let messages = consumer.await.unwrap().messages().await.unwrap();
    let mut used = std::collections::BTreeSet::new();
    let compared = messages.take(KEYS).zip(stream::iter(&keys)).for_each(|(message, key)| {
        used.insert(key.slot());
        assert_eq!(message.unwrap().subject.as_str(), format!("cmdq.{}.go", key.subject_part()));
        std::future::ready(())
    });
    tokio::time::timeout(Duration::from_secs(30), compared).await.expect("all messages came");
    assert_eq!(used.len(), 64, "{KEYS} keys fill every slot");
    jetstream.delete_stream("SLOT_TEST").await.unwrap();
}
