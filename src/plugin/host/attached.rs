//! A plugin's process that another host has started.

use std::{os::fd::OwnedFd, process, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal, test_kill_process,
    },
};
use tokio::time::{sleep, timeout};

use super::reattach::Reattach;
use crate::{
    Error,
    guard::Held,
    limits::{PID_LOOK_PAUSE, SHUTDOWN_WAIT, TERM_WAIT},
};

/// The process of a plugin, which lives on when this is dropped.
pub(super) struct Attached {
    pid: Pid,
    /// The process itself, even when another one has its number. None where the kernel has no such
    /// file descriptors.
    fd: Option<OwnedFd>,
    is_test: bool,
    /// Nothing.
    held: Held,
}

impl Attached {
    /// Fails if there is no such process.
    pub(super) fn new(at: &Reattach) -> Result<Self, Error> {
        let unreachable = |reason: String| {
            let (_, address) = at.address.parts();
            Error::Unreachable { address, reason }
        };
        // 0 stands for this host's own group, and nobody means the first process.
        let others = |pid: &u32| *pid > 1 && *pid != process::id();
        let raw = Some(at.pid).filter(others).and_then(|pid| i32::try_from(pid).ok());
        let pid = raw
            .and_then(Pid::from_raw)
            .ok_or_else(|| unreachable(format!("process {} is no plugin", at.pid)))?;
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Some(fd),
            Err(Errno::SRCH) => {
                return Err(unreachable(format!("process {} has ended", at.pid)));
            }
            // The kernel is too old for them, or forbids them.
            Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => None,
            // Its number alone is not enough where the reason is this host's.
            Err(errno) => return Err(Error::system("watch a plugin's process")(errno.into())),
        };
        let attached = Self { pid, fd, is_test: at.test, held: Held::default() };
        match attached.is_there() {
            true => Ok(attached),
            false => Err(unreachable(format!("process {} has ended", at.pid))),
        }
    }

    /// Waits until the process has ended.
    pub(super) async fn ended(&self) {
        while self.is_there() {
            sleep(PID_LOOK_PAUSE).await;
        }
    }

    /// Makes it end. If it `heard` that it is to end, it has time to do so first. Nothing can be
    /// done about a process that this user may not signal.
    pub(super) async fn stop(&self, heard: bool) {
        let first = if heard { SHUTDOWN_WAIT } else { Duration::ZERO };
        let steps =
            [(first, Some(Signal::TERM)), (TERM_WAIT, Some(Signal::KILL)), (TERM_WAIT, None)];
        for (wait, signal) in steps {
            if timeout(wait, self.ended()).await.is_ok() {
                return;
            }
            if let Some(signal) = signal {
                self.signal(signal);
            }
        }
        tracing::warn!(pid = self.pid.as_raw_pid(), "a reattached plugin does not end");
    }

    /// What is known of its sandbox.
    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    pub(super) fn is_test(&self) -> bool {
        self.is_test
    }

    fn signal(&self, signal: Signal) {
        let sent = match &self.fd {
            Some(fd) => pidfd_send_signal(fd, signal),
            None => kill_process(self.pid, signal),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, pid = self.pid.as_raw_pid(), "cannot signal a plugin");
        }
    }

    /// Another user's process is there, too. One that has ended, and that its parent has not looked
    /// at yet, is not, where the kernel has file descriptors for processes.
    fn is_there(&self) -> bool {
        let Some(fd) = &self.fd else {
            return !matches!(test_kill_process(self.pid), Err(Errno::SRCH));
        };
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A signal interrupts even a look that does not wait, which says nothing.
        !matches!(poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)), Ok(1..))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::{Child, Command},
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        thread,
        time::Instant,
    };

    use rustix::thread::gettid;
    use tokio::signal::unix::{SignalKind, signal};

    use super::*;
    use crate::transport::Address;

    fn at(pid: u32) -> Reattach {
        let address = Address::Unix("/nowhere".into());
        Reattach { version: 1, address, pid, test: false }
    }

    fn sleeps() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    #[tokio::test]
    async fn only_another_process_that_is_there_can_be_attached_to() {
        let mut child = sleeps();
        let gone = child.id();
        child.kill().unwrap();
        child.wait().unwrap();
        for pid in [0, 1, process::id(), u32::MAX, gone] {
            let attached = Attached::new(&at(pid));
            assert!(matches!(attached, Err(Error::Unreachable { .. })), "{pid}");
        }
    }

    #[tokio::test]
    async fn its_end_is_noticed_even_before_somebody_waits_for_it() {
        let mut child = sleeps();
        let attached = Attached::new(&at(child.id())).unwrap();
        let early = timeout(PID_LOOK_PAUSE, attached.ended()).await;
        assert!(early.is_err(), "it is there");
        child.kill().unwrap();
        // Until its parent waits it is a zombie, which has ended all the same.
        if attached.fd.is_some() {
            timeout(TERM_WAIT, attached.ended()).await.unwrap();
        }
        child.wait().unwrap();
        timeout(TERM_WAIT, attached.ended()).await.unwrap();
    }

    /// Every host with children has a handler for the signal of their end.
    #[tokio::test]
    async fn a_signal_in_between_is_no_end() {
        let _handler = signal(SignalKind::child()).unwrap();
        let mut child = sleeps();
        let attached = Attached::new(&at(child.id())).unwrap();
        let (this, done) = (gettid(), AtomicBool::new(false));
        let (mut interrupted, mut ends) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    kill_process(this, Signal::CHILD).unwrap();
                }
            });
            let until = Instant::now() + Duration::from_secs(60);
            let mut looks = 0;
            while looks < 100_000 || (interrupted == 0 && Instant::now() < until) {
                looks += 1;
                let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                let raw = attached.fd.as_ref().map(|fd| {
                    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&now)) == Err(Errno::INTR)
                });
                interrupted += usize::from(raw.unwrap_or(true));
                ends += usize::from(!attached.is_there());
            }
            done.store(true, Relaxed);
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(interrupted > 0, "no look was interrupted");
        assert_eq!(ends, 0);
    }

    #[tokio::test]
    async fn it_is_ended_if_it_does_not_end() {
        let mut child = sleeps();
        let attached = Attached::new(&at(child.id())).unwrap();
        attached.stop(false).await;
        // SIGTERM was enough.
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    }

    #[tokio::test]
    async fn it_lives_on_when_this_is_dropped() {
        let mut child = sleeps();
        drop(Attached::new(&at(child.id())).unwrap());
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
