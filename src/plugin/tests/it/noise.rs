//! Plugins that print what no reader expects, or without end.

use std::time::Duration;

use flexcore_plugin::{Level, limits};

use crate::{
    PATIENCE,
    base::{MIB, alive, mark, marked, run},
    contract::Transform,
    fixtures,
    harness::{How, start, within},
};

/// More than a host may ever take: `base` has the limit.
const FLOOD_BYTES: usize = 256 * MIB;

#[test]
fn noise_on_standard_error_is_lines_and_nothing_else() {
    run(async {
        let program = fixtures::around("noisy.sh", &[]);
        let started = start(&program, How::default()).await.unwrap();
        let transform = Transform::of(&started.plugin);
        let answer = within(PATIENCE, transform.apply("a", "x")).await.unwrap();
        assert_eq!(answer.payload, "X");
        started.until("the end of the noise", |all| all.has_line("the noise is over")).await;
        {
            let prints = started.prints();
            let lines = &prints.lines;
            let longest = lines.iter().map(|line| line.message.len()).max().unwrap();
            assert!(longest <= limits::LOG_LINE_BYTES_MAX, "{longest}");
            let long = lines.iter().map(|line| line.message.matches('b').count());
            assert!(long.sum::<usize>() >= 70_000, "the long line came in pieces");
            let no_text = lines.iter().map(|line| line.message.matches('\u{fffd}').count());
            assert!(no_text.max().unwrap() >= limits::LOG_LINE_BYTES_MAX / 4, "{prints:?}");
            let fields = lines.iter().map(|line| line.fields.len()).max().unwrap();
            assert!(fields <= limits::LOG_FIELDS_MAX, "{fields}");
            let warned = lines.iter().find(|line| line.message.contains("a prefix")).unwrap();
            assert!(matches!(warned.level, Level::Warn), "{prints:?}");
        }
        within(PATIENCE, started.plugin.check()).await.unwrap();
        let ended = within(PATIENCE, started.plugin.stop()).await;
        assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
    });
}

#[test]
fn a_flood_on_standard_output_takes_no_memory_and_stops_no_call() {
    run(async {
        let program = fixtures::around("flood.sh", &[FLOOD_BYTES.to_string().as_str()]);
        let started = start(&program, How::default()).await.unwrap();
        let transform = Transform::of(&started.plugin);
        let floods = || marked(&mark()).into_iter().any(is_flooding);
        started.until("the flood", |all| all.stdout_bytes > 0 || floods()).await;
        let mut answered = 0;
        let flooded = async {
            while floods() || answered < 10 {
                let answer = within(PATIENCE, transform.apply("a", "x")).await.unwrap();
                assert_eq!(answer.payload, "X");
                answered += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Nobody reads slower than this in a test build.
        within(PATIENCE.saturating_mul(4), flooded).await;
        assert!(alive(started.plugin.pid()));
        within(PATIENCE, started.plugin.check()).await.unwrap();
        let ended = within(PATIENCE, started.plugin.stop()).await;
        assert!(ended.status.is_some_and(|status| status.success()), "{ended}");
    });
}

fn is_flooding(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    ["head", "yes"].contains(&name.trim())
}

#[test]
fn output_that_nobody_wants_does_not_hold_up_a_stop() {
    run(async {
        // It would take minutes to read all of it.
        let program = fixtures::around("flood.sh", &["1000000000000"]);
        let started = start(&program, How::default()).await.unwrap();
        let answer = within(PATIENCE, Transform::of(&started.plugin).apply("a", "x")).await;
        assert_eq!(answer.unwrap().payload, "X");
        let ended = within(PATIENCE, started.plugin.stop()).await;
        assert!(ended.status.is_some(), "{ended}");
    });
}
