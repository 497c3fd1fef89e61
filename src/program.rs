//! A plugin's executable as the command line names it: started, used, and ended.

use std::{
    ffi::OsString,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use flexcore_installation::stop_at_signals;
use flexcore_operations::dead::printable;
use flexcore_plugin::{
    Checked, Cookie, Error, Plugin, Start,
    guard::{Bounds, Sandbox},
    limits::{ANSWER_BYTES_MAX, KILL_WAIT, LAST_WORDS_WAIT, START_WAIT},
};
use tokio::{task::spawn_blocking, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::echo::Echo;

/// A plugin, and how it is started.
#[derive(Debug, clap::Args)]
pub(crate) struct Program {
    /// The plugin's executable; for a call the name of an installed plugin, too
    pub(crate) file: PathBuf,
    /// The magic cookie by which it knows its host [default: that of FlexCore's own plugins]
    #[arg(long, value_name = "KEY=VALUE", value_parser = cookie)]
    pub(crate) cookie: Option<Cookie>,
    /// A version of its contract that it may choose; may be given several times
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) protocol_version: Vec<u32>,
    /// Without TLS: for plugins that do no AutoMTLS, which go-plugin has from version 1.0 on
    #[arg(long)]
    pub(crate) no_tls: bool,
    /// All connections as streams of one, which go-plugin has from version 1.6 on
    #[arg(long)]
    pub(crate) multiplex: bool,
    /// A variable of its environment; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) env: Vec<(String, String)>,
    /// An argument for it; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) arg: Vec<OsString>,
    /// Refuse a file that does not have this SHA-256; what was checked is what runs
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub(crate) sha256: Option<[u8; 32]>,
    /// Longest wait for its start, and for the answer to a call, in seconds
    #[arg(
        long,
        default_value_t = START_WAIT.as_secs(),
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=3_600)
    )]
    pub(crate) timeout: u64,
    /// The most that it may use: no option, but what a manifest says.
    #[arg(skip)]
    pub(crate) bounds: Bounds,
    /// What it is kept from: no option, but what a manifest says.
    #[arg(skip)]
    pub(crate) sandbox: Sandbox,
    /// Where all that is said: no option.
    #[arg(skip)]
    pub(crate) said_by: SaidBy,
}

/// Where it is said how a plugin is started: advice names what can be changed there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SaidBy {
    /// All options of [`Program`].
    #[default]
    Options,
    /// Its manifest.
    Manifest,
    /// Nowhere, but for its environment and its arguments.
    Nobody,
}

/// The running executable as a plugin's guard: the very file, even if another has taken its place.
const GUARD: &str = "/proc/self/exe";

/// NAME=VALUE.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("there is no = in it")?;
    if name.is_empty() {
        return Err("there is nothing before the =".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

fn cookie(text: &str) -> Result<Cookie, String> {
    pair(text).map(|(key, value)| Cookie { key, value })
}

fn sha256(text: &str) -> Result<[u8; 32], String> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| digits.len() == 64).ok_or("64 hexadecimal digits")?;
    Ok(std::array::from_fn(|at| (digits[2 * at] << 4) | digits[2 * at + 1]))
}

/// A plugin that runs, and what is known of it from its start.
pub(crate) struct Running {
    pub(crate) plugin: Plugin,
    pub(crate) file: Checked,
    /// From the start of its process to its first answer.
    pub(crate) start_took: Duration,
}

/// Starts a plugin, uses it, and ends it, whatever came of that: also when the user interrupts.
pub(crate) async fn with_plugin<T>(
    program: &Program,
    using: impl AsyncFnOnce(&Running) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let (running, echo) = started(program, &stop).await?;
    let used = match stop.run_until_cancelled(using(&running)).await {
        Some(Ok(used)) => Ok(used),
        Some(Err(error)) => Err(with_end(error, &running.plugin).await),
        None => Err(interrupted()),
    };
    running.plugin.stop().await;
    echo.end();
    used
}

/// As [`with_plugin`], with several at once, which are started in their order.
pub(crate) async fn with_plugins<T>(
    programs: &[Program],
    using: impl AsyncFnOnce(&[Running]) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let stop = CancellationToken::new();
    stop_at_signals(&stop)?;
    let (mut running, mut echoes) = (Vec::new(), Vec::new());
    let mut all_started = Ok(());
    for program in programs {
        match started(program, &stop).await {
            Ok((one, echo)) => {
                running.push(one);
                echoes.push(echo);
            }
            Err(error) => {
                all_started = Err(error);
                break;
            }
        }
    }
    let used = match all_started {
        Ok(()) => {
            let used = stop.run_until_cancelled(using(running.as_slice())).await;
            used.unwrap_or_else(|| Err(interrupted()))
        }
        Err(error) => Err(error),
    };
    for one in &running {
        one.plugin.stop().await;
    }
    for echo in echoes {
        echo.end();
    }
    used
}

