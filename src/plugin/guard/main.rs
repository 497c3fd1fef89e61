//! The guard of a plugin as an executable of its own: small, so that it starts fast.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Without its first argument it says that it is not started by hand.
    let guard = flexcore_plugin::guard::entered();
    guard.unwrap_or_else(|| flexcore_plugin::guard::run([]))
}
