//! [`Decider`] over a sandbox.

mod elsewhere;

use std::{borrow::Cow, sync::Arc, time::Duration};

use flexcore_definition::{
    AggregateDefinition, Application, EventDefinition, Function, FunctionId, Problem, Schema,
};
use flexcore_domain::{
    CommandName, Context, Decider, Decision, Event, NewEvent, Payload, Refusal, State,
    commit::rfc3339,
    limits::{COMMIT_BYTES_MAX, STATE_BYTES_MAX},
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use crate::{
    clock::processor_time,
    limits::{DECIDE_MAX, EVOLVE_MAX, FOLD_EVENTS_MAX, FOLD_MAX, MEMORY_BYTES_MAX},
    returned::{Decided, Returned, check_json},
    sandbox::{Broken, Sandbox, line_in},
    threads::mark,
    violations,
};

pub use elsewhere::Proposed;

/// An aggregate's rules in JavaScript. It stays on the thread that made it.
pub struct ScriptDecider {
    definition: Arc<AggregateDefinition>,
    /// `None` after a script used it up: the next call makes another.
    sandbox: Option<Sandbox>,
}

/// Compiles every function of an application. Fails with what is no JavaScript, and where.
pub fn check(application: &Application) -> Result<(), Vec<Problem>> {
    let failures = application.aggregates.values().filter_map(|it| Sandbox::new(it).err());
    let problems: Vec<Problem> = failures.flatten().collect();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

impl ScriptDecider {
    /// Compiles an aggregate's functions. Fails with what is no JavaScript, and where.
    pub fn new(definition: Arc<AggregateDefinition>) -> Result<Self, Vec<Problem>> {
        let sandbox = Some(Sandbox::new(&definition)?);
        Ok(Self { definition, sandbox })
    }

    /// The event as the current version of its schema has it. Fails with [`Refusal::Faulty`] when
    /// its `upcast` throws or makes data that do not match the schema, and when the event is not
    /// declared or of a later version; with [`Refusal::Exhausted`] when it used too much.
    pub fn upcast(&mut self, event: &Event) -> Result<Event, Refusal> {
        self.upcast_until(event, processor_time() + FOLD_MAX)
    }

    /// The same, within a time that several share.
    fn upcast_until(&mut self, event: &Event, until: Duration) -> Result<Event, Refusal> {
        let definition = self.definition.clone();
        let declared = declared(&definition, event)?;
        let mut now = event.clone();
        if now.schema_version == declared.version {
            return Ok(now);
        }
        let evolve = FunctionId::Evolve(event.event.clone());
        let mut last = Called { id: evolve, function: &declared.evolve };
        while now.schema_version < declared.version {
            let from = now.schema_version;
            let function = declared.upcast.get(&from).ok_or_else(|| {
                Refusal::Faulty(format!("event {} has no upcast from {from}", event.event))
            })?;
            let called = Called { id: FunctionId::Upcast(event.event.clone(), from), function };
            let left = until.saturating_sub(processor_time());
            if left.is_zero() {
                return Err(called.exhausted(&out_of_time()));
            }
            let within = Within { time: DECIDE_MAX.min(left), limit: DECIDE_MAX };
            let text = self.run(&called, (now.data.get(),), within)?;
            let Returned::Folded(data) = self.read(&called, &text)? else {
                return Err(called.faulty("no answer"));
            };
            last = called;
            now.data = data.to_owned();
            now.schema_version += 1;
        }
        matches_schema(&declared.data, now.data.get()).map_err(|why| last.faulty(&why))?;
        Ok(now)
    }

    /// Calls a function of the sandbox, which is made anew when a script used the last one up.
    fn run<A>(
        &mut self,
        called: &Called<'_>,
        arguments: A,
        Within { time, limit }: Within,
    ) -> Result<String, Refusal>
    where
        A: for<'js> rquickjs::function::IntoArgs<'js>,
    {
        if self.sandbox.is_none() {
            let made = Sandbox::new(&self.definition);
            self.sandbox = Some(made.map_err(|problems| {
                let first = problems.first().map(ToString::to_string).unwrap_or_default();
                // They were compiled before.
                Refusal::Exhausted(first)
            })?);
        }
        let sandbox = self.sandbox.as_ref().expect("BUG: just made");
        let marked = mark::begin(time, &called.function.place, called.id.key());
        let broken = match sandbox.call(&called.id, arguments, time, &marked) {
            Ok(text) => return Ok(text),
            Err(broken) => broken,
        };
        self.sandbox = None;
        Err(match broken {
            Broken::Late if time < DECIDE_MAX => called.exhausted(&out_of_time()),
            Broken::Late => {
                let why = format!("used more than {} ms of processor time", limit.as_millis());
                called.exhausted(&why)
            }
            Broken::Memory => called.exhausted(&out_of_memory()),
            Broken::Asynchronous => {
                called.faulty("left a promise behind; nothing here may be async")
            }
        })
    }

    /// Reads an answer; a fault becomes a refusal with its place.
    fn read<'a>(&mut self, called: &Called<'_>, text: &'a str) -> Result<Returned<'a>, Refusal> {
        let answer = serde_json::from_str(text).map_err(|error| called.faulty(&error.to_string()));
        let (at, message, stack) = match answer? {
            Returned::Faulty { at, message, stack } => (at, message, stack),
            answer => return Ok(answer),
        };
        if message.contains("out of memory") {
            self.sandbox = None;
            return Err(called.exhausted(&out_of_memory()));
        }
        let inner = self.definition.events.iter().find(|(name, _)| name.as_str() == at);
        let (id, function) = match inner {
            Some((name, event)) => (FunctionId::Evolve(name.clone()), &event.evolve),
            None => (called.id.clone(), called.function),
        };
        let mut function = function.clone();
        if let Some(line) = line_in(&stack, &function.place.file) {
            function.place.line = line;
        }
        Err(Called { id, function: &function }.faulty(&message))
    }

    /// Folds some events in one call, within this processor time; their upcasts have [`FOLD_MAX`] together.
    fn folded(&mut self, state: &State, some: &[Event], limit: Duration) -> Result<State, Refusal> {
        let Some(last) = some.last().map(|event| &event.event) else { return Ok(state.clone()) };
        let definition = self.definition.clone();
        let until = processor_time() + FOLD_MAX;
        let mut text = String::from("[");
        for event in some {
            let current = if declared(&definition, event)?.version == event.schema_version {
                Cow::Borrowed(event)
            } else {
                Cow::Owned(self.upcast_until(event, until)?)
            };
            let comma = if text.len() > 1 { "," } else { "" };
            let (name, version, data) = (&current.event, current.version, current.data.get());
            text += comma;
            text += &format!("{{\"event\":\"{name}\",\"version\":{version},\"data\":{data}}}");
        }
        text.push(']');
        let function = &definition.events[last].evolve;
        let called = Called { id: FunctionId::Evolve(last.clone()), function };
        let left = until.saturating_sub(processor_time());
        if left.is_zero() {
            return Err(called.exhausted(&out_of_time()));
        }
        let within = Within { time: limit.min(left), limit };
        let folded = self.run(&called, (state.as_str(), text.as_str()), within)?;
        let Returned::Folded(state) = self.read(&called, &folded)? else {
            return Err(called.faulty("no answer"));
        };
        self.checked_state(&called, state)
    }

    fn checked_state(&self, called: &Called<'_>, state: &RawValue) -> Result<State, Refusal> {
        let text = state.get();
        if text.len() > STATE_BYTES_MAX {
            let why = format!("the state has {} bytes; at most {STATE_BYTES_MAX}", text.len());
            return Err(called.faulty(&why));
        }
        check_json(text).map_err(|why| called.faulty(&format!("the state: {why}")))?;
        Ok(State::from_json(text))
    }
}

impl Decider for ScriptDecider {
    fn decide(
        &mut self,
        state: &State,
        command: &CommandName,
        payload: &Payload,
        context: &Context,
    ) -> Result<Decision, Refusal> {
        let definition = self.definition.clone();
        let declared = definition.commands.get(command);
        let declared = declared.ok_or_else(|| elsewhere::unknown(&definition))?;
        check_payload(&declared.payload, payload)?;
        let function = declared.decide.function();
        let function = function.ok_or_else(|| elsewhere::no_function(command, &declared.decide))?;
        let called = Called { id: FunctionId::Decide(command.clone()), function };
        let context = context_json(context);
        let arguments = (state.as_str(), payload.as_str(), context.as_str());
        let within = Within { time: DECIDE_MAX, limit: DECIDE_MAX };
        let text = self.run(&called, arguments, within)?;
        match self.read(&called, &text)? {
            Returned::Decided { events, state } => {
                let events = new_events(&definition, &events, &called)?;
                Ok(Decision { events, state: self.checked_state(&called, state)? })
            }
            Returned::Rejected { code, message } => Err(Refusal::Rejected { code, message }),
            Returned::Folded(_) | Returned::Faulty { .. } => Err(called.faulty("no answer")),
        }
    }

    fn evolve(&mut self, state: &State, events: &[Event]) -> Result<State, Refusal> {
        let mut after = state.clone();
        for some in events.chunks(FOLD_EVENTS_MAX) {
            let share = EVOLVE_MAX * u32::try_from(some.len()).expect("BUG: a chunk is small");
            after = self.folded(&after, some, FOLD_MAX.min(DECIDE_MAX + share))?;
        }
        Ok(after)
    }
}

/// The processor time of a call, and the limit that its author knows: a call may have less when others have
/// used some of it.
struct Within {
    time: Duration,
    limit: Duration,
}

/// The function that is called.
struct Called<'a> {
    id: FunctionId,
    function: &'a Function,
}

impl Called<'_> {
    fn faulty(&self, why: &str) -> Refusal {
        Refusal::Faulty(format!("{}: {}: {why}", self.function.place, self.id))
    }

    fn exhausted(&self, why: &str) -> Refusal {
        Refusal::Exhausted(format!("{}: {}: {why}", self.function.place, self.id))
    }
}

