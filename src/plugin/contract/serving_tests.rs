//! Both halves of the contract at the two ends of one connection, and plugins that break it.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{future::join_all, stream};
use tokio::{io::duplex, sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    super::messages::{Context, Event, Events, Function, Question},
    *,
};
use crate::{
    Connection,
    connection::serve,
    contract::{Client, is_unknown},
    limits::{BATCH_ITEMS_MAX, STREAM_BATCHES_MAX},
};

#[path = "deciding_tests.rs"]
mod deciding;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(150);

/// A plugin that does what the name of the function or command says.
#[derive(Clone)]
struct Fake {
    /// Calls that were given up.
    dropped: Arc<AtomicUsize>,
    /// Sizes of the batches of questions.
    batches: Arc<Mutex<Vec<usize>>>,
    /// Batches of questions take one each.
    gate: Arc<Semaphore>,
    streams: Arc<AtomicUsize>,
}

struct OnDrop(Arc<AtomicUsize>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn output(json: impl Into<Bytes>) -> CallResponse {
    CallResponse { result: Some(CallResult::Output(json.into())) }
}

fn failed_with(code: &str) -> CallResponse {
    CallResponse { result: Some(CallResult::Failure(Failure::new(code, "it failed"))) }
}

fn answer(function: &str, input: Bytes) -> CallResponse {
    match function {
        "fail" => failed_with("not_found"),
        "bad_json" => output("{"),
        "bad_code" => failed_with("Not Found"),
        "nothing" => CallResponse::default(),
        "large" => output(vec![b'1'; OUTPUT_BYTES_MAX + 1]),
        "huge" => output(vec![b'1'; OUTPUT_BYTES_MAX + ENVELOPE_BYTES_MAX - 100]),
        "half" => output(vec![b'1'; RESULTS_BYTES_MAX / 2]),
        _ => output(input),
    }
}

impl Serving for Fake {
    fn describe(&self) -> Description {
        let function = Function { name: "echo".to_owned(), ..Function::default() };
        Description { name: "fake".to_owned(), functions: vec![function], ..Default::default() }
    }

    async fn configure(&self, request: ConfigureRequest) -> Result<(), Failure> {
        match &*request.configuration {
            b"null" => Err(Failure::new("bad_configuration", request.tenant)),
            _ => Ok(()),
        }
    }

    async fn call(&self, request: CallRequest) -> Result<CallResponse, Status> {
        match &*request.function {
            "hang" => {
                let _dropped = OnDrop(Arc::clone(&self.dropped));
                pending().await
            }
            "status" => Err(Status::not_found("there is none")),
            "timeout" => Ok(output(request.context.unwrap().timeout_ms.to_string())),
            function => Ok(answer(function, request.input)),
        }
    }

    fn stream(&self, requests: Messages<StreamRequest>) -> Messages<StreamResponse> {
        let mut of_all = String::new();
        Messages::new(requests.map(move |request| {
            let StreamRequest { number, function, inputs, .. } = request?;
            if number == 1 {
                of_all = function;
            }
            let mut results: Vec<_> =
                inputs.into_iter().map(|input| answer(&of_all, input)).collect();
            match of_all.as_str() {
                "short" if number == 2 => drop(results.pop()),
                "end" if number == 2 => return Err(Status::internal("it ends")),
                "wrong_number" => return Ok(StreamResponse { number: number + 7, results }),
                _ => {}
            }
            Ok(StreamResponse { number, results })
        }))
    }

    fn decide(&self, requests: Messages<DecideRequest>) -> Messages<DecideResponse> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        let own = self.clone();
        Messages::new(requests.then(move |request| {
            let own = own.clone();
            async move {
                let DecideRequest { number, questions } = request?;
                own.batches.lock().unwrap().push(questions.len());
                own.gate.acquire().await.unwrap().forget();
                let has = |command| questions.iter().any(|it| it.command == command);
                if has("hang") {
                    pending::<()>().await;
                }
                if has("end") {
                    return Err(Status::unavailable("it ends"));
                }
                if has("refused") {
                    return Err(Status::invalid_argument("it is over a limit"));
                }
                let slow = questions.iter().filter(|it| it.command == "slow").count();
                if slow > 0 {
                    let each = Duration::from_millis(20);
                    tokio::time::sleep(each * u32::try_from(slow).unwrap()).await;
                }
                let short = usize::from(has("short"));
                let decisions = questions.into_iter().skip(short).map(decision).collect();
                Ok(DecideResponse { number, decisions })
            }
        }))
    }
}

