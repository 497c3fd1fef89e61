//! Which questions for decisions go together, and what becomes of them.

use super::*;

#[tokio::test]
async fn questions_that_wait_go_together() {
    let Pair { fake, client, serving: _serving } = pair(true).await;
    fake.gate.forget_permits(Semaphore::MAX_PERMITS);
    let decider = client.decider();
    let asked: Vec<_> = (0..3_000)
        .map(|number: u32| {
            let decider = decider.clone();
            let ask = async move { decider.ask(question("done", number.to_string()), LONG).await };
            tokio::spawn(ask)
        })
        .collect();
    until("two batches", || !fake.batches.lock().unwrap().is_empty()).await;
    tokio::time::sleep(SHORT).await;
    fake.gate.add_permits(1_000);
    let decided = join_all(asked).await;
    for (number, decided) in decided.into_iter().enumerate() {
        assert_eq!(decided.unwrap().unwrap(), events(number.to_string()));
    }
    let batches = fake.batches.lock().unwrap().clone();
    assert_eq!(batches.iter().sum::<usize>(), 3_000);
    assert!(batches.iter().all(|size| *size <= BATCH_ITEMS_MAX), "{batches:?}");
    assert!(batches.len() < 20 && batches.iter().any(|size| *size > 500), "{batches:?}");
}

/// Batches grew until all of one were late.
#[tokio::test]
async fn no_more_questions_go_together_than_are_answered_soon() {
    let Pair { fake, client, serving: _serving } = pair(true).await;
    let decider = client.decider();
    let ask = || decider.ask(question("slow", "1".to_owned()), LONG);
    let decided = join_all((0..100).map(|_| ask())).await;
    assert!(decided.iter().all(Result::is_ok), "{decided:?}");
    let batches = fake.batches.lock().unwrap().clone();
    // Two before it is known how long a question takes.
    assert!(batches.iter().all(|size| *size < 32), "{batches:?}");
    assert!(batches.iter().skip(3).all(|size| *size <= 15), "{batches:?}");
}

/// One that lied had all others refused for good: those of its batch, or all on its stream.
#[tokio::test]
async fn only_the_question_that_is_at_fault_is_told_so() {
    for liar in ["short", "huge", "refused"] {
        let Pair { fake, client, serving: _serving } = pair(false).await;
        fake.gate.forget_permits(Semaphore::MAX_PERMITS);
        let decider = client.decider();
        let ask = |command: &'static str| {
            let decider = decider.clone();
            let ask = async move { decider.ask(question(command, "1".to_owned()), LONG).await };
            tokio::spawn(ask)
        };
        let mut asked = vec![ask("done"), ask(liar), ask("done")];
        until("a batch", || !fake.batches.lock().unwrap().is_empty()).await;
        // A batch behind it on the same stream.
        asked.extend([ask("done"), ask("done")]);
        tokio::time::sleep(SHORT).await;
        fake.gate.add_permits(100);
        for (number, decided) in join_all(asked).await.into_iter().enumerate() {
            match decided.unwrap() {
                Ok(decided) => assert_eq!((number != 1, decided), (true, events("1")), "{liar}"),
                Err(error) => assert_eq!(number, 1, "{liar}: {error}"),
            }
        }
        let batches = fake.batches.lock().unwrap().clone();
        let alone = batches.iter().filter(|size| **size == 1).count();
        assert!(batches[0] == 3 && alone >= 3, "{liar}: {batches:?}");
    }
}

/// Such decisions, each of which is valid, were refused for good.
#[tokio::test]
async fn decisions_for_which_there_is_no_room_together_are_asked_for_alone() {
    let Pair { fake, client, serving: _serving } = pair(true).await;
    let decider = client.decider();
    let ask = || decider.ask(question("half", String::new()), LONG);
    for decided in join_all([ask(), ask(), ask()]).await {
        assert!(matches!(decided, Ok(DecisionResult::Events(_))), "{decided:?}");
    }
    assert_eq!(*fake.batches.lock().unwrap(), [3, 1, 1]);
}
