//! `csv` and a real nats-server.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{self, Context as JetStream, stream},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use flexcore_sdk::{
    Failure,
    testing::{Context, Running, Schemas},
};
use flexcore_servers::{Options, Servers, Sync, Want};
use futures::future::join_all;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::kit;

const LOOPBACK: &str = "127.0.0.0/8";
const PATIENCE: Duration = Duration::from_secs(20);

/// A broker with the bucket `rows`, and the plugin beside.
struct Rig {
    servers: Servers,
    jetstream: JetStream,
    plugin: Running,
}

impl Rig {
    async fn start() -> Self {
        let cache = flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
        let options = Options { sync: Sync::Lazy, want: Want::Nats, ..Options::new(cache) };
        let servers = Servers::start(&options).await.unwrap();
        let client = async_nats::connect(servers.nats_url()).await.unwrap();
        let jetstream = jetstream::new(client);
        let bucket = stream::Config {
            name: "OBJ_rows".to_owned(),
            subjects: vec!["$O.rows.C.>".to_owned(), "$O.rows.M.>".to_owned()],
            allow_rollup: true,
            allow_direct: true,
            discard: stream::DiscardPolicy::New,
            ..Default::default()
        };
        jetstream.create_stream(bucket).await.unwrap();
        let plugin = kit("csv", &[LOOPBACK]).start().await;
        let settings = json!({ "url": servers.nats_url(), "networks": [LOOPBACK] });
        plugin.configure(&settings).await.unwrap();
        Self { servers, jetstream, plugin }
    }

    async fn read(&self, change: Value) -> Result<Value, Failure> {
        self.plugin.call("read", with(change)).await
    }

    async fn write(&self, key: &str, change: Value) -> Result<Value, Failure> {
        let context = Context { idempotency_key: key.to_owned(), ..self.plugin.context() };
        let called = self.plugin.call_as(context, "write", &with(change), PATIENCE).await;
        called.unwrap().map(|output| serde_json::from_slice(&output).unwrap())
    }

    /// All rows, a page at a time.
    async fn all(&self, change: Value) -> Vec<Value> {
        let (mut rows, mut cursor) = (Vec::new(), Value::Null);
        for _ in 0..1_000 {
            let mut asked = change.clone();
            if !cursor.is_null() {
                asked["cursor"] = cursor;
            }
            let mut page = self.read(asked).await.unwrap();
            rows.append(page["rows"].as_array_mut().unwrap());
            cursor = page["cursor"].take();
            if cursor.is_null() {
                return rows;
            }
        }
        panic!("there is no end");
    }

    /// Puts an object as any client does, in chunks of this size.
    async fn put(&self, text: &[u8], size: usize) {
        let stream = self.jetstream.get_stream("OBJ_rows").await.unwrap();
        stream.purge().filter("$O.rows.C.>").await.unwrap();
        let chunks: Vec<&[u8]> = text.chunks(size).collect();
        for chunk in &chunks {
            let sent = self.jetstream.publish("$O.rows.C.abc123", chunk.to_vec().into()).await;
            sent.unwrap().await.unwrap();
        }
        let record = json!({
            "name": "o", "bucket": "rows", "nuid": "abc123", "size": text.len(),
            "chunks": chunks.len(), "digest": digest(text), "mtime": "2026-01-01T00:00:00Z",
            "options": { "max_chunk_size": size }, "description": "mine",
        });
        self.put_record(&record).await;
    }

    async fn put_record(&self, record: &Value) {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Rollup", "sub");
        let subject = format!("$O.rows.M.{}", URL_SAFE.encode("o"));
        let body = record.to_string().into();
        let sent = self.jetstream.publish_with_headers(subject, headers, body).await;
        sent.unwrap().await.unwrap();
    }

    async fn record(&self) -> Value {
        let stream = self.jetstream.get_stream("OBJ_rows").await.unwrap();
        let subject = format!("$O.rows.M.{}", URL_SAFE.encode("o"));
        let message = stream.get_last_raw_message_by_subject(&subject).await.unwrap();
        serde_json::from_slice(&message.payload).unwrap()
    }

