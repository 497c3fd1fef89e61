//! `flexcore completions`: the completion script of a shell.

use std::io::Write;

use clap_complete::Shell;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: Shell,
}

pub(crate) fn run(
    args: &Completions,
    mut command: clap::Command,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    // Into memory first: the generator does not survive a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "flexcore", &mut script);
    out.write_all(&script)?;
    Ok(true)
}
