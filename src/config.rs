//! The settings of this process, resolved once. The only reader of the environment, together with
//! the command line's own variables.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow};
use flexcore_bench as bench;
use flexcore_cluster::{self as cluster, WorkKind};
use flexcore_domain::Tenant;
use flexcore_eventstore::{EventStore, Profile, Settings, sealed::SecretsKey};
use flexcore_installation::{Broker, Endpoints, Ready, RenderMetrics, dev};
use flexcore_telemetry as telemetry;
use flexcore_workers as workers;

use crate::{global, out};

/// File in the data folder by which the other subcommands find a running `dev` or `demo`.
const READY_FILE: &str = "dev.json";

/// File in the data folder with the key that signs tokens.
const SIGNING_KEY_FILE: &str = "signing_key.pem";

/// File in the data folder with the key that secrets are sealed with.
const SECRETS_KEY_FILE: &str = "secrets_key";

/// Folder in the cache with the files of installed plugins.
const PLUGIN_FILES_FOLDER: &str = "plugins";

/// The tenant that `dev` and `demo` mint a token for, unless another is given.
const DEV_TENANT: &str = "demo";

/// The command line and the environment, parsed.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) data: PathBuf,
    pub(crate) cache: PathBuf,
    pub(crate) profile: Profile,
    pub(crate) telemetry: telemetry::Settings,
    member: Option<String>,
    lease: Duration,
    nats: Vec<String>,
    nats_credentials: Option<PathBuf>,
    nats_monitors: Vec<String>,
    replicas: usize,
    postgres: Option<String>,
    postgres_query: Option<String>,
    http: Option<String>,
    tenant: Option<Tenant>,
    token: Option<String>,
    signing_key: Option<PathBuf>,
    secrets_key: Option<global::SecretText>,
    secrets_key_file: Option<PathBuf>,
}

impl Config {
    /// Fails when neither the command line nor the environment says where the cache is.
    pub(crate) fn resolve(options: global::Global, default_filter: &str) -> anyhow::Result<Self> {
        let no_colour = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let telemetry = telemetry::Settings {
            service_name: "flexcore".to_owned(),
            json_logs: options.log_format == global::LogFormat::Json,
            filter: options.log.unwrap_or_else(|| default_filter.to_owned()),
            otlp_endpoint: options.otlp,
            sample_ratio: options.trace_ratio,
            colours: out::on_terminal() && !no_colour,
        };
        // Servers are started from another folder than ours.
        let cache = std::path::absolute(options.cache.map_or_else(user_cache, Ok)?)
            .context("finding the cache folder")?;
        Ok(Self {
            data: options.data,
            cache,
            profile: options.profile,
            telemetry,
            member: options.member,
            lease: Duration::from_secs(options.lease),
            nats: options.nats,
            nats_credentials: options.nats_credentials,
            nats_monitors: options.nats_monitor,
            replicas: options.replicas,
            postgres: options.postgres,
            postgres_query: options.postgres_query,
            http: options.http,
            tenant: options.tenant,
            token: options.token,
            signing_key: options.signing_key,
            secrets_key: options.secrets_key,
            secrets_key_file: options.secrets_key_file,
        })
    }

    /// The broker's servers: as given, or that of the running `dev`.
    pub(crate) fn nats(&self) -> anyhow::Result<Broker> {
        let given = (!self.nats.is_empty()).then(|| self.nats.clone());
        let urls = self.given_or(given, "--nats", |ready| vec![ready.nats])?;
        Broker::new(&urls, self.nats_credentials.as_deref())
    }

    /// URL of the database: as given, or that of the running `dev`.
    pub(crate) fn postgres(&self) -> anyhow::Result<String> {
        self.given_or(self.postgres.clone(), "--postgres", |ready| ready.postgres)
    }

    /// URL of the login of queries that was given.
    pub(crate) fn postgres_query(&self) -> Option<String> {
        self.postgres_query.clone()
    }

    /// `HOST:PORT` of each gateway: as given, or that of the running `dev`.
    pub(crate) fn http(&self) -> anyhow::Result<Vec<String>> {
        let urls = self.given_or(self.http.clone(), "--http", |ready| ready.http)?;
        let authority =
            |url: &str| url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        Ok(urls.split(',').map(authority).collect())
    }

    /// The tenant: as given, or the one of the running `dev`.
    pub(crate) fn tenant(&self) -> anyhow::Result<Tenant> {
        self.given_or(self.tenant.clone(), "--tenant", |ready| ready.tenant)
    }

    /// The address to listen on that was given.
    pub(crate) fn listen_given(&self) -> Option<&str> {
        self.http.as_deref()
    }

