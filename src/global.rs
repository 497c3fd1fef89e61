//! The options that every subcommand understands.

use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr};

use clap::{Args, ValueEnum};
use flexcore_domain::Tenant;
use flexcore_eventstore::Profile;

/// Options of every subcommand.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The broker, such as nats://127.0.0.1:4222 or nats://user:password@127.0.0.1:4222; several
    /// servers with commas, and one login for all of them
    #[arg(
        long,
        global = true,
        env = "FLEXCORE_NATS",
        value_name = "URL",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub(crate) nats: Vec<String>,
    /// A .creds file with the login to the broker
    #[arg(long, global = true, env = "FLEXCORE_NATS_CREDENTIALS", value_name = "FILE")]
    pub(crate) nats_credentials: Option<PathBuf>,
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
    /// Where downloaded servers, data sets and plugins are kept [default: flexcore in the user's cache
    /// folder]
    #[arg(long, global = true, env = "FLEXCORE_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// The promise of an acknowledgement: power-loss (synced to disk) or relaxed (may be lost)
    #[arg(long, global = true, env = "FLEXCORE_PROFILE", default_value_t = Profile::PowerLoss)]
    pub(crate) profile: Profile,
    /// Name of this process among the members; a random part is added [default: the host's name]
    #[arg(long, global = true, env = "FLEXCORE_MEMBER", value_name = "NAME")]
    pub(crate) member: Option<String>,
    /// Seconds, 3 to 60, for which a member that is not heard of keeps its slots
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
    /// Log filter: error, warn, info, debug, trace, or target=level pairs [default: info for
    /// servers, warn for tools]
    #[arg(long, global = true, env = "FLEXCORE_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Format of the log on standard error
    #[arg(long, global = true, env = "FLEXCORE_LOG_FORMAT", value_enum, default_value = "human")]
    pub(crate) log_format: LogFormat,
    /// Where traces go (OTLP over gRPC), such as http://127.0.0.1:4317
    #[arg(long, global = true, env = "FLEXCORE_OTLP", value_name = "URL")]
    pub(crate) otlp: Option<String>,
    /// Part of the traces that begin here that is kept, 0 to 1
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
    /// The tenant
    #[arg(long, global = true, env = "FLEXCORE_TENANT")]
    pub(crate) tenant: Option<Tenant>,
    /// The bearer token for the gateway [default: a fresh one from the signing key]
    #[arg(long, global = true, env = "FLEXCORE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The RSA key that signs tokens, PEM [default: that of the data folder]
    #[arg(long, global = true, env = "FLEXCORE_SIGNING_KEY", value_name = "FILE")]
    pub(crate) signing_key: Option<PathBuf>,
    /// The key that plugins' configurations are sealed with, 64 hexadecimal digits; the same for all
    /// processes. Better by the variable, or by a file [default: none; that of the data folder for `dev`
    /// and for tools]
    #[arg(
        long,
        global = true,
        env = "FLEXCORE_SECRETS_KEY",
        value_name = "DIGITS",
        hide_env_values = true
    )]
    pub(crate) secrets_key: Option<SecretText>,
    /// A file with that key, in place of --secrets-key
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) secrets_key_file: Option<PathBuf>,
}

/// A text that is never shown.
#[derive(Clone)]
pub(crate) struct SecretText(pub(crate) String);

impl FromStr for SecretText {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText")
    }
}

fn replicas(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("write 1, 3 or 5: an even number of servers survives no more losses".to_owned()),
    }
}

/// The look of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Human,
    /// One JSON object a line, in the Elastic Common Schema.
    Json,
}