    /// The bytes of the object, as any client reads them: by its record.
    async fn text(&self) -> String {
        let record = self.record().await;
        let stream = self.jetstream.get_stream("OBJ_rows").await.unwrap();
        let subject = format!("$O.rows.C.{}", record["nuid"].as_str().unwrap());
        let (mut text, mut next) = (Vec::new(), 1);
        for _ in 0..record["chunks"].as_u64().unwrap() {
            let chunk = stream.direct_get_next_for_subject(&subject, Some(next)).await.unwrap();
            next = chunk.sequence + 1;
            text.extend_from_slice(&chunk.payload);
        }
        assert_eq!(record["digest"], digest(&text));
        assert_eq!(record["size"], text.len());
        let messages = stream.get_info().await.unwrap().state.messages;
        assert_eq!(messages, record["chunks"].as_u64().unwrap() + 1, "nothing is left behind");
        String::from_utf8(text).unwrap()
    }

    async fn stop(self) {
        self.plugin.stop().await;
        self.servers.stop().await;
    }
}

fn with(change: Value) -> Value {
    let mut input = json!({ "bucket": "rows", "object": "o" });
    let Value::Object(change) = change else { panic!("{change}") };
    input.as_object_mut().unwrap().extend(change);
    input
}

fn digest(text: &[u8]) -> String {
    format!("SHA-256={}", URL_SAFE.encode(Sha256::digest(text)))
}

fn numbered(numbers: std::ops::Range<u32>) -> Vec<Value> {
    numbers.map(|number| json!({ "id": number.to_string(), "text": "ü, \"x\"\n" })).collect()
}

#[tokio::test]
async fn rows_come_back_a_page_at_a_time() {
    let rig = Rig::start().await;
    let rows = numbered(0..5_000);
    rig.write("k", json!({ "rows": rows })).await.unwrap();
    assert!(rig.text().await.starts_with("id,text\n0,\"ü, \"\"x\"\"\n\"\n1,"));
    for limit in [999, 1_000, 10_000] {
        assert_eq!(rig.all(json!({ "limit": limit })).await, rows, "{limit}");
    }
    let typed = rig.read(json!({ "limit": 1, "types": { "id": "number" } })).await.unwrap();
    assert_eq!(typed["rows"], json!([{ "id": 0, "text": "ü, \"x\"\n" }]));
    let plain = rig.read(json!({ "limit": 1, "header": false })).await.unwrap();
    assert_eq!(plain["rows"], json!([["id", "text"]]));
    rig.stop().await;
}