    /// Where the servers are: as given, or those of the running `dev`.
    pub(crate) fn endpoints(&self) -> anyhow::Result<Endpoints> {
        let mut nats_monitors = self.nats_monitors.clone();
        if nats_monitors.is_empty() && self.nats.is_empty() {
            nats_monitors.extend(self.running().ok().map(|ready| ready.nats_monitor));
        }
        Ok(Endpoints {
            nats: self.nats()?,
            nats_monitors,
            replicas: self.replicas,
            postgres: self.postgres()?,
            postgres_query: self.postgres_query(),
        })
    }

    /// This process as a member of the cluster: what it is, and what it can serve.
    pub(crate) fn membership(
        &self,
        role: &str,
        kinds: impl IntoIterator<Item = WorkKind>,
    ) -> cluster::Settings {
        let host = || fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let name = self.member.clone().or_else(|| Some(host()?.trim().to_owned()));
        let name = name.unwrap_or_else(|| role.to_owned());
        cluster::Settings {
            lease: self.lease,
            replicas: self.replicas,
            shared_out: workers::ALL_WORK.to_vec(),
            ..cluster::Settings::new(&name, role, kinds)
        }
    }

    /// The token that was given.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// A `dev` of this process's own, which says that it serves in the data folder, and in the file
    /// that is given besides.
    pub(crate) fn dev(
        &self,
        metrics: RenderMetrics,
        ready_file: Option<&Path>,
    ) -> anyhow::Result<dev::Settings> {
        let own_key = || self.data.join(SIGNING_KEY_FILE);
        Ok(dev::Settings {
            data: self.data.clone(),
            cache: self.cache.clone(),
            profile: self.profile,
            membership: self.membership("dev", workers::ALL_WORK),
            listen: self.http.clone().unwrap_or_else(|| "127.0.0.1:0".to_owned()),
            tenant: self.tenant.clone().map_or_else(|| Tenant::parse(DEV_TENANT), Ok)?,
            signing_key: self.signing_key.clone().unwrap_or_else(own_key),
            secrets_key: self.secrets_key_given()?,
            secrets_key_file: self.data.join(SECRETS_KEY_FILE),
            ready_files: [self.ready_file()]
                .into_iter()
                .chain(ready_file.map(Path::to_owned))
                .collect(),
            plugin_files: self.plugin_files(),
            metrics,
        })
    }

    /// Where a worker keeps the files of installed plugins, each under its SHA-256.
    pub(crate) fn plugin_files(&self) -> PathBuf {
        self.cache.join(PLUGIN_FILES_FOLDER)
    }

    /// The base of benches.
    pub(crate) fn bench(&self, metrics: RenderMetrics) -> bench::Settings {
        bench::Settings { cache: self.cache.clone(), profile: self.profile, metrics }
    }

    /// Where the key that signs tokens is, or is to be.
    pub(crate) fn signing_key(&self) -> PathBuf {
        let of_running = || self.running().ok().map(|ready| ready.signing_key);
        let given = self.signing_key.clone().or_else(of_running);
        given.unwrap_or_else(|| self.data.join(SIGNING_KEY_FILE))
    }

    /// The key for secrets that was given; `None`: none was. Fails when it is none, or its file cannot be read.
    pub(crate) fn secrets_key_given(&self) -> anyhow::Result<Option<SecretsKey>> {
        if let Some(path) = &self.secrets_key_file {
            return read_secrets_key(path).map(Some);
        }
        let Some(global::SecretText(text)) = &self.secrets_key else { return Ok(None) };
        let read = SecretsKey::parse(text).map_err(anyhow::Error::msg);
        read.map(Some).context("FLEXCORE_SECRETS_KEY or --secrets-key")
    }

    /// The key for secrets of a tool: as given, or that of the `dev` whose data folder this is.
    fn secrets_key(&self) -> anyhow::Result<Option<SecretsKey>> {
        let path = self.data.join(SECRETS_KEY_FILE);
        match self.secrets_key_given()? {
            None if self.nats.is_empty() && path.exists() => read_secrets_key(&path).map(Some),
            given => Ok(given),
        }
    }

    /// The `dev` or `demo` that serves from the data folder. Fails when none does.
    pub(crate) fn running(&self) -> anyhow::Result<Ready> {
        let path = self.ready_file();
        let text = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not a ready file of this version", path.display()))
    }

    /// Where `dev` and `demo` say that they serve.
    pub(crate) fn ready_file(&self) -> PathBuf {
        self.data.join(READY_FILE)
    }

    /// A connection to the broker.
    pub(crate) async fn connect(&self) -> anyhow::Result<async_nats::Client> {
        self.nats()?.connect(async_nats::ConnectOptions::new()).await
    }

