//! Applications in a line, and deciders of them.

use std::sync::Arc;

use flexcore_definition::{Application, SourceFile};
use flexcore_domain::{
    ActorName, AggregateId, CommandId, CommandName, Context, Decider, Decision, Event, EventName,
    Name, Payload, Refusal, State, Tenant,
};
use flexcore_script::ScriptDecider;
use serde_json::value::RawValue;

pub(crate) fn application(text: &str) -> Application {
    let file = SourceFile { path: "app.yaml".to_owned(), text: text.to_owned() };
    Application::read(Name::parse("app").unwrap(), vec![file]).unwrap()
}

pub(crate) fn decider(text: &str) -> ScriptDecider {
    let application = application(text);
    let aggregate: &Arc<_> = application.aggregates.values().next().unwrap();
    ScriptDecider::new(aggregate.clone()).unwrap()
}

pub(crate) fn name(name: &str) -> CommandName {
    CommandName::parse(name).unwrap()
}

pub(crate) fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

pub(crate) fn context() -> Context {
    Context {
        tenant: Tenant::parse("acme").unwrap(),
        id: AggregateId::parse("x-1").unwrap(),
        version: 4,
        command_id: CommandId::parse("c-1").unwrap(),
        actor: ActorName::parse("somebody").unwrap(),
        now_ms: 1_356_998_400_123,
    }
}

pub(crate) fn run(
    decider: &mut ScriptDecider,
    state: &State,
    command: &str,
    payload: &str,
) -> Result<Decision, Refusal> {
    let payload = Payload::parse(payload.as_bytes());
    let payload = payload.map_err(|violations| Refusal::InvalidPayload { violations })?;
    decider.decide(state, &name(command), &payload, &context())
}

pub(crate) fn event(event: &str, version: u64, schema_version: u32, data: &str) -> Event {
    Event { event: EventName::parse(event).unwrap(), version, schema_version, data: raw(data) }
}

pub(crate) fn faulty<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
    match result {
        Err(Refusal::Faulty(message) | Refusal::Exhausted(message)) => message,
        other => panic!("not faulty: {other:?}"),
    }
}
