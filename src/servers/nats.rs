//! The embedded nats-server.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::{io::AsyncReadExt as _, net::TcpStream};

use crate::{
    Error, Sync, account,
    fetch::text,
    guard::{self, Guarded, POLL, Plan},
    io_error,
};

/// The configuration that production starts from, too.
const CONFIG: &str = include_str!("../../nats.conf");
/// The server's own defaults.
const LAZY_SYNC: &str = "\"2m\"";
/// Longest time for opening its store: a second for a million messages, with room.
const READY_WAIT: Duration = Duration::from_secs(60);
/// Panics and its first messages before it opens its log; locked while the server lives.
const STDERR: &str = "nats.stderr.log";
/// Longest time for its end after a request to stop.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// Number of attempts at its old port, which may be taken for a moment.
const PORT_TRIES: u32 = 20;

/// A nats-server of our own, on loopback. Dropping it ends it.
#[derive(Debug)]
pub struct Nats {
    program: PathBuf,
    folder: PathBuf,
    ports: Ports,
    peer: Option<Peer>,
    /// The limit of its memory, where it has one.
    memory_bytes: Option<u64>,
    remove: Option<PathBuf>,
    process: Option<Guarded>,
}

/// A server's place in a cluster of several.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    number: usize,
    /// Where each server takes the others' connections, by number.
    routes: Vec<u16>,
}

impl Peer {
    /// The places of so many servers, on ports that are free just now. Fails when there are none.
    pub(crate) fn places(count: usize) -> Result<Vec<Self>, Error> {
        let doing = "find free ports for a cluster";
        let listeners: Vec<TcpListener> = (0..count)
            .map(|_| TcpListener::bind("127.0.0.1:0").map_err(io_error(doing)))
            .collect::<Result<_, _>>()?;
        let routes: Vec<u16> = listeners
            .iter()
            .map(|listener| Ok(listener.local_addr().map_err(io_error(doing))?.port()))
            .collect::<Result<_, _>>()?;
        Ok((0..count).map(|number| Self { number, routes: routes.clone() }).collect())
    }

    fn arguments(&self) -> Vec<String> {
        let url = |port: &u16| format!("nats://127.0.0.1:{port}");
        let routes: Vec<String> = self.routes.iter().map(url).collect();
        let own = routes[self.number].clone();
        let name = format!("flexcore-{}", self.number);
        [
            ("--server_name", name),
            ("--cluster_name", "flexcore".to_owned()),
            ("--cluster", own),
            ("--routes", routes.join(",")),
        ]
        .into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value])
        .collect()
    }
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    clients: u16,
    monitor: u16,
}

impl Nats {
    pub(crate) async fn start(
        program: PathBuf,
        folder: PathBuf,
        sync: Sync,
        port: Option<u16>,
        peer: Option<Peer>,
        remove: Option<PathBuf>,
    ) -> Result<Self, Error> {
        account::passable_folder(&folder)?;
        // An earlier server of this folder must be gone before anything in it is touched.
        guard::wait_until_gone(&folder.join(STDERR)).await?;
        let config = config(&folder.join("store"), sync)?;
        std::fs::write(folder.join("nats.conf"), config).map_err(io_error("write nats.conf"))?;
        let ports = Ports { clients: port.unwrap_or(0), monitor: 0 };
        let memory_bytes = None;
        let mut nats = Self { program, folder, ports, peer, memory_bytes, remove, process: None };
        nats.run().await?;
        Ok(nats)
    }

