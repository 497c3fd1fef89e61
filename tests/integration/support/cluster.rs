//! The roles as processes of their own, on servers that the test holds in its hand.

use std::path::{Path, PathBuf};

use flexcore_auth::SigningKey;
use flexcore_servers::{Options, Servers};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    Http, app,
    check::Place,
    eventually,
    load::Target,
    process::{Process, cache, flexcore, folder, succeeded},
};

const TENANT: &str = "demo";

/// Free just now, and to be bound at once.
pub(crate) fn free_address() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().to_string()
}

/// A gateway and a worker on servers that the test holds in its hand.
pub(crate) struct Cluster {
    // The processes end before their servers: fields are dropped in order.
    pub(crate) roles: Vec<Process>,
    pub(crate) servers: Servers,
    http: String,
    key: PathBuf,
    folder: TempDir,
    more: Vec<String>,
}

impl Cluster {
    /// Starts the servers; no role yet.
    pub(crate) async fn new() -> Self {
        let servers = Servers::start(&Options::new(cache())).await.unwrap();
        let folder = folder();
        let key = folder.path().join("key.pem");
        std::fs::write(&key, SigningKey::generate().1.as_bytes()).unwrap();
        let http = free_address();
        Self { roles: Vec::new(), servers, http, key, folder, more: Vec::new() }
    }

    /// Options that say where everything is.
    pub(crate) fn options(&self) -> Vec<String> {
        let options = [
            ("--nats", self.servers.nats_url()),
            ("--nats-monitor", self.servers.nats_monitor_url()),
            ("--postgres", self.servers.postgres_url().unwrap()),
            ("--http", self.http.clone()),
            ("--signing-key", self.key.to_str().unwrap().to_owned()),
            ("--tenant", TENANT.to_owned()),
            ("--data", self.folder.path().join("none").to_str().unwrap().to_owned()),
        ];
        let options = options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        options.chain(self.more.iter().cloned()).collect()
    }

    /// Further options of everything that is started or run from now on.
    pub(crate) fn with(&mut self, options: &[&str]) {
        self.more.extend(options.iter().map(|option| (*option).to_owned()));
    }

    /// Starts a role as a member of this name.
    pub(crate) fn start(&mut self, role: &str, name: &str) {
        self.start_with(role, name, &[]);
    }

    /// The same, with further options.
    pub(crate) fn start_with(&mut self, role: &str, name: &str, options: &[&str]) {
        let mut command = flexcore();
        command.arg(role).args(self.options()).args(["--member", name]).args(options);
        let log = self.folder.path().join(format!("{name}.log"));
        self.roles.push(Process::start(command, &log, Path::new("")));
    }

    pub(crate) fn tails(&self) -> String {
        self.roles.iter().map(Process::tail).collect::<Vec<_>>().join("\n")
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let mut command = flexcore();
        command.args(self.options()).args(arguments);
        succeeded(arguments, &command.output().unwrap())
    }

    /// Deploys the bank, and waits until a worker has taken it up.
    pub(crate) async fn deploy_bank(&self) {
        let (_folder, bank) = app::bank().write();
        eventually("a worker to take the application up", async || {
            let deployed = self.run(&["apply", &bank, "--json"]);
            if deployed.contains("\"picked_up_ms\":null") { Err(deployed) } else { Ok(()) }
        })
        .await;
    }

    /// The output of `flexcore cluster`, in health and in trouble.
    pub(crate) fn view(&self) -> Value {
        let mut command = flexcore();
        let output = command.args(self.options()).args(["cluster", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    pub(crate) fn target(&self) -> Target {
        let token = self.run(&["token"]).trim().to_owned();
        let (http, nats) = (self.http.clone(), self.servers.nats_url());
        Target { http, token, nats, tenant: TENANT.to_owned() }
    }

    pub(crate) fn place(&self) -> Place {
        let postgres = self.servers.postgres_url().unwrap();
        Place { target: self.target(), postgres, options: self.options() }
    }

    /// Waits until `/readyz` has this status, and names the missing parts.
    pub(crate) async fn readiness(&mut self, status: &str, missing: &str) {
        let http = Http::new(&self.http, "");
        eventually("readiness", async || {
            for role in &mut self.roles {
                let ended = role.ended();
                assert!(ended.is_none(), "a role ended, {ended:?}\n{}", role.tail());
            }
            let answer = http.try_send("GET", "/readyz", &[], "").await?;
            let found = answer.status == if status == "not ready" { 503 } else { 200 };
            let named = answer.json()["missing"].to_string().contains(missing);
            if found && named && answer.json()["status"] == status {
                Ok(())
            } else {
                Err(format!("{answer:?}"))
            }
        })
        .await;
    }
}
