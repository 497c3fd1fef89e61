//! The command line: every role as a subcommand, and nothing but its shape.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use flexcore_domain::{ActorName, AggregateId, AggregateName, CommandId, CommandName, Tenant};
use flexcore_eventstore::Profile;

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

/// What every subcommand understands.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The broker, such as nats://127.0.0.1:4222; several servers with commas
    #[arg(
        long,
        global = true,
        env = "FLEXCORE_NATS",
        value_name = "URL",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub(crate) nats: Vec<String>,
    /// Each server's monitoring address, such as http://127.0.0.1:8222; needed to check the profile
    /// power-loss
    #[arg(
        long,
        global = true,
        env = "FLEXCORE_NATS_MONITOR",
        value_name = "URL",
        value_delimiter = ','
    )]
    pub(crate) nats_monitor: Vec<String>,
    /// Copies of each stream, on as many servers: 1, 3 or 5
    #[arg(
        long,
        global = true,
        env = "FLEXCORE_REPLICAS",
        value_name = "N",
        default_value_t = 1,
        value_parser = replicas
    )]
    pub(crate) replicas: usize,
    /// The read models' database, such as postgres://flexcore@127.0.0.1/flexcore
    #[arg(
        long,
        global = true,
        env = "FLEXCORE_POSTGRES",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(crate) postgres: Option<String>,
    /// The same database over a login for queries that owns nothing [default: one is made]
    #[arg(
        long,
        global = true,
        env = "FLEXCORE_POSTGRES_QUERY",
        value_name = "URL",
        hide_env_values = true
    )]
    pub(crate) postgres_query: Option<String>,
    /// Where `dev` and `demo` keep their data, and where the others look for a running one
    #[arg(
        long,
        global = true,
        env = "FLEXCORE_DATA",
        value_name = "DIR",
        default_value = ".flexcore"
    )]
    pub(crate) data: PathBuf,
    /// Where downloaded servers and data sets are kept [default: flexcore in the user's cache folder]
    #[arg(long, global = true, env = "FLEXCORE_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// What an acknowledgement promises: power-loss (synced to disk) or relaxed (may be lost)
    #[arg(long, global = true, env = "FLEXCORE_PROFILE", default_value_t = Profile::PowerLoss)]
    pub(crate) profile: Profile,
    /// Name of this process among the members; a random part is added [default: the host's name]
    #[arg(long, global = true, env = "FLEXCORE_MEMBER", value_name = "NAME")]
    pub(crate) member: Option<String>,
    /// How long a member that is not heard of keeps its slots, in seconds, 3 to 60
    #[arg(
        long,
        global = true,
        env = "FLEXCORE_LEASE",
        value_name = "SECONDS",
        default_value_t = flexcore_cluster::LEASE.as_secs(),
        value_parser = clap::value_parser!(u64)
            .range(flexcore_cluster::LEASE_MIN.as_secs()..=flexcore_cluster::LEASE_MAX.as_secs())
    )]
    pub(crate) lease: u64,
    /// What is logged: error, warn, info, debug, trace, or target=level pairs [default: info for
    /// servers, warn for tools]
    #[arg(long, global = true, env = "FLEXCORE_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// How it is logged, to standard error
    #[arg(long, global = true, env = "FLEXCORE_LOG_FORMAT", value_enum, default_value = "human")]
    pub(crate) log_format: LogFormat,
    /// Where traces go (OTLP over gRPC), such as http://127.0.0.1:4317
    #[arg(long, global = true, env = "FLEXCORE_OTLP", value_name = "URL")]
    pub(crate) otlp: Option<String>,
    /// Which part of the traces that begin here is kept, 0 to 1
    #[arg(
        long,
        global = true,
        env = "FLEXCORE_TRACE_RATIO",
        value_name = "PART",
        default_value_t = 1.0
    )]
    pub(crate) trace_ratio: f64,
    /// Address that the gateway listens on, such as 127.0.0.1:8080; or those that tools call, with
    /// commas: the next one when one does not answer
    #[arg(long, global = true, env = "FLEXCORE_HTTP", value_name = "ADDR")]
    pub(crate) http: Option<String>,
    /// Whose data
    #[arg(long, global = true, env = "FLEXCORE_TENANT")]
    pub(crate) tenant: Option<Tenant>,
    /// The bearer token for the gateway [default: a fresh one from the signing key]
    #[arg(long, global = true, env = "FLEXCORE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The RSA key that signs tokens, PEM [default: that of the data folder]
    #[arg(long, global = true, env = "FLEXCORE_SIGNING_KEY", value_name = "FILE")]
    pub(crate) signing_key: Option<PathBuf>,
}

fn replicas(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("write 1, 3 or 5: an even number of servers survives no more losses".to_owned()),
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Human,
    /// One JSON object a line, in the Elastic Common Schema.
    Json,
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
            | Self::Doctor(_)
            | Self::Healthcheck(_)
            | Self::Bench(_)
            | Self::BenchClient(_)
            | Self::Completions(_) => "warn",
        }
    }
}

