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
    /// The plugin did not answer in time.
    Late(String),
    /// Its worker could not ask it; another one may.
    NotAsked(NoDecision),
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
        let refusal = PluginRefusal::of_word(word.as_str());
        return (0..count).map(|_| refused(plugin, refusal, &why)).collect();
    }
    // What follows is said by its worker, perhaps one of another version: the plugin is not to blame.
    let unclear = |why: String| {
        for_all(count, &NoDecision::Away(format!("plugin {plugin}: its worker's answer {why}")))
    };
    let decisions = match DecideResponse::decode(&*answer.payload) {
        Ok(response) => response.decisions,
        Err(error) => return unclear(format!("cannot be read: {error}")),
    };
    if decisions.len() != count {
        return unclear(format!("has {} decisions on {count} questions", decisions.len()));
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
        Some(DecisionResult::Failure(failure)) if failure.code == host_code::LATE => {
            return Told::Late(format!("plugin {plugin}: {}", sentence(&failure.message)));
        }
        Some(DecisionResult::Failure(failure)) if failure.code == host_code::AWAY => {
            let why = format!("plugin {plugin}: {}", sentence(&failure.message));
            return Told::NotAsked(NoDecision::Away(why));
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
        host_code::ENDED => {
            NoDecision::Refused(Refusal::Exhausted(format!("plugin {plugin}: {message}")))
        }
        host_code::FAULTY => faulty(plugin, &message),
        _ if failure.temporary => NoDecision::Away(format!("plugin {plugin}: {message}")),
        code => faulty(plugin, &format!("{code}: {message}")),
    }
}

/// What a worker says of all questions in a message.
fn refused(plugin: &Name, refusal: PluginRefusal, why: &str) -> Told {
    let why = sentence(why);
    let told = || format!("plugin {plugin}: {why}");
    match refusal {
        PluginRefusal::Busy => Told::NotAsked(NoDecision::Busy(told())),
        PluginRefusal::Away => Told::NotAsked(NoDecision::Away(told())),
        PluginRefusal::NotInstalled | PluginRefusal::OtherVersion | PluginRefusal::Unknown => {
            Told::All(Err(NoDecision::Away(told())))
        }
        PluginRefusal::Late => Told::Late(told()),
        PluginRefusal::NotForTenant
        | PluginRefusal::InvalidInput
        | PluginRefusal::TooLarge
        | PluginRefusal::UnknownFunction
        | PluginRefusal::Faulty => Told::All(Err(faulty(plugin, &why))),
    }
}

fn faulty(plugin: &Name, why: &str) -> NoDecision {
    NoDecision::Refused(Refusal::Faulty(format!("plugin {plugin}: {why}")))
}

/// A message as it may leave a decider: one line, in one direction, and not longer than that of a function.
fn sentence(text: &str) -> String {
    let plain = |letter: char| match letter {
        '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => ' ',
        letter if letter.is_control() => ' ',
        letter => letter,
    };
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
            Told::Late(_) => "late",
            Told::NotAsked(NoDecision::Away(_)) => "not asked: away",
            Told::NotAsked(_) => "not asked: busy",
            Told::All(Ok(_)) => "events",
            Told::All(Err(NoDecision::Away(_))) => "away",
            Told::All(Err(NoDecision::Busy(_))) => "busy",
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
            "late",
            "exhausted",
            "faulty",
            "not asked: away",
            "alone",
            "faulty",
        ];
        assert_eq!(words(&answer(results), expected.len()), expected);
    }

    #[test]
    fn an_answer_that_is_none_is_told_to_all() {
        let events = || Some(DecisionResult::Events(Events::default()));
        // That is the worker's, and says nothing of the plugin.
        assert_eq!(words(&answer(vec![events()]), 2), ["away"; 2]);
        assert_eq!(words(&answer(vec![events(), events()]), 1), ["away"]);
        assert_eq!(words(&message(None, vec![0xff; 9]), 2), ["away"; 2]);
        for (refusal, expected) in [
            ("busy", "not asked: busy"),
            ("away", "not asked: away"),
            ("not_installed", "away"),
            ("other_version", "away"),
            ("a_later_word", "away"),
            ("late", "late"),
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
        assert_eq!(sentence("a\u{202e}b\u{2069}c\u{2028}d"), "a b c d");
    }
}