fn decision(question: Question) -> Decision {
    let result = match &*question.command {
        "reject" => DecisionResult::Rejected(Failure::new("too_late", "it is too late")),
        "reject_for_now" => DecisionResult::Rejected(Failure::passing("later", "not now")),
        "bad_json" => events("{"),
        "half" => events(vec![b'1'; RESULTS_BYTES_MAX / 2]),
        "huge" => events(vec![b'1'; RESULTS_BYTES_MAX + ENVELOPE_BYTES_MAX]),
        _ => events(question.payload),
    };
    Decision { result: Some(result) }
}

fn events(data: impl Into<Bytes>) -> DecisionResult {
    DecisionResult::Events(Events {
        events: vec![Event { event: "done".to_owned(), data: data.into() }],
    })
}

/// A plugin, and its client.
struct Pair {
    fake: Fake,
    client: Client,
    serving: AbortOnDropHandle<Result<(), Error>>,
}

async fn pair(checks: bool) -> Pair {
    let fake = Fake {
        dropped: Arc::default(),
        batches: Arc::default(),
        gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        streams: Arc::default(),
    };
    let (near, far) = duplex(64 * 1024);
    let routes = Routes::new(Served { serving: fake.clone(), checks });
    let serving = tokio::spawn(serve(Box::new(far), routes, CancellationToken::new()));
    let connection = Connection::new(Box::new(near)).await.unwrap();
    Pair { fake, client: Client::new(&connection), serving: AbortOnDropHandle::new(serving) }
}

fn request(function: &str, input: impl Into<Bytes>) -> CallRequest {
    CallRequest { context: None, function: function.to_owned(), input: input.into() }
}

fn question(command: &str, payload: String) -> Question {
    Question { command: command.to_owned(), payload: payload.into(), ..Question::default() }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let looks = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(LONG, looks).await.is_ok(), "waited in vain for {what}");
}

#[tokio::test]
async fn a_plugin_describes_itself_is_configured_and_called() {
    let Pair { client, serving: _serving, .. } = pair(true).await;
    let description = client.describe().await.unwrap();
    assert_eq!(description.functions[0].name, "echo");
    client.configure("acme", "{}".into(), LONG).await.unwrap().unwrap();
    let refused = client.configure("acme", "null".into(), LONG).await.unwrap().unwrap_err();
    assert_eq!((&*refused.code, &*refused.message), ("bad_configuration", "acme"));
    let done = client.call(request("echo", "[1]"), LONG).await.unwrap();
    assert_eq!(done.unwrap(), "[1]");
    let failed = client.call(request("fail", "1"), LONG).await.unwrap().unwrap_err();
    assert_eq!(failed.code, "not_found");
    let timeout_ms = client.call(request("timeout", "1"), SHORT).await.unwrap().unwrap();
    assert_eq!(timeout_ms, "150");
}

