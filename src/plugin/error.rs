use std::{io, path::PathBuf, time::Duration};

use crate::{guard::Measure, logs::shown};

/// What went wrong with a plugin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The plugin's file cannot be opened, read or executed.
    #[error("{path}: {source}; is it there, and executable for this user?", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is another one than was installed.
    #[error("{path} has SHA-256 {found}, not {expected}; install the plugin again", path = path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// In hexadecimal digits.
        expected: String,
        /// In hexadecimal digits.
        found: String,
    },
    /// A system call of the host failed: memory, file descriptors, processes.
    #[error("cannot {what}: {source}")]
    System {
        /// The thing that was tried.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A measure is demanded for the plugin and does not hold on this machine. It was not started.
    #[error(
        "{measure} is demanded and does not hold here: {reason}; {advice}, or do not demand it",
        advice = measure.advice()
    )]
    Sandbox {
        /// The measure.
        measure: Measure,
        /// What the machine lacks.
        reason: String,
    },
    /// The process printed no first line in time. It has been killed.
    #[error("no first line within {waited:?}; a plugin prints its address first. {said}")]
    Silent {
        /// The time that was waited.
        waited: Duration,
        /// The last lines of its standard error, or that there are none.
        said: String,
    },
    /// The process ended before its first line.
    #[error("ended before its first line ({status}). {said}")]
    EndedEarly {
        /// Its exit status or signal.
        status: String,
        /// The last lines of its standard error, or that there are none.
        said: String,
    },
    /// The first line is none of go-plugin's, or one that this host does not speak.
    #[error("{reason}; the first line was {line:?}")]
    Handshake {
        /// The part that is wrong.
        reason: String,
        /// The line, cut to 200 characters.
        line: String,
    },
    /// The plugin chose a version that the host did not offer.
    #[error("it speaks version {chosen}, and the host {offered:?}; use a plugin or host that fits")]
    Version {
        /// The plugin's choice.
        chosen: u32,
        /// Those of the host.
        offered: Vec<u32>,
    },
    /// An address that cannot be dialled or listened at.
    #[error("{address}: {reason}")]
    Address {
        /// The address, as it was given.
        address: String,
        /// The part that is wrong.
        reason: String,
    },
    /// The plugin cannot be reached, or the connection to it ended.
    #[error("cannot reach the plugin at {address}: {reason}")]
    Unreachable {
        /// The place that was dialled.
        address: String,
        /// The reason.
        reason: String,
    },
    /// A certificate, a key, or a TLS handshake was wrong.
    #[error("TLS: {0}")]
    Tls(String),
    /// Something that has a deadline took longer.
    #[error("{what} took longer than {limit:?}")]
    Late {
        /// The thing that took long.
        what: &'static str,
        /// Its limit.
        limit: Duration,
    },
    /// The plugin, or the process at the other end, is gone.
    #[error("the plugin has ended")]
    Ended,
    /// A call was answered with a gRPC status.
    #[error("{method}: {status}", status = shown(&status.to_string()))]
    Status {
        /// The method, as `package.Service/Method`.
        method: String,
        /// The status, as it came; boxed, since it is large.
        status: Box<tonic::Status>,
    },
    /// The plugin answers, and says that it is not well.
    #[error("the plugin is not serving (health status {status})")]
    NotServing {
        /// As in `grpc.health.v1.HealthCheckResponse`.
        status: i32,
    },
    /// The broker's other side refused a service, or announced none.
    #[error("broker: {0}")]
    Broker(String),
    /// A description, a method or a message of a plugin's own contract does not fit.
    #[error("{0}")]
    Contract(String),
    /// Something that would pass a limit.
    #[error("{what} of {size} is over the limit of {limit}")]
    TooLarge {
        /// The thing.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
}

impl Error {
    /// An error of a system call.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// Fails with [`Error::TooLarge`] above the limit.
    pub(crate) fn at_most(what: &'static str, size: usize, limit: usize) -> Result<(), Self> {
        if size > limit { Err(Self::TooLarge { what, size, limit }) } else { Ok(()) }
    }

    /// A call that was answered with a status.
    pub(crate) fn status(method: &str) -> impl FnOnce(tonic::Status) -> Self {
        let method = method.to_owned();
        move |status| Self::Status { method, status: Box::new(status) }
    }
}
