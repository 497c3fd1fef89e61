//! Seals of another secret than the worker has read.

use flexcore_domain::{Secret, Vouched, WRONG_SEAL};

use super::{
    remade::{counted, metrics},
    *,
};

impl Rig {
    /// What a gateway with this secret sends of alice.
    fn sealed(&self, id: &str, secret: &Secret) -> HeaderMap {
        let (name, id) = (CommandName::parse("add").unwrap(), CommandId::parse(id).unwrap());
        let sent = Vouched { actor: "alice", key: &self.key, name: &name, id: &id, payload: b"{}" };
        let mut headers = HeaderMap::new();
        headers.insert(header::ACTOR, sent.actor);
        headers.insert(header::ACTOR_SEAL, sent.seal(secret));
        headers
    }

    async fn put_sealed(&self, id: &str, secret: &Secret) {
        let (name, parsed) = (CommandName::parse("add").unwrap(), CommandId::parse(id).unwrap());
        let (publisher, headers) = (self.store.command_publisher(), self.sealed(id, secret));
        publisher.publish(&self.key, &name, &parsed, headers, "{}".to_owned()).await.unwrap();
    }

    async fn ask_sealed(&self, owners: &Owners, id: &str, secret: &Secret) -> Outcome {
        let name = CommandName::parse("add").unwrap();
        let question = |epoch, _| {
            let mut headers = self.sealed(id, secret);
            headers.insert(header::COMMAND_ID, id);
            (Command::request_subject(epoch, &self.key, &name), headers)
        };
        let slot = self.key.slot().number();
        let answer = owners.ask(slot, PATIENCE, "{}".into(), question).await.unwrap();
        serde_json::from_slice(&answer.message.payload).unwrap()
    }
}

/// Commands of gateways with another secret were recorded as sent by `nats:alice`, for ever and without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_of_another_secret_is_no_claim_and_a_new_secret_is_read() {
    metrics();
    let rig = Rig::start().await;
    let former = rig.store.secret().unwrap();
    let member = rig.member(LEASE).await;
    let accepts: command::NativeDeciders = Arc::new(|_| Some(Box::new(Accepts(1))));
    let worker = rig.work_as(member.clone(), accepts, CancellationToken::new());
    everything(&member).await;
    let owners = Owners::of(COMMANDS, rig.store.client(), &member);
    let outcome = rig.ask_sealed(&owners, "first", &former).await;
    assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
    // The secret is deleted, and a gateway starts, which makes another one.
    let deleted = rig.store.jetstream().publish("$KV.flex_secrets.seal", "".into()).await;
    deleted.unwrap().await.unwrap();
    let client = async_nats::connect(rig.servers.nats_url()).await.unwrap();
    let gateway = EventStore::open(client, rig.store.settings().clone()).await.unwrap();
    let new = gateway.secret().unwrap();
    assert_ne!(new, former);
    rig.put_sealed("second", &new).await;
    rig.settled().await;
    let outcome = rig.ask_sealed(&owners, "third", &new).await;
    assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
    assert_eq!(rig.store.secret(), Some(new), "the worker has read it");
    // A gateway that goes on with the former one.
    let before = counted("flexcore_seals_wrong_total");
    let outcome = rig.ask_sealed(&owners, "fourth", &former).await;
    assert_eq!(outcome, Outcome::Unavailable { message: WRONG_SEAL.to_owned() });
    rig.put_sealed("fifth", &former).await;
    rig.settled().await;
    assert_eq!(rig.outcome("fifth").await, Some(Outcome::Dead { reason: WRONG_SEAL.to_owned() }));
    assert_eq!(rig.dead().await, 1);
    assert!(counted("flexcore_seals_wrong_total") >= before + 2);
    let commits = rig.store.load(&rig.key, 0).await.unwrap();
    let recorded = commits.iter().map(|recorded| {
        let commit = &recorded.commit;
        format!("{} of {}", commit.command_id, commit.provenance.actor)
    });
    let recorded: Vec<_> = recorded.collect();
    assert_eq!(recorded, ["first of alice", "second of alice", "third of alice"]);
    worker.abort();
    rig.servers.stop().await;
}
