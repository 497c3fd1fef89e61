//! A host for tests to kill: it starts a plugin, says so, and waits for ever.
//!
//!     flexcore-plugin-host FILE [ARGUMENT]…
//!
//! The plugin gets this process's `PATH`, and the mark by which the test finds all that is left.

use std::{env, ffi::OsString, io::Write as _, process::ExitCode, sync::Arc};

use flexcore_plugin::{Checked, Cookie, Plugin, Start, guard, limits};

const PASSED_ON: &[&str] = &["PATH", "FLEXCORE_TEST_MARK"];

fn main() -> ExitCode {
    // The executable guards its own plugins.
    if let Some(code) = guard::entered() {
        return code;
    }
    if let Err(error) = guard::be_private() {
        let _ = writeln!(std::io::stderr(), "{error}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Runtime::new().expect("BUG: a machine for tests has room");
    match runtime.block_on(host()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

async fn host() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args_os().skip(1);
    let file: OsString = arguments.next().ok_or("which plugin?")?;
    let passed_on = PASSED_ON.iter().filter_map(|name| Some((name.into(), env::var_os(name)?)));
    let start = Start {
        file: Checked::open(file.as_ref(), None)?,
        guard: env::current_exe()?,
        arguments: arguments.collect(),
        environment: passed_on.collect(),
        cookie: Cookie { key: "FLEXCORE_PLUGIN".to_owned(), value: "flexcore-lab-7f3a".to_owned() },
        versions: vec![1, 2],
        tls: false,
        multiplex: false,
        start_wait: limits::START_WAIT,
        answer_bytes_max: limits::ANSWER_BYTES_MAX,
        bounds: guard::Bounds::default(),
        sandbox: guard::Sandbox::default(),
        output: Arc::new(|_| {}),
    };
    let plugin = Plugin::start(start).await?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "STARTED {}", plugin.pid())?;
    stdout.flush()?;
    let ended = plugin.ended().await;
    Err(format!("the plugin has ended: {ended}").into())
}
