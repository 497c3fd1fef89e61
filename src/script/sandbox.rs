//! One QuickJS runtime with an aggregate's functions, compiled once.

use std::{cell::Cell, collections::BTreeMap, rc::Rc, time::Duration};

use flexcore_definition::{AggregateDefinition, Function, FunctionId, Problem};
use flexcore_domain::limits::{COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX};
use rquickjs::{
    Array, Context, Ctx, Object, Persistent, Runtime,
    context::{EvalOptions, intrinsic},
    function::IntoArgs,
};

use crate::{
    clock::processor_time,
    limits::{
        CODE_CHARS_MAX, COMPARISONS_MAX, COMPILE_MAX, ELEMENTS_MAX, MEMORY_BYTES_MAX,
        MESSAGE_CHARS_MAX, OVERRUN_MAX, STACK_BYTES_MAX,
    },
    threads::mark::{self, Marked},
};

/// The part of the language that needs neither a clock nor chance. `Promise` is there because the
/// syntax is; a job that it leaves behind is an error.
type Intrinsics = (
    intrinsic::Eval,
    intrinsic::RegExpCompiler,
    intrinsic::RegExp,
    intrinsic::Json,
    intrinsic::MapSet,
    intrinsic::Promise,
    // The glue's alone: scripts can't make one.
    intrinsic::Proxy,
);

/// A compiled function of text and text.
type Compiled = Persistent<rquickjs::Function<'static>>;

/// Why a call has no answer: the runtime is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// It has used more processor time than it may.
    Late,
    /// No memory, or a failure inside the engine.
    Memory,
    /// It left a promise behind.
    Asynchronous,
}

/// A runtime. The functions go before the context, and that before the runtime.
pub(crate) struct Sandbox {
    functions: Functions,
    context: Context,
    runtime: Runtime,
    /// The most that this thread's processor time may reach.
    deadline: Rc<Cell<Duration>>,
}

impl Sandbox {
    /// Makes a runtime and compiles all functions. Fails with what does not compile.
    pub(crate) fn new(definition: &AggregateDefinition) -> Result<Self, Vec<Problem>> {
        let failed = |error: rquickjs::Error| {
            let message = format!("no JavaScript runtime: {error}");
            vec![Problem { place: definition.place.clone(), message }]
        };
        let _marked = mark::begin(COMPILE_MAX, &definition.place, "compilation");
        let deadline = Rc::new(Cell::new(processor_time() + COMPILE_MAX));
        let runtime = Runtime::new().map_err(failed)?;
        runtime.set_memory_limit(MEMORY_BYTES_MAX);
        runtime.set_max_stack_size(STACK_BYTES_MAX);
        let until = deadline.clone();
        runtime.set_interrupt_handler(Some(Box::new(move || processor_time() > until.get())));
        let context = Context::custom::<Intrinsics>(&runtime).map_err(failed)?;
        let functions = context.with(|ctx| compile(&ctx, definition, &failed))?;
        Ok(Self { functions, context, runtime, deadline })
    }

    /// Calls a function, for at most `within` of processor time. After a failure the runtime must not be used again.
    pub(crate) fn call<A>(
        &self,
        id: &FunctionId,
        arguments: A,
        within: Duration,
        marked: &Marked,
    ) -> Result<String, Broken>
    where
        A: for<'js> IntoArgs<'js>,
    {
        self.deadline.set(processor_time() + within);
        let returned = self.context.with(|ctx| {
            let function =
                self.functions.get(id).expect("BUG: every declared function is compiled");
            let function = function.clone().restore(&ctx)?;
            let returned = function.call::<_, String>(arguments);
            if returned.is_err() {
                // The exception is dropped unseen: looking at it could run the script's code.
                drop(ctx.catch());
            }
            returned
        });
        let late = processor_time().saturating_sub(self.deadline.get());
        if late > OVERRUN_MAX {
            marked.overran();
        }
        match returned {
            // Too much work in too few steps to be stopped is refused all the same.
            _ if late > Duration::ZERO => Err(Broken::Late),
            Err(_) => Err(Broken::Memory),
            Ok(_) if self.runtime.is_job_pending() => Err(Broken::Asynchronous),
            Ok(text) => Ok(text),
        }
    }
}

type Functions = BTreeMap<FunctionId, Compiled>;