async fn started(
    program: &Program,
    stop: &CancellationToken,
) -> anyhow::Result<(Running, Arc<Echo>)> {
    let (path, expected) = (program.file.clone(), program.sha256);
    let file = spawn_blocking(move || Checked::open(&path, expected)).await?.map_err(told)?;
    let echo = Arc::new(Echo::new(&program.file));
    let began = Instant::now();
    let starting = Plugin::start(program.start(file.clone(), &echo));
    let started = stop.run_until_cancelled(starting).await.ok_or_else(interrupted)?;
    let start_took = began.elapsed();
    match started {
        Ok(plugin) => Ok((Running { plugin, file, start_took }, echo)),
        Err(error) => {
            echo.end();
            Err(program.not_started(error))
        }
    }
}

fn interrupted() -> anyhow::Error {
    anyhow!("interrupted; the plugin has been ended")
}

/// An error that the plugin's end explains, if it has ended. Its last words were printed already.
async fn with_end(error: anyhow::Error, plugin: &Plugin) -> anyhow::Error {
    let closed = timeout(LAST_WORDS_WAIT, plugin.connection().closed()).await;
    if closed.is_err() {
        return error;
    }
    match timeout(KILL_WAIT, plugin.ended()).await.ok().and_then(|ended| ended.status) {
        Some(status) => error.context(format!("the plugin has ended ({status})")),
        None => error.context("the plugin has closed its connection"),
    }
}

/// An error that may quote the plugin.
pub(crate) fn told(error: Error) -> anyhow::Error {
    anyhow!("{}", shown(&error.to_string()))
}

/// A plugin's text, for a terminal.
pub(crate) fn shown(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<String>>().join("\n")
}

impl Program {
    fn start(&self, file: Checked, echo: &Arc<Echo>) -> Start {
        let echo = Arc::clone(echo);
        Start {
            file,
            guard: GUARD.into(),
            arguments: self.arg.clone(),
            environment: self.env.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            cookie: self.cookie.clone().unwrap_or_else(Cookie::flexcore),
            versions: self.protocol_version.clone(),
            tls: !self.no_tls,
            multiplex: self.multiplex,
            start_wait: Duration::from_secs(self.timeout),
            answer_bytes_max: ANSWER_BYTES_MAX,
            bounds: self.bounds,
            sandbox: self.sandbox.clone(),
            output: Arc::new(move |printed| echo.take(printed)),
        }
    }

    /// True if no option says how it is started.
    pub(crate) fn is_plain(&self) -> bool {
        self.cookie.is_none()
            && self.protocol_version == [1]
            && !self.no_tls
            && !self.multiplex
            && self.env.is_empty()
            && self.arg.is_empty()
            && self.sha256.is_none()
    }

    fn not_started(&self, error: Error) -> anyhow::Error {
        let advice = self.advice(&error).map_or_else(String::new, |advice| format!("; {advice}"));
        told(error).context(format!("{} did not start{advice}", self.file.display()))
    }

    /// What to change, where it is said.
    fn advice(&self, error: &Error) -> Option<String> {
        let (options, manifest) =
            (self.said_by == SaidBy::Options, self.said_by == SaidBy::Manifest);
        let advice = match error {
            Error::EndedEarly { said, .. } => return Some(self.ended(said)),
            Error::Silent { .. } if options => "raise --timeout if it needs longer",
            Error::Silent { .. } if manifest => "raise its manifest's `start` if it needs longer",
            // Manifests alone demand something.
            Error::Sandbox { .. } => "the workers' machines may have what is missing here",
            Error::Version { chosen, .. } if options => {
                return Some(format!("give --protocol-version {chosen}"));
            }
            Error::Version { chosen, .. } if manifest => {
                return Some(format!("give `protocol_versions: [{chosen}]` in its manifest"));
            }
            Error::Handshake { line, .. } if is_of_go_plugin(line) && options => {
                match (self.multiplex, self.no_tls) {
                    (true, true) => "try it without --multiplex",
                    (true, false) => "try it without --multiplex, or with --no-tls",
                    (false, false) => "a plugin that does no AutoMTLS needs --no-tls",
                    (false, true) => "try it without --no-tls",
                }
            }
            Error::Handshake { line, .. } if is_of_go_plugin(line) && manifest => {
                match (self.multiplex, self.no_tls) {
                    (true, true) => "try `multiplex: false` in its manifest",
                    (true, false) => "try `multiplex: false` in its manifest, or `tls: false`",
                    (false, false) => {
                        "a plugin that does no AutoMTLS needs `tls: false` in its manifest"
                    }
                    (false, true) => "try `tls: true` in its manifest",
                }
            }
            _ => return None,
        };
        Some(advice.to_owned())
    }

