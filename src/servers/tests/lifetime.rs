//! The real servers: their data, their faults, and that nothing of them outlives this process.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use flexcore_servers::{Error, Options, Servers, Sources, Sync, Want};
use sqlx::{Connection as _, PgConnection};

/// Set for the process that `a_killed_process_leaves_nothing_behind` starts and kills.
const CHILD: &str = "FLEXCORE_SERVERS_TEST_CHILD";

/// One cache for all tests, kept between runs, as fetching takes a while.
fn cache() -> PathBuf {
    flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"))
}

fn options() -> Options {
    Options::new(cache())
}

async fn connect(servers: &Servers) -> PgConnection {
    PgConnection::connect(&servers.postgres_url().unwrap()).await.unwrap()
}

async fn write(servers: &Servers) {
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config {
        name: "T".to_owned(),
        subjects: vec!["t.>".to_owned()],
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
    jetstream.publish("t.a", "kept".into()).await.unwrap().await.unwrap();
    let mut sql = connect(servers).await;
    sqlx::query("create table t as select 7 as n").execute(&mut sql).await.unwrap();
}

async fn check(servers: &Servers) {
    let client = async_nats::connect(servers.nats_url()).await.unwrap();
    let stream = async_nats::jetstream::new(client).get_stream("T").await.unwrap();
    assert_eq!(stream.get_raw_message(1).await.unwrap().payload, "kept");
    let mut sql = connect(servers).await;
    let n: i32 = sqlx::query_scalar("select n from t").fetch_one(&mut sql).await.unwrap();
    assert_eq!(n, 7);
}

fn alive(pid: u32) -> bool {
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill -0 \"$1\" 2>/dev/null", "sh", &pid.to_string()]);
    kill.status().unwrap().success()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn two_at_once_on_free_ports_and_nothing_left_after_stop() {
    let (a, b) = (options(), options());
    let (a, b) = tokio::try_join!(Servers::start(&a), Servers::start(&b)).unwrap();
    assert_ne!(a.nats_url(), b.nats_url());
    write(&a).await;
    write(&b).await;
    check(&a).await;
    let folders = [a.data().to_owned(), b.data().to_owned()];
    let pids = [a.nats_pid(), a.postgres_pid(), b.nats_pid(), b.postgres_pid()].map(Option::unwrap);
    assert!(pids.into_iter().all(alive));
    a.stop().await;
    // The other way to end them.
    drop(b);
    assert!(!pids.into_iter().any(alive));
    assert!(!folders.iter().any(|folder| folder.exists()));
}

#[tokio::test]
async fn data_survives_a_stop_a_kill_and_a_second_start() {
    let folder = tempfile::tempdir().unwrap();
    let passable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(folder.path(), passable).unwrap();
    let options = Options { data: Some(folder.path().join("data")), ..options() };
    let mut servers = Servers::start(&options).await.unwrap();
    write(&servers).await;
    let (nats_url, postgres_url) = (servers.nats_url(), servers.postgres_url());
    servers.nats.kill().await.unwrap();
    assert_eq!(servers.nats_pid(), None);
    servers.nats.start_again().await.unwrap();
    let postgres = servers.postgres.as_mut().unwrap();
    postgres.kill().await.unwrap();
    postgres.start_again().await.unwrap();
    assert_eq!((servers.nats_url(), servers.postgres_url()), (nats_url, postgres_url));
    check(&servers).await;
    servers.stop().await;
    let servers = Servers::start(&options).await.unwrap();
    check(&servers).await;
    servers.stop().await;
}

#[tokio::test]
async fn a_second_start_on_the_same_data_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = Some(folder.path().join("data"));
    let options = Options { data, want: Want::Nats, ..options() };
    let servers = Servers::start(&options).await.unwrap();
    let config = folder.path().join("data/nats/nats.conf");
    let before = std::fs::read_to_string(&config).unwrap();
    let other = Options { sync: Sync::Lazy, ..options };
    let error = Servers::start(&other).await.expect_err("it is in use");
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&config).unwrap(), before);
    servers.stop().await;
}

#[tokio::test]
async fn the_sync_asked_for_is_the_one_that_the_server_uses() {
    for (sync, always) in [(Sync::Always, true), (Sync::Lazy, false)] {
        let options = Options { sync, want: Want::Nats, ..options() };
        let servers = Servers::start(&options).await.unwrap();
        assert_eq!(servers.postgres_url(), None);
        let jsz = get(&servers.nats_monitor_url(), "/jsz").await;
        assert_eq!(jsz.contains("\"sync_always\": true"), always, "{jsz}");
        servers.stop().await;
    }
}

/// A body over HTTP/1.0.
async fn get(url: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_quotes_the_server() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let options = Options { nats_port: Some(port), want: Want::Nats, ..options() };
    let error = Servers::start(&options).await.expect_err("the port is taken");
    assert!(matches!(&error, Error::Start { .. }), "{error}");
    assert!(error.to_string().contains("address already in use"), "{error}");
}

#[tokio::test]
async fn fetched_servers_serve_as_installed_ones_do() {
    let options = Options { sources: Sources::Fetched, ..options() };
    let servers = Servers::start(&options).await.unwrap();
    write(&servers).await;
    check(&servers).await;
    let mut sql = connect(&servers).await;
    let version: String =
        sqlx::query_scalar("show server_version").fetch_one(&mut sql).await.unwrap();
    assert!(version.starts_with("18."), "{version}");
    servers.stop().await;
}

#[test]
fn a_killed_process_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let passable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    std::fs::set_permissions(temporary.path(), passable).unwrap();
    let kept = temporary.path().join("kept");
    let mut started = Vec::new();
    for data in ["", kept.to_str().unwrap(), kept.to_str().unwrap()] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, data)
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let line = stdout
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("SERVERS ").map(|(_, words)| words.to_owned()));
        let words: Vec<String> =
            line.expect("the child started").split(' ').map(str::to_owned).collect();
        let [folder, pids @ ..] = &words[..] else { panic!("{words:?}") };
        let pids: Vec<u32> = pids.iter().map(|pid| pid.parse().unwrap()).collect();
        assert!(pids.len() == 2 && pids.iter().copied().all(alive), "{pids:?}");
        started.extend(&pids);
        child.kill().unwrap();
        child.wait().unwrap();
        if data.is_empty() {
            wait_until("servers gone", || !pids.iter().copied().any(alive));
            wait_until("data gone", || !Path::new(folder).exists());
        }
        // Otherwise the next round starts on the same data at once, the old servers still ending.
    }
    wait_until("servers gone", || !started.iter().copied().any(alive));
    let left = || std::fs::read_dir(temporary.path()).unwrap().count();
    assert_eq!(left(), 1, "only the kept folder is left");
}

/// Not a test of its own: what the test above runs in another process.
#[tokio::test]
async fn child() {
    let Ok(data) = std::env::var(CHILD) else { return };
    let kept = !data.is_empty();
    let options = Options { data: kept.then(|| data.into()), ..options() };
    let servers = Servers::start(&options).await.unwrap();
    if kept && servers.data().join("written").exists() {
        check(&servers).await;
    } else {
        write(&servers).await;
        std::fs::write(servers.data().join("written"), "").unwrap();
    }
    let pids = [servers.nats_pid(), servers.postgres_pid()].map(Option::unwrap);
    let line = format!("SERVERS {} {} {}\n", servers.data().display(), pids[0], pids[1]);
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    std::future::pending().await
}
