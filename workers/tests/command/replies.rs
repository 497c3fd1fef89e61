//! Requests with a reply subject that is no inbox.

use super::*;

/// In the log, where no client may publish.
const VICTIM: &str = "evt.5.other.counter.victim";

/// A worker may write where the sender of a request may not: its answer got into the log, and broke an
/// aggregate.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_to_an_inbox_and_nowhere_else() {
    let rig = Rig::start().await;
    let member = rig.member(LEASE).await;
    let accepts: command::NativeDeciders = Arc::new(|_| Some(Box::new(Accepts(1))));
    let worker = rig.work_as(member.clone(), accepts, CancellationToken::new());
    let (client, slot) = (rig.store.client(), rig.key.slot().number());
    let epoch = everything(&member).await[&slot];
    let owners = Owners::of(COMMANDS, client, &member);
    let name = CommandName::parse("add").unwrap();
    let ask = async |id: &str| {
        let question = |epoch, _| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COMMAND_ID, id);
            (Command::request_subject(epoch, &rig.key, &name), headers)
        };
        let answer = owners.ask(slot, PATIENCE, "{}".into(), question).await.unwrap();
        let outcome: Outcome = serde_json::from_slice(&answer.message.payload).unwrap();
        assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
    };
    ask("before").await;
    for subject in [
        Command::request_subject(epoch, &rig.key, &name),
        Command::state_subject(epoch, &rig.key),
        Command::outcome_subject(epoch, &rig.key),
        "ctl.catalog.flights".to_owned(),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::COMMAND_ID, "forged");
        let sent = client.publish_with_reply_and_headers(subject, VICTIM, headers, "{}".into());
        sent.await.unwrap();
    }
    ask("after").await;
    // The answers to questions come over other subscriptions.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let log = rig.store.jetstream().get_stream(topology::EVENTS).await.unwrap();
    let written = log.get_last_raw_message_by_subject(VICTIM).await;
    assert!(written.is_err(), "{written:?}");
    assert_eq!(rig.recorded().await, ["before", "after"]);
    worker.abort();
    rig.servers.stop().await;
}