/// Serve everything from one process, with its own nats-server and Postgres
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore dev
  flexcore dev --data /var/tmp/flexcore --http 127.0.0.1:8080 --ready-file ready.json

The ready file is JSON, written once it serves: http, nats, nats_monitor, postgres (URLs), tenant,
token, signing_key (a path). SIGTERM drains and exits 0.")]
pub(crate) struct Dev {
    /// Write where everything is to this file once it serves, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
}

/// Serve HTTP
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore gateway --nats nats://10.0.0.1:4222 --nats-monitor http://10.0.0.1:8222 \\
    --postgres postgres://flexcore@10.0.0.2/flexcore --http 0.0.0.0:8080 --verify-key public.pem

Without --verify-key the signing key's public half accepts tokens.")]
pub(crate) struct Gateway {
    /// Public RSA key that accepts tokens, PEM; may be given more than once
    #[arg(long, env = "FLEXCORE_VERIFY_KEY", value_name = "FILE", value_delimiter = ',')]
    pub(crate) verify_key: Vec<PathBuf>,
    /// Serve /metrics and health here, and /metrics not on the main address
    #[arg(long, env = "FLEXCORE_METRICS_HTTP", value_name = "ADDR")]
    pub(crate) metrics_http: Option<String>,
}

/// Run workers
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore worker             every role
  flexcore worker command
  flexcore worker projection

Start as many as you like: the cluster's leader, one of them, shares the slots out among those that
are there. SIGTERM hands over what the worker has and exits 0.")]
pub(crate) struct Worker {
    /// Which [default: all]
    #[arg(value_enum)]
    pub(crate) roles: Vec<Role>,
    /// Serve /metrics and health here
    #[arg(long, env = "FLEXCORE_METRICS_HTTP", value_name = "ADDR")]
    pub(crate) metrics_http: Option<String>,
}

/// A worker's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Decides commands.
    Command,
    /// Keeps read models.
    Projection,
}

/// Check an application, show what changes, and deploy it
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore apply schemas/flights
  flexcore apply schemas/flights --dry-run

