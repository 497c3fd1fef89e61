//! Everything in one process, with its own nats-server and Postgres.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use flexcore_auth::SigningKey;
use flexcore_cluster as cluster;
use flexcore_domain::{ActorName, Tenant};
use flexcore_eventstore::{Profile, sealed::SecretsKey};
use flexcore_http::health::RenderMetrics;
use flexcore_servers::{Options, Servers, Sync};
use tokio_util::sync::CancellationToken;

use crate::{
    Broker, Endpoints, Installation, Ready, Roles, connect, listen, ready::write_private, tokens,
};

/// Lifetime of the ready file's token: a working day.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// Settings of its start.
pub struct Settings {
    /// Folder of the servers' data.
    pub data: PathBuf,
    /// Folder in which downloaded servers are kept.
    pub cache: PathBuf,
    /// The promise of an acknowledgement.
    pub profile: Profile,
    /// This process as a member.
    pub membership: cluster::Settings,
    /// Where the gateway listens.
    pub listen: String,
    /// Whom the ready file's token is for.
    pub tenant: Tenant,
    /// Where the key that signs tokens is, or is to be.
    pub signing_key: PathBuf,
    /// The key that secrets are sealed with; `None`: that of the file.
    pub secrets_key: Option<SecretsKey>,
    /// Where that key is, or is to be.
    pub secrets_key_file: PathBuf,
    /// Where it says that it serves.
    pub ready_files: Vec<PathBuf>,
    /// Folder in which the files of installed plugins are kept.
    pub plugin_files: PathBuf,
    /// Renders `/metrics`.
    pub metrics: RenderMetrics,
}

/// A running installation with its own servers.
pub struct Dev {
    /// The installation that the roles serve from.
    pub installation: Installation,
    /// Where everything is.
    pub ready: Ready,
    roles: Roles,
    servers: Servers,
    ready_files: Vec<PathBuf>,
}

impl Dev {
    /// Starts the servers and every role. Fails when one of them can't be had.
    #[boxed::async_recursion]
    pub async fn start(settings: Settings, stop: CancellationToken) -> anyhow::Result<Self> {
        let options = Options {
            data: Some(settings.data.clone()),
            sync: match settings.profile {
                Profile::PowerLoss => Sync::Always,
                Profile::Relaxed => Sync::Lazy,
            },
            ..Options::new(&settings.cache)
        };
        let servers = Servers::start(&options).await?;
        let endpoints = Endpoints {
            nats: Broker::new(&[servers.nats_url()], None)?,
            nats_monitors: vec![servers.nats_monitor_url()],
            replicas: 1,
            postgres: servers.postgres_url().context("BUG: both servers were asked for")?,
            postgres_query: None,
        };
        let (key, key_path) = signing_key(&settings.signing_key)?;
        let own_key = || secrets_key(&settings.secrets_key_file);
        let secrets_key = settings.secrets_key.clone().map_or_else(own_key, Ok)?;
        // The broker is ours alone: members of an earlier run are gone, whatever their leases say.
        cluster::reset(&connect(&endpoints.nats).await?, endpoints.replicas).await?;
        let Settings { profile, membership, .. } = &settings;
        let installation =
            Installation::open_when_there(&endpoints, *profile, membership, &stop).await?;
        let installation = installation.with_secrets_key(Some(secrets_key));
        let listener = listen(&settings.listen).await?;
        let http = format!("http://{}", listener.local_addr()?);
        let mut roles = Roles::new(stop);
        roles.commands(&installation, flexcore_workers::command::Settings::default());
        roles.projections(&installation);
        roles.plugins(&installation, settings.plugin_files);
        roles.resignation(&installation);
        let verifier = tokens::verifier(vec![key.public().clone()]);
        roles.gateway(&installation, listener, None, verifier, settings.metrics);
        let (tenant, subject) = (settings.tenant, ActorName::parse("dev")?);
        let ready = Ready {
            http,
            nats: servers.nats_url(),
            nats_monitor: servers.nats_monitor_url(),
            postgres: endpoints.postgres,
            token: tokens::mint(&tokens::issuer(key), &tenant, &subject, TOKEN_LIFETIME)?,
            tenant,
            signing_key: key_path,
        };
        let mut dev = Self { installation, ready, roles, servers, ready_files: Vec::new() };
        for path in settings.ready_files {
            dev.ready.write(&path)?;
            dev.ready_files.push(path);
        }
        Ok(dev)
    }

    /// Serves until it is told to stop, then drains and ends its servers.
    #[boxed::async_recursion]
    pub async fn serve(self) -> anyhow::Result<bool> {
        let result = self.roles.ended().await;
        for path in &self.ready_files {
            // Gone already, or a new process wrote it: either way not ours to mend.
            let _ = fs::remove_file(path);
        }
        self.installation.member.leave().await;
        self.installation.read_models.close().await;
        self.servers.stop().await;
        result.map(|()| true)
    }
}

/// The key for secrets in this file, made when it is missing.
fn secrets_key(path: &Path) -> anyhow::Result<SecretsKey> {
    let said = || format!("the key for secrets in {}", path.display());
    match fs::read_to_string(path) {
        Ok(text) => SecretsKey::parse(&text).map_err(anyhow::Error::msg).with_context(said),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = SecretsKey::generate();
            write_private(path, key.digits().as_bytes())?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(said),
    }
}

/// The key of the data folder, made when it is missing.
fn signing_key(path: &Path) -> anyhow::Result<(SigningKey, PathBuf)> {
    let key = match fs::read_to_string(path) {
        Ok(pem) => {
            SigningKey::from_pem(&pem).with_context(|| format!("signing key {}", path.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let (key, pem) = SigningKey::generate();
            write_private(path, pem.as_bytes())?;
            key
        }
        Err(error) => {
            return Err(error).with_context(|| format!("signing key {}", path.display()));
        }
    };
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    Ok((key, path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_for_secrets_is_made_once_and_is_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets_key");
        let made = secrets_key(&path).unwrap();
        assert_eq!(secrets_key(&path).unwrap().digits(), made.digits());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "5ecret").unwrap();
        let error = format!("{:#}", secrets_key(&path).unwrap_err());
        assert!(error.contains("64 hexadecimal digits") && !error.contains("5ecret"), "{error}");
    }
}
