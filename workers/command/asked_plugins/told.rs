//! A worker's answer, as the lane takes it: pure.

use async_nats::{Message, RequestError, RequestErrorKind};
use flexcore_domain::{
    Name, PluginRefusal, Refusal,
    plugin::decisions::{header, host_code},
};
use flexcore_plugin::contract::{DecideResponse, Decision, DecisionResult, Failure};
use flexcore_script::limits::MESSAGE_CHARS_MAX;
use prost::Message as _;

use crate::command::deciders::{NoDecision, Proposals, ProposedEvent};

/// What came of a question.
#[derive(Debug)]
pub(super) enum Told {
    /// All of it.
    All(Proposals),
    /// There was no room for it beside others: it is to be asked for alone.
    Alone,
}

/// Why there is no answer at all.
pub(super) fn no_answer(plugin: &Name, error: &RequestError) -> NoDecision {
    let away = |why: String| NoDecision::Away(format!("plugin {plugin}: {why}"));
    match error.kind() {
        RequestErrorKind::NoResponders => away(format!(
            "no worker runs it as a decider now. `flexcore plugin show {plugin}` says what is there; \
             `flexcore plugin install` installs it"
        )),
        RequestErrorKind::TimedOut => away("the worker that was asked gave no answer".to_owned()),
        RequestErrorKind::Other => away(error.to_string()),
        // The same question would fail in the same way.
        RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
            faulty(plugin, &error.to_string())
        }
    }
}

/// What came of each of so many questions.
pub(super) fn told(plugin: &Name, answer: &Message, count: usize) -> Vec<Told> {
    let refusal = answer.headers.as_ref().and_then(|headers| headers.get(header::REFUSAL));
    if let Some(word) = refusal {
        let why = String::from_utf8_lossy(&answer.payload);
        return for_all(count, &refused(plugin, PluginRefusal::of_word(word.as_str()), &why));
    }
    let decisions = match DecideResponse::decode(&*answer.payload) {
        Ok(response) => response.decisions,
        Err(error) => {
            let why = format!("its worker's answer cannot be read: {error}");
            return for_all(count, &faulty(plugin, &why));
        }
    };
    if decisions.len() != count {
        let why = format!("{} decisions on {count} questions", decisions.len());
        return for_all(count, &faulty(plugin, &why));
    }
    decisions.into_iter().map(|decision| of_one(plugin, decision)).collect()
}

/// The same of so many questions.
pub(super) fn for_all(count: usize, none: &NoDecision) -> Vec<Told> {
    (0..count).map(|_| Told::All(Err(none.clone()))).collect()
}

fn of_one(plugin: &Name, decision: Decision) -> Told {
    Told::All(match decision.result {
        Some(DecisionResult::Events(events)) => {
            let proposed = events.events.into_iter();
            Ok(proposed.map(|it| ProposedEvent { event: it.event, data: it.data }).collect())
        }
        Some(DecisionResult::Rejected(failure)) if !failure.temporary => {
            let message = sentence(&failure.message);
            Err(NoDecision::Refused(Refusal::Rejected { code: failure.code, message }))
        }
        Some(DecisionResult::Failure(failure)) if failure.code == host_code::ALONE => {
            return Told::Alone;
        }
        Some(DecisionResult::Failure(failure)) => Err(failed(plugin, &failure)),
        Some(DecisionResult::Rejected(_)) => Err(faulty(plugin, "a rejection that is temporary")),
        None => Err(faulty(plugin, "neither events nor a failure")),
    })
}

/// A failure, of the plugin itself or of its worker.
fn failed(plugin: &Name, failure: &Failure) -> NoDecision {
    let message = sentence(&failure.message);
    match failure.code.as_str() {
        host_code::LATE | host_code::ENDED => {
            NoDecision::Refused(Refusal::Exhausted(format!("plugin {plugin}: {message}")))
        }
        host_code::FAULTY => faulty(plugin, &message),
        _ if failure.temporary => NoDecision::Away(format!("plugin {plugin}: {message}")),
        code => faulty(plugin, &format!("{code}: {message}")),
    }
}

/// What a worker says of all questions in a message.
fn refused(plugin: &Name, refusal: PluginRefusal, why: &str) -> NoDecision {
    let why = sentence(why);
    match refusal {
        PluginRefusal::Busy
        | PluginRefusal::Away
        | PluginRefusal::NotInstalled
        | PluginRefusal::OtherVersion
        | PluginRefusal::Unknown => NoDecision::Away(format!("plugin {plugin}: {why}")),
        PluginRefusal::Late => {
            NoDecision::Refused(Refusal::Exhausted(format!("plugin {plugin}: {why}")))
        }
        PluginRefusal::NotForTenant
        | PluginRefusal::InvalidInput
        | PluginRefusal::TooLarge
        | PluginRefusal::UnknownFunction
        | PluginRefusal::Faulty => faulty(plugin, &why),
    }
}

