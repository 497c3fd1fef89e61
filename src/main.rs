//! `flexcore`: parse the command line, start telemetry, and do what the role says.

mod apply;
mod apptest;
mod cli;
mod completions;
mod config;
mod dead;
mod dev;
mod doctor;
mod echo;
mod gateways;
mod global;
mod healthcheck;
mod install_plugin;
mod installed;
mod json_text;
mod lines;
mod members;
mod new_plugin;
mod plugin_check;
mod plugin_configure;
mod plugin_files;
mod plugin_folders;
mod plugin_try;
mod plugins;
mod program;
mod publish;
mod query;
mod rebuild;
mod roles;
mod test_plugins;
mod token;
mod verify;

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::CommandFactory;
use cli::Command;
use config::Config;
use flexcore_installation::RenderMetrics;
use flexcore_out as out;
use flexcore_telemetry::{self as telemetry, Telemetry};

// Many short-lived buffers on many threads: the system's allocator keeps what they leave behind.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Longest wait for the trace collector at the end.
const TELEMETRY_SHUTDOWN_MAX: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    // The guard of a plugin is this executable, too, and has to be one before anything else begins.
    if let Some(code) = flexcore_plugin::guard::entered() {
        return code;
    }
    // The benches' own plugin is this executable, too, and has a runtime of its own.
    if let Some(code) = flexcore_bench::plugin_entered() {
        return code;
    }
    // Plugins are of this process's user, and its settings are secrets. It runs as well without.
    drop(flexcore_plugin::guard::be_private());
    match cli::command_line().and_then(start) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if out::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            out::report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Returns whether everything that was asked for is well.
fn start(cli: cli::Cli) -> anyhow::Result<bool> {
    let config = Config::resolve(cli.global, cli.command.default_log_filter())?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(cli.command, Command::Worker(_)) {
        runtime.worker_threads(worker_threads());
    }
    let runtime = runtime.enable_all().build()?;
    let telemetry = {
        // The exporter of traces belongs to the runtime.
        let _inside = runtime.enter();
        telemetry::start(&config.telemetry)?
    };
    let result = runtime.block_on(run(cli.command, &config, &telemetry));
    telemetry.shutdown(TELEMETRY_SHUTDOWN_MAX);
    result
}

/// Threads of a worker for its connections. Its lanes decide in threads of their own, one a core, and
/// several workers may share a machine (measured on two cores: four workers did a ninth more with half
/// as many threads here as cores).
fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

async fn run(command: Command, config: &Config, telemetry: &Telemetry) -> anyhow::Result<bool> {
    let mut out = out::stdout();
    let rendered = telemetry.metrics();
    let metrics: RenderMetrics = Arc::new(move || rendered.render());
    match command {
        Command::Dev(args) => dev::run(config, &args, metrics, &mut out).await,
        Command::Demo(args) => {
            flexcore_demo::run(config.dev(metrics, None)?, &args, &mut out).await
        }
        Command::Gateway(args) => roles::gateway(config, &args, metrics).await,
        Command::Worker(args) => roles::worker(config, &args, metrics).await,
        Command::Apply(args) => apply::run(config, &args, &mut out).await,
        Command::Test(args) => apptest::run(&args, &mut out).await,
        Command::Publish(args) => match args.lines.clone() {
            Some(file) => lines::run(config, &file, &args, &mut out).await,
            None => publish::run(config, args, &mut out).await,
        },
        Command::Query(args) => query::run(config, &args, &mut out).await,
        Command::Rebuild(args) => rebuild::run(config, args, &mut out).await,
        Command::Dead(command) => dead::run(config, command, &mut out).await,
        Command::Verify(args) => verify::run(config, args, &mut out).await,
        Command::Cluster(args) => members::run(config, &args, &mut out).await,
        Command::Token(args) => token::run(config, &args, &mut out),
        Command::Plugin(command) => plugins::run(config, *command, &mut out).await,
        Command::Healthcheck(args) => healthcheck::run(&args, &mut out).await,
        Command::Doctor(args) => doctor::run(config, args.json, &mut out).await,
        Command::Bench(args) => flexcore_bench::run(&config.bench(metrics), &args, &mut out).await,
        Command::BenchClient(args) => {
            flexcore_bench::client(config.profile, config.token(), &args, &mut out).await
        }
        Command::Completions(args) => completions::run(&args, cli::Cli::command(), &mut out),
    }
}
