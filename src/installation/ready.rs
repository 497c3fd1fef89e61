//! The ready file of a running `dev` or `demo`, by which other processes find it.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use flexcore_domain::Tenant;
use serde::{Deserialize, Serialize};

/// A running `dev` or `demo`: the content of its ready file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// URL of the gateway.
    pub http: String,
    /// URL of the broker.
    pub nats: String,
    /// URL of the broker's monitoring.
    pub nats_monitor: String,
    /// URL of the database.
    pub postgres: String,
    /// The tenant that the token is for.
    pub tenant: Tenant,
    /// A bearer token.
    pub token: String,
    /// Path of the key that signs tokens.
    pub signing_key: PathBuf,
}

impl Ready {
    /// Writes it whole or not at all, readable for nobody else: it holds a token.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self).context("writing the ready file")?;
        write_private(path, &text)
    }
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let unfinished = path.with_extension("unfinished");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&unfinished).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("writing {}", path.display()))
}
