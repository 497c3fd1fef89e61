//! `postgres` and a real Postgres.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use flexcore_sdk::testing::{Context, Running};
use flexcore_servers::{Options, Servers, Want, cache_for_tests};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{kit, tls};

const LOOPBACK: &str = "127.0.0.1/32";

/// The server's URL. It runs on a thread of its own, because each test has its own runtime, and ends
/// with the process.
fn server() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let cache = cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
                let options = Options { want: Want::Both, ..Options::new(cache) };
                let servers = Servers::start(&options).await.unwrap();
                sender.send(servers.postgres_url().unwrap()).unwrap();
                std::future::pending::<()>().await;
            });
        });
        receiver.recv().unwrap()
    })
}

fn configuration() -> Value {
    json!({"url": format!("{}?sslmode=disable", server()), "networks": [LOOPBACK]})
}

async fn started() -> Running {
    let plugin = kit("postgres", &[LOOPBACK]).start().await;
    plugin.configure(&configuration()).await.unwrap();
    plugin
}

fn sql(sql: &str, parameters: Value) -> Value {
    json!({"sql": sql, "parameters": parameters})
}

#[tokio::test]
async fn values_come_and_go_exactly() {
    let plugin = started().await;
    let select = "select $1::int as i, $2::bigint as large, $3::numeric as n, $4::text as t, \
        $5::bool as b, $6::jsonb as j, $7::timestamptz as at, $8::int as nothing, \
        $9::float8 as f, array[1, 2] as a, '\\x00ff'::bytea as bytes, $10::uuid as u";
    let parameters = json!([
        -5,
        9_007_199_254_740_993_i64,
        "12345678901234567890.10",
        "it's \\ \"é\"\n; drop table x; --",
        true,
        {"a": ["b'\\", 1]},
        "2026-01-01T00:00:00+01:00",
        null,
        1.5,
        "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    ]);
    let answer = plugin.call("query", sql(select, parameters)).await.unwrap();
    let expected = json!([{
        "i": -5,
        "large": "9007199254740993",
        "n": "12345678901234567890.10",
        "t": "it's \\ \"é\"\n; drop table x; --",
        "b": true,
        "j": {"a": ["b'\\", 1]},
        "at": "2025-12-31 23:00:00+00",
        "nothing": null,
        "f": 1.5,
        "a": "{1,2}",
        "bytes": "\\x00ff",
        "u": "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    }]);
    assert_eq!(answer["rows"], expected);
    plugin.stop().await;
}

#[tokio::test]
async fn a_query_reads_and_execute_writes() {
    let plugin = started().await;
    let own = "create table if not exists flights (id int primary key, number text not null)";
    let mut admin = <sqlx::PgConnection as sqlx::Connection>::connect(server()).await.unwrap();
    sqlx::raw_sql(own).execute(&mut admin).await.unwrap();
    let insert = "insert into flights values ($1, $2) returning id";
    let answer = plugin.call("execute", sql(insert, json!([1, "FC 1"]))).await.unwrap();
    assert_eq!(answer, json!({"rows": [{"id": 1}], "rows_affected": 1}));
    let twice = plugin.call("execute", sql(insert, json!([1, "FC 1"]))).await.unwrap_err();
    assert_eq!((&*twice.code, twice.temporary), ("sqlstate_23505", false));
    let details: Value = serde_json::from_slice(&twice.details).unwrap();
    assert_eq!(details["constraint"], "flights_pkey");
    let refused = plugin.call("query", sql(insert, json!([2, "FC 2"]))).await.unwrap_err();
    assert_eq!(refused.code, "sqlstate_25006");
    let count = "select count(*) as n from flights";
    let answer = plugin.call("query", sql(count, json!([]))).await.unwrap();
    assert_eq!(answer["rows"], json!([{"n": 1}]));
    for (wrong, code) in [
        ("select 1; select 2", "sqlstate_42601"),
        ("select 1; commit; drop table flights", "sqlstate_42601"),
        ("drop table flights", "sqlstate_42601"),
        ("commit", "sqlstate_42601"),
        ("set statement_timeout = 0", "sqlstate_42601"),
        ("copy flights to program 'true'", "sqlstate_42601"),
        ("", "sqlstate_42601"),
        ("select * from nowhere", "sqlstate_42p01"),
        ("select 1 as a, 2 as a", "duplicate_column"),
    ] {
        let failure = plugin.call("execute", sql(wrong, json!([]))).await.unwrap_err();
        assert_eq!((&*failure.code, failure.temporary), (code, false), "{wrong}: {failure}");
    }
    let answer = plugin.call("query", sql(count, json!([]))).await.unwrap();
    assert_eq!(answer["rows"], json!([{"n": 1}]));
    plugin.stop().await;
}

#[tokio::test]
async fn rows_have_a_number_a_size_and_a_time() {
    let plugin = started().await;
    let series = |rows: usize| format!("select n from generate_series(1, {rows}) as n");
    let answer = plugin.call("query", sql(&series(10_000), json!([]))).await.unwrap();
    assert_eq!(answer["rows"].as_array().unwrap().len(), 10_000);
    let sleep = "select 1 as n from pg_sleep(60)";
    for (statement, code, temporary) in [
        (series(10_001), "too_large", false),
        ("select repeat('x', 1000000) as t".to_owned(), "too_large", false),
        ("select repeat('x', 100000000) as t".to_owned(), "too_large", false),
    ] {
        let failure = plugin.call("query", sql(&statement, json!([]))).await.unwrap_err();
        assert_eq!((&*failure.code, failure.temporary), (code, temporary), "{failure}");
    }
    let context = flexcore_sdk::testing::Context { timeout_ms: 1_000, ..plugin.context() };
    let input = sql(sleep, json!([]));
    let late = plugin.call_as(context, "query", &input, Duration::from_secs(1));
    let late = late.await.unwrap().unwrap_err();
    assert_eq!((&*late.code, late.temporary), ("late", true));
    let answer = plugin.call("query", sql("select 1 as n", json!([]))).await.unwrap();
    assert_eq!(answer["rows"], json!([{"n": 1}]));
    plugin.stop().await;
}

/// More calls than connections, one after the other on those that are there, and nothing is left from
/// one call to the next.
#[tokio::test]
async fn connections_are_few_and_clean() {
    let plugin = started().await;
    let select = "select set_config('application_name', 'left', false) as left_over";
    let inputs = vec![sql(select, json!([])); 32];
    for answer in plugin.stream("query", &inputs).await {
        assert_eq!(answer.unwrap()["rows"], json!([{"left_over": "left"}]));
    }
    let own = "select count(*) as n, max(application_name) as name from pg_stat_activity \
        where application_name in ('flexcore', 'left')";
    tokio::time::sleep(Duration::from_millis(200)).await;
    let answer = plugin.call("query", sql(own, json!([]))).await.unwrap();
    let row = &answer["rows"][0];
    assert_eq!(row["name"], "flexcore", "{answer}");
    plugin.stop().await;
}

#[tokio::test]
async fn a_database_is_reached_where_it_is_allowed() {
    let plugin = kit("postgres", &[]).start().await;
    let refused = plugin.configure(&configuration()).await.unwrap_err();
    assert_eq!(refused.code, "not_permitted");
    let inside = json!({"url": format!("{}?sslmode=disable", server())});
    plugin.configure(&inside).await.unwrap();
    let select = || sql("select 1", json!([]));
    let refused = plugin.call("query", select()).await.unwrap_err();
    assert_eq!((&*refused.code, refused.temporary), ("not_allowed", false));
    plugin.stop().await;

    let plugin = started().await;
    // The test's server has no TLS, which is wanted unless the address says otherwise.
    plugin.configure(&json!({"url": server(), "networks": [LOOPBACK]})).await.unwrap();
    let refused = plugin.call("query", select()).await.unwrap_err();
    assert_eq!((&*refused.code, refused.temporary), ("no_tls", false));
    let (before, after) = server().split_once("flexcore:").unwrap();
    let (_, host) = after.split_once('@').unwrap();
    let wrong = format!("{before}flexcore:s3cr3t@{host}?sslmode=disable");
    plugin.configure(&json!({"url": wrong, "networks": [LOOPBACK]})).await.unwrap();
    let refused = plugin.call("query", select()).await.unwrap_err();
    assert_eq!((&*refused.code, refused.temporary), ("sqlstate_28p01", false));
    assert!(!refused.message.contains("s3cr3t"), "{refused}");
    plugin.stop().await;
}

/// A database that says this as its first message, and then nothing, or zeros for ever.
async fn saying(message: &'static [u8], then_zeros: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(message).await;
            let zeros = vec![0; 64 * 1024];
            while then_zeros && stream.write_all(&zeros).await.is_ok() {}
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    address
}

/// A length of 4 GB is enough: all of it was made room for.
#[tokio::test]
async fn a_database_that_sends_without_end_does_not_fill_the_memory() {
    let plugin = kit("postgres", &[LOOPBACK]).start().await;
    for (message, then_zeros) in [(&b"R\xff\xff\xff\xf0"[..], false), (b"R\x7f\xff\xff\xff", true)]
    {
        let address = saying(message, then_zeros).await;
        let url = format!("postgres://u:p@{address}/d?sslmode=disable");
        plugin.configure(&json!({"url": url, "networks": [LOOPBACK]})).await.unwrap();
        let failure = plugin.call("query", sql("select 1", json!([]))).await.unwrap_err();
        assert_eq!((&*failure.code, failure.temporary), ("too_large", false), "{failure}");
    }
    plugin.stop().await;
}

/// The lengths of messages are seen with TLS, too, and `sslmode` says whom to believe.
#[tokio::test]
async fn a_database_with_tls_is_held_to_its_name_and_its_lengths() {
    let (acceptor, certificate) = tls();
    let (_, other) = tls();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut asked = [0; 8];
            stream.read_exact(&mut asked).await.unwrap();
            assert_eq!(asked, [0, 0, 0, 8, 4, 210, 22, 47]);
            stream.write_all(b"S").await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.write_all(b"R\xff\xff\xff\xf0").await;
            let _ = stream.flush().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let plugin = kit("postgres", &[LOOPBACK]).start().await;
    let failed = async |host: &str, mode: &str, authorities: Option<&String>| {
        let url = format!("postgres://u:p@{host}:{port}/d{mode}");
        let mut configuration = json!({"url": url, "networks": [LOOPBACK]});
        if let Some(authorities) = authorities {
            configuration["authorities"] = json!(authorities);
        }
        plugin.configure(&configuration).await.unwrap();
        plugin.call("query", sql("select 1", json!([]))).await.unwrap_err().code
    };
    let own = Some(&certificate);
    assert_eq!(failed("localhost", "", own).await, "too_large");
    assert_eq!(failed("127.0.0.1", "", own).await, "not_trusted", "another name");
    assert_eq!(failed("localhost", "", None).await, "not_trusted");
    assert_eq!(
        failed("localhost", "", Some(&other)).await,
        "not_trusted",
        "they are the only ones"
    );
    assert_eq!(failed("127.0.0.1", "?sslmode=verify-ca", own).await, "too_large");
    assert_eq!(failed("127.0.0.1", "?sslmode=verify-ca", None).await, "not_trusted");
    assert_eq!(failed("127.0.0.1", "?sslmode=require", None).await, "too_large");
    plugin.stop().await;
}

/// Each configuration brought four more.
#[tokio::test]
async fn a_tenant_has_four_connections_whatever_it_configures() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        let mut silent = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            silent.push(stream);
        }
    });
    let plugin = kit("postgres", &[LOOPBACK]).start().await;
    let input = sql("select 1", json!([]));
    let calls = async |user: &str| {
        let url = format!("postgres://{user}@{address}/d?sslmode=disable");
        plugin.configure(&json!({"url": url, "networks": [LOOPBACK]})).await.unwrap();
        let call = |_| {
            let context = Context { timeout_ms: 2_000, ..plugin.context() };
            plugin.call_as(context, "query", &input, Duration::from_secs(2))
        };
        join_all((0..6).map(call)).await
    };
    let (first, second) = tokio::join!(calls("a"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let early = accepted.load(Ordering::Relaxed);
        let second = calls("b");
        let look = async {
            tokio::time::sleep(Duration::from_millis(800)).await;
            accepted.load(Ordering::Relaxed)
        };
        let (second, later) = tokio::join!(second, look);
        assert_eq!((early, later), (4, 4));
        second
    });
    for answer in first.into_iter().chain(second) {
        assert!(!matches!(answer, Ok(Ok(_))), "{answer:?}");
    }
    plugin.stop().await;
}

/// A transaction that only reads may notify, and before Postgres 16 make large objects.
#[tokio::test]
async fn what_a_query_does_is_taken_back() {
    let plugin = started().await;
    let mut heard = sqlx::postgres::PgListener::connect(server()).await.unwrap();
    heard.listen("flexcore_test").await.unwrap();
    let notify = |text: &str| sql("select pg_notify('flexcore_test', $1)", json!([text]));
    plugin.call("query", notify("query")).await.unwrap();
    plugin.call("execute", notify("execute")).await.unwrap();
    let notification = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await;
    assert_eq!(notification.unwrap().unwrap().payload(), "execute");
    // Later ones refuse it.
    drop(plugin.call("query", sql("select lo_creat(-1) as id", json!([]))).await);
    let mut admin = <sqlx::PgConnection as sqlx::Connection>::connect(server()).await.unwrap();
    let count = "select count(*) from pg_largeobject_metadata";
    let count: i64 = sqlx::query_scalar(count).fetch_one(&mut admin).await.unwrap();
    assert_eq!(count, 0);
    plugin.stop().await;
}
