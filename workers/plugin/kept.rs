//! One plugin on this worker, brought to what is wanted of it.

use std::{sync::Arc, time::Duration};

use flexcore_domain::Name;
use flexcore_eventstore::plugins::InstalledPlugin;
use flexcore_plugin::Checked;
use flexcore_pool::{Pool, PoolState};
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Shared, Wanted,
    calls::{Calls, InForce},
    change::{Change, change},
    files,
    reports::Standing,
    start,
};

/// Longest time for calls under way once the plugin is to stop; then they are told that it ended. Other workers
/// have the new ones.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Longest time for the last answers once the instances have ended.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// A plugin as this worker keeps it.
struct Kept {
    shared: Arc<Shared>,
    name: Name,
    /// The number of the last installation or restart that was taken up, whatever came of it; 0: none.
    tried: u32,
    running: Option<Running>,
}

/// The part of it that runs.
struct Running {
    installed: Arc<InstalledPlugin>,
    pool: Pool,
    in_force: watch::Sender<Arc<InForce>>,
    stop: CancellationToken,
    serving: AbortOnDropHandle<()>,
}

/// Brings this worker to what is wanted of a plugin, again and again, until nobody says any more what that is.
/// Then it stops the plugin, and returns when that has ended.
pub(super) async fn keep(shared: Arc<Shared>, name: Name, mut wanted: Wanted) {
    let mut kept = Kept { shared, name, tried: 0, running: None };
    while wanted.changed().await.is_ok() {
        let now = wanted.borrow_and_update().clone();
        kept.follow(now, &wanted).await;
    }
    kept.stop().await;
}

impl Kept {
    async fn follow(&mut self, now: Option<Arc<InstalledPlugin>>, wanted: &Wanted) {
        let in_service = self.running.as_ref().map(|running| &*running.installed);
        let next = change(in_service, self.tried, now.as_deref());
        let Some(now) = now else { return self.removed().await };
        match next {
            Change::Start | Change::Upgrade => self.take_up(now, wanted).await,
            Change::Restart => self.restart(&now, wanted).await,
            Change::Keep => self.keep_as(&now),
            Change::Stop => self.removed().await,
        }
    }

    /// Fetches the file, and starts what is installed, beside what runs if something does. Gives up when
    /// something else is wanted meanwhile.
    async fn take_up(&mut self, now: Arc<InstalledPlugin>, wanted: &Wanted) {
        self.tell(&now, "fetching", None);
        let fetched = tokio::select! {
            fetched = files::fetch(&self.shared, &now) => fetched,
            () = something_else(wanted.clone()) => return,
        };
        let taken_up = match fetched {
            Ok(file) => self.run(&now, file, wanted).await,
            Err(reason) => Err(reason),
        };
        self.tried = now.number;
        if let Err(reason) = &taken_up {
            let version = now.manifest.version.as_str();
            tracing::warn!(plugin = %self.name, version, reason, "a plugin cannot be taken up");
        }
        self.tell(&now, "failed", taken_up.err());
    }

    /// Fails with the reason when an upgrade does not start; the one before stays in service then.
    async fn run(
        &mut self,
        now: &Arc<InstalledPlugin>,
        file: Checked,
        wanted: &Wanted,
    ) -> Result<(), String> {
        let spec = start::spec(now, file, &self.shared.settings.guard);
        let pool = self.running.as_ref().map(|running| &running.pool);
        if pool.is_some_and(|pool| pool.status().state == PoolState::Failed) {
            // There is nothing to keep in service.
            self.end().await;
        }
        let Some(running) = &mut self.running else {
            self.running = Some(self.started(now, Pool::new(spec)));
            return Ok(());
        };
        let upgraded = tokio::select! {
            upgraded = running.pool.upgrade(spec) => upgraded,
            // What is under way is dropped, and the stop follows.
            () = nothing(wanted.clone()) => return Ok(()),
        };
        let version = running.installed.manifest.version.as_str();
        upgraded.map_err(|error| {
            let new = now.manifest.version.as_str();
            format!("version {new} does not start: {error}; version {version} stays in service")
        })?;
        let in_force = Arc::new(InForce::new(now.clone()));
        in_force.learn(&running.pool).await;
        running.in_force.send_replace(in_force);
        let before = std::mem::replace(&mut running.installed, now.clone());
        if before.sha256 != now.sha256 {
            files::forget(&self.shared.settings.folder, &before.sha256).await;
        }
        Ok(())
    }

