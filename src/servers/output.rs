//! Output of programs.

use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Runs a program to its end and gives its standard output; the error is its last line of standard
/// error, or why it could not be started.
pub(crate) fn output(
    program: &str,
    arguments: &[&str],
    folder: Option<&Path>,
) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let done = command.output().map_err(|error| format!("{program}: {error}"))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&done.stderr);
    let last = errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
    Err(format!("{program} {}: {last} ({})", arguments.join(" "), done.status))
}