fn faulty(plugin: &Name, why: &str) -> NoDecision {
    NoDecision::Refused(Refusal::Faulty(format!("plugin {plugin}: {why}")))
}

/// A message as it may leave a decider: one line, and not longer than that of a function.
fn sentence(text: &str) -> String {
    let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().map(plain).take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use async_nats::{HeaderMap, Subject};
    use bytes::Bytes;
    use flexcore_plugin::contract::{Event, Events};

    use super::*;

    fn plugin() -> Name {
        Name::parse("pricing").unwrap()
    }

    fn message(headers: Option<HeaderMap>, payload: Vec<u8>) -> Message {
        Message {
            subject: Subject::from("_INBOX.x"),
            reply: None,
            length: payload.len(),
            payload: payload.into(),
            headers,
            status: None,
            description: None,
        }
    }

    fn answer(results: Vec<Option<DecisionResult>>) -> Message {
        let decisions = results.into_iter().map(|result| Decision { result }).collect();
        message(None, DecideResponse { number: 1, decisions }.encode_to_vec())
    }

    /// What became of one question, in a word.
    fn word(told: &Told) -> &'static str {
        match told {
            Told::Alone => "alone",
            Told::All(Ok(_)) => "events",
            Told::All(Err(NoDecision::Away(_))) => "away",
            Told::All(Err(NoDecision::Refused(refusal))) => match refusal {
                Refusal::Rejected { .. } => "rejected",
                Refusal::Exhausted(_) => "exhausted",
                Refusal::Faulty(_) => "faulty",
                _ => "other",
            },
        }
    }

    fn words(message: &Message, count: usize) -> Vec<&'static str> {
        told(&plugin(), message, count).iter().map(word).collect()
    }

    #[test]
    fn each_decision_is_told_to_its_question() {
        let event = Event { event: "priced".to_owned(), data: Bytes::from_static(b"{}") };
        let failure = |code: &str| Some(DecisionResult::Failure(Failure::new(code, "why")));
        let passing = |code: &str| Some(DecisionResult::Failure(Failure::passing(code, "why")));
        let results = vec![
            Some(DecisionResult::Events(Events { events: vec![event] })),
            Some(DecisionResult::Rejected(Failure::new("closed", "not today"))),
            Some(DecisionResult::Rejected(Failure::passing("closed", "a lie"))),
            failure("no_such_command"),
            passing("no_database"),
            failure(host_code::LATE),
            failure(host_code::ENDED),
            failure(host_code::FAULTY),
            passing(host_code::AWAY),
            passing(host_code::ALONE),
            None,
        ];
        let expected = [
            "events",
            "rejected",
            "faulty",
            "faulty",
            "away",
            "exhausted",
            "exhausted",
            "faulty",
            "away",
            "alone",
            "faulty",
        ];
        assert_eq!(words(&answer(results), expected.len()), expected);
    }

    #[test]
    fn an_answer_that_is_none_is_told_to_all() {
        let events = || Some(DecisionResult::Events(Events::default()));
        assert_eq!(words(&answer(vec![events()]), 2), ["faulty"; 2]);
        assert_eq!(words(&answer(vec![events(), events()]), 1), ["faulty"]);
        assert_eq!(words(&message(None, vec![0xff; 9]), 2), ["faulty"; 2]);
        for (refusal, expected) in [
            ("busy", "away"),
            ("away", "away"),
            ("a_later_word", "away"),
            ("late", "exhausted"),
            ("not_for_tenant", "faulty"),
            ("invalid_input", "faulty"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::REFUSAL, refusal);
            assert_eq!(words(&message(Some(headers), b"why".to_vec()), 2), [expected; 2]);
        }
    }

    #[test]
    fn where_nobody_answers_it_says_what_to_do() {
        let none = no_answer(&plugin(), &RequestErrorKind::NoResponders.into());
        let NoDecision::Away(why) = none else { panic!("{none:?}") };
        assert!(why.contains("flexcore plugin show pricing"), "{why}");
        for (kind, is_away) in [
            (RequestErrorKind::TimedOut, true),
            (RequestErrorKind::Other, true),
            (RequestErrorKind::MaxPayloadExceeded, false),
        ] {
            let none = no_answer(&plugin(), &kind.into());
            assert_eq!(matches!(none, NoDecision::Away(_)), is_away, "{none:?}");
        }
    }

    #[test]
    fn a_message_of_a_plugin_is_one_line_and_has_an_end() {
        let long = format!("a\nb{}", "é".repeat(MESSAGE_CHARS_MAX));
        let said = sentence(&long);
        assert!(said.starts_with("a b") && said.chars().count() == MESSAGE_CHARS_MAX);
    }
}
