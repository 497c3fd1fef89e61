//! Pools of the plugin for tests, and waiting for what becomes of them.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use flexcore_plugin::{
    Checked, Cookie, Start,
    contract::{Context, VERSION},
    guard::{Bounds, Sandbox},
    limits::ANSWER_BYTES_MAX,
};
use flexcore_pool::{Configurations, Pool, PoolCall, PoolError, PoolStatus, Spec};

/// The plugin under test, which is its own guard.
const LAB: &str = env!("CARGO_BIN_EXE_flexcore-pool-lab");

/// Long enough for a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One instance of the plugin with this argument.
pub(crate) fn spec(argument: &'static str) -> Spec {
    Spec {
        start: Arc::new(move || start(argument)),
        instances: 1,
        concurrency: 8,
        start_wait: PATIENCE,
        call_max: PATIENCE,
        output_bytes_max: 1 << 20,
        contract: true,
        configurations: Configurations::default(),
        name: "lab".to_owned(),
    }
}

/// One that is given up at once: it does not speak the version that it is offered.
pub(crate) fn unfit() -> Spec {
    let start = || Start { versions: vec![VERSION + 1], ..start("one") };
    Spec { start: Arc::new(start), ..spec("one") }
}

pub(crate) fn start(argument: &str) -> Start {
    // It is large in a test build, and started often.
    static FILE: LazyLock<Checked> = LazyLock::new(|| Checked::open(Path::new(LAB), None).unwrap());
    Start {
        file: FILE.clone(),
        guard: LAB.into(),
        arguments: vec![argument.into()],
        environment: vec![],
        cookie: Cookie::flexcore(),
        versions: vec![VERSION],
        tls: false,
        multiplex: false,
        start_wait: PATIENCE,
        answer_bytes_max: ANSWER_BYTES_MAX,
        bounds: Bounds::default(),
        sandbox: Sandbox::default(),
        output: Arc::new(|_| {}),
    }
}

/// A pool that takes calls.
pub(crate) async fn ready(spec: Spec) -> Pool {
    let pool = Pool::new(spec);
    pool.ready(PATIENCE).await.unwrap();
    pool
}

/// The output of a function, as text.
pub(crate) async fn call(pool: &Pool, function: &str, input: &str) -> Result<String, PoolError> {
    let context = Context { tenant: "test".to_owned(), ..Context::default() };
    let function = function.to_owned();
    let call = PoolCall { function, context, input: input.to_owned().into() };
    let called = pool.call(call, PATIENCE).await;
    called.map(|output| String::from_utf8(output.to_vec()).unwrap())
}

/// The number of the process that has the next call.
pub(crate) async fn pid(pool: &Pool) -> u32 {
    call(pool, "pid", "null").await.unwrap().parse().unwrap()
}

/// Waits until the pool is as it should be.
pub(crate) async fn until(pool: &Pool, what: &str, is: impl Fn(&PoolStatus) -> bool) {
    let began = Instant::now();
    while !is(&pool.status()) {
        let (status, lines) = (pool.status(), pool.lines());
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}: {status:?}, {lines:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn kill(pid: u32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Waits until the process is gone.
pub(crate) async fn until_gone(pid: u32) {
    let began = Instant::now();
    while is_alive(pid) {
        assert!(began.elapsed() < PATIENCE, "{pid} still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One that has ended counts as gone, whether it was asked how or not.
pub(crate) fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
