//! Asking a plugin for its descriptors.

use bytes::Bytes;
use futures::channel::mpsc;
use prost::Message as _;
use tonic::{Code, Request, Streaming, codegen::http::uri::PathAndQuery};

use super::{bounds, files::Files, raw::Raw};
use crate::{
    Connection, Error, limits,
    wire::{
        INFRASTRUCTURE, REFLECTION_ALPHA_INFO, REFLECTION_INFO, ReflectionAnswer,
        ReflectionFound as Found, ReflectionQuestion as Question, ReflectionRequest,
    },
};

/// The same messages under two names; servers from before 2023 know the second only.
const METHODS: [&str; 2] = [REFLECTION_INFO, REFLECTION_ALPHA_INFO];

/// What a plugin tells.
pub(super) struct Told {
    /// Its own services, by full name.
    pub(super) services: Vec<String>,
    pub(super) files: Files,
}

/// Asks for the plugin's own services and all files that describe them. Fails where the plugin has
/// no reflection, and where it tells too much; the time is the caller's matter.
pub(super) async fn fetch(connection: &Connection) -> Result<Told, Error> {
    for method in METHODS {
        match all(connection, method).await {
            Err(Error::Status { status, .. }) if status.code() == Code::Unimplemented => {}
            other => return other,
        }
    }
    Err(Error::Contract("the plugin has no gRPC reflection, so nobody knows its methods".into()))
}

async fn all(connection: &Connection, method: &'static str) -> Result<Told, Error> {
    let listing = Question::Services(String::new());
    let (mut talk, found) = Talk::begin(connection, method, listing).await?;
    let Found::Services(announced) = found else { return Err(talk.no_answer()) };
    let mut told = Told { services: Vec::new(), files: Files::new() };
    for service in announced.services {
        // Nobody calls these through JSON.
        if INFRASTRUCTURE.contains(&service.name.as_str()) {
            continue;
        }
        // Some servers have services that were registered without descriptors.
        if let Some(files) = talk.files(Question::FileOfSymbol(service.name.clone())).await? {
            files.iter().try_for_each(|file| told.files.add(file))?;
            told.services.push(service.name);
        }
    }
    while let Some(name) = told.files.missing() {
        let files = talk.files(Question::FileByName(name.clone())).await?;
        files.iter().flatten().try_for_each(|file| told.files.add(file))?;
        told.files.absent(name);
    }
    Ok(told)
}

/// One stream of questions, each with its answer.
struct Talk {
    method: &'static str,
    questions: mpsc::UnboundedSender<Bytes>,
    answers: Streaming<Bytes>,
}

impl Talk {
    /// The first question goes with the call: some servers say nothing before they have one.
    async fn begin(
        connection: &Connection,
        method: &'static str,
        question: Question,
    ) -> Result<(Self, Found), Error> {
        let (questions, asked) = mpsc::unbounded();
        let _ = questions.unbounded_send(request(question));
        let grpc = connection.grpc();
        let mut grpc = grpc.max_decoding_message_size(limits::REFLECTION_ANSWER_BYTES_MAX);
        grpc.ready().await.map_err(|error| super::not_ready(method, error))?;
        let path = PathAndQuery::from_static(method);
        let answers = grpc.streaming(Request::new(asked), path, Raw).await;
        let answers = answers.map_err(Error::status(method))?.into_inner();
        let mut talk = Self { method, questions, answers };
        let found = talk.next().await?;
        Ok((talk, found))
    }

    /// The files that answer a question; `None`: the plugin refuses it.
    async fn files(&mut self, question: Question) -> Result<Option<Vec<Bytes>>, Error> {
        // A stream that has ended is seen when its answer is read.
        let _ = self.questions.unbounded_send(request(question));
        match self.next().await? {
            Found::Files(found) => Ok(Some(found.files)),
            Found::Refused(refused) => {
                let reason = refused.message.chars().take(limits::QUOTED_CHARACTERS_MAX);
                let (code, reason) = (refused.code, reason.collect::<String>());
                tracing::debug!(code, ?reason, "a plugin does not describe something");
                Ok(None)
            }
            Found::Services(_) => Err(self.no_answer()),
        }
    }

    async fn next(&mut self) -> Result<Found, Error> {
        let answer = self.answers.message().await.map_err(Error::status(self.method))?;
        let answer = answer.map(read).transpose()?;
        answer.and_then(|answer| answer.found).ok_or_else(|| self.no_answer())
    }

    fn no_answer(&self) -> Error {
        Error::Contract(format!("{} did not answer what it was asked", self.method))
    }
}

fn request(question: Question) -> Bytes {
    let request = ReflectionRequest { host: String::new(), question: Some(question) };
    request.encode_to_vec().into()
}

/// Fails where it has too many entries, before they are in memory.
fn read(answer: Bytes) -> Result<ReflectionAnswer, Error> {
    bounds::lists(&answer)?;
    ReflectionAnswer::decode(answer).map_err(bounds::broken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ReflectionFiles, ReflectionName, ReflectionServices};

    fn files(count: usize) -> Found {
        Found::Files(ReflectionFiles { files: vec![Bytes::new(); count] })
    }

    fn services(count: usize) -> Found {
        let name = ReflectionName { name: String::new() };
        Found::Services(ReflectionServices { services: vec![name; count] })
    }

    fn told(found: Found) -> Bytes {
        ReflectionAnswer { found: Some(found) }.encode_to_vec().into()
    }

    #[test]
    fn an_answer_of_empty_entries_is_refused_before_it_is_in_memory() {
        const MAX: usize = limits::DESCRIPTOR_FILES_MAX;
        for lists in [files, services] {
            let longest = told(lists(MAX));
            assert_eq!(read(longest.clone()).unwrap().found, Some(lists(MAX)));
            // The pieces of a list add up.
            let mut pieces = longest.to_vec();
            pieces.extend(told(lists(1)));
            for over in [told(lists(100 * MAX)), pieces.into()] {
                let error = read(over).unwrap_err();
                assert!(matches!(error, Error::TooLarge { limit: MAX, .. }), "{error}");
            }
        }
        for torn in [&b"\x22\x05\x0a"[..], b"\x22", b"\xff"] {
            assert!(matches!(read(torn.into()), Err(Error::Contract(_))), "{torn:?}");
        }
    }
}
