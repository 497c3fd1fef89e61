//! A plugin's executable as the command line names it: started, used, and ended.

use std::{
    ffi::OsString,
    path::PathBuf,
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

    /// What to change on the command line.
    fn advice(&self, error: &Error) -> Option<String> {
        let advice = match error {
            Error::EndedEarly { .. } if self.bounds != Bounds::default() => {
                "perhaps the `limits` of its manifest are too narrow, or its `cookie` is another"
            }
            Error::EndedEarly { .. } if self.cookie.is_none() => {
                "a plugin ends at once where the cookie is not its own: give --cookie KEY=VALUE, as \
                 its host's source has it"
            }
            Error::EndedEarly { .. } => "check --cookie; perhaps it needs an --env or --arg, too",
            Error::Silent { .. } => "raise --timeout if it needs longer",
            // Manifests alone demand something.
            Error::Sandbox { .. } => "the workers' machines may have what is missing here",
            Error::Version { chosen, .. } => {
                return Some(format!("give --protocol-version {chosen}"));
            }
            Error::Handshake { line, .. } if is_of_go_plugin(line) => {
                match (self.multiplex, self.no_tls) {
                    (true, true) => "try it without --multiplex",
                    (true, false) => "try it without --multiplex, or with --no-tls",
                    (false, false) => "a plugin that does no AutoMTLS needs --no-tls",
                    (false, true) => "try it without --no-tls",
                }
            }
            _ => return None,
        };
        Some(advice.to_owned())
    }
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
        assert!(format!("{:#}", parsed.not_started(early)).contains("are too narrow"));
        let start = parsed.start(file, &echo);
        assert_eq!((start.bounds, start.sandbox), (parsed.bounds, parsed.sandbox));
    }
}
