//! Deciders that do what a test needs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use flexcore_definition::{Application, Catalog, SourceFile};
use flexcore_domain::{
    CommandName, Context, Decider, Decision, Event, EventName, Name, NewEvent, Payload, Refusal,
    State,
};
use flexcore_script::clock::processor_time;
use serde_json::value::RawValue;
use tokio::sync::Notify;

/// What is deployed with an application of this one file.
pub(crate) fn deployed(file: &str) -> Catalog {
    let files = vec![SourceFile { path: "a.yaml".to_owned(), text: file.to_owned() }];
    let application = Application::read(Name::parse("counters").unwrap(), files).unwrap();
    Catalog::default().with(application).unwrap()
}

/// A decider with a bug.
pub(crate) struct Panics;

impl Decider for Panics {
    fn decide(
        &mut self,
        _: &State,
        _: &CommandName,
        _: &Payload,
        _: &Context,
    ) -> Result<Decision, Refusal> {
        panic!("a bug, on purpose");
    }

    fn evolve(&mut self, state: &State, _: &[Event]) -> Result<State, Refusal> {
        Ok(state.clone())
    }
}

/// A decider whose rules fail.
pub(crate) struct Fails;

impl Decider for Fails {
    fn decide(
        &mut self,
        _: &State,
        _: &CommandName,
        _: &Payload,
        _: &Context,
    ) -> Result<Decision, Refusal> {
        Err(Refusal::Faulty("a bug, on purpose".to_owned()))
    }

    fn evolve(&mut self, state: &State, _: &[Event]) -> Result<State, Refusal> {
        Ok(state.clone())
    }
}

/// A decider that accepts everything, with so many events.
pub(crate) struct Accepts(pub(crate) usize);

impl Decider for Accepts {
    fn decide(
        &mut self,
        state: &State,
        _: &CommandName,
        _: &Payload,
        _: &Context,
    ) -> Result<Decision, Refusal> {
        let event = NewEvent {
            event: EventName::parse("added").unwrap(),
            schema_version: 1,
            data: RawValue::from_string("{}".to_owned()).unwrap(),
        };
        Ok(Decision { events: vec![event; self.0], state: state.clone() })
    }

    fn evolve(&mut self, state: &State, _: &[Event]) -> Result<State, Refusal> {
        Ok(state.clone())
    }
}

/// A decider that accepts everything, after something else.
pub(crate) struct After<F>(F);

/// A decider that takes so long over what it accepts.
pub(crate) fn slow(takes: Duration) -> After<impl FnMut()> {
    After(move || std::thread::sleep(takes))
}

/// A decider that uses the processor for so long over what it accepts, and counts how often.
pub(crate) fn busy(takes: Duration, count: Arc<AtomicUsize>) -> After<impl FnMut()> {
    After(move || {
        count.fetch_add(1, Ordering::Relaxed);
        let until = processor_time() + takes;
        while processor_time() < until {}
    })
}

/// A decider that accepts everything, and whose folds take something else before.
pub(crate) struct FoldsAfter<F>(F);

/// A decider that uses the processor for so long over each fold, and counts how often.
pub(crate) fn busy_fold(takes: Duration, count: Arc<AtomicUsize>) -> FoldsAfter<impl FnMut()> {
    FoldsAfter(busy(takes, count).0)
}

impl<F: FnMut()> Decider for FoldsAfter<F> {
    fn decide(
        &mut self,
        state: &State,
        name: &CommandName,
        payload: &Payload,
        context: &Context,
    ) -> Result<Decision, Refusal> {
        Accepts(1).decide(state, name, payload, context)
    }

    fn evolve(&mut self, state: &State, _: &[Event]) -> Result<State, Refusal> {
        (self.0)();
        Ok(state.clone())
    }
}

impl<F: FnMut()> Decider for After<F> {
    fn decide(
        &mut self,
        state: &State,
        name: &CommandName,
        payload: &Payload,
        context: &Context,
    ) -> Result<Decision, Refusal> {
        (self.0)();
        Accepts(1).decide(state, name, payload, context)
    }

    fn evolve(&mut self, state: &State, _: &[Event]) -> Result<State, Refusal> {
        Ok(state.clone())
    }
}

/// A decider that takes so long to refuse, and says when it begins.
pub(crate) struct Refuses(pub(crate) Duration, pub(crate) Arc<Notify>);

impl Decider for Refuses {
    fn decide(
        &mut self,
        _: &State,
        _: &CommandName,
        _: &Payload,
        _: &Context,
    ) -> Result<Decision, Refusal> {
        self.1.notify_one();
        std::thread::sleep(self.0);
        Err(Refusal::Rejected { code: "closed".to_owned(), message: "not today".to_owned() })
    }

    fn evolve(&mut self, state: &State, _: &[Event]) -> Result<State, Refusal> {
        Ok(state.clone())
    }
}

/// A decider that records too much for the command of this id, and little for others. No event of it
/// is large.
pub(crate) struct Large(pub(crate) &'static str);

impl Decider for Large {
    fn decide(
        &mut self,
        state: &State,
        name: &CommandName,
        payload: &Payload,
        context: &Context,
    ) -> Result<Decision, Refusal> {
        let mut decision = Accepts(1).decide(state, name, payload, context)?;
        if context.command_id.as_str() == self.0 {
            let data = RawValue::from_string(format!("\"{}\"", "x".repeat(3_790))).unwrap();
            let event = NewEvent { data, ..decision.events[0].clone() };
            decision.events = vec![event; 256];
        }
        Ok(decision)
    }

    fn evolve(&mut self, state: &State, _: &[Event]) -> Result<State, Refusal> {
        Ok(state.clone())
    }
}
