//! Errors, by the action that a caller can take.

use std::{io, time::SystemTimeError};

use async_nats::jetstream::{
    context::PublishError,
    stream::{DeleteMessageError, DirectGetError},
};
use flexcore_cluster as cluster;
use flexcore_definition::Problem;
use flexcore_domain::{InvalidName, Name, limits::QUEUED_BYTES_MAX};
use flexcore_eventstore as eventstore;
use flexcore_readmodel as readmodel;

/// Said where the queries of an application could not be checked.
pub const QUERIES_UNCHECKED: &str = "the queries cannot be checked";

/// Why an operation was not done, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of an application cannot be read.
    #[error("{path}")]
    File {
        /// Its path, as it was given.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The folder holds no application: no files, too many, or one that is too large.
    #[error("{0}")]
    Folder(String),
    /// The folder's name, which is the application's, breaks the rule of names.
    #[error("the folder's name, {name:?}, is the application's")]
    FolderName {
        /// The name.
        name: String,
        /// The rule.
        source: InvalidName,
    },
    /// The application declares an aggregate of the platform's.
    #[error("aggregate `{0}` is the platform's own: choose another name")]
    Reserved(&'static str),
    /// The application has mistakes, or takes names of others. Displays one a line.
    #[error("{}", listed(.0))]
    Refused(Vec<Problem>),
    /// Recorded events would be unreadable under this version.
    #[error(
        "version {version} is in force, and this one is not compatible with it:\n{}",
        listed(problems)
    )]
    Incompatible {
        /// The version in force.
        version: u32,
        /// The changes that cannot be made.
        problems: Vec<Problem>,
    },
    /// Postgres did not check the queries.
    #[error("{}", QUERIES_UNCHECKED)]
    QueriesUnchecked(#[source] readmodel::Error),
    /// This host's clock is before 1970.
    #[error("the clock")]
    Clock(#[source] SystemTimeError),
    /// Somebody else deployed between the look and the deployment.
    #[error("another deployment of {0} came first: look at it and apply again")]
    Overtaken(String),
    /// The member still has places: nobody takes them. It stays marked.
    #[error(
        "{member} still serves after {waited_s} s: is there another member of its role? It stays \
         marked; `flexcore cluster undrain {member}` takes that back"
    )]
    NotDrained {
        /// The member.
        member: String,
        /// How long that was waited for.
        waited_s: u64,
    },
    /// The rebuild could not be asked for.
    #[error("cannot ask for the rebuild")]
    NotAsked(#[source] readmodel::Error),
    /// No worker builds the read model. The request stays.
    #[error(
        "no projection worker has taken the rebuild up: start one (`flexcore worker \
         projection`); the request stays, and will be done then"
    )]
    NotTakenUp,
    /// The read model is no longer the one that was to be rebuilt.
    #[error(
        "the read model was declared anew or removed meanwhile; ask again if it is still \
         needed"
    )]
    Superseded,
    /// The log could not be looked at.
    #[error("no log at --nats")]
    NoLog(#[source] eventstore::Error),
    /// Rows of another log are still there.
    #[error("the old rows cannot be dropped")]
    NotDropped(#[source] readmodel::Error),
    /// It is not known if the rows are of the log.
    #[error("the log cannot be compared with the rows")]
    NotCompared(#[source] eventstore::Error),
    /// Dead letters cannot be read.
    #[error("reading FLEX_DEAD")]
    DeadUnread(#[source] async_nats::Error),
    /// There is no such dead letter.
    #[error("no dead message {0}: `flexcore dead list` shows the existing ones")]
    NoLetter(u64),
    /// The server that was asked does not have the dead letter yet.
    #[error("{number} is not on each server yet; try again")]
    NotEverywhere {
        /// Its number.
        number: u64,
        /// The answer.
        source: DirectGetError,
    },
    /// It is no command, and cannot be requeued.
    #[error(
        "{0} is no command: an event that a read model could not apply is still in the \
         log; correct the application, then `flexcore rebuild` the read model"
    )]
    NoCommand(u64),
    /// Not all of the dead letter was kept: a part of it is another command.
    #[error("{0}")]
    NotWhole(String),
    /// The command could not be handed to the broker. It stays on the list.
    #[error(transparent)]
    NotSent(PublishError),
    /// The command was sent, and no acknowledgement came.
    #[error("the command was not requeued; try again")]
    NotRequeued(#[source] PublishError),
    /// The command is larger than the queue takes.
    #[error(
        "{0} cannot be requeued: the queue takes {QUEUED_BYTES_MAX} bytes of a command at most, its \
         headers among them; send it again from where it came, with less"
    )]
    TooLarge(u64),
    /// The command was requeued and not taken off the list.
    #[error("requeued, but still on the list; requeue it again, nothing is done twice")]
    StillListed(#[source] DeleteMessageError),
    /// Somebody else has taken the dead letter off the list.
    #[error("{0} was taken off the list meanwhile, by somebody else")]
    TakenOff(u64),
    /// No plugin of this name is installed.
    #[error("no plugin {0} is installed: `flexcore plugin list` shows those that are")]
    NoPlugin(Name),
    /// Applications in force need the plugin.
    #[error(
        "plugin {plugin} is needed: {}; commands would be answered 503, and read models would stand still: \
         deploy these without it first, or remove it all the same (--force, force=true)",
        by.join(", ")
    )]
    PluginNeeded {
        /// The plugin's name.
        plugin: Name,
        /// What each application needs it for, with the first place that names it.
        by: Vec<String>,
    },
    /// The file cannot be a plugin's.
    #[error("{0}")]
    PluginFile(String),
    /// Somebody else installed, restarted or removed the plugin between the look and the deed.
    #[error("somebody else changed plugin {0} first: look at it and try again")]
    PluginOvertaken(Name),
    /// The workers could not be asked.
    #[error("the workers cannot be asked: {0}")]
    WorkersUnasked(String),
    /// The log did not do what was asked.
    #[error(transparent)]
    Log(#[from] eventstore::Error),
    /// Postgres did not do what was asked.
    #[error(transparent)]
    ReadModels(#[from] readmodel::Error),
    /// The cluster's state could not be read.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
}

impl Error {
    /// True if doing the same again may succeed without anybody's help. Else a person has to mend
    /// something, or to look first.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Log(error) | Self::NoLog(error) | Self::NotCompared(error) => error.is_passing(),
            Self::ReadModels(error)
            | Self::QueriesUnchecked(error)
            | Self::NotAsked(error)
            | Self::NotDropped(error) => error.is_passing(),
            Self::Cluster(error) => error.is_passing(),
            Self::DeadUnread(_)
            | Self::NotEverywhere { .. }
            | Self::NotSent(_)
            | Self::NotRequeued(_)
            | Self::StillListed(_)
            | Self::WorkersUnasked(_) => true,
            Self::File { .. }
            | Self::Folder(_)
            | Self::FolderName { .. }
            | Self::Reserved(_)
            | Self::Refused(_)
            | Self::Incompatible { .. }
            | Self::Clock(_)
            | Self::Overtaken(_)
            | Self::NotDrained { .. }
            | Self::NotTakenUp
            | Self::Superseded
            | Self::NoLetter(_)
            | Self::NoCommand(_)
            | Self::TooLarge(_)
            | Self::NotWhole(_)
            | Self::NoPlugin(_)
            | Self::PluginNeeded { .. }
            | Self::PluginFile(_)
            | Self::PluginOvertaken(_)
            | Self::TakenOff(_) => false,
        }
    }
}

