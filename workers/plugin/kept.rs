//! One plugin on this worker, brought to what is wanted of it.

use std::{sync::Arc, time::Duration};

use flexcore_domain::Name;
use flexcore_eventstore::plugins::InstalledPlugin;
use flexcore_plugin::Checked;
use flexcore_pool::{ChangeError, Pool, PoolState, wanted as instances_wanted};
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Shared, Wanted,
    calls::{Calls, InForce},
    change::{Change, change},
    configurations, files,
    reports::Standing,
    start,
};

/// Longest time for calls under way once the plugin is to stop; then they are told that it ended. Other workers
/// have the new ones.
pub(super) const DRAIN_MAX: Duration = Duration::from_secs(10);

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
        files::clean(&kept.shared).await;
    }
    kept.stop().await;
}

impl Kept {
    async fn follow(&mut self, now: Option<Arc<InstalledPlugin>>, wanted: &Wanted) {
        let in_service = self.running.as_ref().map(|running| &*running.installed);
        let next = change(in_service, self.tried, now.as_deref());
        let Some(now) = now else { return self.stop().await };
        match next {
            Change::Start | Change::Upgrade => self.take_up(now, wanted).await,
            Change::Restart => self.restart(&now, wanted).await,
            Change::Keep => self.keep_as(&now),
            Change::Stop => self.stop().await,
        }
    }

    /// Fetches the file, and starts what is installed, beside what runs if something does. Gives up when
    /// something else is wanted meanwhile.
    async fn take_up(&mut self, now: Arc<InstalledPlugin>, wanted: &Wanted) {
        self.tell(&now, "fetching", None);
        let tell = |reason| self.tell(&now, "fetching", Some(reason));
        let fetched = tokio::select! {
            fetched = files::fetch(&self.shared, &now, tell) => fetched,
            () = something_else(wanted.clone()) => return,
        };
        let taken_up = match fetched {
            Ok(file) => self.run(&now, file, wanted).await,
            Err(reason) => Some(Err(reason)),
        };
        let Some(taken_up) = taken_up else { return };
        self.tried = now.number;
        if let Err(reason) = &taken_up {
            let version = now.manifest.version.as_str();
            tracing::warn!(plugin = %self.name, version, reason, "a plugin cannot be taken up");
        }
        self.tell(&now, "failed", taken_up.err());
    }

    /// Fails with the reason when an upgrade does not start and the one before stays in service. Returns nothing
    /// when something else is wanted meanwhile: that is taken up instead.
    async fn run(
        &mut self,
        now: &Arc<InstalledPlugin>,
        file: Checked,
        wanted: &Wanted,
    ) -> Option<Result<(), String>> {
        let user = self.shared.users.of(&self.name);
        let configurations = configurations::of(&self.shared, &self.name);
        let guard = &self.shared.settings.guard;
        let spec = start::spec(now, file, guard, user, configurations);
        let pool = self.running.as_ref().map(|running| &running.pool);
        if pool.is_some_and(|pool| pool.status().state == PoolState::Failed) {
            // There is nothing to keep in service.
            self.end().await;
        }
        let Some(running) = &mut self.running else {
            self.running = Some(self.started(now, Pool::new(spec)));
            return Some(Ok(()));
        };
        let before = running.in_force.borrow().clone();
        before.leaves(true);
        let upgraded = tokio::select! {
            upgraded = running.pool.upgrade(spec) => upgraded,
            () = something_else(wanted.clone()) => {
                // What is being started is dropped, and the one before stays.
                before.leaves(false);
                return None;
            }
        };
        if let Err(error) = upgraded {
            let new = now.manifest.version.as_str();
            if !error.in_place {
                before.leaves(false);
                let version = running.installed.manifest.version.as_str();
                let stays = format!("version {version} stays in service");
                return Some(Err(format!("version {new} does not start: {error}; {stays}")));
            }
            // The pool tries on, and says itself why nothing is ready.
            tell_late(&self.name, new, &error);
        }
        // The pool gives calls to the new version already. For this moment they are held to the rules of the one
        // before: its tenants, its places, its schemas.
        let in_force = Arc::new(InForce::new(now.clone()));
        in_force.learn(&running.pool).await;
        running.in_force.send_replace(in_force);
        running.installed = now.clone();
        Some(Ok(()))
    }

    fn started(&self, now: &Arc<InstalledPlugin>, pool: Pool) -> Running {
        let (in_force, receiver) = watch::channel(Arc::new(InForce::new(now.clone())));
        let calls = Calls {
            store: self.shared.store.clone(),
            name: self.name.clone(),
            pool: pool.clone(),
            in_force: receiver,
            checks: self.shared.checks.clone(),
        };
        let stop = CancellationToken::new();
        let (shared, name) = (self.shared.clone(), self.name.clone());
        let looks = configurations::serve(shared, name, pool.clone(), stop.clone());
        let calls = calls.serve(stop.clone());
        let serving = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::join!(calls, looks);
        }));
        Running { installed: now.clone(), pool, in_force, stop, serving }
    }

    async fn restart(&mut self, now: &Arc<InstalledPlugin>, wanted: &Wanted) {
        let Some(running) = &mut self.running else { return };
        let restarted = tokio::select! {
            restarted = running.pool.restart() => restarted,
            // It is followed instead, and the restart with it.
            () = something_else(wanted.clone()) => return,
        };
        // Where nothing is ready, the pool tries on, and says itself why nothing is.
        let failed = restarted.err().filter(|error| !error.in_place);
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

    /// Ends what runs, and forgets the plugin.
    async fn stop(&mut self) {
        self.end().await;
        self.tried = 0;
        instances_wanted(self.name.as_str(), 0);
        self.shared.users.give_back(&self.name);
        self.shared.board.remove(&self.name);
    }

    /// Stops taking calls, then the instances.
    async fn end(&mut self) {
        let Some(Running { pool, stop, mut serving, .. }) = self.running.take() else { return };
        stop.cancel();
        let in_time = timeout(DRAIN_MAX, &mut serving).await.is_ok();
        // Those that are left have had their time.
        pool.stop(Duration::ZERO).await;
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
        instances_wanted(self.name.as_str(), instances);
        let standing = Standing { number, instances, in_service, word, reason };
        self.shared.board.set(&self.name, standing);
    }
}

fn tell_late(name: &Name, version: &str, error: &ChangeError) {
    tracing::warn!(plugin = %name, version, %error, "a plugin does not start yet");
}

/// Returns when something else is wanted than when this was called, or nobody says any more.
async fn something_else(mut wanted: Wanted) {
    // A sender that is gone ends it, too.
    let _ = wanted.changed().await;
}

#[cfg(test)]
mod tests {
    use flexcore_plugin::limits::{KILL_WAIT, SHUTDOWN_WAIT, TERM_WAIT};

    use super::{super::STOP_MAX, *};

    #[test]
    fn calls_and_processes_end_before_the_worker_does() {
        let processes = SHUTDOWN_WAIT + TERM_WAIT + KILL_WAIT;
        assert!(DRAIN_MAX + processes + ANSWER_MAX < STOP_MAX);
    }
}
