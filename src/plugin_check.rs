//! `flexcore plugin check`: a plugin is held to what every plugin of FlexCore's contract has to do.

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use comfy_table::{ContentArrangement, Table};
use flexcore_definition::PluginContract;
use flexcore_plugin::{
    guard::{Bounds, Sandbox},
    limits::START_WAIT,
};
use flexcore_sdk::testing::{Requirement, requirements, without_a_host};
use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::{
    install_plugin::program_of,
    out, plugin_files,
    program::{Program, Running, SaidBy, pair, shown, with_plugin},
};

/// Columns of the table where no terminal has its own number of them. 120: what our lines have.
const WIDTH: u16 = 120;

/// Hold a plugin to what every plugin has to do: tell what it is, refuse what is wrong, end when it is told to
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore plugin check greeter
  flexcore plugin check ./target/debug/greeter

It is started here, with TLS and without, and as its plugin.yaml says. Its schemas are read as workers read them.
Its functions are called with what is no JSON alone, so that they do nothing. Exit code 0: it does all of it; 1: it
does not.")]
pub(crate) struct Check {
    #[command(flatten)]
    under_test: UnderTest,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// A plugin that is not installed, as its author has it.
#[derive(Debug, clap::Args)]
pub(crate) struct UnderTest {
    /// The plugin's folder, its plugin.yaml, or its executable
    place: PathBuf,
    /// A variable of its environment; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// An argument for it; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    arg: Vec<OsString>,
}

impl UnderTest {
    /// How it is started: as workers do it, where there is a manifest.
    pub(crate) async fn program(&self) -> anyhow::Result<Program> {
        let mut program = if is_manifest(&self.place) {
            self.by_manifest().await?
        } else {
            by_itself(self.place.clone())
        };
        program.env.extend(self.env.iter().cloned());
        program.arg.extend(self.arg.iter().cloned());
        Ok(program)
    }

    async fn by_manifest(&self) -> anyhow::Result<Program> {
        let place = self.place.clone();
        let found = spawn_blocking(move || plugin_files::read(&place)).await??;
        ensure!(
            matches!(found.manifest.contract, PluginContract::Flexcore),
            "{} has a contract of its own (`contract: none`): try `flexcore plugin inspect`",
            found.manifest.name
        );
        program_of(&found.manifest, found.file).await
    }
}

fn is_manifest(place: &Path) -> bool {
    place.is_dir() || place.extension().is_some_and(|end| end == "yaml" || end == "yml")
}

fn by_itself(file: PathBuf) -> Program {
    Program {
        file,
        cookie: None,
        protocol_version: vec![1],
        no_tls: false,
        multiplex: false,
        env: Vec::new(),
        arg: Vec::new(),
        sha256: None,
        timeout: START_WAIT.as_secs(),
        bounds: Bounds::default(),
        sandbox: Sandbox::default(),
        said_by: SaidBy::Nobody,
    }
}

/// What was looked at, and how.
#[derive(Serialize)]
struct Looked {
    what: &'static str,
    how: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

impl Looked {
    fn new(how: &'static str, requirement: Requirement) -> Self {
        let Requirement { what, fault } = requirement;
        Self { what, how, fault: fault.map(|fault| shown(&fault)) }
    }
}

pub(crate) async fn run(args: &Check, out: &mut dyn Write) -> anyhow::Result<bool> {
    let mut program = args.under_test.program().await?;
    let file = std::path::absolute(&program.file)?;
    let environment: Vec<(OsString, OsString)> =
        program.env.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let by_hand = without_a_host(&file, &program.arg, &environment).await;
    let mut all = vec![Looked::new("by hand", by_hand)];
    // A manifest may say that it does no TLS.
    let ways = if program.no_tls { &[true][..] } else { &[false, true] };
    for no_tls in ways {
        program.no_tls = *no_tls;
        let how = if *no_tls { "without TLS" } else { "with TLS" };
        let found = with_plugin(&program, async |running: &Running| {
            let mut found = requirements(&running.plugin).await;
            let ended = running.plugin.stop().await;
            let is_well = ended.status.is_some_and(|status| status.success());
            let fault = (!is_well).then(|| format!("its end: {ended}"));
            found.push(Requirement { what: "ends when it is told to", fault });
            anyhow::Ok(found)
        });
        match found.await {
            Ok(found) => all.extend(found.into_iter().map(|one| Looked::new(how, one))),
            Err(error) => {
                let fault = Some(format!("{error:#}"));
                all.push(Looked::new(how, Requirement { what: "starts", fault }));
            }
        }
    }
    let conforms = all.iter().all(|looked| looked.fault.is_none());
    if args.json {
        out::json(out, &serde_json::json!({ "ok": conforms, "checks": all }))?;
        return Ok(conforms);
    }
    writeln!(out, "{}", table(&all))?;
    Ok(conforms)
}

fn table(all: &[Looked]) -> Table {
    let mut table = out::table(["it", "how", "fault"]);
    // A fault may quote what a plugin has said at its end, in long lines.
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if table.width().is_none() {
        table.set_width(WIDTH);
    }
    for Looked { what, how, fault } in all {
        table.add_row([*what, *how, fault.as_deref().unwrap_or("")]);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Given {
        #[command(flatten)]
        under_test: UnderTest,
    }

    fn given(line: &[&str]) -> UnderTest {
        Given::try_parse_from([&["flexcore"][..], line].concat()).unwrap().under_test
    }

    #[tokio::test]
    async fn an_executable_is_started_as_the_line_says() {
        let program = given(&["./x", "--env", "A=b", "--arg", "--y"]).program().await.unwrap();
        assert_eq!(program.file, Path::new("./x"));
        assert_eq!(program.env, [("A".to_owned(), "b".to_owned())]);
        assert_eq!(program.arg, ["--y"]);
        assert!(!program.no_tls && program.sha256.is_none());
    }

    #[test]
    fn a_long_fault_does_not_make_the_table_wider() {
        let fault = format!("it ended:\n  {}\n{}", "z".repeat(300), "b ".repeat(200));
        let requirement = Requirement { what: "starts", fault: Some(fault) };
        let table = table(&[Looked::new("with TLS", requirement)]);
        let width = usize::from(table.width().unwrap());
        let shown = table.to_string();
        assert!(shown.lines().all(|line| line.chars().count() <= width), "{shown}");
        assert_eq!(shown.matches('z').count(), 300, "nothing is left out: {shown}");
    }

    #[tokio::test]
    async fn a_folder_is_started_as_its_manifest_says() {
        let folder = tempfile::tempdir().unwrap();
        let write = |more: &str| {
            let manifest = format!("name: x\nversion: 0.1.0\nfile: x\narguments: [a]\n{more}");
            std::fs::write(folder.path().join("plugin.yaml"), manifest).unwrap();
        };
        let file = folder.path().join("x");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let line = [folder.path().to_str().unwrap(), "--arg", "b"];
        write("tls: false\n");
        let program = given(&line).program().await.unwrap();
        assert_eq!(program.arg, ["a", "b"]);
        assert!(program.no_tls && program.sha256.is_some());
        write("contract: none\n");
        let error = given(&line).program().await.unwrap_err().to_string();
        assert!(error.contains("plugin inspect"), "{error}");
    }
}
