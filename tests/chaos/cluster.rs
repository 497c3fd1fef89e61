//! The whole installation: three brokers, Postgres, gateways and workers, a namespace each.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use flexcore_auth::SigningKey;
use flexcore_servers::{PostgresParts, Sync};

use crate::{
    fake_postgres::FakePostgres,
    host::{self, say},
    http::{Ask, Client},
    netns::{self, Network},
    process::{Plan, Process},
    talk::Place,
};

/// The tenants whose accounts the load uses.
pub(crate) const TENANTS: [&str; 5] = ["alder", "birch", "cedar", "dogwood", "elm"];
/// SIGTERM ends a node within this time.
const STOP_WAIT: Duration = Duration::from_secs(30);
/// Longest time until everything serves, on a busy machine with a debug build.
const READY_WAIT: Duration = Duration::from_secs(120);
/// Lifetime of tokens, in seconds: longer than any run.
pub(crate) const LIFETIME_S: u32 = 6 * 3_600;

/// The build.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) workers: u8,
    pub(crate) gateways: u8,
    /// Time for which a member that is not heard of keeps its work.
    pub(crate) lease: Duration,
    /// When the brokers' writes reach the disk.
    pub(crate) sync: Sync,
    /// Brokers and Postgres each on a file system of its own, which can be cut.
    pub(crate) disks: bool,
    /// The port of the harness at which the gateways find a fake in place of Postgres.
    pub(crate) fake_postgres: Option<u16>,
    /// Further environment of gateways and workers.
    pub(crate) environment: Vec<(String, String)>,
    /// Further settings of Postgres.
    pub(crate) postgres_settings: Vec<String>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            workers: 3,
            gateways: 2,
            lease: Duration::from_secs(12),
            sync: Sync::Always,
            disks: false,
            fake_postgres: None,
            environment: Vec::new(),
            postgres_settings: Vec::new(),
        }
    }
}

/// The installation. Dropping it ends its processes.
pub(crate) struct Cluster {
    pub(crate) nodes: BTreeMap<String, Process>,
    pub(crate) shape: Shape,
    pub(crate) client: Client,
    /// A bearer token for each of [`TENANTS`].
    pub(crate) tokens: Vec<String>,
    /// The fake in front of Postgres, if the shape has one.
    pub(crate) fake: Option<FakePostgres>,
    login: (String, String, String),
    signing_key: PathBuf,
    // Last: it removes the namespaces.
    pub(crate) net: Network,
}

pub(crate) fn cache() -> PathBuf {
    flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"))
}

fn number(node: &str) -> u8 {
    let (role, index) = node.rsplit_once('-').unwrap_or((node, "1"));
    let base = match role {
        "nats" => 10,
        "postgres" => 20,
        "gateway" => 30,
        _ => 40,
    };
    base + index.parse::<u8>().unwrap()
}