/// The events of a commit share a time.
fn out_of_time() -> String {
    format!("a commit's events used more than {} ms of processor time", FOLD_MAX.as_millis())
}

fn out_of_memory() -> String {
    format!("asked for more than {} MiB", MEMORY_BYTES_MAX >> 20)
}

fn declared<'a>(
    definition: &'a AggregateDefinition,
    event: &Event,
) -> Result<&'a EventDefinition, Refusal> {
    let declared = definition.events.get(&event.event).ok_or_else(|| {
        let (name, place) = (&definition.name, &definition.place);
        Refusal::Faulty(format!("{place}: aggregate {name} declares no event {}", event.event))
    })?;
    if event.schema_version > declared.version {
        let (name, place) = (&event.event, &declared.data.place);
        return Err(Refusal::Faulty(format!(
            "{place}: event {name} was recorded with version {}, and {} is declared",
            event.schema_version, declared.version
        )));
    }
    Ok(declared)
}

fn check_payload(schema: &Schema, payload: &Payload) -> Result<(), Refusal> {
    let value: Value = serde_json::from_str(payload.as_str()).expect("BUG: a payload is JSON");
    violations::check(schema, &value).map_err(|violations| Refusal::InvalidPayload { violations })
}

/// Fails with what does not match, in words.
fn matches_schema(schema: &Schema, data: &str) -> Result<(), String> {
    check_json(data)?;
    let value: Value = serde_json::from_str(data).map_err(|error| error.to_string())?;
    violations::check(schema, &value).map_err(|violations| {
        let listed = violations.iter().map(|it| format!("{} {}", it.field, it.reason));
        listed.collect::<Vec<_>>().join("; ").trim_start().to_owned()
    })
}

