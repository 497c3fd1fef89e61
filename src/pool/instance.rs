//! The task of one instance: does what [`Lifecycle`] says, and tells it what has happened.

use std::{
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use flexcore_plugin::{Error, Plugin, Printed};
use flexcore_resilience::jitter;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    figures::Figures,
    lifecycle::{Happening, Lifecycle, Stage, Step},
    limits::{BACKOFF, CHECK_EVERY, DEATH_WAIT, DRAIN_WAIT, GIVEN_UP_PAUSE},
    lines::Printing,
    locked::locked,
    notice::Noticed,
    run::Run,
    spec::Spec,
};

/// What others see of an instance.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) stage: Stage,
    /// Why it is not ready, if it has been tried.
    pub(crate) reason: Option<String>,
    /// Starts in a row that did not last.
    pub(crate) failures: u32,
    /// What takes its calls, while it is ready.
    pub(crate) run: Option<Arc<Run>>,
}

/// An instance, for whoever calls it.
#[derive(Debug, Default)]
pub(crate) struct Instance(Mutex<Seen>);

impl Instance {
    pub(crate) fn seen(&self) -> Seen {
        locked(&self.0).clone()
    }

    fn show(&self, seen: Seen) {
        let before = mem::replace(&mut *locked(&self.0), seen);
        // Outside of the lock.
        drop(before);
    }
}

/// Runs an instance until nobody wants it any more. When it is aborted, the process is killed.
pub(crate) async fn supervise(
    instance: Arc<Instance>,
    spec: Arc<Spec>,
    figures: Arc<Figures>,
    noticed: Noticed,
) {
    let mut task = Task { spec, figures, noticed, running: None, starts: 0 };
    let mut life = Lifecycle::default();
    let mut next = Some(Step::Start);
    while let Some(step) = next {
        let happening = task.act(step).await;
        next = life.on(happening, Instant::now());
        let run = task.running.as_ref().map(|running| Arc::clone(&running.run));
        let run = run.filter(|_| life.stage() == Stage::Ready);
        let reason = life.reason().map(str::to_owned);
        let failures = life.failures();
        instance.show(Seen { stage: life.stage(), reason, failures, run });
        // A look that found nothing is no change.
        if step != Step::Serve || next != Some(Step::Serve) {
            task.figures.changed();
        }
    }
}

struct Task {
    spec: Arc<Spec>,
    figures: Arc<Figures>,
    noticed: Noticed,
    running: Option<Running>,
    starts: u64,
}

/// The process is killed when this is dropped.
struct Running {
    plugin: Plugin,
    run: Arc<Run>,
}

impl Task {
    async fn act(&mut self, step: Step) -> Happening {
        match step {
            Step::Start => self.start().await,
            Step::Serve => self.serve().await,
            Step::Pause(failures) => self.pause(BACKOFF.jittered(failures)).await,
            Step::LeaveAlone => self.pause(jitter(GIVEN_UP_PAUSE)).await,
            Step::Close => self.close().await,
            Step::Rest => {
                self.noticed.unwanted().await;
                Happening::Unwanted
            }
        }
    }

    async fn start(&mut self) -> Happening {
        if self.starts > 0 {
            self.figures.restarted();
        }
        self.starts += 1;
        let started = tokio::select! {
            biased;
            () = self.noticed.unwanted() => return Happening::Unwanted,
            started = started(&self.spec, &self.figures) => started,
        };
        match started {
            Ok(running) => {
                self.running = Some(running);
                Happening::Started
            }
            Err(error) => {
                let (plugin, reason) = (&*self.figures.name, error.to_string());
                tracing::warn!(plugin, reason, "an instance of a plugin did not start");
                Happening::NotStarted { reason, for_good: is_for_good(&error) }
            }
        }
    }

    /// Until something happens, or the next look whether it is well.
    async fn serve(&mut self) -> Happening {
        let Some(Running { plugin, run }) = &self.running else {
            return Happening::Lost("it is not there".to_owned());
        };
        let happening = tokio::select! {
            biased;
            () = self.noticed.unwanted() => Happening::Unwanted,
            ended = plugin.ended() => has_ended(ended.to_string(), run),
            () = plugin.connection().closed() => lost(plugin, run).await,
            looked = looked(plugin, run) => looked,
        };
        let name = &*self.figures.name;
        match &happening {
            Happening::Ended { reason, .. } => {
                tracing::warn!(plugin = name, reason, "an instance of a plugin has ended");
                self.running = None;
            }
            Happening::Lost(reason) | Happening::Missed(reason) => {
                tracing::warn!(plugin = name, reason, "an instance of a plugin is not well");
            }
            _ => {}
        }
        happening
    }

    async fn pause(&mut self, pause: Duration) -> Happening {
        tokio::select! {
            biased;
            () = self.noticed.unwanted() => Happening::Unwanted,
            () = sleep(pause) => Happening::Rested,
        }
    }

    /// It gets no more calls: nobody sees its run any more. Those under way have the time that was
    /// said when it was not wanted any more; else it is not well.
    async fn close(&mut self) -> Happening {
        if let Some(Running { plugin, run }) = self.running.take() {
            let (noticed, is_wanted) = (&self.noticed, self.noticed.is_wanted());
            let over = async {
                tokio::select! {
                    () = noticed.over() => {}
                    () = sleep(DRAIN_WAIT), if is_wanted => {}
                }
            };
            tokio::select! {
                () = run.drained(over) => {}
                _ = plugin.ended() => {}
            }
            let ended = plugin.stop().await;
            tracing::debug!(plugin = self.figures.name, %ended, "an instance was ended");
        }
        Happening::Closed
    }
}

/// Starts a process and asks it what it can do. When this fails, nothing of the process is left.
async fn started(spec: &Spec, figures: &Figures) -> Result<Running, Error> {
    let mut start = (spec.start)();
    let (printing, theirs) = (Printing::new(&figures.lines), start.output);
    start.output = Arc::new(move |printed: Printed| {
        printing.take(&printed);
        theirs(printed);
    });
    start.start_wait = spec.start_wait;
    let bounds = start.bounds;
    let plugin = Plugin::start(start).await?;
    let run = Arc::new(Run::begin(&plugin, bounds, spec, &figures.name).await?);
    Ok(Running { plugin, run })
}

fn has_ended(reason: String, run: &Run) -> Happening {
    Happening::Ended { reason, under_call: run.ended_under_call() }
}

/// Its connection has ended: with its process, or alone.
async fn lost(plugin: &Plugin, run: &Run) -> Happening {
    match timeout(DEATH_WAIT, plugin.ended()).await {
        Ok(ended) => has_ended(ended.to_string(), run),
        Err(_) => Happening::Lost("its connection has ended".to_owned()),
    }
}

/// The next look at it.
async fn looked(plugin: &Plugin, run: &Run) -> Happening {
    sleep(CHECK_EVERY).await;
    run.weigh(plugin.pid()).await;
    match plugin.check().await {
        Ok(()) => Happening::Well,
        Err(error) => Happening::Missed(error.to_string()),
    }
}

/// What the next start cannot cure: the file, the machine or the plugin's code has to change.
fn is_for_good(error: &Error) -> bool {
    matches!(
        error,
        Error::File { .. }
            | Error::Checksum { .. }
            | Error::Sandbox { .. }
            | Error::Version { .. }
            | Error::Contract(_)
    )
}
