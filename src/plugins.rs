//! `flexcore plugin`: its verbs, and those that start an executable which speaks HashiCorp's go-plugin over
//! gRPC, look at it or call it, and end it. These need no broker.

use std::{
    fs::File,
    io::{self, Read, Write},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use flexcore_domain::{ActorName, CommandId, Name};
use flexcore_operations::plugins::PluginCall;
use flexcore_plugin::{Address, Error, Method, Reflection, limits::JSON_BYTES_MAX};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::task::spawn_blocking;

use crate::{
    config::Config,
    install_plugin::{self, Install, Upgrade},
    installed::{self, List, Logs, Remove, Restart, Show},
    json_text,
    new_plugin::{self, NewPlugin},
    out,
    plugin_check::{self, Check},
    plugin_configure::{self, Configuration, Configure},
    plugin_try::{self, Try},
    program::{Program, Running, shown, told, with_plugin},
    publish::random_id,
};

/// Install plugins of HashiCorp's go-plugin over gRPC, and call them; or try one that is not installed
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  flexcore plugin new greeter --lang python
  flexcore plugin check greeter
  flexcore plugin install greeter
  flexcore plugin call greeter greet '{\"name\": \"Ann\"}'
  flexcore plugin configure greeter --tenant acme greeter.json
  flexcore plugin inspect ./my-plugin
  flexcore plugin inspect ./terraform-provider-x --protocol-version 5 --protocol-version 6 \\
    --cookie TF_PLUGIN_MAGIC_COOKIE=…
  flexcore plugin call ./my-plugin my.v1.Greeter/Greet '{\"name\": \"Ann\"}'

What a plugin prints that is tried here goes to standard error. It gets none of your environment: see
--env.")]
pub(crate) enum Plugins {
    New(NewPlugin),
    Check(Check),
    Try(Try),
    Install(Install),
    Upgrade(Upgrade),
    List(List),
    Show(Show),
    Logs(Logs),
    Restart(Restart),
    Remove(Remove),
    Configure(Configure),
    Configuration(Configuration),
    Inspect(Inspect),
    Call(Call),
}

/// Check that a plugin starts and is well, and show its methods
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code 0: it starts, and is well; 1: it does not, or is not. A plugin shows its methods by gRPC
reflection, which go-plugin has from version 1.2.0 on.")]
pub(crate) struct Inspect {
    #[command(flatten)]
    program: Program,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// Call a function of an installed plugin, or a method of a file, with JSON
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  flexcore plugin call greeter greet '{\"name\": \"Ann\"}'
  flexcore plugin call ./my-plugin my.v1.Greeter/Greet '{\"name\": \"Ann\"}'
  flexcore plugin call ./my-plugin Greet @request.json
  flexcore plugin call ./my-plugin GreetAll '[{\"name\": \"Ann\"}, {\"name\": \"Bob\"}]'

A first argument without a `/` is the name of an installed plugin, which is called on a worker for the
tenant; what follows is its function. One with a `/` is a file, which is started here. Of a file a stream of
messages is a list, either way, bytes are base64, and whole numbers of 64 bits are texts. Exit code 0: it has
answered; 1: it has not, or with an error.")]
pub(crate) struct Call {
    #[command(flatten)]
    program: Program,
    /// An installed plugin's function; of a file package.Service/Method, or its end where one method alone
    /// ends so
    method: String,
    /// What it takes, as JSON; @FILE reads a file, and - standard input
    #[arg(default_value = "{}", value_name = "JSON")]
    input: String,
    /// Of an installed plugin: the call's id. With the same id the plugin knows a call that is sent again
    /// [default: a random one]
    #[arg(long, value_name = "KEY")]
    id: Option<CommandId>,
    /// Of an installed plugin: the caller's name
    #[arg(long, default_value = "cli")]
    actor: ActorName,
    /// The answer on one line
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(
    config: &Config,
    command: Plugins,
    out: &mut dyn Write,
) -> anyhow::Result<bool> {
    match command {
        Plugins::New(args) => new_plugin::run(&args, out),
        Plugins::Check(args) => plugin_check::run(&args, out).await,
        Plugins::Try(args) => plugin_try::run(&args, out).await,
        Plugins::Install(args) => install_plugin::install(config, args, out).await,
        Plugins::Upgrade(args) => install_plugin::upgrade(config, args, out).await,
        Plugins::List(args) => installed::list(config, &args, out).await,
        Plugins::Show(args) => installed::show(config, &args, out).await,
        Plugins::Logs(args) => installed::logs(config, &args, out).await,
        Plugins::Restart(args) => installed::restart(config, &args, out).await,
        Plugins::Remove(args) => installed::remove(config, &args, out).await,
        Plugins::Configure(args) => plugin_configure::configure(config, args, out).await,
        Plugins::Configuration(args) => plugin_configure::configuration(config, &args, out).await,
        Plugins::Inspect(args) => inspect(&args, out).await,
        Plugins::Call(args) => call(config, args, out).await,
    }
}

async fn inspect(args: &Inspect, out: &mut dyn Write) -> anyhow::Result<bool> {
    let program = &args.program;
    let found =
        with_plugin(program, async |running: &Running| anyhow::Ok(look(program, running).await))
            .await?;
    if args.json {
        out::json(out, &found)?;
    } else {
        written(&found, out)?;
    }
    Ok(found.is_well)
}

async fn call(config: &Config, args: Call, out: &mut dyn Write) -> anyhow::Result<bool> {
    let Call { program, method, input, id, actor, json } = args;
    let input = spawn_blocking(move || read(&input)).await??;
    let within = Duration::from_secs(program.timeout);
    let answer = if let Some(plugin) = installed_name(&program)? {
        let call = PluginCall {
            plugin,
            function: method,
            tenant: config.tenant()?,
            actor,
            key: id.unwrap_or_else(random_id),
            input: input.into(),
            within,
            trace: None,
        };
        installed::call(config, call).await?
    } else {
        with_plugin(&program, async move |running: &Running| {
            ask(running, &method, &input, within).await
        })
        .await?
    };
    let answer = if json { json_text::line(&answer) } else { json_text::lines(&answer) };
    writeln!(out, "{answer}")?;
    Ok(true)
}

/// The installed plugin that is meant; `None`: a file, whose path has a `/`.
fn installed_name(program: &Program) -> anyhow::Result<Option<Name>> {
    let Some(text) = program.file.to_str().filter(|text| !text.contains('/')) else {
        return Ok(None);
    };
    let advice = || format!("a file's path has a `/` in it, such as ./{text}");
    let name = Name::parse(text).with_context(advice)?;
    ensure!(
        program.is_plain(),
        "{name} is installed, and started as its plugin.yaml says: the options of a start are for files"
    );
    Ok(Some(name))
}

async fn ask(
    running: &Running,
    method: &str,
    input: &str,
    within: Duration,
) -> anyhow::Result<Box<RawValue>> {
    let connection = running.plugin.connection();
    let unknown = || format!("its methods are not known; {REFLECTION}");
    let reflection = Reflection::load(connection).await.map_err(told).with_context(unknown)?;
    let services = offered(&reflection).map_err(told)?;
    let methods: Vec<Method> = services.into_iter().flat_map(|of| of.methods).collect();
    let method = chosen(&methods, method)?;
    let input = serde_json::from_str(input)?;
    let called = reflection.call(connection, &method.name, input, within).await;
    let answer = called.map_err(|error| {
        let is_late = matches!(error, Error::Late { .. });
        let error = told(error);
        if is_late { error.context("no answer; raise --timeout if it needs longer") } else { error }
    })?;
    Ok(to_raw_value(&answer)?)
}

/// The advice where a plugin does not tell what it offers.
const REFLECTION: &str = "go-plugin has gRPC reflection from version 1.2.0 on; a plugin without \
                          go-plugin adds it to its gRPC server";

/// The JSON that is sent: the text itself, or what the file or standard input has. As it is: a number that is
/// read and written again may be another one.
fn read(text: &str) -> anyhow::Result<String> {
    let from: Box<dyn Read + '_> = match text.strip_prefix('@') {
        Some(path) => Box::new(File::open(path).with_context(|| format!("reading {path}"))?),
        None if text == "-" => Box::new(io::stdin()),
        None => Box::new(text.as_bytes()),
    };
    let mut json = Vec::new();
    from.take(JSON_BYTES_MAX as u64 + 1).read_to_end(&mut json).context("reading the input")?;
    ensure!(json.len() <= JSON_BYTES_MAX, "the input has more than {JSON_BYTES_MAX} bytes");
    match json_text::checked(&json) {
        Ok(text) => Ok(text.to_owned()),
        Err(why) => bail!("the input is not accepted: {why}"),
    }
}

/// The method that is meant: by its name, or by the end of it.
fn chosen<'a>(methods: &'a [Method], asked: &str) -> anyhow::Result<&'a Method> {
    let asked = asked.trim_start_matches('/');
    if let Some(found) = methods.iter().find(|method| method.name == asked) {
        return Ok(found);
    }
    let is_meant = |method: &&Method| {
        let before = method.name.strip_suffix(asked);
        before.is_some_and(|before| before.ends_with(['.', '/']))
    };
    let meant: Vec<&Method> = methods.iter().filter(is_meant).collect();
    let names = |of: &[&Method]| {
        of.iter().map(|method| method.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    match meant[..] {
        [one] => Ok(one),
        [] => {
            let all: Vec<&Method> = methods.iter().collect();
            bail!("the plugin has no method {asked:?}; it has: {}", names(&all))
        }
        _ => bail!("{asked:?} may be any of {}: give its whole name", names(&meant)),
    }
}

/// What was found of a plugin.
#[derive(Serialize)]
struct Inspected {
    #[serde(rename = "ok")]
    is_well: bool,
    file: String,
    sha256: String,
    first_answer_ms: u64,
    version: u32,
    network: &'static str,
    tls: bool,
    multiplexed: bool,
    health: String,
    services: Vec<Offered>,
    /// Why the services are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    services_unknown: Option<String>,
}

/// A service of a plugin.
#[derive(Serialize)]
struct Offered {
    service: String,
    methods: Vec<Method>,
}

fn offered(reflection: &Reflection) -> Result<Vec<Offered>, Error> {
    let names = reflection.services().iter();
    names
        .map(|service| {
            let methods = reflection.methods(service)?;
            Ok(Offered { service: service.clone(), methods })
        })
        .collect()
}

async fn look(program: &Program, running: &Running) -> Inspected {
    let Running { plugin, file, start_took } = running;
    let loaded = Reflection::load(plugin.connection()).await;
    let (services, services_unknown) = match loaded.and_then(|loaded| offered(&loaded)) {
        Ok(services) => (services, None),
        Err(error) => (Vec::new(), Some(shown(&error.to_string()))),
    };
    // Behind that, since it may have been too much for it.
    let check = plugin.check().await;
    let network = match plugin.address() {
        Address::Unix(_) => "unix",
        Address::Tcp(_) => "tcp",
    };
    Inspected {
        is_well: check.is_ok(),
        file: file.path().display().to_string(),
        sha256: file.sha256().iter().map(|byte| format!("{byte:02x}")).collect(),
        first_answer_ms: u64::try_from(start_took.as_millis()).unwrap_or(u64::MAX),
        version: plugin.version(),
        network,
        tls: !program.no_tls,
        multiplexed: program.multiplex,
        health: check.map_or_else(|error| shown(&error.to_string()), |()| "serving".to_owned()),
        services,
        services_unknown,
    }
}

fn written(found: &Inspected, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut transport = vec![if found.network == "unix" { "Unix socket" } else { "TCP" }];
    transport.push(if found.tls { "TLS, both sides pinned (AutoMTLS)" } else { "no TLS" });
    transport.extend(found.multiplexed.then_some("multiplexed"));
    let file = shown(&found.file);
    let mut table = out::table(["plugin", &file]);
    table
        .add_row(["SHA-256", &found.sha256])
        .add_row(["start to first answer", &format!("{} ms", found.first_answer_ms)])
        .add_row(["version", &found.version.to_string()])
        .add_row(["transport", &transport.join(", ")])
        .add_row(["health", &found.health]);
    writeln!(out, "{table}")?;
    if let Some(reason) = &found.services_unknown {
        writeln!(out, "\nNo methods: {reason}.\n{REFLECTION}.")?;
        return Ok(());
    }
    let mut table = out::table(["method", "takes", "answers with"]);
    let message = |is_stream: bool, name: &str| {
        if is_stream { format!("stream of {name}") } else { name.to_owned() }
    };
    for method in found.services.iter().flat_map(|of| &of.methods) {
        let takes = message(method.takes_stream, &method.input);
        let answers = message(method.answers_stream, &method.output);
        table.add_row([&method.name, &takes, &answers]);
    }
    writeln!(out, "\n{table}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Given {
        #[command(flatten)]
        call: Call,
    }

    #[test]
    fn a_first_argument_without_a_slash_is_an_installed_plugin() {
        let named = |line: &[&str]| {
            let line = [&["flexcore"][..], line].concat();
            installed_name(&Given::try_parse_from(line).unwrap().call.program)
        };
        let name = named(&["greeter", "greet"]).unwrap();
        assert_eq!(name, Some(Name::parse("greeter").unwrap()));
        for file in ["./greeter", "/opt/greeter", "bin/greeter"] {
            assert_eq!(named(&[file, "Greet", "--no-tls"]).unwrap(), None, "{file}");
        }
        for (line, said) in [
            (&["my-plugin", "greet"][..], "such as ./my-plugin"),
            (&["greeter", "greet", "--no-tls"], "the options of a start are for files"),
        ] {
            let error = format!("{:#}", named(line).unwrap_err());
            assert!(error.contains(said), "{line:?}: {error}");
        }
    }

    fn method(name: &str) -> Method {
        let of = || "x.Message".to_owned();
        Method {
            name: name.to_owned(),
            input: of(),
            output: of(),
            takes_stream: false,
            answers_stream: false,
        }
    }

    #[test]
    fn a_method_is_known_by_the_end_of_its_name() {
        let methods = ["a.v1.One/Get", "a.v1.One/GetAll", "a.v1.Two/Get", "z.a.v1.Two/Get"];
        let methods = methods.map(method);
        let chosen = |asked| chosen(&methods, asked).map(|found| found.name.as_str());
        for (asked, meant) in [
            ("GetAll", "a.v1.One/GetAll"),
            ("One/Get", "a.v1.One/Get"),
            ("/a.v1.Two/Get", "a.v1.Two/Get"),
        ] {
            assert_eq!(chosen(asked).unwrap(), meant);
        }
        for (asked, said) in [
            ("Get", "give its whole name"),
            ("All", "the plugin has no method \"All\"; it has: a.v1.One/Get, "),
            ("", "has no method"),
        ] {
            let error = chosen(asked).unwrap_err().to_string();
            assert!(error.contains(said), "{asked}: {error}");
        }
    }

    #[test]
    fn a_plugin_without_reflection_is_shown_with_what_to_do() {
        let found = Inspected {
            is_well: true,
            file: "/opt/x".to_owned(),
            sha256: "00ff".to_owned(),
            first_answer_ms: 12,
            version: 3,
            network: "tcp",
            tls: false,
            multiplexed: false,
            health: "serving".to_owned(),
            services: Vec::new(),
            services_unknown: Some("it has none".to_owned()),
        };
        let mut said = Vec::new();
        written(&found, &mut said).unwrap();
        let said = String::from_utf8(said).unwrap();
        for part in ["/opt/x", "00ff", "12 ms", "TCP, no TLS", "No methods: it has none.\ngo-plug"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn the_input_is_a_text_or_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[1]\n").unwrap();
        assert_eq!(read("{\"a\": 1.50}").unwrap(), "{\"a\": 1.50}", "as it is");
        let named = format!("@{}", file.path().display());
        assert_eq!(read(&named).unwrap(), "[1]");
        for (wrong, said) in [
            ("{", "not valid JSON"),
            ("", "the input is not accepted: empty"),
            ("123456789012345678901234567890", "send it as a string"),
            (r#"{"a": 1, "a": 2}"#, "/a: this key stands twice"),
            ("@/nowhere/x", "reading /n"),
        ] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }
}