    /// What to do for a plugin that has ended before its first line, with these last words.
    fn ended(&self, said: &str) -> String {
        let path = match self.said_by {
            SaidBy::Manifest => "`environment: { PATH: … }` in its manifest",
            SaidBy::Options | SaidBy::Nobody => "--env PATH=…",
        };
        if let Some(why) = not_executed(&self.file, said, path) {
            return why;
        }
        if MODULE_MISSING.iter().any(|words| said.contains(words)) {
            return format!(
                "it does not find what it imports: put all of it into its file, or have {path} name the \
                 interpreter first that has it"
            );
        }
        let advice = match self.said_by {
            SaidBy::Manifest if self.bounds != Bounds::default() => {
                "perhaps the `limits` of its manifest are too narrow, or its `cookie`, `environment` or \
                 `arguments` are not what it needs"
            }
            SaidBy::Manifest => {
                "perhaps its manifest's `cookie`, `environment` or `arguments` are not what it needs"
            }
            SaidBy::Options if self.cookie.is_none() => {
                "a plugin ends at once where the cookie is not its own: give --cookie KEY=VALUE, as \
                 its host's source has it"
            }
            SaidBy::Options => "check --cookie; perhaps it needs an --env or --arg, too",
            SaidBy::Nobody => "perhaps it needs an --env or --arg",
        };
        advice.to_owned()
    }
}

/// What interpreters say of a module that is not there: Python's, and that of JavaScript.
const MODULE_MISSING: [&str; 2] = ["No module named", "Cannot find module"];

/// Most bytes of a script's first line: the kernel reads no more.
const FIRST_LINE_BYTES_MAX: u64 = 256;

/// Why a script was not executed, as its first line tells. `None`: that is not why. `path`: what sets its search path.
fn not_executed(file: &Path, said: &str, path: &str) -> Option<String> {
    let mut first = Vec::new();
    File::open(file).ok()?.take(FIRST_LINE_BYTES_MAX).read_to_end(&mut first).ok()?;
    let line = first.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    if line.ends_with(b"\r") {
        let advice = "its first line ends with a carriage return, which is taken for a part of the \
                      interpreter's name: save it with the line ends of Unix";
        return Some(advice.to_owned());
    }
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace();
    let interpreter = Path::new(words.next()?);
    if !interpreter.exists() {
        let interpreter = shown(&interpreter.display().to_string());
        return Some(format!("its first line names {interpreter}, which is not on this machine"));
    }
    let is_searched = interpreter.file_name().is_some_and(|name| name == "env");
    let sought = words.find(|word| !word.starts_with('-') && !word.contains('='))?;
    let is_missing = is_searched && said.contains("No such file or directory");
    let sought = shown(sought);
    is_missing.then(|| format!("its first line names {sought}, which is not found: give {path}"))
}

