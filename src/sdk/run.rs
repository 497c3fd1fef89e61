//! Being a plugin's process.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use flexcore_plugin::{Error, contract, guard, serve};
use tokio::runtime::Builder;

use crate::{Plugin, logs, panics, served::Served};

/// Is a plugin, until its host ends it: what `main` returns. Where no host has started it, it says
/// so on standard error, and the exit status is 1.
///
/// The executable may be a plugin's guard, too, as [`guard`] describes: tests start it so.
pub fn run(plugin: Plugin) -> ExitCode {
    if let Some(code) = guard::entered() {
        return code;
    }
    match serve_it(plugin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told where this fails.
            drop(writeln!(io::stderr(), "{error}"));
            ExitCode::FAILURE
        }
    }
}

fn serve_it(plugin: Plugin) -> Result<(), Error> {
    plugin.described().check()?;
    let start = |source| Error::System { what: "start threads".to_owned(), source };
    let runtime = Builder::new_multi_thread().enable_all().build().map_err(start)?;
    let served = runtime.block_on(async {
        logs::to_stderr();
        panics::log();
        serve(contract::plugin(Served::new(plugin))).await
    });
    // A thread that does not end must not keep the process: its host has been told that it ends.
    runtime.shutdown_background();
    served
}
