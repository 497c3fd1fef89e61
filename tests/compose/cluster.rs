//! The installation that docker-compose.yml describes, and actions on it.

use std::{
    net::TcpListener,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    engine::Engine,
    load::Load,
    support::{
        check::Place,
        load::Target,
        process::{flexcore, succeeded, texts},
        say,
    },
};

/// Names containers, networks and volumes apart from anybody else's.
const PROJECT: &str = "flexcore-test";
/// Longest time for containers to get healthy: the first start sets Postgres up.
const HEALTHY_WAIT: Duration = Duration::from_secs(180);
/// The tenant of the accounts.
const TENANT: &str = "bank";
/// The victims: one container of each kind.
const KINDS: [&str; 6] = ["worker", "gateway", "nats-2", "postgres", "haproxy", "nats-1"];
/// Services that run our own executable.
const OURS: [&str; 2] = ["worker", "gateway"];

/// A running installation.
pub(crate) struct Cluster<'a> {
    engine: &'a Engine,
    port: u16,
    compose: Vec<String>,
}

impl<'a> Cluster<'a> {
    /// Starts everything as README.md says, and waits until it serves.
    pub(crate) fn up(engine: &'a Engine) -> Self {
        let compose = std::env::var("FLEXCORE_COMPOSE").unwrap_or("docker-compose".to_owned());
        let compose = compose.split_whitespace().map(str::to_owned).collect();
        // Free a moment ago; on loopback only.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let cluster = Self { engine, port, compose };
        let version = cluster.compose(&["version", "--short"]);
        say(&format!("compose {}", version.trim()));
        cluster.compose(&["config", "--quiet"]);
        engine.run("secrets", "deploy/secrets.sh", &[]);
        cluster.compose(&["down", "--volumes", "--remove-orphans"]);
        let start = Instant::now();
        cluster.compose(&["up", "--detach", "--scale", "worker=4"]);
        cluster.all_healthy();
        assert_eq!(cluster.containers("worker").len(), 4);
        assert_eq!(cluster.containers("gateway").len(), 2);
        say(&format!("up with 4 workers: {:.0} s", start.elapsed().as_secs_f64()));
        cluster
    }

    fn environment(&self, command: &mut Command) {
        command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
        command.env("DOCKER_HOST", &self.engine.host).env("COMPOSE_PROJECT_NAME", PROJECT);
        command.env("PUBLISH", format!("127.0.0.1:{}", self.port));
    }