    /// `nats://127.0.0.1:<port>`; stays the same after [`Self::start_again`].
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.ports.clients)
    }

    /// `http://127.0.0.1:<port>` of `/varz`, `/jsz`, `/healthz`.
    #[must_use]
    pub fn monitor_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.monitor)
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Guarded::pid)
    }

    /// Kills it with SIGKILL and waits until it is gone. For tests of faults.
    pub async fn kill(&mut self) -> Result<(), Error> {
        if let Some(mut process) = self.process.take() {
            process.end(&[]).await;
        }
        guard::wait_until_gone(&self.stderr()).await
    }

    /// Starts it again with the same ports and data, after [`Self::kill`] or [`Self::stop`].
    pub async fn start_again(&mut self) -> Result<(), Error> {
        self.stop().await;
        let mut result = self.run().await;
        for _ in 1..PORT_TRIES {
            match &result {
                Err(Error::Start { log, .. }) if log.contains("address already in use") => {}
                _ => break,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            result = self.run().await;
        }
        result
    }

    /// Starts it again with this limit on what its streams take on the disk. For tests of a full one.
    pub async fn start_again_with_room(&mut self, file_bytes: u64) -> Result<(), Error> {
        self.stop().await;
        self.write_room(file_bytes)?;
        self.start_again().await
    }

    /// Starts it again with this limit of its memory, which is told and not kept. For tests of one that is
    /// near.
    pub async fn start_again_with_memory(&mut self, memory_bytes: u64) -> Result<(), Error> {
        self.memory_bytes = Some(memory_bytes);
        self.start_again().await
    }

    /// Starts it again with this after its configuration. For tests of logins.
    pub async fn start_again_with(&mut self, more: &str) -> Result<(), Error> {
        self.stop().await;
        let path = self.folder.join("nats.conf");
        let config = std::fs::read_to_string(&path).map_err(io_error("read nats.conf"))?;
        std::fs::write(&path, config + more).map_err(io_error("write nats.conf"))?;
        self.start_again().await
    }

    /// Raises the limit on what its streams take on the disk, while it runs: as its operator would.
    pub fn raise_room(&self, file_bytes: u64) -> Result<(), Error> {
        self.write_room(file_bytes)?;
        let pid = self.pid().unwrap_or_default().to_string();
        let signalled = std::process::Command::new("kill").args(["-s", "HUP", &pid]).status();
        signalled.map(|_| ()).map_err(io_error("have nats.conf read again"))
    }

    fn write_room(&self, file_bytes: u64) -> Result<(), Error> {
        let path = self.folder.join("nats.conf");
        let config = std::fs::read_to_string(&path).map_err(io_error("read nats.conf"))?;
        let config = set(&config, "max_file_store", &file_bytes.to_string());
        std::fs::write(&path, config).map_err(io_error("write nats.conf"))
    }

    /// Ends it in order: SIGTERM, after ten seconds SIGKILL.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.end(&[("TERM", STOP_WAIT)]).await;
        }
    }

    async fn run(&mut self) -> Result<(), Error> {
        // `-1` lets the server choose, and tell: no port can be lost between choosing and binding.
        let port = |port: u16| if port == 0 { "-1".to_owned() } else { port.to_string() };
        let folder = text(&self.folder)?;
        let log = self.folder.join("nats.log");
        let arguments = [
            "--config",
            &format!("{folder}/nats.conf"),
            "--addr",
            "127.0.0.1",
            "--port",
            &port(self.ports.clients),
            "--http_port",
            &port(self.ports.monitor),
            "--ports_file_dir",
            folder,
            "--log",
            text(&log)?,
        ];
        let in_cluster = self.peer.as_ref().map(Peer::arguments).unwrap_or_default();
        let arguments =
            arguments.into_iter().map(str::to_owned).chain(in_cluster).collect::<Vec<_>>();
        let limit = self.memory_bytes.map(|bytes| ("GOMEMLIMIT", bytes.to_string()));
        let mut process = Guarded::start(Plan {
            program: &self.program,
            arguments,
            environment: limit.into_iter().collect(),
            account: None,
            stderr: self.stderr(),
            last_signal: "KILL",
            remove: self.remove.clone(),
        })
        .await?;
        let start = Instant::now();
        while !self.ready(process.pid()).await {
            let reason = match process.ended() {
                Some(status) => format!("it ended at once ({status})"),
                None if start.elapsed() > READY_WAIT => "it did not get ready in time".to_owned(),
                None => {
                    tokio::time::sleep(POLL).await;
                    continue;
                }
            };
            let log = [guard::last_lines(&self.stderr()), guard::last_lines(&log)].join("\n");
            return Err(Error::Start { server: "nats-server".to_owned(), reason, log });
        }
        self.process = Some(process);
        Ok(())
    }

    /// Ready once it has told its ports and greets clients: it listens after its store is open.
    async fn ready(&mut self, pid: u32) -> bool {
        let file = self.folder.join(format!("nats-server_{pid}.ports"));
        let Some(ports) = std::fs::read(&file).ok().and_then(|bytes| parse_ports(&bytes)) else {
            return false;
        };
        self.ports = ports;
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", ports.clients)).await else {
            return false;
        };
        let mut greeting = [0; 4];
        if stream.read_exact(&mut greeting).await.is_err() || &greeting != b"INFO" {
            return false;
        }
        // A killed server leaves its file behind.
        drop(std::fs::remove_file(file));
        true
    }

    fn stderr(&self) -> PathBuf {
        self.folder.join(STDERR)
    }
}

fn parse_ports(bytes: &[u8]) -> Option<Ports> {
    #[derive(serde::Deserialize)]
    struct File {
        nats: Vec<String>,
        monitoring: Vec<String>,
    }
    let file: File = serde_json::from_slice(bytes).ok()?;
    let port = |urls: &[String]| urls.first()?.rsplit(':').next()?.parse().ok();
    Some(Ports { clients: port(&file.nats)?, monitor: port(&file.monitoring)? })
}

/// nats-server, found or fetched. Blocks while it is fetched; fails when it cannot be had.
pub fn program(cache: &Path) -> Result<PathBuf, Error> {
    crate::find::nats(cache, crate::Sources::Any)
}

/// The text of the top level's `nats.conf` with this store, and with lazy sync if asked for. Fails
/// when the path cannot be written into it.
pub fn config(store: &Path, sync: Sync) -> Result<String, Error> {
    let store = text(store)?;
    if store.contains(['"', '\\', '\n']) {
        return Err(Error::Path(store.into()));
    }
    let config = set(CONFIG, "store_dir", &format!("\"{store}\""));
    Ok(match sync {
        Sync::Always => config,
        Sync::Lazy => set(&config, "sync_interval", LAZY_SYNC),
    })
}

/// The file with another value on the one line of this key.
fn set(config: &str, key: &str, value: &str) -> String {
    let mut lines = Vec::new();
    let mut count = 0;
    for line in config.lines() {
        let rest = line.trim_start();
        if rest.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')) {
            count += 1;
            let indent = &line[..line.len() - rest.len()];
            lines.push(format!("{indent}{key}: {value}"));
        } else {
            lines.push(line.to_owned());
        }
    }
    assert_eq!(count, 1, "BUG: nats.conf must have `{key}:` on one line");
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_store_and_the_sync_differ_from_production() {
        let differing = |config: &str| {
            let pairs = CONFIG.lines().zip(config.lines());
            pairs.filter(|(a, b)| a != b).map(|(_, b)| b.trim().to_owned()).collect::<Vec<_>>()
        };
        let always = config(Path::new("/d a/store"), Sync::Always).unwrap();
        assert_eq!(differing(&always), ["store_dir: \"/d a/store\""]);
        assert!(always.contains("\n  sync_interval: always\n"));
        let lazy = config(Path::new("/d/store"), Sync::Lazy).unwrap();
        assert_eq!(differing(&lazy), ["store_dir: \"/d/store\"", "sync_interval: \"2m\""]);
        assert!(config(Path::new("/a\"b"), Sync::Always).is_err());
    }
}