    /// The log of a running installation, for tools: nothing is created or checked.
    pub(crate) async fn event_store(&self) -> anyhow::Result<EventStore> {
        let settings = Settings {
            profile: self.profile,
            replicas: self.replicas,
            monitor_urls: self.nats_monitors.clone(),
        };
        let store = EventStore::attach(self.connect().await?, settings).await?;
        Ok(store.with_secrets_key(self.secrets_key()?))
    }

    fn given_or<T>(
        &self,
        given: Option<T>,
        option: &str,
        of_running: impl FnOnce(Ready) -> T,
    ) -> anyhow::Result<T> {
        let Some(given) = given else {
            let advice = || {
                anyhow!(
                    "nothing runs here: start `flexcore dev`, point --data at the folder of one \
                     that runs ({} has none), or give {option}",
                    self.data.display()
                )
            };
            return self.running().map(of_running).map_err(|_| advice());
        };
        Ok(given)
    }
}

fn read_secrets_key(path: &Path) -> anyhow::Result<SecretsKey> {
    let said = || format!("the key for secrets in {}", path.display());
    let text = fs::read_to_string(path).with_context(said)?;
    SecretsKey::parse(&text).map_err(anyhow::Error::msg).with_context(said)
}

fn user_cache() -> anyhow::Result<PathBuf> {
    let of_user = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let of_home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let folder = of_user.filter(|path| path.is_absolute()).or_else(of_home);
    let advice = "no cache folder: set HOME or XDG_CACHE_HOME, or give --cache";
    Ok(folder.context(advice)?.join("flexcore"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli;

    fn config(data: &Path, more: &[&str]) -> Config {
        let data = data.to_str().unwrap();
        let line = ["flexcore", "--data", data, "--cache", data, "token"];
        let cli = cli::Cli::try_parse_from(line.iter().chain(more)).unwrap();
        Config::resolve(cli.global, "warn").unwrap()
    }

    #[test]
    fn a_running_dev_is_found_and_options_win() {
        let folder = tempfile::tempdir().unwrap();
        let ready = Ready {
            http: "http://127.0.0.1:1/".to_owned(),
            nats: "nats://127.0.0.1:2".to_owned(),
            nats_monitor: "http://127.0.0.1:4".to_owned(),
            postgres: "postgres://127.0.0.1:3/flexcore".to_owned(),
            tenant: Tenant::parse("demo").unwrap(),
            token: "t".to_owned(),
            signing_key: folder.path().join("key.pem"),
        };
        let found = config(folder.path(), &[]);
        ready.write(&found.ready_file()).unwrap();
        assert_eq!(found.http().unwrap(), ["127.0.0.1:1"]);
        assert_eq!(found.tenant().unwrap().as_str(), "demo");
        assert_eq!(found.signing_key(), ready.signing_key);
        let given = config(folder.path(), &["--nats", "nats://other:4222"]);
        assert_eq!(given.nats().unwrap().to_string(), "nats://other:4222");
    }

    #[test]
    fn the_key_for_secrets_is_given_or_that_of_the_data_folder_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let digits = |digit: &str| digit.repeat(64);
        let key_of = |more: &[&str]| {
            config(folder.path(), more).secrets_key().map(|key| key.map(|key| key.digits()))
        };
        assert_eq!(key_of(&[]).unwrap(), None);
        fs::write(folder.path().join(SECRETS_KEY_FILE), digits("a")).unwrap();
        assert_eq!(key_of(&[]).unwrap(), Some(digits("a")));
        assert_eq!(key_of(&["--secrets-key", &digits("b")]).unwrap(), Some(digits("b")));
        assert_eq!(key_of(&["--nats", "nats://other:4222"]).unwrap(), None, "another installation");
        let given = config(folder.path(), &["--secrets-key", "5ecret"]);
        let error = format!("{:#}", given.secrets_key().unwrap_err());
        assert!(error.contains("64 hexadecimal digits"), "{error}");
        assert!(!error.contains("5ecret") && !format!("{given:?}").contains("5ecret"), "{error}");
        let file = folder.path().join("none");
        let gone = key_of(&["--secrets-key-file", file.to_str().unwrap()]).unwrap_err();
        assert!(format!("{gone:#}").contains("the key for secrets in"), "{gone:#}");
    }

    #[test]
    fn with_nothing_running_the_error_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = config(folder.path(), &[]).nats().unwrap_err().to_string();
        assert!(error.contains("nothing runs here: start `flexcore dev`"), "{error}");
        assert!(error.contains("--nats"), "{error}");
    }
}
