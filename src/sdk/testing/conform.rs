//! What every plugin has to do, whatever it is written in.

use std::{
    ffi::OsString,
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use flexcore_plugin::{
    Cookie, Error, Plugin,
    contract::{CallOutcome, CallRequest, Client, Context, Description, Question},
    limits::INPUT_BYTES_MAX,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    time::timeout,
};
use tonic::Code;

use super::{
    kit::Kit,
    running::{PATIENCE, TEST, ends},
    schemas::Schemas,
};

/// A call that is given up is given up so soon.
const SOON: Duration = Duration::from_millis(1);

/// Most bytes that are read of what a plugin prints that no host has started. 64 KiB: it is a
/// sentence.
const SAID_BYTES_MAX: u64 = 64 * 1024;

/// Something that every plugin has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// What it is, to be read behind "it".
    pub what: &'static str,
    /// What the plugin did instead; `None`: it does it.
    pub fault: Option<String>,
}

type Done = Result<(), String>;

fn requirement(what: &'static str, done: Done) -> Requirement {
    Requirement { what, fault: done.err() }
}

impl Kit {
    /// Holds the plugin to what every plugin has to do: describe itself, with schemas that the host
    /// can read, refuse what the contract does not allow, and end when it is told to; with TLS and
    /// without. It is called with what is no JSON alone, so that its functions do nothing.
    ///
    /// # Panics
    /// If it does something else.
    pub async fn conforms(&self) {
        held(&[without_a_host(&self.file, &self.arguments, &self.environment).await]);
        for tls in [true, false] {
            // A `Running` cannot be made where a schema cannot be read, which is to be told as the rest.
            let (plugin, _) = self.clone().tls(tls).started().await;
            held(&requirements(&plugin).await);
            ends(&plugin).await;
        }
    }
}

fn held(requirements: &[Requirement]) {
    let told = |one: &Requirement| Some(format!("it {}: {}", one.what, one.fault.as_ref()?));
    let faults: Vec<String> = requirements.iter().filter_map(told).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Starts an executable as a person would, who is to be told what it is; standard output is a
/// host's. It has to end at once.
pub async fn without_a_host(
    file: &Path,
    arguments: &[OsString],
    environment: &[(OsString, OsString)],
) -> Requirement {
    let mut command = Command::new(file);
    command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
    command.env_remove(Cookie::flexcore().key).stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let done = match timeout(PATIENCE, by_hand(command)).await {
        Err(_) => Err("a plugin that no host has started ends at once".to_owned()),
        Ok(Err(error)) => Err(format!("{}: {error}", file.display())),
        Ok(Ok((status, ..))) if status.code() != Some(1) => {
            Err(format!("without a host its exit status is 1, and not: {status}"))
        }
        Ok(Ok((_, printed, _))) if printed > 0 => {
            Err("without a host it prints nothing to standard output".to_owned())
        }
        Ok(Ok((_, _, 0))) => Err("without a host it says so on standard error".to_owned()),
        Ok(Ok(_)) => Ok(()),
    };
    requirement("is not started by hand", done)
}

/// How it ended, and how many bytes it has printed to standard output and to standard error.
async fn by_hand(mut command: Command) -> io::Result<(ExitStatus, usize, usize)> {
    let mut child = command.spawn()?;
    let (out, err) = (read(child.stdout.take()), read(child.stderr.take()));
    let (out, err) = tokio::try_join!(out, err)?;
    Ok((child.wait().await?, out, err))
}

/// Reads to the end, or so far that whoever writes more is ended by it.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> io::Result<usize> {
    let Some(stream) = stream else { return Ok(0) };
    stream.take(SAID_BYTES_MAX).read_to_end(&mut Vec::new()).await
}

/// Holds a plugin that runs to all but its end.
pub async fn requirements(plugin: &Plugin) -> Vec<Requirement> {
    let client = Client::new(plugin.connection());
    let described = "describes itself the same each time";
    let description = match client.describe().await {
        Ok(description) => description,
        Err(error) => return vec![requirement(described, Err(error.to_string()))],
    };
    let under_test = UnderTest { plugin, client, description };
    vec![
        requirement(described, under_test.describes_itself_as_before().await),
        requirement("has schemas that can be read", under_test.has_schemas()),
        requirement("refuses a function that it has not", under_test.refuses_others().await),
        requirement("refuses what is no JSON", under_test.refuses_what_is_no_json().await),
        requirement("refuses what is too large", under_test.refuses_what_is_too_large().await),
        requirement("answers batches", under_test.answers_batches().await),
        requirement("decides as before", under_test.decides_as_before().await),
        requirement("survives calls that are given up", under_test.survives_given_up().await),
        requirement("is well", under_test.is_well().await),
    ]
}