fn compile<'js>(
    ctx: &Ctx<'js>,
    definition: &AggregateDefinition,
    failed: &impl Fn(rquickjs::Error) -> Vec<Problem>,
) -> Result<Functions, Vec<Problem>> {
    let glue = Glue::new(ctx).map_err(failed)?;
    let (mut compiled, mut problems) = (Vec::new(), Vec::new());
    for (id, function) in definition.functions() {
        match glue.compile(function) {
            Ok(function) => compiled.push((id, function)),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let evolves = Object::new(ctx.clone()).map_err(failed)?;
    evolves.set_prototype(None).map_err(failed)?;
    for (id, function) in &compiled {
        if let FunctionId::Evolve(event) = id {
            evolves.set(event.as_str(), function.clone()).map_err(failed)?;
        }
    }
    let wrap = |(id, function): (FunctionId, rquickjs::Function<'js>)| {
        let wrapped = glue.wrap(&id, function, &evolves).map_err(failed)?;
        Ok((id, wrapped))
    };
    compiled.into_iter().map(wrap).collect()
}

/// The result of `glue.js`.
struct Glue<'js> {
    ctx: Ctx<'js>,
    /// A function for each key of a definition's functions.
    wrappers: Object<'js>,
    inspect: rquickjs::Function<'js>,
}

impl<'js> Glue<'js> {
    fn new(ctx: &Ctx<'js>) -> rquickjs::Result<Self> {
        let limits = Object::new(ctx.clone())?;
        limits.set("codeChars", CODE_CHARS_MAX)?;
        limits.set("messageChars", MESSAGE_CHARS_MAX)?;
        limits.set("events", COMMIT_EVENTS_MAX)?;
        limits.set("commitChars", COMMIT_BYTES_MAX)?;
        limits.set("elements", ELEMENTS_MAX)?;
        limits.set("comparisons", COMPARISONS_MAX)?;
        let glue: rquickjs::Function<'js> = ctx.eval(include_str!("glue.js"))?;
        let parts: Array<'js> = glue.call((limits,))?;
        Ok(Self { ctx: ctx.clone(), wrappers: parts.get(0)?, inspect: parts.get(1)? })
    }

    /// An application's function as it is called from here: with texts, for a text.
    fn wrap(
        &self,
        id: &FunctionId,
        function: rquickjs::Function<'js>,
        evolves: &Object<'js>,
    ) -> rquickjs::Result<Compiled> {
        let wrapper: rquickjs::Function<'js> = self.wrappers.get(id.key())?;
        let wrapped: rquickjs::Function<'js> = wrapper.call((function, evolves.clone()))?;
        Ok(Persistent::save(&self.ctx, wrapped))
    }

    fn compile(&self, function: &Function) -> Result<rquickjs::Function<'js>, Problem> {
        // Empty lines before it make the engine's line numbers those of the file.
        let source = &function.source;
        let text = format!("{}({source}\n)", "\n".repeat(function.place.line.saturating_sub(1)));
        let mut options = EvalOptions::default();
        options.filename = Some(function.place.file.to_string());
        let problem =
            |message: &str| Problem { place: function.place.clone(), message: message.to_owned() };
        let value: rquickjs::Value<'js> =
            self.ctx.eval_with_options(text, options).map_err(|_| self.syntax_error(function))?;
        let (text, plain): (Option<String>, bool) = self
            .inspect
            .call::<_, Array<'js>>((value.clone(),))
            .and_then(|known| Ok((known.get(0)?, known.get(1)?)))
            .map_err(|_| problem("not a function that can be used"))?;
        let only = text.is_some_and(|text| is_only(source, &text));
        match value.into_function() {
            Some(compiled) if only && plain => Ok(compiled),
            Some(_) if only => {
                Err(problem("must be a plain function, neither async nor a generator"))
            }
            _ => Err(problem("must be one function, such as `(state, event) => ({ ...state })`")),
        }
    }

    fn syntax_error(&self, function: &Function) -> Problem {
        let thrown = self.ctx.catch();
        let Some(exception) = thrown.into_exception() else {
            let message = "not JavaScript, or too much of it".to_owned();
            return Problem { place: function.place.clone(), message };
        };
        let mut place = function.place.clone();
        let lines = function.source.lines().count().max(1);
        if let Some(line) = exception.stack().and_then(|stack| line_in(&stack, &place.file)) {
            place.line = line.clamp(place.line, place.line + lines - 1);
        }
        let message = format!("JavaScript: {}", exception.message().unwrap_or_default());
        Problem { place, message }
    }
}

/// True if a source holds the text of one function and nothing else but comments and parentheses:
/// `(() => { let n = 0; return () => n++ })()` is a function, too, and one that remembers.
fn is_only(source: &str, function: &str) -> bool {
    let Some(at) = source.find(function) else { return false };
    is_blank(&source[..at]) && is_blank(&source[at + function.len()..])
}

fn is_blank(text: &str) -> bool {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '(' || c == ')');
        let after = if let Some(comment) = rest.strip_prefix("//") {
            comment.split_once('\n').map_or("", |(_, after)| after)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.split_once("*/").map_or("", |(_, after)| after)
        } else {
            return rest.is_empty();
        };
        rest = after;
    }
}

/// The first line of a file that a stack trace names.
pub(crate) fn line_in(stack: &str, file: &str) -> Option<usize> {
    stack.lines().find_map(|frame| {
        let (_, after) = frame.split_once(&format!("{file}:"))?;
        let digits = after.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    })
}
