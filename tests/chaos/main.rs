//! The chaos harness: the whole cluster in network namespaces on this machine, under load, while
//! everything fails that can. Afterwards a checker compares the clients' answers with the log and
//! the rows.
//!
//! ```text
//! FLEXCORE_CHAOS=slice cargo test --test chaos          a few minutes
//! FLEXCORE_CHAOS=full cargo test --release --test chaos some two hours
//! FLEXCORE_CHAOS=kill cargo test --test chaos           one experiment
//! ```
//! `FLEXCORE_CHAOS_SEED` repeats a run, `FLEXCORE_CHAOS_REPORT` names the file for the report. It
//! needs root, and the Debian packages iproute2, iptables, util-linux, e2fsprogs and xfsprogs.
#![expect(clippy::unwrap_used, reason = "a test fails where it finds something unexpected")]

mod checker;
mod cluster;
mod disk;
mod evidence;
mod experiments;
mod fake_postgres;
mod gather;
mod history;
mod host;
mod hostile;
mod http;
mod leadership;
mod limits;
mod listener;
mod load;
mod monitoring;
mod netns;
mod process;
mod report;
mod rig;
mod small;
mod talk;

use experiments::{Extent, NAMES, SLICE};
use host::say;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_survives() {
    let Ok(programme) = std::env::var("FLEXCORE_CHAOS") else {
        say(&format!(
            "skipped; FLEXCORE_CHAOS=slice, full, or one of {} runs it",
            NAMES.join(", ")
        ));
        return;
    };
    if let Some(missing) = host::missing() {
        panic!("FLEXCORE_CHAOS={programme} cannot run here: {missing}");
    }
    // Clients need a descriptor for each connection. Where more is not allowed, less will do.
    let own = std::process::id().to_string();
    drop(host::try_run("prlimit", &["--pid", &own, "--nofile=65536:65536"]));
    let (chosen, extent) = match programme.as_str() {
        "slice" => (SLICE.to_vec(), Extent::Slice),
        "full" => (NAMES.to_vec(), Extent::Full),
        name => {
            let name = name.strip_suffix("-full").unwrap_or(name);
            assert!(NAMES.contains(&name), "{name} is none of {NAMES:?}, slice and full");
            let full = programme.ends_with("-full");
            (vec![name], if full { Extent::Full } else { Extent::Slice })
        }
    };
    let given = std::env::var("FLEXCORE_CHAOS_SEED").ok();
    let seed = given.map_or_else(|| rand::random::<u32>().into(), |text| text.parse().unwrap());
    say(&format!("FLEXCORE_CHAOS={programme} FLEXCORE_CHAOS_SEED={seed}; {}", host::machine()));
    let mut report = report::Report::new(seed, &programme);
    for name in chosen {
        experiments::run(name, seed, extent, &mut report).await;
        // After each, so that a run that is cut short has told its findings.
        report.write(&report::versions());
    }
    let failures = report.failures();
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
}
