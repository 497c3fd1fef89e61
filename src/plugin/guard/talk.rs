//! What host and guard say to each other over their socket. The host begins with the file to
//! execute; then come single bytes, its orders, one way, and lines, the guard's reports, the other.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::{Measure, MeasureState, held::one_line};

/// The host's order to ask the plugin to end, by SIGTERM.
pub(crate) const TERM: u8 = b'T';

/// The host's order to kill the plugin. The end of the stream means the same.
pub(crate) const KILL: u8 = b'K';

/// The byte that the file comes with.
const FILE: u8 = b'F';

/// What a guard tells its host, and, of the measures only, the process that becomes the plugin its
/// guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// A measure was asked for, and holds or not.
    Measure(Measure, MeasureState),
    /// The plugin runs, as the process with this number; or it could not be executed and has ended.
    Started(u32),
    /// The plugin has ended, with this status as `wait` gives it. What it has left behind is being
    /// killed.
    Ended(i32),
    /// Nothing of the plugin runs any more. The guard removes the plugin's folder and ends.
    Clean,
}

/// The line for [`Report::Clean`].
const CLEAN: &str = "clean";

impl Report {
    /// As a line, with its end.
    pub(super) fn line(&self) -> String {
        match self {
            Self::Measure(measure, MeasureState::NotAvailable(reason)) => {
                format!("lacks {measure} {}\n", one_line(reason))
            }
            Self::Measure(measure, _) => format!("holds {measure}\n"),
            Self::Started(pid) => format!("started {pid}\n"),
            Self::Ended(status) => format!("ended {status}\n"),
            Self::Clean => format!("{CLEAN}\n"),
        }
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        if line.trim_end() == CLEAN {
            return Some(Self::Clean);
        }
        match line.trim_end().split_once(' ')? {
            ("holds", measure) => {
                Some(Self::Measure(Measure::named(measure)?, MeasureState::Holds))
            }
            ("lacks", rest) => {
                let (measure, reason) = rest.split_once(' ')?;
                let answer = MeasureState::NotAvailable(reason.to_owned());
                Some(Self::Measure(Measure::named(measure)?, answer))
            }
            ("started", pid) => pid.parse().ok().map(Self::Started),
            ("ended", status) => status.parse().ok().map(Self::Ended),
            _ => None,
        }
    }
}

/// Sends the file that the guard is to execute. It waits in the socket until the guard runs.
///
/// As a message, since every other way has a fault: a descriptor that is inherited has to stand
/// open for all processes that the host starts at that moment, and `/proc/HOST/fd/N` is closed to a
/// plugin of another user.
pub(crate) fn hand_over(socket: &UnixStream, file: BorrowedFd<'_>) -> io::Result<()> {
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(&files));
    assert!(fits, "BUG: there is space for one descriptor");
    sendmsg(socket, &[IoSlice::new(&[FILE])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes the file. Nothing behind it is read from the socket.
pub(super) fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    let mut files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let file = files.next().and_then(|mut files| files.next());
    file.ok_or_else(|| io::Error::other("the host handed over no file"))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read as _, Seek as _, Write as _},
        os::fd::AsFd as _,
    };

    use super::*;

    #[test]
    fn reports_are_read_as_they_were_written() {
        for report in [
            Report::Started(1),
            Report::Started(u32::MAX),
            Report::Ended(-1),
            Report::Clean,
            Report::Measure(Measure::Files, MeasureState::Holds),
            Report::Measure(
                Measure::Tasks,
                MeasureState::NotAvailable("no such: thing".to_owned()),
            ),
        ] {
            assert_eq!(Report::parse(&report.line()), Some(report));
        }
        for wrong in ["", "\n", "started", "started \n", "started -1", "ended x", "clean 1"] {
            assert_eq!(Report::parse(wrong), None, "{wrong:?}");
        }
        for wrong in ["holds", "holds all", "lacks files", "lacks all of it", "holds files now"] {
            assert_eq!(Report::parse(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn all_reports_of_a_start_have_room() {
        let reason = "€".repeat(2 * crate::limits::REASON_CHARACTERS_MAX);
        let lacks = |measure| Report::Measure(measure, MeasureState::NotAvailable(reason.clone()));
        let measures = Measure::ALL.map(lacks);
        let others = [Report::Started(u32::MAX), Report::Ended(i32::MIN), Report::Clean];
        let all = measures.into_iter().chain(others);
        let bytes: usize = all.map(|report| report.line().len()).sum();
        assert!(bytes as u64 <= crate::limits::REPORT_BYTES_MAX, "{bytes}");
    }

    #[test]
    fn a_file_is_handed_over_and_orders_stay_behind_it() {
        let (mut host, mut guard) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        hand_over(&host, file.as_fd()).unwrap();
        host.write_all(&[TERM, KILL]).unwrap();
        drop((file, host));

        let mut taken = File::from(receive(&guard).unwrap());
        let flags = rustix::io::fcntl_getfd(&taken).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let (mut content, mut orders) = (String::new(), Vec::new());
        taken.rewind().unwrap();
        taken.read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
        guard.read_to_end(&mut orders).unwrap();
        assert_eq!(orders, [TERM, KILL]);
        assert!(receive(&guard).is_err(), "the host is gone");
    }
}