    fn try_compose(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.compose[0]);
        command.args(&self.compose[1..]).args(arguments);
        self.environment(&mut command);
        command.output().unwrap_or_else(|error| panic!("{:?}: {error}", self.compose))
    }

    fn compose(&self, arguments: &[&str]) -> String {
        succeeded(arguments, &self.try_compose(arguments))
    }

    fn docker(&self, arguments: &[&str]) -> String {
        succeeded(arguments, &self.engine.docker(arguments).output().unwrap()).trim().to_owned()
    }

    fn inspect(&self, container: &str, what: &str) -> String {
        self.docker(&["inspect", "--format", &format!("{{{{{what}}}}}"), container])
    }

    /// Ids of a service's containers, those that have ended among them.
    fn containers(&self, service: &str) -> Vec<String> {
        let project = format!("label=com.docker.compose.project={PROJECT}");
        let service = format!("label=com.docker.compose.service={service}");
        let one_off = "label=com.docker.compose.oneoff=False";
        let filters = ["--filter", &project, "--filter", &service, "--filter", one_off];
        let ids = self.docker(&[&["ps", "--all", "--quiet"][..], &filters].concat());
        ids.lines().map(str::to_owned).collect()
    }

    fn all_healthy(&self) {
        let services = ["nats-1", "nats-2", "nats-3", "postgres", "worker", "gateway", "haproxy"];
        for container in services.iter().flat_map(|service| self.containers(service)) {
            self.healthy(&container);
        }
    }

    fn healthy(&self, container: &str) {
        let start = Instant::now();
        loop {
            // The state of health is that of before, for a moment after the process was killed.
            let state = self.inspect(container, ".State.Status");
            let health = self.inspect(container, ".State.Health.Status");
            if state == "running" && health == "healthy" {
                return;
            }
            if start.elapsed() > HEALTHY_WAIT {
                let logs = self.engine.docker(&["logs", "--tail", "30", container]).output();
                let checks = self.inspect(container, "json .State.Health");
                panic!(
                    "{container} is {state} and {health}: {checks}\n{:?}",
                    texts(&logs.unwrap())
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    fn address(&self, service: &str) -> String {
        let networks = "range .NetworkSettings.Networks}}{{.IPAddress}} {{end";
        let container = self.containers(service).remove(0);
        self.inspect(&container, networks).split_whitespace().next().unwrap().to_owned()
    }

    /// Where it can be reached from this machine, which is in all of its networks.
    pub(crate) fn place(&self) -> Place {
        let nats = ["nats-1", "nats-2", "nats-3"].map(|service| self.address(service));
        let clients = nats.clone().map(|host| format!("nats://{host}:4222")).join(",");
        let monitors = nats.map(|host| format!("http://{host}:8222")).join(",");
        let secret = |name: &str| {
            let path = format!("{}/deploy/secrets/{name}", env!("CARGO_MANIFEST_DIR"));
            std::fs::read_to_string(path).unwrap().trim().to_owned()
        };
        let postgres =
            secret("postgres_url").replace("@postgres", &format!("@{}", self.address("postgres")));
        let http = format!("127.0.0.1:{}", self.port);
        let key = format!("{}/deploy/secrets/signing_key.pem", env!("CARGO_MANIFEST_DIR"));
        let options = [
            ("--nats", &clients),
            ("--nats-monitor", &monitors),
            ("--replicas", &"3".to_owned()),
            ("--postgres", &postgres),
            ("--http", &http),
            ("--tenant", &TENANT.to_owned()),
            ("--signing-key", &key),
        ];
        let options = options.map(|(name, value)| [name.to_owned(), value.clone()]).concat();
        let token = flexcore().args(&options).args(["token", "--lifetime", "3600"]).output();
        let token = succeeded(&["token"], &token.unwrap()).trim().to_owned();
        let target = Target { http, token, nats: clients, tenant: TENANT.to_owned() };
        Place { target, postgres, options }
    }

    /// Runs a subcommand of this machine's own executable on the installation.
    pub(crate) fn flexcore(&self, arguments: &[&str]) -> String {
        let output = flexcore().args(self.place().options).args(arguments).output().unwrap();
        succeeded(arguments, &output)
    }

    /// Runs a subcommand in a container, as users do; it prints JSON.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Value {
        let printed = self.compose(&[&["run", "--rm", "-T", "cli"][..], arguments].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }

    /// Our containers have no more than they need, and the image no shell.
    pub(crate) fn is_confined(&self) {
        for container in OURS.iter().flat_map(|service| self.containers(service)) {
            let is = |what: &str| self.inspect(&container, what);
            assert_eq!(is(".Config.User"), "65532:65532");
            assert_eq!(is(".HostConfig.ReadonlyRootfs"), "true");
            assert_eq!(is(".HostConfig.CapDrop"), "[ALL]");
            assert_eq!(is(".HostConfig.SecurityOpt"), "[no-new-privileges:true]");
            for limit in [".HostConfig.Memory", ".HostConfig.NanoCpus", ".HostConfig.PidsLimit"] {
                assert!(is(limit).parse::<u64>().unwrap() > 0, "{limit}");
            }
            let shell = self.engine.docker(&["exec", &container, "/bin/sh", "-c", "true"]).output();
            assert!(!shell.unwrap().status.success(), "there is a shell");
            let environment = is("json .Config.Env");
            let password = self.place().postgres.split(['@', ':']).nth(2).unwrap().to_owned();
            assert!(!environment.contains(&password), "a password is in the environment");
        }
        let image = self.containers("worker").remove(0);
        let bytes = self.docker(&[
            "image",
            "inspect",
            "--format",
            "{{.Size}}",
            &self.inspect(&image, ".Image"),
        ]);
        say(&format!("the image has {} MB", bytes.parse::<u64>().unwrap() / 1_000_000));
    }

    /// Workers leave and come.
    pub(crate) async fn scale(&self, load: &Load) {
        for workers in [2, 4] {
            load.during(&format!("scaled to {workers} workers"), || {
                let scale = format!("worker={workers}");
                self.compose(&["up", "--detach", "--no-recreate", "--scale", &scale]);
                assert_eq!(self.containers("worker").len(), workers);
                self.all_healthy();
            })
            .await;
        }
    }

    /// Every container of ours is replaced, and one server of NATS, as an update does it.
    pub(crate) async fn restart(&self, load: &Load) {
        for services in [&["gateway"][..], &["worker"], &["nats-3"]] {
            load.during(&format!("rolling restart of {services:?}"), || {
                let before = self.containers(services[0]);
                let mut command = Command::new("deploy/rolling-restart.sh");
                self.environment(&mut command);
                command.env("COMPOSE", self.compose.join(" ")).args(services);
                let output = command.output().unwrap();
                say(succeeded(services, &output).trim_end());
                let after = self.containers(services[0]);
                assert_eq!(after.len(), before.len());
                assert!(after.iter().all(|id| !before.contains(id)), "all are replaced");
            })
            .await;
        }
    }

    /// SIGKILL to the first process of one container after another; its restart policy has to
    /// bring it back.
    pub(crate) async fn kill_one_of_each(&self, load: &Load) {
        for service in KINDS {
            load.during(&format!("killed {service}"), || {
                let container = self.containers(service).remove(0);
                let restarts = self.inspect(&container, ".RestartCount");
                let pid = self.inspect(&container, ".State.Pid");
                let kill = Command::new("kill").args(["-KILL", &pid]).status();
                assert!(kill.unwrap().success(), "{service} {pid}");
                let start = Instant::now();
                while self.inspect(&container, ".RestartCount") == restarts {
                    assert!(start.elapsed() < HEALTHY_WAIT, "{service} is not started again");
                    std::thread::sleep(Duration::from_millis(100));
                }
                self.healthy(&container);
            })
            .await;
        }
    }

    /// The example application, as a user deploys and uses it from a container.
    pub(crate) fn flights(&self) {
        self.cli(&["apply", "schemas/flights", "--json"]);
        let payload = json!({
            "carrier": "UA", "number": 1, "tailnum": null, "origin": "EWR", "destination": "IAH",
            "scheduled_departure": "2013-01-01T05:15:00Z", "scheduled_arrival": null,
            "distance_miles": 1400
        });
        let id = "UA1-20130101-EWR";
        let schedule =
            ["publish", "flight", id, "schedule", &payload.to_string(), "--over", "http"];
        let answer = self.cli(&[&schedule[..], &["--json"]].concat());
        let position = answer["position"].as_str().unwrap_or_else(|| panic!("{answer}"));
        let query = ["query", "flights", "carrier=UA", "--json", "--min-position", position];
        let found = self.cli(&query);
        assert!(found.to_string().contains(id), "{found}");
        say(&format!("flights: {found}"));
        self.all_well();
    }

    /// Waits until everything has an owner and every copy is up to date, as a user asks for it.
    fn all_well(&self) {
        let start = Instant::now();
        loop {
            let shown = self.try_compose(&["run", "--rm", "-T", "cli", "cluster"]);
            let (out, err) = texts(&shown);
            if shown.status.success() {
                return say(out.trim_end());
            }
            assert!(start.elapsed() < HEALTHY_WAIT, "{out}\n{err}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Ours end by themselves when asked, and with success.
    pub(crate) fn drains(&self) {
        let start = Instant::now();
        self.compose(&["stop", "gateway", "worker"]);
        for container in OURS.iter().flat_map(|service| self.containers(service)) {
            let code = self.inspect(&container, ".State.ExitCode");
            assert_eq!(code, "0", "{}", self.docker(&["logs", "--tail", "20", &container]));
        }
        say(&format!("drained: {:.1} s, exit code 0", start.elapsed().as_secs_f64()));
    }

    /// Removes everything.
    pub(crate) fn down(self) {
        self.compose(&["down", "--volumes", "--remove-orphans"]);
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for service in OURS {
                let logs = self.try_compose(&["logs", "--tail", "40", service]);
                say(&texts(&logs).0);
            }
        }
        // Nothing is left on an engine that is somebody else's.
        self.try_compose(&["down", "--volumes", "--remove-orphans", "--timeout", "5"]);
    }
}