Queries are prepared by Postgres: an application that has some needs --postgres. Every message
points at a file and a line. Running workers pick the version up with no restart.")]
pub(crate) struct Apply {
    /// The application's folder
    pub(crate) folder: PathBuf,
    /// Only check, and show what would change
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Answer in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Run an application's own tests: given, when, then
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore test schemas/flights
  flexcore test schemas/flights --json

The tests are the YAML files in the folder's tests/. Needs neither broker nor database. Exits with 1
when one fails.")]
pub(crate) struct Test {
    /// The application's folder
    pub(crate) folder: PathBuf,
    /// A line of JSON for each test
    #[arg(long)]
    pub(crate) json: bool,
}

/// Send a command, or many
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore publish flight UA1-20130101-EWR depart '{\"time\":\"2013-01-01T10:22:00Z\"}' --wait
  echo '{}' | flexcore publish flight UA1-20130101-EWR cancel - --id cancel-1
  flexcore publish --lines commands.jsonl

A line of --lines is {\"aggregate\":…,\"id\":…,\"command\":…,\"payload\":…}, and optionally
\"command_id\". The same command id sent again is recognised: repeating a publish is safe.")]
pub(crate) struct Publish {
    /// The kind of aggregate, such as flight
    #[arg(required_unless_present = "lines")]
    pub(crate) aggregate: Option<AggregateName>,
    /// The aggregate's id
    #[arg(required_unless_present = "lines", value_name = "ID")]
    pub(crate) aggregate_id: Option<AggregateId>,
    /// The command, such as depart
    #[arg(required_unless_present = "lines", value_name = "COMMAND")]
    pub(crate) name: Option<CommandName>,
    /// JSON; `-` reads it from standard input
    #[arg(default_value = "{}")]
    pub(crate) payload: String,
    /// What makes it the same command when it is sent again [default: a random one]
    #[arg(long, value_name = "KEY")]
    pub(crate) id: Option<CommandId>,
    /// Who sends it (over NATS; over HTTP the token says so)
    #[arg(long, default_value = "cli")]
    pub(crate) actor: ActorName,
    /// nats: stored, then processed; http: processed, then answered
    #[arg(long, value_enum, default_value = "nats")]
    pub(crate) over: Over,
    /// Wait for the outcome, at most so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "30")]
    pub(crate) wait: Option<u64>,
    /// Publish every line of this file, in order (`-`: standard input); nats only
    #[arg(long, value_name = "FILE", conflicts_with_all = ["aggregate", "id", "wait", "over"])]
    pub(crate) lines: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The way that a command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Over {
    Nats,
    Http,
}

/// Ask a read model or a named query; one that is being built is waited for, 10 s at most
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore query flights carrier=UA --limit 5 --sort=-dep_delay
  flexcore query flights carrier=UA --sort=-departed_at --explain
  flexcore query delays_by_carrier --json")]
pub(crate) struct Query {
    /// The read model, or the named query
    pub(crate) name: flexcore_domain::Name,
    /// Filters on columns, or parameters of the named query: NAME=VALUE
    #[arg(value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) filters: Vec<(String, String)>,
    /// Most rows
    #[arg(long)]
    pub(crate) limit: Option<u32>,
    /// Columns to sort by, `-` before one for downwards, commas between
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) sort: Option<String>,
    /// Columns to show, commas between
    #[arg(long)]
    pub(crate) fields: Option<String>,
    /// Positions that the read model must have passed first (read your writes)
    #[arg(long, value_name = "POSITION")]
    pub(crate) min_position: Option<String>,
    /// Say which index finds the rows, and what to declare where none does, in place of the rows
    #[arg(long)]
    pub(crate) explain: bool,
    /// Answer in JSON, as the gateway gave it
    #[arg(long)]
    pub(crate) json: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Build a read model anew from the log, beside the one that serves, and let it take over
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore rebuild carriers
  flexcore rebuild --from-this-log

Queries go on meanwhile; they see the new rows all at once, when it has caught up. With --from-this-log \
rows of another log are dropped first, and queries wait until each read model is built.")]
pub(crate) struct Rebuild {
    /// The read model
    #[arg(required_unless_present = "from_this_log")]
    pub(crate) name: Option<flexcore_domain::Name>,
    /// Drop all read models, which are of another log, and have them built from the one at --nats
    #[arg(long, conflicts_with = "name")]
    pub(crate) from_this_log: bool,
    /// Answer in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Look at what could not be processed, and requeue it
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  flexcore dead list
  flexcore dead show 17
  flexcore dead requeue 17 18")]
pub(crate) enum Dead {
    /// List dead messages, oldest first
    List {
        /// Only this kind: command, projection
        #[arg(long)]
        kind: Option<flexcore_domain::Name>,
        /// Only those after this number
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        after: u64,
        /// Most lines
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one whole
    Show {
        /// Its number in the list
        number: u64,
        /// In JSON
        #[arg(long)]
        json: bool,
    },
    /// Send commands again, under their own ids, and take them off the list
    Requeue {
        /// Their numbers in the list
        #[arg(required = true)]
        numbers: Vec<u64>,
        /// In JSON, one object a line
        #[arg(long)]
        json: bool,
    },
}

/// Walk the log and check that nothing is missing or changed
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore verify
  flexcore verify --aggregate flight/UA1-20130101-EWR --tenant demo --json

Exit code 0: whole; 1: broken, or not readable. Every commit carries the hash of its aggregate's
previous hash and its own body, and sequences and versions must follow one another.")]
pub(crate) struct Verify {
    /// Only this aggregate: KIND/ID
    #[arg(long, value_name = "KIND/ID", value_parser = aggregate)]
    pub(crate) aggregate: Option<(AggregateName, AggregateId)>,
    /// Answer in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn aggregate(text: &str) -> Result<(AggregateName, AggregateId), String> {
    let (kind, id) =
        text.split_once('/').ok_or("write KIND/ID, such as flight/UA1-20130101-EWR")?;
    let kind = AggregateName::parse(kind).map_err(|error| error.to_string())?;
    Ok((kind, AggregateId::parse(id).map_err(|error| error.to_string())?))
}

/// Show the cluster: members, leader, who owns which slots, lag, servers
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore cluster
  flexcore cluster --json
  flexcore cluster drain worker-1-0a1b2c3d

Exit code 0: there is a leader, every slot and every share of the read models has an owner, Postgres
answers, and every copy of the log is up to date; 1: not so, or not known.")]
pub(crate) struct Cluster {
    #[command(subcommand)]
    pub(crate) action: Option<ClusterAction>,
    /// Answer in JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What is done with a member.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterAction {
    /// Move everything that a member serves to others, and give it nothing more; it stays a member
    Drain {
        /// Its id
        member: String,
        /// Return at once, and not when it serves nothing any more
        #[arg(long)]
        no_wait: bool,
    },
    /// Take a drain back
    Undrain {
        /// Its id
        member: String,
    },
}

/// Mint a token for the gateway
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore token
  curl -H \"Authorization: Bearer $(flexcore token --tenant acme --lifetime 600)\" …")]
pub(crate) struct Token {
    /// Who the bearer is
    #[arg(long, default_value = "cli")]
    pub(crate) subject: ActorName,
    /// How long it is good for, in seconds
    #[arg(long, default_value_t = 3_600, value_name = "SECONDS")]
    pub(crate) lifetime: u64,
    /// In JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check everything that FlexCore needs on this machine, and say what to do about what is missing
#[derive(Args, Debug)]
#[command(after_help = "Exit code 0: nothing is missing; 1: something is.")]
pub(crate) struct Doctor {
    /// Answer in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Ask a gateway or a worker whether it is well, for containers without a shell
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  flexcore healthcheck 127.0.0.1:9090
  flexcore healthcheck 127.0.0.1:9090 --live

Exit code 0: it answers that it is; 1: it does not.")]
pub(crate) struct Healthcheck {
    /// Where it serves its health, HOST:PORT
    pub(crate) address: String,
    /// Ask whether the process answers (/livez), not whether it can work (/readyz)
    #[arg(long)]
    pub(crate) live: bool,
}

/// Print the completion script of a shell
#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// Which shell
    pub(crate) shell: Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

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
