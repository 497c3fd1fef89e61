//! A plugin and its host in one process.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use prost::Message;
use prost_reflect::prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto, ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{Code, Request, Status, Streaming, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::{
    by_hand::{Answered, Answers, Asked as AskedCall, Methods, answers, both_ways, unary, unknown},
    *,
};
use crate::{
    Connection, Reflection,
    broker::connect,
    handshake::Asked,
    wire::{Empty, HealthAnswer, HealthRequest, StdioData},
};

#[derive(Clone, PartialEq, Message)]
struct Word {
    #[prost(string, tag = "1")]
    text: String,
}

/// The author's service: answers in upper case, with the version before it.
#[derive(Clone)]
struct Words {
    version: u32,
    stdio: Stdio,
}

impl Methods for Words {
    const NAME: &'static str = "test.Words";

    async fn answer(self, path: String, asked: AskedCall) -> Answered {
        let say =
            move |word: Word| Word { text: self.version.to_string() + &word.text.to_uppercase() };
        match path.as_str() {
            "/test.Words/Say" => {
                let _ = self.stdio.stdout("said").await;
                unary(asked, |word| Ok(say(word))).await
            }
            "/test.Words/Slowly" => {
                answers(asked, |word: Word| {
                    let answer = say(word);
                    let late = async move {
                        sleep(Duration::from_millis(300)).await;
                        Ok(answer)
                    };
                    Ok(Answers::new(stream::once(late)))
                })
                .await
            }
            "/test.Words/Never" => {
                answers(asked, |_: Word| Ok(Answers::<Word>::new(stream::pending()))).await
            }
            "/test.Words/Each" => {
                let each = move |words: Streaming<Word>| {
                    let each = |word: Word| Word { text: word.text + "!" };
                    Ok(Answers::new(words.map(move |word| word.map(each))))
                };
                both_ways(asked, each).await
            }
            _ => unknown(&path),
        }
    }
}

fn words() -> Serve {
    let version =
        |version| move |_: Broker, stdio: Stdio| Routes::new(ByHand(Words { version, stdio }));
    let cookie = Cookie { key: "COOKIE".to_owned(), value: "v".to_owned() };
    Serve::new(cookie)
        .version(1, version(1))
        .version(2, version(2))
        .descriptors(descriptors(), &["test.Words"])
}

fn descriptors() -> Vec<u8> {
    let field = FieldDescriptorProto {
        name: Some("text".into()),
        number: Some(1),
        label: Some(Label::Optional.into()),
        r#type: Some(Type::String.into()),
        ..Default::default()
    };
    let word =
        DescriptorProto { name: Some("Word".into()), field: vec![field], ..Default::default() };
    let method = |name: &str, takes, answers| MethodDescriptorProto {
        name: Some(name.into()),
        input_type: Some(".test.Word".into()),
        output_type: Some(".test.Word".into()),
        client_streaming: Some(takes),
        server_streaming: Some(answers),
        options: None,
    };
    let service = ServiceDescriptorProto {
        name: Some("Words".into()),
        method: vec![
            method("Say", false, false),
            method("Slowly", false, true),
            method("Never", false, true),
            method("Each", true, true),
            method("Missing", false, false),
        ],
        options: None,
    };
    let file = FileDescriptorProto {
        name: Some("words.proto".into()),
        package: Some("test".into()),
        syntax: Some("proto3".into()),
        message_type: vec![word],
        service: vec![service],
        ..Default::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec()
}

/// A plugin that runs, and what its host knows of it.
struct Started {
    handshake: Handshake,
    running: JoinHandle<Result<(), Error>>,
    identity: Option<Identity>,
    _folder: TempDir,
}

async fn start(tls: bool, multiplex: bool) -> Started {
    let folder = tempfile::tempdir().unwrap();
    let identity = tls.then(|| Identity::new().unwrap());
    let serve = words();
    let asked = Asked {
        cookie: serve.cookie.clone(),
        versions: vec![1, 2],
        multiplex,
        client_certificate_pem: identity.as_ref().map(|identity| identity.pem().to_owned()),
        socket_folder: folder.path().to_owned(),
    };
    let environment = asked.environment();
    let invitation = Invitation::read(&serve.cookie, |name| {
        let found = environment.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone())
    })
    .unwrap();
    let (sender, line) = oneshot::channel();
    let say = move |line: &str| {
        let _ = sender.send(line.to_owned());
        Ok(())
    };
    let running = tokio::spawn(run(serve, invitation, CancellationToken::new(), say));
    let handshake = Handshake::parse(line.await.unwrap().as_bytes(), &asked).unwrap();
    Started { handshake, running, identity, _folder: folder }
}

impl Started {
    async fn connect(&self) -> (Connection, Option<Mux>) {
        let mut io = self.handshake.address.dial().await.unwrap();
        let mut mux = None;
        if self.handshake.multiplexed {
            let session = Mux::client(io);
            io = session.open().await.unwrap();
            mux = Some(session);
        }
        (connect(io, self.tls().as_ref()).await.unwrap(), mux)
    }

    fn tls(&self) -> Option<Tls> {
        let der = self.handshake.certificate.as_deref();
        self.identity.as_ref().map(|identity| identity.pinned(der.unwrap()).unwrap())
    }

    /// Waits for its end.
    async fn ended(self) {
        timeout(Duration::from_secs(10), self.running).await.unwrap().unwrap().unwrap();
        if let crate::Address::Unix(path) = &self.handshake.address {
            assert!(!path.exists(), "its socket is left behind");
        }
    }
}

async fn call<Q: Message + 'static, A: Message + Default + 'static>(
    connection: &Connection,
    path: &'static str,
    question: Q,
) -> Result<A, Status> {
    let mut grpc = connection.grpc();
    grpc.ready().await?;
    let codec = ProstCodec::<Q, A>::default();
    let path = PathAndQuery::from_static(path);
    Ok(grpc.unary(Request::new(question), path, codec).await?.into_inner())
}

async fn read<Q: Message + 'static, A: Message + Default + 'static>(
    connection: &Connection,
    path: &'static str,
    question: Q,
) -> Result<Streaming<A>, Status> {
    let mut grpc = connection.grpc();
    grpc.ready().await?;
    let codec = ProstCodec::<Q, A>::default();
    let path = PathAndQuery::from_static(path);
    Ok(grpc.server_streaming(Request::new(question), path, codec).await?.into_inner())
}

async fn shut_down(connection: &Connection) {
    let answer: Result<Empty, Status> =
        call(connection, "/plugin.GRPCController/Shutdown", Empty {}).await;
    answer.unwrap();
}

fn word(text: &str) -> Word {
    Word { text: text.to_owned() }
}

#[tokio::test]
async fn it_is_served_plain_with_tls_and_multiplexed() {
    for (tls, multiplex) in [(false, false), (true, false), (false, true), (true, true)] {
        let started = start(tls, multiplex).await;
        assert_eq!(started.handshake.version, 2, "the highest that both speak");
        let (connection, _mux) = started.connect().await;
        let said: Word = call(&connection, "/test.Words/Say", word("a")).await.unwrap();
        assert_eq!(said, word("2A"), "tls {tls} multiplex {multiplex}");
        let asked = HealthRequest { service: "plugin".to_owned() };
        let health: HealthAnswer =
            call(&connection, "/grpc.health.v1.Health/Check", asked).await.unwrap();
        assert_eq!(health.status, 1);
        let watch = call(&connection, "/grpc.health.v1.Health/Watch", Empty {}).await;
        let watch: Result<Empty, Status> = watch;
        assert_eq!(watch.unwrap_err().code(), Code::Unimplemented);
        shut_down(&connection).await;
        started.ended().await;
    }
}

#[tokio::test]
async fn its_host_reads_what_it_prints() {
    let started = start(false, false).await;
    let (connection, _) = started.connect().await;
    let path = "/plugin.GRPCStdio/StreamStdio";
    let mut printed: Streaming<StdioData> = read(&connection, path, Empty {}).await.unwrap();
    let _: Word = call(&connection, "/test.Words/Say", word("a")).await.unwrap();
    let piece = printed.message().await.unwrap().unwrap();
    assert_eq!((piece.channel, piece.data.as_ref()), (1, b"said".as_slice()));
    shut_down(&connection).await;
    assert_eq!(printed.message().await.unwrap(), None, "a clean end");
    started.ended().await;
}

#[tokio::test]
async fn a_call_under_way_ends_before_the_plugin_does() {
    let started = start(true, true).await;
    let (connection, _mux) = started.connect().await;
    let mut slow: Streaming<Word> =
        read(&connection, "/test.Words/Slowly", word("b")).await.unwrap();
    shut_down(&connection).await;
    assert_eq!(slow.message().await.unwrap(), Some(word("2B")));
    started.ended().await;
}

#[tokio::test]
async fn a_call_that_never_ends_is_cut_off() {
    let started = start(false, false).await;
    let (connection, _) = started.connect().await;
    let mut never: Streaming<Word> =
        read(&connection, "/test.Words/Never", word("c")).await.unwrap();
    let began = Instant::now();
    shut_down(&connection).await;
    started.ended().await;
    assert!(began.elapsed() >= SERVE_DRAIN_WAIT, "{:?}", began.elapsed());
    assert!(never.message().await.is_err());
}

#[tokio::test]
async fn only_its_own_host_gets_in() {
    let mut started = start(true, false).await;
    let io = started.handshake.address.dial().await.unwrap();
    let plain = async {
        let connection = connect(io, None).await.ok()?;
        call::<_, Word>(&connection, "/test.Words/Say", word("a")).await.ok()
    };
    assert!(timeout(Duration::from_secs(5), plain).await.is_ok_and(|said| said.is_none()));
    let own = started.identity.replace(Identity::new().unwrap());
    let stranger = async {
        let io = started.handshake.address.dial().await.ok()?;
        let connection = connect(io, started.tls().as_ref()).await.ok()?;
        call::<_, Word>(&connection, "/test.Words/Say", word("a")).await.ok()
    };
    assert!(timeout(Duration::from_secs(5), stranger).await.is_ok_and(|said| said.is_none()));
    started.identity = own;
    let (connection, _) = started.connect().await;
    shut_down(&connection).await;
    started.ended().await;
}

#[tokio::test]
async fn a_host_that_is_gone_ends_a_multiplexed_plugin() {
    let started = start(false, true).await;
    let (connection, mux) = started.connect().await;
    let _: Word = call(&connection, "/test.Words/Say", word("a")).await.unwrap();
    drop((connection, mux));
    started.ended().await;
}

#[tokio::test]
async fn json_goes_in_and_out_by_reflection() {
    let started = start(false, false).await;
    let (connection, _) = started.connect().await;
    let reflection = Reflection::load(&connection).await.unwrap();
    assert_eq!(reflection.services(), ["test.Words"]);
    let methods = reflection.methods("test.Words").unwrap();
    assert_eq!(methods.len(), 5);
    assert!(methods.iter().any(|method| method.name == "test.Words/Each" && method.takes_stream));
    let within = Duration::from_secs(10);
    let call = async |method: &str, input, within| {
        reflection.call(&connection, method, input, within).await
    };
    let said = call("test.Words/Say", json!({"text": "a"}), within).await.unwrap();
    assert_eq!(said, json!({"text": "2A"}));
    let each = call("test.Words/Each", json!([{"text": "a"}, {}]), within).await.unwrap();
    assert_eq!(each, json!([{"text": "a!"}, {"text": "!"}]));
    let slow = call("test.Words/Slowly", json!({"text": "a"}), within).await.unwrap();
    assert_eq!(slow, json!([{"text": "2A"}]));
    let never = call("test.Words/Never", json!({}), Duration::from_millis(200)).await;
    assert!(matches!(never, Err(Error::Late { .. })), "{never:?}");
    let missing = call("test.Words/Missing", json!({}), within).await.unwrap_err();
    assert!(matches!(missing, Error::Status { .. }), "{missing}");
    for (method, input) in [
        ("test.Words/Say", json!({"txt": "a"})),
        ("test.Words/Other", json!({})),
        ("plugin.GRPCController/Shutdown", json!({})),
        ("Say", json!({})),
    ] {
        let refused = call(method, input, within).await.unwrap_err();
        assert!(matches!(refused, Error::Contract(_)), "{method}: {refused}");
    }
    let schema = reflection.input_schema("test.Words/Say").unwrap();
    assert_eq!(schema["$defs"]["test.Word"]["properties"]["text"]["type"], "string");
    shut_down(&connection).await;
    started.ended().await;
}

#[tokio::test]
async fn a_plugin_without_a_version_says_so() {
    let mut serve = words();
    serve.versions.clear();
    let invitation = Invitation {
        versions: None,
        certificate: None,
        multiplex: false,
        folder: std::env::temp_dir(),
        ports: 0..=0,
    };
    let ran = run(serve, invitation, CancellationToken::new(), |_| Ok(())).await;
    assert!(matches!(ran, Err(Error::Contract(_))), "{ran:?}");
}
