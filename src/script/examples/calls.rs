//! What a call of a function costs by itself, and from a task on a script thread:
//! `cargo run --release -p flexcore-script --example calls`.

use std::{
    error::Error,
    io::Write as _,
    sync::{Arc, mpsc},
    time::Instant,
};

use flexcore_definition::{AggregateDefinition, Application, SourceFile};
use flexcore_domain::{
    ActorName, AggregateId, AggregateKey, CommandId, CommandName, Context, Decider, Name, Payload,
    State, Tenant,
};
use flexcore_script::{
    ScriptDecider,
    threads::{self, Of, Scripts},
};

const CALLS: u32 = 20_000;

const COUNTER: &str = "aggregate: counter
commands:
  up:
    payload: { type: object, required: [by], properties: { by: { type: integer } } }
    decide: |
      (state, { by }) => [{ event: 'went_up', data: { by } }]
events:
  went_up:
    data: { type: object }
    evolve: |
      (state, { data }) => ({ count: (state ? state.count : 0) + data.by })
";

struct Call {
    command: CommandName,
    payload: Payload,
    context: Context,
}

impl Call {
    fn new() -> Result<Self, Box<dyn Error>> {
        let context = Context {
            tenant: Tenant::parse("acme")?,
            id: AggregateId::parse("c-1")?,
            version: 0,
            command_id: CommandId::parse("c-1")?,
            actor: ActorName::parse("somebody")?,
            now_ms: 0,
        };
        let payload = Payload::parse(br#"{"by":1}"#).map_err(|_| "no payload")?;
        Ok(Self { command: CommandName::parse("up")?, payload, context })
    }

    fn run(&self, decider: &mut ScriptDecider, state: &State) -> State {
        let decided = decider.decide(state, &self.command, &self.payload, &self.context);
        decided.map_or_else(|_| State::none(), |decision| decision.state)
    }
}

/// Calls a second, made one after another on this thread.
fn directly(definition: &Arc<AggregateDefinition>) -> Result<f64, Box<dyn Error>> {
    let call = Call::new()?;
    let mut decider = ScriptDecider::new(definition.clone()).map_err(|_| "no decider")?;
    let (since, mut state) = (Instant::now(), State::none());
    for _ in 0..CALLS {
        state = call.run(&mut decider, &state);
    }
    Ok(f64::from(CALLS) / since.elapsed().as_secs_f64())
}

/// The same from a task, as a lane makes them: with copies of what the call is given.
fn from_a_task(definition: &Arc<AggregateDefinition>) -> Result<f64, Box<dyn Error>> {
    let (send, receive) = mpsc::channel();
    let definition = definition.clone();
    let task = |scripts: Scripts<Option<ScriptDecider>>| async move {
        let Ok(call) = Call::new() else { return };
        let (tenant, id) = (call.context.tenant.clone(), call.context.id.clone());
        let key = AggregateKey::new(tenant, definition.name.clone(), id);
        let of = Of { key, definition: Some(definition.clone()) };
        let (since, mut state) = (Instant::now(), State::none());
        for _ in 0..CALLS {
            let before = state.clone();
            let Call { command, payload, context } = &call;
            let call = Call {
                command: command.clone(),
                payload: payload.clone(),
                context: context.clone(),
            };
            let definition = definition.clone();
            let job = move |made: &mut Option<ScriptDecider>| {
                if made.is_none() {
                    *made = ScriptDecider::new(definition).ok();
                }
                made.as_mut().map_or_else(State::none, |decider| call.run(decider, &before))
            };
            state = scripts.call(of.clone(), job).await.unwrap_or_else(|_| State::none());
        }
        let _ = send.send(f64::from(CALLS) / since.elapsed().as_secs_f64());
    };
    threads::spawn("calls", || None, task)?;
    Ok(receive.recv()?)
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let file = SourceFile { path: "counter.yaml".to_owned(), text: COUNTER.to_owned() };
    let application =
        Application::read(Name::parse("counter")?, vec![file]).map_err(|_| "no application")?;
    let definition = application.aggregates.values().next().ok_or("no aggregate")?;
    let (mut direct, mut task) = (Vec::new(), Vec::new());
    // In turns, so that a machine that is busy for a moment meets both.
    for _ in 0..5 {
        direct.push(directly(definition)?);
        task.push(from_a_task(definition)?);
    }
    let (direct, task) = (median(direct), median(task));
    let mut out = std::io::stdout().lock();
    writeln!(out, "calls a second, median of 5 times {CALLS}")?;
    writeln!(out, "directly     {direct:>9.0}")?;
    writeln!(out, "from a task  {task:>9.0}")?;
    writeln!(out, "a call from a task takes {:.2} µs more", 1e6 / task - 1e6 / direct)?;
    Ok(())
}