fn new_events(
    definition: &AggregateDefinition,
    decided: &[Decided<'_>],
    called: &Called<'_>,
) -> Result<Vec<NewEvent>, Refusal> {
    // Nothing can stop a check, and each of many may be short.
    let until = processor_time() + DECIDE_MAX;
    let bytes: usize = decided.iter().map(|it| it.data.get().len()).sum();
    if bytes > COMMIT_BYTES_MAX {
        let why = format!("the events have {bytes} bytes; at most {COMMIT_BYTES_MAX}");
        return Err(called.faulty(&why));
    }
    let mut events = Vec::with_capacity(decided.len());
    for Decided { event, data } in decided {
        let (name, declared) = definition
            .events
            .get_key_value(*event)
            .ok_or_else(|| called.faulty(&format!("the event {event} is not declared")))?;
        matches_schema(&declared.data, data.get()).map_err(|why| {
            called.faulty(&format!("the event {name} does not match its schema: {why}"))
        })?;
        if processor_time() > until {
            let limit = DECIDE_MAX.as_millis();
            let why = format!("checks of its events used more than {limit} ms of processor time");
            return Err(called.exhausted(&why));
        }
        let (event, data) = (name.clone(), (*data).to_owned());
        events.push(NewEvent { event, schema_version: declared.version, data });
    }
    Ok(events)
}

/// What `decide` gets as its third argument, under the names that `schemas/README.md` gives.
#[derive(Serialize)]
struct ContextJson<'a> {
    tenant: &'a str,
    id: &'a str,
    version: u64,
    command_id: &'a str,
    actor: &'a str,
    /// RFC 3339, as events carry times.
    now: String,
    /// The same in milliseconds since 1970, to reckon with.
    now_ms: i64,
}

fn context_json(context: &Context) -> String {
    let json = ContextJson {
        tenant: context.tenant.as_str(),
        id: context.id.as_str(),
        version: context.version,
        command_id: context.command_id.as_str(),
        actor: context.actor.as_str(),
        now: rfc3339(context.now_ms),
        now_ms: context.now_ms,
    };
    serde_json::to_string(&json).expect("BUG: texts and numbers are JSON")
}