#[tokio::test]
async fn what_others_have_put_is_read_however_its_chunks_are_cut() {
    let rig = Rig::start().await;
    let text = "a;b\r\n1;\"x\r\ny\"\r\n2;ü\r\n3;";
    for size in [1, 2, 3, 7, 100] {
        rig.put(text.as_bytes(), size).await;
        let expected =
            json!([{"a": "1", "b": "x\r\ny"}, {"a": "2", "b": "ü"}, {"a": "3", "b": ""}]);
        for limit in 1..=4 {
            let rows = rig.all(json!({ "delimiter": ";", "limit": limit })).await;
            assert_eq!(Value::from(rows), expected, "{size} {limit}");
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn ndjson_is_kept_as_it_is() {
    let rig = Rig::start().await;
    let rows = r#"[{"n":123456789012345678901234567890.10,"b":[1,{"x":null}],"a":"\u0000"},7,"x"]"#;
    let input = format!(r#"{{"bucket":"rows","object":"o","format":"ndjson","rows":{rows}}}"#);
    let context = rig.plugin.context();
    let (function, input) = ("write".to_owned(), input.into());
    let request =
        flexcore_plugin::contract::CallRequest { context: Some(context), function, input };
    rig.plugin.client().call(request, PATIENCE).await.unwrap().unwrap();
    let written = rig.text().await;
    assert!(written.starts_with(r#"{"n":123456789012345678901234567890.10,"b":"#), "{written}");
    assert_eq!(written.lines().count(), 3);
    let input = r#"{"bucket":"rows","object":"o","format":"ndjson"}"#;
    let (context, function) = (Some(rig.plugin.context()), "read".to_owned());
    let request = flexcore_plugin::contract::CallRequest { context, function, input: input.into() };
    let page = rig.plugin.client().call(request, PATIENCE).await.unwrap().unwrap();
    let page = String::from_utf8(page.to_vec()).unwrap();
    assert!(page.contains(rows), "{page}");
    rig.stop().await;
}

#[tokio::test]
async fn rows_are_added_once_and_behind_the_others() {
    let rig = Rig::start().await;
    // Without an end of its last line.
    rig.put(b"id,text\n0,x", 4).await;
    let append = |rows: Value| json!({ "append": true, "rows": rows });
    let one = append(json!([{ "text": "y", "id": 1 }]));
    let first = rig.write("k1", one.clone()).await.unwrap();
    assert_eq!(first, json!({ "written": true, "size_bytes": 16 }));
    assert_eq!(rig.text().await, "id,text\n0,x\n1,y\n");
    assert_eq!(rig.record().await["description"], "mine", "all else stays");
    rig.write("k2", append(json!([["2", "z"]]))).await.unwrap();
    let again = rig.write("k1", one).await.unwrap();
    assert_eq!(again, json!({ "written": false, "size_bytes": 20 }));
    assert_eq!(rig.text().await, "id,text\n0,x\n1,y\n2,z\n");
    let other = rig.write("k1", append(json!([["9", "9"]]))).await.unwrap_err();
    assert_eq!((&*other.code, other.temporary), ("key_reused", false));
    for (change, code) in [
        (append(json!([{ "no": 1 }])), "no_such_column"),
        (json!({ "append": true, "columns": ["x"], "rows": [] }), "bad_columns"),
        (append(json!([[1]])), "uneven_row"),
    ] {
        assert_eq!(rig.write("k9", change).await.unwrap_err().code, code);
    }
    assert_eq!(rig.text().await, "id,text\n0,x\n1,y\n2,z\n", "nothing of it is left");
    rig.write("k3", json!({ "rows": [{ "new": true }] })).await.unwrap();
    assert_eq!(rig.text().await, "new\ntrue\n");
    rig.stop().await;
}

#[tokio::test]
async fn writers_at_once_lose_nothing() {
    let rig = Rig::start().await;
    let write = async |number: u32| {
        let key = format!("k{number}");
        for _ in 0..100 {
            let rows = json!({ "append": true, "rows": [{ "id": number }] });
            match rig.write(&key, rows).await {
                Ok(_) => return,
                Err(failure) => {
                    assert_eq!((&*failure.code, failure.temporary), ("changed_meanwhile", true));
                }
            }
        }
        panic!("it is never done");
    };
    join_all((0..12).map(write)).await;
    let mut lines: Vec<String> = rig.text().await.lines().map(str::to_owned).collect();
    assert_eq!(lines.remove(0), "id");
    lines.sort_by_key(|line| line.parse::<u32>().unwrap());
    assert_eq!(lines, (0..12).map(|number| number.to_string()).collect::<Vec<_>>());
    rig.stop().await;
}

#[tokio::test]
async fn what_is_not_there_or_changes_is_told() {
    let rig = Rig::start().await;
    let code = |result: Result<Value, Failure>| {
        let failure = result.unwrap_err();
        (failure.code, failure.temporary)
    };
    let no = |code: &str| (code.to_owned(), false);
    assert_eq!(code(rig.read(json!({})).await), no("no_such_object"));
    for bucket in ["none", "rows-2"] {
        assert_eq!(code(rig.read(json!({ "bucket": bucket })).await), no("no_bucket"));
        let rows = json!({ "bucket": bucket, "rows": [{ "a": 1 }] });
        assert_eq!(code(rig.write("k", rows).await), no("no_bucket"));
    }
    assert_eq!(code(rig.read(json!({ "bucket": "a.b" })).await), no("bad_bucket"));
    rig.write("k", json!({ "rows": numbered(0..10) })).await.unwrap();
    let page = rig.read(json!({ "limit": 3 })).await.unwrap();
    rig.write("l", json!({ "rows": numbered(0..10) })).await.unwrap();
    let next = rig.read(json!({ "limit": 3, "cursor": page["cursor"] })).await;
    assert_eq!(code(next), no("object_changed"));
    let nuid = rig.record().await["nuid"].as_str().unwrap().to_owned();
    for cursor in
        ["1.5000.0.0", "0.0.0.0", "1.0.999999.0", "18446744073709551615.0.0.0", "9999.0.0.0"]
    {
        let asked = json!({ "cursor": format!("{nuid}.{cursor}") });
        let failure = rig.read(asked).await.unwrap_err();
        assert!(
            ["bad_cursor", "changed_meanwhile"].contains(&&*failure.code),
            "{cursor}: {failure}"
        );
    }
    let mut record = rig.record().await;
    record["digest"] = json!(digest(b"other"));
    rig.put_record(&record).await;
    let append = rig.write("m", json!({ "append": true, "rows": [["1", "2"]] })).await;
    assert_eq!(code(append), no("bad_object"), "a damaged object is not made to look whole");
    record["nuid"] = json!("a.>");
    rig.put_record(&record).await;
    assert_eq!(code(rig.read(json!({})).await), no("bad_object"));
    record["deleted"] = json!(true);
    rig.put_record(&record).await;
    assert_eq!(code(rig.read(json!({})).await), no("no_such_object"));
    rig.stop().await;
}

#[tokio::test]
async fn pages_and_rows_are_limited() {
    let rig = Rig::start().await;
    // Each becomes six signs of JSON.
    let cell = "\u{1}".repeat(100_000);
    let rows: Vec<Value> = (0..4).map(|_| json!({ "a": cell })).collect();
    rig.write("k", json!({ "rows": rows })).await.unwrap();
    let page = rig.read(json!({})).await.unwrap();
    assert_eq!(page["rows"].as_array().unwrap().len(), 1);
    assert!(page.to_string().len() < 960 * 1024, "what a worker hands on");
    assert_eq!(rig.all(json!({})).await, rows);
    rig.put(format!("a\n{}", "\u{1}".repeat(200_000)).as_bytes(), 100_000).await;
    assert_eq!(rig.read(json!({})).await.unwrap_err().code, "row_too_long");
    rig.put("x".repeat(300 * 1024).as_bytes(), 100_000).await;
    for format in ["csv", "ndjson"] {
        let failure = rig.read(json!({ "format": format })).await.unwrap_err();
        assert_eq!(failure.code, "row_too_long");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_away_or_inside_is_told_apart() {
    let Rig { servers, plugin, .. } = Rig::start().await;
    let url = servers.nats_url();
    servers.stop().await;
    let failure = plugin.call("read", with(json!({}))).await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("no_connection", true), "{failure}");
    plugin.configure(&json!({ "url": url })).await.unwrap();
    let failure = plugin.call("read", with(json!({}))).await.unwrap_err();
    assert_eq!((&*failure.code, failure.temporary), ("not_allowed", false), "{failure}");
    plugin.stop().await;
}

/// What a broker says first.
const INFO: &[u8] = b"INFO {\"server_id\":\"x\",\"server_name\":\"x\",\"version\":\"2.11.0\",\
    \"go\":\"x\",\"host\":\"127.0.0.1\",\"port\":4222,\"headers\":true,\"max_payload\":1048576,\
    \"proto\":1,\"client_id\":1,\"jetstream\":true}\r\n";

/// What a broker does that sends without end, and how much of it is taken.
async fn flooded(mut stream: TcpStream, logs_in: bool) -> usize {
    if logs_in {
        stream.write_all(INFO).await.unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"PING\r\n") {
            assert!(stream.read_buf(&mut said).await.unwrap() > 0, "{said:?}");
        }
        stream.write_all(b"PONG\r\n").await.unwrap();
        assert!(stream.read_buf(&mut said).await.unwrap() > 0, "{said:?}");
        stream.write_all(b"MSG x 1 3000000000\r\n").await.unwrap();
    } else {
        stream.write_all(b"INFO {\"a\":\"").await.unwrap();
    }
    let (signs, mut taken) = (vec![b'x'; 1 << 20], 0);
    while taken < 1 << 30 && stream.write_all(&signs).await.is_ok() {
        taken += signs.len();
    }
    taken
}

#[tokio::test]
async fn a_broker_that_sends_without_end_does_not_fill_the_memory() {
    let plugin = kit("csv", &[LOOPBACK]).start().await;
    for logs_in in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let taken = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            flooded(stream, logs_in).await
        });
        plugin.configure(&json!({ "url": url, "networks": [LOOPBACK] })).await.unwrap();
        let failure = plugin.call("read", with(json!({}))).await.unwrap_err();
        assert_eq!((&*failure.code, failure.temporary), ("too_large", false), "{failure}");
        let taken = taken.await.unwrap();
        assert!(taken < 64 << 20, "{taken}");
    }
    plugin.stop().await;
}

/// The address is shown, and was stored before the plugin refused it.
#[tokio::test]
async fn an_address_with_a_login_in_it_does_not_fit_the_schema() {
    let plugin = kit("csv", &[]).start().await;
    let schemas = Schemas::of(plugin.description()).unwrap();
    for url in ["nats://u:s3cr3t@host", "nats://t0k3n@host:4222", "tls://u:s3cr3t@[::1]"] {
        schemas.configuration(&json!({ "url": url })).unwrap_err();
    }
    for url in ["nats://host", "tls://nats.example.com:4222", "nats://[2001:db8::1]:4222"] {
        schemas.configuration(&json!({ "url": url })).unwrap();
    }
    plugin.stop().await;
}

/// A broker with TLS, whose certificate is for `localhost`, and which asks for a token.
struct Secured {
    _process: tokio::process::Child,
    port: u16,
    certificate: String,
    folder: tempfile::TempDir,
}

impl Secured {
    async fn start() -> Self {
        let cache = flexcore_servers::cache_for_tests(env!("CARGO_TARGET_TMPDIR"));
        let program = flexcore_servers::nats_program(&cache).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let certificate = own.cert.pem();
        std::fs::write(folder.path().join("cert.pem"), &certificate).unwrap();
        std::fs::write(folder.path().join("key.pem"), own.signing_key.serialize_pem()).unwrap();
        let config = [
            r#"listen: "127.0.0.1:-1""#,
            r#"ports_file_dir: ".""#,
            "authorization { token: t0k3n }",
            r#"jetstream { store_dir: "store" }"#,
            r#"tls { cert_file: "cert.pem", key_file: "key.pem" }"#,
        ];
        let config = config.join("\n");
        std::fs::write(folder.path().join("nats.conf"), config).unwrap();
        let process = tokio::process::Command::new(program)
            .args(["-c", "nats.conf"])
            .current_dir(folder.path())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let ports = folder.path().join(format!("nats-server_{}.ports", process.id().unwrap()));
        let began = std::time::Instant::now();
        let port = loop {
            assert!(began.elapsed() < PATIENCE, "it starts");
            let told = std::fs::read(&ports).ok();
            let told: Option<Value> = told.and_then(|told| serde_json::from_slice(&told).ok());
            let url = told.as_ref().and_then(|told| told["nats"][0].as_str());
            if let Some(url) = url {
                break url.rsplit(':').next().unwrap().parse().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        Self { _process: process, port, certificate, folder }
    }
}

#[tokio::test]
async fn the_configured_name_is_checked_though_an_address_is_dialled() {
    let server = Secured::start().await;
    let plugin = kit("csv", &[LOOPBACK]).start().await;
    let failed = async |change: Value| {
        let mut settings = json!({
            "url": format!("tls://localhost:{}", server.port),
            "token": "t0k3n",
            "authorities": server.certificate,
            "networks": [LOOPBACK],
        });
        let settings = settings.as_object_mut().unwrap();
        let Value::Object(change) = change else { panic!("{change}") };
        settings.extend(change);
        settings.retain(|_, value| !value.is_null());
        plugin.configure(&Value::from(settings.clone())).await.unwrap();
        let failure = plugin.call("read", with(json!({}))).await.unwrap_err();
        assert!(!failure.message.contains("t0k3n"), "{failure}");
        failure.code
    };
    // Nothing is in the way until the bucket, which is not there.
    assert_eq!(failed(json!({})).await, "no_bucket");
    let by_address = json!({ "url": format!("nats://127.0.0.1:{}", server.port) });
    assert_eq!(failed(by_address).await, "no_connection", "the certificate is for another name");
    assert_eq!(failed(json!({ "authorities": null })).await, "no_connection");
    assert_eq!(failed(json!({ "token": "other" })).await, "login_refused");
    plugin.stop().await;
    drop(server.folder);
}
