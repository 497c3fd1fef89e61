//! A plugin for tests of the SDK. With the argument `broken` it has two functions of one name; with `unreadable` a
//! schema that is none.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use flexcore_sdk::{Call, Event, Failure, Function, Plugin, Question, Refused};
use serde::Deserialize;
use serde_json::{Value, json};

fn main() -> ExitCode {
    let mut plugin = Plugin::new("lab", env!("CARGO_PKG_VERSION"))
        .summary("For tests.")
        .configured_by(
            json!({
                "type": "object",
                "properties": {
                    "url": { "type": "string" },
                    "token": { "type": "string", "writeOnly": true },
                },
            }),
            made,
        )
        .function(Function::new("echo", echo).summary("As it came.").idempotent())
        .function(Function::new("about", about))
        .function(Function::new("settings", settings))
        .function(Function::new("sleep", sleep))
        .function(Function::new("work", work))
        .function(Function::new("busy", busy).at_once(4))
        .function(Function::new("panic", panics))
        .function(Function::new("fail", fail))
        .function(Function::new("log", log))
        .function(Function::new("wrong", wrong).output_schema(r#"{ "type": "integer" }"#))
        .function(Function::new("small", echo).input_schema(json!({ "maximum": 9 })))
        .decider(decide);
    plugin = match std::env::args().nth(1).as_deref() {
        Some("broken") => plugin.function(Function::new("echo", echo)),
        Some("unreadable") => {
            let odd = Function::new("odd", echo).input_schema(json!({ "type": "strin" }));
            plugin.function(odd)
        }
        _ => plugin,
    };
    flexcore_sdk::run(plugin)
}

#[derive(Deserialize)]
struct Settings {
    url: String,
}

/// What calls use of the settings.
struct Made {
    url: String,
}

fn made(settings: Settings) -> Result<Made, Failure> {
    match settings.url.strip_prefix("https://") {
        Some(url) => Ok(Made { url: url.to_owned() }),
        None => Err(Failure::new("no_https", "only https is allowed")),
    }
}

async fn settings(call: Call<()>) -> Result<String, Failure> {
    Ok(call.configured::<Made>()?.url.clone())
}

async fn echo(call: Call<Value>) -> Result<Value, Failure> {
    Ok(call.input)
}

async fn about(call: Call<()>) -> Result<Value, Failure> {
    Ok(json!({
        "tenant": call.tenant(),
        "actor": call.actor(),
        "key": call.idempotency_key(),
        "trace": call.trace().map(|(parent, _)| parent),
        "remaining_ms": u64::try_from(call.remaining().as_millis()).unwrap_or(u64::MAX),
    }))
}

/// Logs its end, however it ends.
struct Told(&'static str);

impl Drop for Told {
    fn drop(&mut self) {
        tracing::info!("{} has ended", self.0);
    }
}

/// Milliseconds.
async fn sleep(call: Call<u64>) -> Result<(), Failure> {
    let _told = Told("sleep");
    tracing::info!("sleep has begun");
    tokio::time::sleep(Duration::from_millis(call.input)).await;
    Ok(())
}

/// On a thread, until it is told to stop.
async fn work(call: Call<()>) -> Result<(), Failure> {
    let stop = call.stop();
    let work = tokio::task::spawn_blocking(move || {
        let _told = Told("work");
        let mut steps = 0;
        while !stop.is_cancelled() {
            std::thread::sleep(Duration::from_millis(1));
            steps += 1;
            call.progress(steps, u64::MAX);
        }
    });
    work.await.map_err(|error| Failure::new("stopped", error))
}

/// The most calls that were under way at once.
async fn busy(_: Call<Value>) -> Result<usize, Failure> {
    static NOW: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let now = NOW.fetch_add(1, Ordering::SeqCst) + 1;
    MOST.fetch_max(now, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(2)).await;
    NOW.fetch_sub(1, Ordering::SeqCst);
    Ok(MOST.load(Ordering::SeqCst))
}

async fn panics(_: Call<Value>) -> Result<(), Failure> {
    tokio::task::yield_now().await;
    panic!("as asked")
}

#[derive(Deserialize)]
struct Fail {
    code: String,
    pause_ms: Option<u64>,
}

async fn fail(call: Call<Fail>) -> Result<(), Failure> {
    let Fail { code, pause_ms } = call.input;
    let failure = Failure::new(code, "as asked").details(&json!({ "why": "a test" }));
    Err(match pause_ms {
        Some(pause) => failure.retry_after(Duration::from_millis(pause)),
        None => failure,
    })
}

async fn log(_: Call<()>) -> Result<(), Failure> {
    tracing::warn!(count = 3, name = "x", "one\ntwo");
    tracing::debug!("too much");
    Ok(())
}

async fn wrong(_: Call<()>) -> Result<&'static str, Failure> {
    Ok("no integer")
}

/// A counter up to ten.
fn decide(question: &Question) -> Result<Vec<Event>, Refused> {
    let count: u32 = question.state()?.unwrap_or_default();
    match question.command() {
        "add" => {
            let by: u32 = question.payload()?;
            if count + by > 10 {
                return Err(Refused::rejected("too_many", "ten at most"));
            }
            Ok(vec![Event::new("added", &json!({ "by": by }))?])
        }
        "nothing" => Ok(vec![]),
        // No aggregate declares it.
        "lie" => Ok(vec![Event::new("stolen", &json!({ "by": 1 }))?]),
        // Milliseconds.
        "sleep" => {
            std::thread::sleep(Duration::from_millis(question.payload()?));
            Ok(vec![Event::new("added", &json!({ "by": 1 }))?])
        }
        "panic" => panic!("as asked"),
        "die" => std::process::exit(3),
        other => Err(Failure::new("unknown_command", other).into()),
    }
}
