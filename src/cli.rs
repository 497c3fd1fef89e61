//! The command line: every role as a subcommand, and nothing but its shape.

use std::{env, ffi::OsString, fs, path::PathBuf};

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    apply::Apply,
    apptest::Test,
    completions::Completions,
    dead::Dead,
    dev::Dev,
    doctor::Doctor,
    global::Global,
    healthcheck::Healthcheck,
    members::Cluster,
    plugins::Plugins,
    publish::Publish,
    query::Query,
    rebuild::Rebuild,
    roles::{Gateway, Worker},
    token::Token,
    verify::Verify,
};

/// An event-driven application platform: commands become durable events become read models.
#[derive(Debug, Parser)]
#[command(
    name = "flexcore",
    version,
    about,
    max_term_width = 100,
    after_help = "\
Examples:
  flexcore dev                      everything in one process, with its own servers
  flexcore publish flight UA1-20130101-EWR schedule '{…}' --wait
  flexcore query flights carrier=UA --limit 5
  flexcore completions bash > /etc/bash_completion.d/flexcore

While a `flexcore dev` or `demo` runs, the other subcommands find it by its data folder."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The roles.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Dev(Dev),
    Demo(flexcore_demo::Args),
    Gateway(Gateway),
    Worker(Worker),
    Apply(Apply),
    Test(Test),
    Publish(Publish),
    Query(Query),
    Rebuild(Rebuild),
    #[command(subcommand)]
    Dead(Dead),
    Verify(Verify),
    Cluster(Cluster),
    Token(Token),
    #[command(subcommand)]
    Plugin(Box<Plugins>),
    Doctor(Doctor),
    Healthcheck(Healthcheck),
    Bench(flexcore_bench::Args),
    #[command(hide = true)]
    BenchClient(flexcore_bench::ClientArgs),
    Completions(Completions),
}

impl Command {
    /// Roles that go on until they are stopped log what they do; tools only what is wrong.
    pub(crate) fn default_log_filter(&self) -> &'static str {
        match self {
            Self::Dev(_) | Self::Gateway(_) | Self::Worker(_) => "info",
            Self::Demo(_)
            | Self::Apply(_)
            | Self::Test(_)
            | Self::Publish(_)
            | Self::Query(_)
            | Self::Rebuild(_)
            | Self::Dead(_)
            | Self::Verify(_)
            | Self::Cluster(_)
            | Self::Token(_)
            | Self::Plugin(_)
            | Self::Doctor(_)
            | Self::Healthcheck(_)
            | Self::Bench(_)
            | Self::BenchClient(_)
            | Self::Completions(_) => "warn",
        }
    }
}

/// The command line, parsed; each option that a variable may give may also be given by a file whose
/// path is in the variable of that name with `_FILE`: secrets stay out of the environment. Ends the
/// process when the line is wrong or only asks for help. Fails when such a file cannot be read.
pub(crate) fn command_line() -> anyhow::Result<Cli> {
    let mut command = with_files(Cli::command(), &|name| env::var_os(name))?;
    let matches = command.get_matches_mut();
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command).exit())
}

/// Sets the content of `<variable>_FILE` as the option's default: the line and the variable itself
/// still win.
fn with_files(
    command: clap::Command,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> anyhow::Result<clap::Command> {
    let mut problem = Ok(());
    let command = command.mut_args(|argument| {
        let name =
            argument.get_env().and_then(|name| name.to_str()).map(|name| format!("{name}_FILE"));
        let Some((path, name)) = name.and_then(|name| Some((variable(&name)?, name))) else {
            return argument;
        };
        match fs::read_to_string(&path) {
            Ok(text) => argument.default_value(text.trim_end().to_owned()).hide_default_value(true),
            Err(error) => {
                let path = PathBuf::from(&path);
                problem = Err(error).with_context(|| format!("{name} says {}", path.display()));
                argument
            }
        }
    });
    problem?;
    let mut problem = Ok(());
    let command = command.mut_subcommands(|subcommand| {
        with_files(subcommand.clone(), variable).unwrap_or_else(|error| {
            problem = Err(error);
            subcommand
        })
    });
    problem.map(|()| command)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_file_gives_what_its_variable_would() {
        let folder = tempfile::tempdir().unwrap();
        let (secret, gone) = (folder.path().join("secret"), folder.path().join("gone"));
        fs::write(&secret, "postgres://from/file\n").unwrap();
        let parse = |file: &Path, line: &[&str]| {
            let file = file.as_os_str().to_owned();
            let asked = move |name: &str| (name == "FLEXCORE_POSTGRES_FILE").then(|| file.clone());
            let command = with_files(Cli::command(), &asked)?;
            let matches = command.try_get_matches_from(line)?;
            anyhow::Ok(Cli::from_arg_matches(&matches)?.global.postgres)
        };
        let given = parse(&secret, &["flexcore", "worker"]).unwrap();
        assert_eq!(given.as_deref(), Some("postgres://from/file"));
        let given =
            parse(&secret, &["flexcore", "worker", "--postgres", "postgres://line"]).unwrap();
        assert_eq!(given.as_deref(), Some("postgres://line"));
        let error = format!("{:#}", parse(&gone, &["flexcore", "worker"]).unwrap_err());
        assert!(error.contains("FLEXCORE_POSTGRES_FILE says"), "{error}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_and_option_has_a_help_text() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                let name = (command.get_name(), argument.get_id());
                assert!(argument.get_help().is_some(), "{name:?} has no help");
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn hostile_names_are_usage_errors() {
        for id in ["a.b", "*", "a b", "a\r\nb", ""] {
            let line = ["flexcore", "publish", "flight", id, "depart"];
            assert!(Cli::try_parse_from(line).is_err(), "{id:?}");
        }
    }
}