impl Cluster {
    /// Starts everything, deploys the ledger, and waits until it serves.
    pub(crate) async fn start(shape: Shape) -> Self {
        let net = Network::create();
        let started = Instant::now();
        let signing_key = net.folder.join("signing_key.pem");
        fs::write(&signing_key, SigningKey::generate().1).unwrap();
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            client: Client::default(),
            tokens: Vec::new(),
            login: Default::default(),
            fake: None,
            signing_key,
            shape,
            net,
        };
        for node in cluster.names() {
            cluster.net.add(&node, number(&node));
        }
        cluster.start_postgres();
        for index in 1..=3 {
            cluster.start_nats(index);
        }
        cluster.tokens = TENANTS.iter().map(|tenant| cluster.token(tenant)).collect();
        cluster.brokers_ready().await;
        if let Some(address) = cluster.fake_postgres() {
            let target = cluster.postgres_authority();
            cluster.fake = Some(FakePostgres::start(&address, target).await);
        }
        for node in cluster.names_of("worker").chain(cluster.names_of("gateway")) {
            cluster.start_flexcore(&node, &[]);
        }
        cluster.ready().await;
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chaos/ledger");
        cluster.flexcore(&["apply", folder]).unwrap();
        cluster.serves().await;
        say(&format!("the cluster serves after {:.1} s", started.elapsed().as_secs_f64()));
        cluster
    }

    fn names(&self) -> Vec<String> {
        let brokers = (1..=3).map(|n| format!("nats-{n}"));
        let rest = self.names_of("worker").chain(self.names_of("gateway"));
        brokers.chain(["postgres".to_owned()]).chain(rest).collect()
    }

    /// Names of gateways or workers.
    pub(crate) fn names_of(&self, role: &'static str) -> impl Iterator<Item = String> + use<> {
        let count = if role == "gateway" { self.shape.gateways } else { self.shape.workers };
        (1..=count).map(move |n| format!("{role}-{n}"))
    }

    fn address(&self, node: &str) -> String {
        self.net.address(number(node))
    }

    /// `HOST:PORT` of a gateway.
    pub(crate) fn gateway(&self, index: usize) -> String {
        format!("{}:8080", self.address(&format!("gateway-{index}")))
    }

    /// Where clients find it.
    pub(crate) fn place(&self) -> Place {
        Place {
            client: self.client.clone(),
            gateways: (1..=self.shape.gateways).map(|n| self.gateway(n.into())).collect(),
            tokens: self.tokens.clone(),
            nats: self.nats(),
            postgres: self.postgres(),
        }
    }

    /// `HOST:PORT` of metrics and health of a gateway or worker.
    pub(crate) fn metrics(&self, node: &str) -> String {
        format!("{}:9090", self.address(node))
    }

    /// URLs of the three brokers.
    pub(crate) fn nats(&self) -> Vec<String> {
        (1..=3).map(|n| format!("nats://{}:4222", self.address(&format!("nats-{n}")))).collect()
    }

    /// `HOST:PORT` of a broker's monitoring.
    pub(crate) fn monitor(&self, node: &str) -> String {
        format!("{}:8222", self.address(node))
    }

    /// URL of Postgres itself, also where gateways and workers are told another one.
    pub(crate) fn postgres(&self) -> String {
        self.postgres_via(&self.postgres_authority())
    }

    /// `HOST:PORT` of Postgres itself.
    pub(crate) fn postgres_authority(&self) -> String {
        format!("{}:5432", self.address("postgres"))
    }

    /// `HOST:PORT` of the fake, if there is one.
    fn fake_postgres(&self) -> Option<String> {
        self.shape.fake_postgres.map(|port| format!("{}:{port}", self.net.own()))
    }

    fn postgres_via(&self, authority: &str) -> String {
        let (user, password, database) = &self.login;
        format!("postgres://{user}:{password}@{authority}/{database}")
    }

    /// The folder that holds a node's data.
    pub(crate) fn data(&self, node: &str) -> PathBuf {
        self.net.folder.join(node)
    }

    fn log(&self, node: &str) -> PathBuf {
        self.net.folder.join(format!("{node}.log"))
    }

    /// A bearer token for a tenant.
    pub(crate) fn token(&self, tenant: &str) -> String {
        let lifetime = LIFETIME_S.to_string();
        let arguments = ["token", "--tenant", tenant, "--lifetime", &lifetime];
        self.flexcore(&arguments).unwrap().trim().to_owned()
    }

    /// Runs a tool of the executable to its end.
    pub(crate) fn flexcore(&self, arguments: &[&str]) -> Result<String, String> {
        let settings = self.environment();
        let settings = settings.iter().map(|(name, value)| format!("{name}={value}"));
        let mut line: Vec<String> = vec!["-i".to_owned()];
        line.extend(settings.filter(|setting| !setting.contains("FLEXCORE_DEFECT")));
        line.push(env!("CARGO_BIN_EXE_flexcore").to_owned());
        line.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        host::try_run("env", &line.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn environment(&self) -> Vec<(String, String)> {
        let monitors = (1..=3).map(|n| format!("http://{}", self.monitor(&format!("nats-{n}"))));
        let relaxed = self.shape.sync == Sync::Lazy;
        let settings = [
            ("NATS", self.nats().join(",")),
            ("NATS_MONITOR", monitors.collect::<Vec<_>>().join(",")),
            ("REPLICAS", "3".to_owned()),
            ("LEASE", self.shape.lease.as_secs().to_string()),
            ("POSTGRES", self.postgres()),
            ("PROFILE", if relaxed { "relaxed" } else { "power-loss" }.to_owned()),
            ("SIGNING_KEY", self.signing_key.to_str().unwrap().to_owned()),
            ("CACHE", cache().to_str().unwrap().to_owned()),
            ("DATA", self.net.folder.join("none").to_str().unwrap().to_owned()),
        ];
        let settings =
            settings.into_iter().map(|(name, value)| (format!("FLEXCORE_{name}"), value));
        settings.chain(self.shape.environment.iter().cloned()).collect()
    }

    fn start_nats(&mut self, index: u8) {
        let node = format!("nats-{index}");
        let (folder, address) = (self.data(&node), self.address(&node));
        self.disk(&node);
        fs::create_dir_all(&folder).unwrap();
        let mut config =
            flexcore_servers::nats_config(&folder.join("store"), self.shape.sync).unwrap();
        for (old, new) in [
            ("host: 127.0.0.1\n", format!("host: {address}\n")),
            ("http: 127.0.0.1:8222\n", format!("http: {address}:8222\n")),
            ("server_name: flexcore\n", format!("server_name: {node}\n")),
        ] {
            assert!(config.contains(old), "nats.conf has {old:?}");
            config = config.replacen(old, &new, 1);
        }
        let routes = (1..=3).map(|n| format!("nats://{}:6222", self.address(&format!("nats-{n}"))));
        let routes = routes.collect::<Vec<_>>().join(", ");
        config += &format!(
            "\ncluster {{ name: flexcore, listen: \"{address}:6222\", routes: [{routes}] }}\n"
        );
        let path = self.net.folder.join(format!("{node}.conf"));
        fs::write(&path, config).unwrap();
        let program = flexcore_servers::nats_program(&cache()).unwrap();
        let line = [program.to_str().unwrap(), "--config", path.to_str().unwrap()];
        self.launch(&node, line.map(str::to_owned).to_vec(), Vec::new());
    }

    fn start_postgres(&mut self) {
        let node = "postgres";
        self.disk(node);
        let parts = flexcore_servers::postgres_parts(&cache(), &self.data(node)).unwrap();
        let PostgresParts { program, mut arguments, data, account, login } = parts;
        self.login = login;
        let hba = data.join("pg_hba.conf");
        let lines = fs::read_to_string(&hba).unwrap();
        let ours = format!("host all all {} scram-sha-256\n", self.net.range());
        fs::write(&hba, lines + &ours).unwrap();
        arguments.extend(["-p".to_owned(), "5432".to_owned()]);
        let settings = ["listen_addresses=*".to_owned()];
        for setting in settings.iter().chain(&self.shape.postgres_settings) {
            arguments.extend(["-c".to_owned(), setting.clone()]);
        }
        let mut line = Vec::new();
        if let Some((user, group)) = account {
            let options = [format!("--reuid={user}"), format!("--regid={group}")];
            line.extend(
                ["setpriv".to_owned(), "--clear-groups".to_owned()].into_iter().chain(options),
            );
        }
        line.push(program.to_str().unwrap().to_owned());
        line.extend(arguments);
        self.launch(node, line, Vec::new());
    }

    /// Starts a gateway or a worker; `before` are programs that end by running it.
    pub(crate) fn start_flexcore(&mut self, node: &str, before: &[&str]) {
        let mut line: Vec<String> = before.iter().map(|word| (*word).to_owned()).collect();
        line.push(env!("CARGO_BIN_EXE_flexcore").to_owned());
        let role: &[&str] = if node.starts_with("gateway") {
            &["gateway", "--http", "0.0.0.0:8080", "--metrics-http", "0.0.0.0:9090"]
        } else {
            &["worker", "--metrics-http", "0.0.0.0:9090"]
        };
        line.extend(role.iter().map(|word| (*word).to_owned()));
        let mut environment = self.environment();
        environment.push(("FLEXCORE_MEMBER".to_owned(), node.to_owned()));
        if let (Some(fake), true) = (self.fake_postgres(), node.starts_with("gateway")) {
            environment.retain(|(name, _)| name != "FLEXCORE_POSTGRES");
            environment.push(("FLEXCORE_POSTGRES".to_owned(), self.postgres_via(&fake)));
        }
        self.launch(node, line, environment);
    }

    fn launch(&mut self, node: &str, line: Vec<String>, environment: Vec<(String, String)>) {
        let log = self.log(node);
        let plan = Plan { node: node.to_owned(), line, environment, log };
        self.nodes.insert(node.to_owned(), Process::start(plan));
    }

    fn disk(&self, node: &str) {
        if self.shape.disks {
            crate::disk::mount_new(&self.net.folder, node);
        }
    }

    /// The process of a node.
    pub(crate) fn node(&mut self, node: &str) -> &mut Process {
        self.nodes.get_mut(node).unwrap()
    }

    /// Stops a node where it is, with everything in its namespace: it does nothing more.
    pub(crate) fn freeze(&mut self, node: &str) {
        let all = host::run("ip", &["netns", "pids", &netns::space(node)]);
        all.split_whitespace().for_each(|pid| host::signal("STOP", pid.parse().unwrap()));
    }

    /// Ends a node by SIGKILL, with everything in its namespace.
    pub(crate) fn kill(&mut self, node: &str) {
        self.node(node).kill();
        // Postgres's other processes end by themselves, a little later.
        let left = host::try_run("ip", &["netns", "pids", &netns::space(node)]).unwrap_or_default();
        left.split_whitespace().for_each(|pid| host::signal("KILL", pid.parse().unwrap()));
        let gone =
            || host::try_run("ip", &["netns", "pids", &netns::space(node)]).unwrap_or_default();
        while !gone().trim().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks a node to end, and waits until it has.
    pub(crate) async fn stop(&mut self, node: &str) {
        self.node(node).signal("TERM");
        self.node(node).ends(STOP_WAIT).await;
        self.kill(node);
    }

    /// Starts a node again after [`Self::kill`].
    pub(crate) fn run(&mut self, node: &str) {
        self.node(node).run();
    }

    /// A metric of a gateway or worker, by its name with labels; `None`: it does not show it.
    pub(crate) async fn metric(&self, node: &str, name: &str) -> Option<f64> {
        let ask = Ask::get("/metrics", "");
        let answer = self.client.send(&self.metrics(node), &ask, SOON).await.ok()?;
        let text = String::from_utf8(answer.body.to_vec()).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        value.trim().parse().ok()
    }

    /// Waits until the brokers are one cluster with a leader.
    pub(crate) async fn brokers_ready(&mut self) {
        self.wait("the brokers", async |cluster| {
            for node in ["nats-1", "nats-2", "nats-3"] {
                let ask = Ask::get("/healthz", "");
                let answer = cluster.client.send(&cluster.monitor(node), &ask, SOON).await;
                if !matches!(&answer, Ok(answer) if answer.status == 200) {
                    return Err(format!("{node}: {answer:?}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Waits until every gateway and worker says that it is ready.
    pub(crate) async fn ready(&mut self) {
        self.wait("readiness", async |cluster| {
            for node in cluster.names_of("worker").chain(cluster.names_of("gateway")) {
                let ask = Ask::get("/readyz", "");
                let answer = cluster.client.send(&cluster.metrics(&node), &ask, SOON).await;
                if !matches!(&answer, Ok(answer) if answer.status == 200) {
                    return Err(format!("{node}: {answer:?}"));
                }
            }
            Ok(())
        })
        .await;
    }

    async fn serves(&mut self) {
        self.wait("read models", async |cluster| {
            for (model, index) in ["balances", "branches"].iter().zip([1, cluster.shape.gateways]) {
                let ask = Ask::get(format!("/v1/query/{model}"), &cluster.tokens[0]);
                let gateway = cluster.gateway(index.into());
                let answer = cluster.client.send(&gateway, &ask, SOON).await;
                if !matches!(&answer, Ok(answer) if answer.status == 200) {
                    return Err(format!("{model}: {answer:?}"));
                }
            }
            Ok(())
        })
        .await;
    }

    /// Looks until something holds; panics with the last finding, and the logs' ends.
    pub(crate) async fn wait(
        &mut self,
        what: &str,
        mut look: impl AsyncFnMut(&mut Self) -> Result<(), String>,
    ) {
        let start = Instant::now();
        while let Err(last) = look(self).await {
            if start.elapsed() > READY_WAIT {
                let ends =
                    self.nodes.iter().map(|(node, p)| format!("== {node}\n{}", p.log_tail()));
                let ends = ends.collect::<Vec<_>>().join("\n");
                panic!("waited in vain for {what}: {last}\n{ends}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Long enough for an answer about health.
const SOON: Duration = Duration::from_secs(3);