/// True for a first line that has the fields, though something in them is wrong.
fn is_of_go_plugin(line: &str) -> bool {
    line.matches('|').count() >= 4
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Given {
        #[command(flatten)]
        program: Program,
    }

    fn program(options: &[&str]) -> Result<Program, clap::Error> {
        let line = [&["flexcore", "./x"][..], options].concat();
        Given::try_parse_from(line).map(|given| given.program)
    }

    #[test]
    fn options_become_what_a_start_takes() {
        let hash = "00ff".repeat(16);
        let given = ["--cookie", "K=a=b", "--sha256", &hash, "--arg", "--x", "--env", "N="];
        let parsed = program(&given).unwrap();
        let cookie = Cookie { key: "K".to_owned(), value: "a=b".to_owned() };
        assert_eq!(parsed.cookie, Some(cookie));
        assert_eq!(parsed.sha256.map(|hash| (hash[0], hash[31])), Some((0, 255)));
        assert_eq!(parsed.arg, ["--x"]);
        assert_eq!(parsed.env, [("N".to_owned(), String::new())]);
        assert_eq!(parsed.protocol_version, [1]);
        for wrong in [
            ["--cookie", "K"],
            ["--cookie", "=v"],
            ["--sha256", "00ff"],
            ["--sha256", &"+f".repeat(32)],
            ["--timeout", "0"],
            ["--protocol-version", "-1"],
        ] {
            assert!(program(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_error_of_a_start_says_what_to_change() {
        let advice = |options: &[&str], error| {
            let error = program(options).unwrap().not_started(error);
            format!("{error:#}")
        };
        let early = || Error::EndedEarly { status: "exit status: 1".into(), said: "no".into() };
        assert!(advice(&[], early()).contains("give --cookie KEY=VALUE"));
        assert!(advice(&["--cookie", "K=v"], early()).contains("check --cookie"));
        let version = Error::Version { chosen: 5, offered: vec![1] };
        assert!(advice(&[], version).contains("./x did not start; give --protocol-version 5: it"));
        let handshake = |line: &str| Error::Handshake { reason: "no".into(), line: line.into() };
        let line = "1|1|unix|/s|grpc|";
        assert!(advice(&[], handshake(line)).contains("needs --no-tls"));
        assert!(advice(&["--multiplex"], handshake(line)).contains("without --multiplex"));
        assert!(!advice(&[], handshake("hello")).contains("--no-tls"));
        assert!(advice(&["--no-tls"], handshake(line)).contains("without --no-tls"));
    }

    /// `install` and `check` have none of the options that they advised.
    #[test]
    fn advice_names_what_can_be_changed() {
        let advice = |said_by, multiplex, error| {
            let program = Program { said_by, multiplex, ..program(&[]).unwrap() };
            format!("{:#}", program.not_started(error))
        };
        let early = || Error::EndedEarly { status: "exit status: 1".into(), said: "no".into() };
        let version = || Error::Version { chosen: 5, offered: vec![1] };
        let handshake =
            || Error::Handshake { reason: "no".into(), line: "1|1|unix|/s|grpc|".into() };
        let silent = || Error::Silent { waited: Duration::from_secs(1), said: String::new() };
        for (error, advised) in [
            (early(), "`cookie`, `environment` or `arguments`"),
            (version(), "`protocol_versions: [5]`"),
            (handshake(), "`multiplex: false`"),
            (silent(), "`start`"),
        ] {
            let said = advice(SaidBy::Manifest, true, error);
            assert!(said.contains(advised) && !said.contains("--"), "{said}");
        }
        assert!(advice(SaidBy::Nobody, false, early()).contains("an --env or --arg"));
        for error in [version(), handshake(), silent()] {
            let said = advice(SaidBy::Nobody, false, error);
            assert!(!said.contains("--") && said.contains("did not start: "), "{said}");
        }
    }

    #[test]
    fn a_script_that_is_not_executed_is_told_why() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x");
        let ended = |first: &[u8], said: &str| {
            std::fs::write(&file, first).unwrap();
            let parsed = Program { file: file.clone(), ..program(&[]).unwrap() };
            Program { said_by: SaidBy::Manifest, ..parsed }.ended(said)
        };
        let none = "cannot execute x: No such file or directory";
        assert!(ended(b"#!/bin/sh\r\n", none).contains("carriage return"));
        assert!(ended(b"#!/nowhere/python3 -I\n", none).contains("names /nowhere/python3, which"));
        let env =
            ended(b"#!/usr/bin/env -S python9 -I\n", "env: 'python9': No such file or directory");
        assert!(
            env.contains("names python9, which") && env.contains("`environment: { PATH"),
            "{env}"
        );
        let module = ended(b"#!/bin/sh\n", "ModuleNotFoundError: No module named 'grpc'");
        assert!(module.contains("what it imports"), "{module}");
        for (first, said) in [(&b"#!/bin/sh\n"[..], "no"), (b"\x7fELF", none), (b"", none)] {
            assert!(ended(first, said).contains("`cookie`"), "{said}");
        }
    }

    #[test]
    fn a_start_has_the_limits_and_the_sandbox_that_were_set() {
        let mut parsed = program(&[]).unwrap();
        let file = Checked::open(&std::env::current_exe().unwrap(), None).unwrap();
        let echo = Arc::new(Echo::new(&parsed.file));
        let start = parsed.start(file.clone(), &echo);
        assert_eq!((start.bounds, start.sandbox), (Bounds::default(), Sandbox::default()));
        parsed.bounds.files = Some(16);
        parsed.sandbox.no_network = true;
        let early = Error::EndedEarly { status: "exit status: 1".into(), said: "no".into() };
        parsed.said_by = SaidBy::Manifest;
        assert!(format!("{:#}", parsed.not_started(early)).contains("are too narrow"));
        let start = parsed.start(file, &echo);
        assert_eq!((start.bounds, start.sandbox), (parsed.bounds, parsed.sandbox));
    }
}
