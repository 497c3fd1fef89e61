//! What becomes of questions for decisions, also of those whose instance ends.

use std::time::{Duration, Instant};

use flexcore_plugin::contract::{Context, DecisionResult, Question};
use flexcore_pool::{Pool, PoolError, Spec};
use serde_json::json;

use crate::harness::{PATIENCE, call, kill, pid, ready, spec, until};

type Told = Result<DecisionResult, PoolError>;

fn question(tenant: &str, command: &str, payload: &str) -> Question {
    Question {
        context: Some(Context { tenant: tenant.to_owned(), ..Context::default() }),
        command: command.to_owned(),
        payload: payload.to_owned().into(),
        state: "null".into(),
        ..Question::default()
    }
}

/// Asks a tenant's questions: commands with their payloads.
async fn ask(pool: &Pool, tenant: &str, of: &[(&str, &str)], within: Duration) -> Vec<Told> {
    let questions: Vec<(Question, Duration)> =
        of.iter().map(|(command, payload)| (question(tenant, command, payload), within)).collect();
    pool.decide(tenant, &questions).await
}

/// The data of the one event that was decided on.
fn data(told: &Told) -> String {
    match told {
        Ok(DecisionResult::Events(events)) => {
            String::from_utf8(events.events[0].data.to_vec()).unwrap()
        }
        other => panic!("not decided: {other:?}"),
    }
}

#[tokio::test]
async fn each_question_has_its_own_answer() {
    let pool = ready(spec("one")).await;
    assert!(pool.decides());
    let asked = [("add", "1"), ("refuse", "2"), ("fail", "3"), ("add", "4")];
    let told = ask(&pool, "a", &asked, PATIENCE).await;
    assert_eq!(told.len(), 4);
    assert_eq!((data(&told[0]), data(&told[3])), ("1".to_owned(), "4".to_owned()));
    let Ok(DecisionResult::Rejected(why)) = &told[1] else { panic!("{:?}", told[1]) };
    assert_eq!(why.code, "closed");
    let Ok(DecisionResult::Failure(why)) = &told[2] else { panic!("{:?}", told[2]) };
    assert!(why.code == "not_now" && why.temporary);
    pool.stop(PATIENCE).await;
    let told = ask(&pool, "a", &[("add", "1")], PATIENCE).await;
    assert!(matches!(told[..], [Err(PoolError::Away(_))]), "{told:?}");
    assert!(!pool.decides());
}

#[tokio::test]
async fn a_question_that_is_late_holds_up_no_other_tenant() {
    let pool = ready(Spec { concurrency: 2, ..spec("one") }).await;
    let slow = ask(&pool, "slow", &[("nap", "60000")], Duration::from_millis(1_500));
    let other = async {
        until(&pool, "a question under way", |status| status.under_way == 1).await;
        let began = Instant::now();
        let told = ask(&pool, "other", &[("add", "1")], PATIENCE).await;
        assert_eq!(data(&told[0]), "1");
        began.elapsed()
    };
    let (slow, took) = tokio::join!(slow, other);
    assert_eq!(slow, [Err(PoolError::Late)]);
    assert!(took < Duration::from_secs(1), "{took:?}");
    // Its next question is on a stream of its own again.
    let told = ask(&pool, "slow", &[("add", "2")], PATIENCE).await;
    assert_eq!(data(&told[0]), "2");
}

/// It has waited for that long before: the plugin, which was never asked, is not late.
#[tokio::test]
async fn a_question_without_time_is_not_asked_and_the_plugin_is_not_late() {
    let pool = ready(spec("one")).await;
    let none = Duration::from_millis(5);
    let told = ask(&pool, "a", &[("add", "1"), ("add", "2")], none).await;
    assert!(matches!(told[..], [Err(PoolError::Away(_)), Err(PoolError::Away(_))]), "{told:?}");
    let asked = [(question("a", "add", "1"), none), (question("a", "add", "2"), PATIENCE)];
    let told = pool.decide("a", &asked).await;
    assert!(matches!(told[0], Err(PoolError::Away(_))), "{told:?}");
    assert_eq!(data(&told[1]), "2");
}

#[tokio::test]
async fn questions_take_one_place_together_and_give_it_back() {
    let pool = ready(Spec { concurrency: 1, ..spec("one") }).await;
    let first = ask(&pool, "a", &[("nap", "500"), ("add", "1")], PATIENCE);
    let second = async {
        until(&pool, "questions under way", |status| status.under_way == 1).await;
        ask(&pool, "b", &[("add", "1")], PATIENCE).await
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(data(&first[1]), "1");
    assert_eq!(second, [Err(PoolError::Busy)]);
    until(&pool, "a free place", |status| status.under_way == 0).await;
    assert_eq!(data(&ask(&pool, "b", &[("add", "1")], PATIENCE).await[0]), "1");
}

#[tokio::test]
async fn a_question_under_which_the_plugin_ended_is_asked_once_more() {
    let pool = ready(spec("one")).await;
    let folder = tempfile::tempdir().unwrap();
    let file = json!(folder.path().join("there")).to_string();
    let told = ask(&pool, "a", &[("crash_once", &file), ("add", "2")], PATIENCE).await;
    assert_eq!((data(&told[0]), data(&told[1])), (file, "2".to_owned()));
    assert_eq!(pool.status().restarts, 1);
    // What kills it does so twice; what was with it has an answer.
    let told = ask(&pool, "b", &[("crash", "1"), ("add", "2")], PATIENCE).await;
    assert!(matches!(told[0], Err(PoolError::Unknown(_))), "{told:?}");
    assert_eq!(data(&told[1]), "2");
}

/// It ended under both of them, and once more, and each was told that this was its own fault.
#[tokio::test]
async fn what_was_beside_a_question_that_kills_may_be_asked_again() {
    let pool = ready(spec("one")).await;
    let calm = ask(&pool, "calm", &[("nap", "1500")], PATIENCE);
    let hostile = async {
        until(&pool, "a question under way", |status| status.under_way == 1).await;
        ask(&pool, "hostile", &[("crash", "1")], PATIENCE).await
    };
    let (calm, hostile) = tokio::join!(calm, hostile);
    assert!(matches!(calm[..], [Ok(_) | Err(PoolError::Away(_))]), "{calm:?}");
    // The first if nothing was beside it the second time.
    let is_told = matches!(hostile[..], [Err(PoolError::Unknown(_) | PoolError::Away(_))]);
    assert!(is_told, "{hostile:?}");
}

#[tokio::test]
async fn a_plugin_that_is_killed_decides_all_the_same() {
    let pool = ready(spec("one")).await;
    let process = pid(&pool).await;
    let killed = async {
        until(&pool, "a question under way", |status| status.under_way == 1).await;
        kill(process);
    };
    let (told, ()) = tokio::join!(ask(&pool, "a", &[("nap", "300")], PATIENCE), killed);
    assert_eq!(data(&told[0]), "300");
    assert_ne!(pid(&pool).await, process);
}

#[tokio::test]
async fn a_foreign_plugin_decides_nothing() {
    let pool = ready(Spec { contract: false, ..spec("described") }).await;
    assert!(!pool.decides());
    let told = ask(&pool, "a", &[("add", "1")], PATIENCE).await;
    assert_eq!(told, [Err(PoolError::UnknownFunction)]);
    assert_eq!(call(&pool, "echo", "1").await, Err(PoolError::UnknownFunction));
}