#[tokio::test]
async fn limits_hold_on_both_sides() {
    let Pair { client, serving: _serving, .. } = pair(true).await;
    let large = request("echo", vec![b'1'; INPUT_BYTES_MAX + 1]);
    let error = client.call(large.clone(), LONG).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }) && !is_unknown(&error), "{error}");
    let error = client.call_unchecked(large, LONG).await.unwrap_err();
    let Error::Status { status, .. } = &error else { panic!("{error}") };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(!is_unknown(&error));
    let most = request("echo", vec![b'1'; INPUT_BYTES_MAX]);
    assert_eq!(client.call(most, LONG).await.unwrap().unwrap().len(), INPUT_BYTES_MAX);
    let stream = client.stream(Context::default(), "echo", LONG);
    let error = stream.send(vec!["1".into(); BATCH_ITEMS_MAX + 1]).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let large = question("done", "1".repeat(INPUT_BYTES_MAX + 1));
    let error = client.decider().ask(large, LONG).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_call_that_is_late_is_given_up_at_the_plugin_too() {
    let Pair { fake, client, serving: _serving } = pair(true).await;
    let error = client.call(request("hang", "1"), SHORT).await.unwrap_err();
    assert!(matches!(error, Error::Late { .. }) && is_unknown(&error), "{error}");
    until("the end of the call", || fake.dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_plugin_that_breaks_the_contract_is_told_so() {
    let Pair { client, serving: _serving, .. } = pair(false).await;
    for (function, what) in [
        ("bad_json", "no JSON"),
        ("bad_code", "Not Found"),
        ("nothing", "neither"),
        ("large", "limit"),
        ("huge", "limit"),
    ] {
        let error = client.call(request(function, "1"), LONG).await.unwrap_err();
        let Error::Contract(said) = &error else { panic!("{function}: {error}") };
        assert!(said.starts_with("the plugin's answer to ") && said.contains(what), "{said}");
    }
}

#[tokio::test]
async fn code_that_breaks_the_contract_is_a_failure_of_the_plugin() {
    let Pair { client, serving: _serving, .. } = pair(true).await;
    for function in ["bad_json", "bad_code", "nothing", "large", "huge"] {
        let failure = client.call(request(function, "1"), LONG).await.unwrap().unwrap_err();
        assert_eq!(failure.code, BROKEN, "{function}");
    }
    let stream = client.stream(Context::default(), "half", LONG);
    let batch = stream.send(vec!["1".into(); 3]).await.unwrap();
    let results = batch.results().await.unwrap();
    let are_done: Vec<_> = results.iter().map(Result::is_ok).collect();
    assert_eq!(are_done, [true, false, false], "two of them are over the limit with their frames");
    let decided = client.decider().ask(question("bad_json", String::new()), LONG).await.unwrap();
    let DecisionResult::Failure(failure) = decided else { panic!("{decided:?}") };
    assert_eq!(failure.code, BROKEN);
}

#[tokio::test]
async fn a_status_is_a_refusal() {
    let Pair { client, serving: _serving, .. } = pair(true).await;
    let error = client.call(request("status", "1"), LONG).await.unwrap_err();
    assert!(!is_unknown(&error), "{error}");
    assert!(error.to_string().contains("flexcore.plugin.v1.Plugin/Call"), "{error}");
}

#[tokio::test]
async fn batches_are_answered_by_their_numbers() {
    let Pair { client, serving: _serving, .. } = pair(true).await;
    let stream = client.stream(Context::default(), "echo", LONG);
    let mut under_way = Vec::new();
    for number in 1..=STREAM_BATCHES_MAX {
        let batch = stream.send(vec![number.to_string().into(), "0".into()]).await.unwrap();
        assert_eq!(batch.number(), number as u64);
        under_way.push(batch);
    }
    // The last one first.
    for batch in under_way.into_iter().rev() {
        let number = batch.number().to_string();
        let results = batch.results().await.unwrap();
        let outputs: Vec<_> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(outputs, [number.as_str(), "0"]);
    }
    let none = stream.send(vec![]).await.unwrap().results().await.unwrap();
    assert!(none.is_empty());
    stream.finish().await.unwrap();
}

#[tokio::test]
async fn a_batch_with_too_few_results_fails_alone() {
    let Pair { client, serving: _serving, .. } = pair(false).await;
    let stream = client.stream(Context::default(), "short", LONG);
    for number in 1..=3 {
        let results = stream.send(vec!["1".into(); 2]).await.unwrap().results().await;
        assert_eq!(results.is_ok(), number != 2, "{results:?}");
        if let Err(error) = results {
            assert!(matches!(error, Error::Contract(_)), "{error}");
        }
    }
}

#[tokio::test]
async fn what_is_under_way_on_a_stream_that_breaks_fails() {
    let Pair { client, serving: _serving, .. } = pair(false).await;
    for function in ["wrong_number", "end"] {
        let stream = client.stream(Context::default(), function, LONG);
        let mut failed = 0;
        for _ in 0..4 {
            let Ok(batch) = stream.send(vec!["1".into()]).await else {
                failed += 1;
                continue;
            };
            match batch.results().await {
                Ok(_) => assert_eq!(function, "end", "the first one is answered"),
                Err(Error::Contract(said)) => assert!(said.contains("number 8"), "{said}"),
                Err(error) => assert!(error.to_string().contains("it ends"), "{error}"),
            }
        }
        assert!(failed >= 2, "{function}: {failed}");
        stream.finish().await.unwrap_err();
    }
}

#[tokio::test]
async fn a_stream_has_a_deadline() {
    let Pair { client, serving: _serving, .. } = pair(true).await;
    let stream = client.stream(Context::default(), "echo", SHORT);
    let batch = stream.send(vec!["1".into()]).await.unwrap();
    batch.results().await.unwrap();
    tokio::time::sleep(SHORT).await;
    let error = stream.send(vec!["1".into()]).await.unwrap_err();
    assert!(matches!(error, Error::Late { .. }), "{error}");
}

#[tokio::test]
async fn a_decision_is_a_rejection_a_failure_or_events() {
    let Pair { client, serving: _serving, .. } = pair(false).await;
    let decider = client.decider();
    let ask = |command: &str| decider.ask(question(command, "1".to_owned()), LONG);
    assert_eq!(ask("done").await.unwrap(), events("1"));
    let rejected = ask("reject").await.unwrap();
    assert!(matches!(rejected, DecisionResult::Rejected(why) if why.code == "too_late"));
    for wrong in ["reject_for_now", "bad_json", "short"] {
        let error = ask(wrong).await.unwrap_err();
        assert!(matches!(error, Error::Contract(_)), "{wrong}: {error}");
    }
}

#[tokio::test]
async fn a_decider_that_hangs_or_ends_is_asked_anew() {
    let Pair { fake, client, serving: _serving } = pair(true).await;
    let decider = client.decider();
    for (command, streams) in [("hang", 2), ("end", 3)] {
        let first = decider.ask(question(command, "1".to_owned()), SHORT);
        // One on the same stream behind it, and one when its time is over.
        let behind = async {
            tokio::time::sleep(SHORT / 2).await;
            decider.ask(question("done", "1".to_owned()), LONG).await.unwrap()
        };
        let (first, behind) = futures::join!(first, behind);
        let error = first.unwrap_err();
        assert!(is_unknown(&error), "{error}");
        assert_eq!(behind, events("1"));
        let decided = decider.ask(question("done", "1".to_owned()), LONG).await.unwrap();
        assert_eq!(decided, events("1"));
        assert_eq!(fake.streams.load(Ordering::SeqCst), streams, "{command}");
    }
}

#[tokio::test]
async fn when_the_plugin_is_gone_everybody_is_told() {
    let Pair { client, serving, .. } = pair(true).await;
    let decider = client.decider();
    decider.ask(question("done", "1".to_owned()), LONG).await.unwrap();
    let hanging = (0..8).map(|_| client.call(request("hang", "1"), LONG));
    let deciding = (0..8).map(|_| decider.ask(question("hang", "1".to_owned()), LONG));
    let gone = async {
        tokio::time::sleep(SHORT).await;
        drop(serving);
    };
    let all = futures::future::join3(join_all(hanging), join_all(deciding), gone);
    let (called, decided, ()) = timeout(LONG, all).await.unwrap();
    assert!(called.iter().all(|error| error.as_ref().is_err_and(is_unknown)), "{called:?}");
    assert!(decided.iter().all(|error| error.as_ref().is_err_and(is_unknown)), "{decided:?}");
    let error = decider.ask(question("done", "1".to_owned()), LONG).await.unwrap_err();
    assert!(is_unknown(&error), "{error}");
}

/// A stream whose messages nobody wants any more ends at the plugin, too.
#[tokio::test]
async fn a_stream_that_is_dropped_is_given_up() {
    let messages = Messages::new(stream::iter([Ok::<u8, Status>(1)]));
    let read: Vec<_> = messages.map(Result::unwrap).collect().await;
    assert_eq!(read, [1]);
    let Pair { client, serving: _serving, .. } = pair(true).await;
    let stream = client.stream(Context::default(), "echo", LONG);
    let batch = stream.send(vec!["1".into()]).await.unwrap();
    drop(stream);
    // Answered just before, or not.
    if let Err(error) = timeout(LONG, batch.results()).await.unwrap() {
        assert!(matches!(error, Error::Ended), "{error}");
    }
}