    fn started(&self, now: &Arc<InstalledPlugin>, pool: Pool) -> Running {
        let (in_force, receiver) = watch::channel(Arc::new(InForce::new(now.clone())));
        let calls = Calls {
            store: self.shared.store.clone(),
            name: self.name.clone(),
            pool: pool.clone(),
            in_force: receiver,
        };
        let stop = CancellationToken::new();
        let serving = AbortOnDropHandle::new(tokio::spawn(calls.serve(stop.clone())));
        Running { installed: now.clone(), pool, in_force, stop, serving }
    }

    async fn restart(&mut self, now: &Arc<InstalledPlugin>, wanted: &Wanted) {
        let Some(running) = &mut self.running else { return };
        let restarted = tokio::select! {
            restarted = running.pool.restart() => restarted,
            () = nothing(wanted.clone()) => return,
        };
        // Where nothing is ready, the pool tries on, and says itself why nothing is.
        let failed = restarted.err().filter(|_| running.pool.status().ready > 0);
        let reason = failed.map(|error| format!("it goes on, as it does not start anew: {error}"));
        running.installed = now.clone();
        self.tried = now.number;
        self.tell(now, "failed", reason);
    }

    /// What runs is what is wanted: it goes on under the new number.
    fn keep_as(&mut self, now: &Arc<InstalledPlugin>) {
        if self.tried == now.number {
            return;
        }
        self.tried = now.number;
        if let Some(running) = &mut self.running {
            running.installed = now.clone();
        }
        self.tell(now, "failed", None);
    }

    /// Ends what runs, forgets the plugin, and removes its file.
    async fn removed(&mut self) {
        let file = self.running.as_ref().map(|running| running.installed.sha256.clone());
        self.stop().await;
        if let Some(sha256) = file {
            files::forget(&self.shared.settings.folder, &sha256).await;
        }
    }

    /// Ends what runs, and forgets the plugin. Its file stays: the worker itself may be stopping.
    async fn stop(&mut self) {
        self.end().await;
        self.tried = 0;
        self.shared.board.remove(&self.name);
    }

    /// Stops taking calls, then the instances.
    async fn end(&mut self) {
        let Some(Running { pool, stop, mut serving, .. }) = self.running.take() else { return };
        stop.cancel();
        let in_time = timeout(DRAIN_MAX, &mut serving).await.is_ok();
        pool.stop().await;
        if !in_time {
            // Calls have failed by now, and are told so.
            let _ = timeout(ANSWER_MAX, &mut serving).await;
        }
    }

    /// Tells whoever asks what this worker has. The word is for a plugin that does not run.
    fn tell(&self, wanted: &InstalledPlugin, word: &'static str, reason: Option<String>) {
        let in_service =
            self.running.as_ref().map(|running| (running.installed.clone(), running.pool.clone()));
        let (number, instances) = (self.tried, wanted.manifest.instances);
        let standing = Standing { number, instances, in_service, word, reason };
        self.shared.board.set(&self.name, standing);
    }
}

/// Returns when something else is wanted than when this was called, or nobody says any more.
async fn something_else(mut wanted: Wanted) {
    // A sender that is gone ends it, too.
    let _ = wanted.changed().await;
}

/// Returns when the plugin is not wanted any more.
async fn nothing(mut wanted: Wanted) {
    drop(wanted.wait_for(Option::is_none).await);
}