/// Problems, one a line.
fn listed(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use async_nats::jetstream::{context::PublishErrorKind, stream::DirectGetErrorKind};

    use super::*;

    fn away() -> readmodel::Error {
        readmodel::Error::Unavailable("no connection in time".to_owned())
    }

    #[test]
    fn outages_pass_and_a_person_mends_the_rest() {
        let full = eventstore::Error::NoRoom("1 GiB".to_owned());
        let passing = [
            Error::Log(full),
            Error::NotAsked(away()),
            Error::QueriesUnchecked(away()),
            Error::Cluster(cluster::Error::Unavailable("no answer".to_owned())),
            Error::NotRequeued(PublishErrorKind::TimedOut.into()),
            Error::NotEverywhere { number: 7, source: DirectGetErrorKind::NotFound.into() },
        ];
        for error in passing {
            assert!(error.is_passing(), "{error:?}");
        }
        let wrong = readmodel::Error::Database("permission denied".to_owned());
        let mended = [
            Error::NotDropped(wrong),
            Error::NoLog(eventstore::Error::Misconfigured("2 replicas".to_owned())),
            Error::Overtaken("flights".to_owned()),
            Error::NotTakenUp,
            Error::NoLetter(7),
            Error::TooLarge(7),
        ];
        for error in mended {
            assert!(!error.is_passing(), "{error:?}");
        }
    }

    /// The command line prints an error and what caused it, each once.
    #[test]
    fn a_cause_stands_behind_the_text_or_in_it() {
        let error = Error::NotAsked(away());
        assert_eq!(error.to_string(), "cannot ask for the rebuild");
        let cause = error.source().map(ToString::to_string);
        assert_eq!(cause, Some("Postgres is unavailable: no connection in time".to_owned()));
        let error = Error::ReadModels(away());
        assert_eq!(error.to_string(), "Postgres is unavailable: no connection in time");
        assert!(error.source().is_none());
    }
}