/// A plugin that runs, and what it has said of itself.
struct UnderTest<'a> {
    plugin: &'a Plugin,
    client: Client,
    description: Description,
}

impl UnderTest<'_> {
    async fn describes_itself_as_before(&self) -> Done {
        for _ in 0..2 {
            let described = self.client.describe().await.map_err(|error| error.to_string())?;
            if described != self.description {
                return Err("it has said something else before".to_owned());
            }
        }
        Ok(())
    }

    /// One that the host cannot read lets no call through.
    fn has_schemas(&self) -> Done {
        Schemas::of(&self.description).map(|_| ())
    }

    async fn refuses_others(&self) -> Done {
        let none = "f".repeat(40);
        refused("a function that it does not have", self.call(&none, "null".into()).await)
    }

    async fn refuses_what_is_no_json(&self) -> Done {
        for function in self.names() {
            for input in ["{", "", "\u{0}"] {
                let answer = self.call(function, input.into()).await;
                refused(&format!("{input:?} as an input of {function:?}"), answer)?;
            }
        }
        Ok(())
    }

    async fn refuses_what_is_too_large(&self) -> Done {
        for function in self.names() {
            let large = "[".repeat(INPUT_BYTES_MAX + 1);
            let answer = self.call(function, large).await;
            refused(&format!("an input of {function:?} over the limit"), answer)?;
        }
        Ok(())
    }

    /// The client holds the numbers of batches and results to those that were asked.
    async fn answers_batches(&self) -> Done {
        for function in self.names() {
            let stream = self.client.stream(context(), function, PATIENCE);
            for number in 1..=2 {
                let batch = stream.send(vec!["{".into(); 3]).await;
                let batch = batch.map_err(|error| format!("batch {number}: {error}"))?;
                for outcome in batch.results().await.map_err(|error| error.to_string())? {
                    let what = format!("what is no JSON in a batch of {function:?}");
                    refused(&what, Ok(outcome))?;
                }
            }
            let ended = stream.finish().await;
            ended.map_err(|error| format!("the end of a stream: {error}"))?;
        }
        Ok(())
    }

    /// A command that it does not know: whatever it says to that.
    async fn decides_as_before(&self) -> Done {
        if !self.description.decides {
            return Ok(());
        }
        let question = Question {
            context: Some(context()),
            aggregate: TEST.to_owned(),
            id: TEST.to_owned(),
            command: "no_such_command".to_owned(),
            command_id: TEST.to_owned(),
            state: "null".into(),
            payload: "null".into(),
            ..Question::default()
        };
        let decider = self.client.decider();
        let decided =
            decider.ask(question.clone(), PATIENCE).await.map_err(|error| error.to_string())?;
        let again = decider.ask(question, PATIENCE).await.map_err(|error| error.to_string())?;
        if decided == again {
            Ok(())
        } else {
            Err(format!("the same question has two answers: {decided:?}, {again:?}"))
        }
    }

    async fn survives_given_up(&self) -> Done {
        for function in self.names() {
            let large = "[".repeat(INPUT_BYTES_MAX);
            // It is given up, or refused by then.
            let _ = timeout(SOON, self.call(function, large)).await;
        }
        self.describes_itself_as_before().await
    }

    async fn is_well(&self) -> Done {
        self.plugin.check().await.map_err(|error| format!("its health: {error}"))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.description.functions.iter().map(|function| function.name.as_str())
    }

    async fn call(&self, function: &str, input: String) -> Result<CallOutcome, Error> {
        let (context, function) = (Some(context()), function.to_owned());
        let request = CallRequest { context, function, input: input.into() };
        self.client.call_unchecked(request, PATIENCE).await
    }
}

fn context() -> Context {
    let test = || TEST.to_owned();
    Context { tenant: test(), actor: test(), idempotency_key: test(), ..Context::default() }
}

/// A refusal is a failure for good, or a status that says that nothing was done. Libraries have
/// codes of their own for messages that are too large for them.
fn refused(what: &str, answer: Result<CallOutcome, Error>) -> Done {
    let codes = [Code::InvalidArgument, Code::NotFound, Code::ResourceExhausted, Code::OutOfRange];
    match answer {
        Ok(Ok(output)) => Err(format!("{what} is answered with {output:?}")),
        Ok(Err(failure)) if failure.temporary => {
            Err(format!("{what} is refused for now: {failure}"))
        }
        Ok(Err(_)) => Ok(()),
        Err(Error::Status { status, .. }) if codes.contains(&status.code()) => Ok(()),
        Err(error) => Err(format!("{what}: {error}")),
    }
}
