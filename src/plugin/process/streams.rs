//! What a plugin prints, read for ever.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::{
    io::AsyncReadExt as _,
    process::{ChildStderr, ChildStdout},
    sync::watch,
    task::yield_now,
};

use super::{Output, Printed, last_words};
use crate::{
    limits::{
        HANDSHAKE_BYTES_MAX, LOG_READ_BYTES, READ_BYTES, SAID_CHARACTERS_MAX, SAID_LINES_MAX,
    },
    logs::{Lines, Part, Split, clean},
};

/// The first line of standard output, or the beginning of one that is too long.
pub(super) type First = Result<Bytes, Bytes>;

/// Reads a plugin's standard output: tells its first line, and hands on all that comes behind it.
pub(super) async fn read_stdout(
    mut stdout: ChildStdout,
    first: watch::Sender<Option<First>>,
    output: Output,
) {
    let mut line = Some(FirstLine::default());
    let mut chunk = vec![0; READ_BYTES];
    while let Ok(count @ 1..) = stdout.read(&mut chunk).await {
        let mut bytes = &chunk[..count];
        if let Some((found, rest)) = line.as_mut().map(|line| line.push(bytes)) {
            bytes = rest;
            if found.is_some() {
                first.send_replace(found);
                line = None;
            }
        }
        if !bytes.is_empty() {
            output(Printed::Stdout(Bytes::copy_from_slice(bytes)));
        }
    }
}

/// Reads a plugin's standard error, as lines of its log.
pub(super) async fn read_logs(mut stderr: ChildStderr, said: Arc<Said>, output: Output) {
    let (mut split, mut lines) = (Split::default(), Lines::default());
    let mut each = |bytes: &[u8], part: Part| {
        said.add(bytes);
        output(Printed::Log(lines.line(bytes, part)));
    };
    let mut chunk = vec![0; LOG_READ_BYTES];
    while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
        split.push(&chunk[..count], &mut each);
        // A flood leaves others their turn. The runtime's own budget counts reads, not lines.
        yield_now().await;
    }
    split.end(&mut each);
}

/// A first line that is not complete.
#[derive(Default)]
struct FirstLine(Vec<u8>);

impl FirstLine {
    /// Takes more bytes. Returns the line when it is complete, or too long, and the bytes behind.
    fn push<'a>(&mut self, bytes: &'a [u8]) -> (Option<First>, &'a [u8]) {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (more, rest) = match end {
            Some(end) => (&bytes[..end], &bytes[end + 1..]),
            None => (bytes, &[][..]),
        };
        let room = HANDSHAKE_BYTES_MAX - self.0.len();
        self.0.extend_from_slice(&more[..more.len().min(room)]);
        if more.len() > room {
            (Some(Err(std::mem::take(&mut self.0).into())), rest)
        } else if end.is_some() {
            (Some(Ok(std::mem::take(&mut self.0).into())), rest)
        } else {
            (None, rest)
        }
    }
}

/// The last lines that a plugin printed on standard error.
#[derive(Default)]
pub(super) struct Said(Mutex<VecDeque<String>>);

impl Said {
    fn add(&self, bytes: &[u8]) {
        // No character has more than four bytes.
        let beginning = &bytes[..bytes.len().min(SAID_CHARACTERS_MAX * 4)];
        let line = clean(String::from_utf8_lossy(beginning).trim_end());
        let mut lines = self.lines();
        if lines.len() == SAID_LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line.chars().take(SAID_CHARACTERS_MAX).collect());
    }

    pub(super) fn text(&self) -> String {
        Vec::from(self.lines().clone()).join("\n")
    }

    pub(super) fn last_words(&self) -> String {
        last_words(&self.text())
    }

    fn lines(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        process::Stdio,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use tokio::{process::Command, time::timeout};
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    /// The first line that comes of these chunks, and what is behind it.
    fn first(chunks: &[&[u8]]) -> (Option<First>, Vec<u8>) {
        let (mut line, mut found, mut behind) = (FirstLine::default(), None, Vec::new());
        for chunk in chunks.iter().copied() {
            let rest = if found.is_none() {
                let (first, rest) = line.push(chunk);
                found = first;
                rest
            } else {
                chunk
            };
            behind.extend_from_slice(rest);
        }
        (found, behind)
    }

    /// Pieces that are read, the first line if it is there by then, and what is behind it.
    type Case<'a> = (&'a [&'a [u8]], Option<First>, &'a [u8]);

    #[test]
    fn the_first_line_ends_with_a_line_feed_or_its_limit() {
        let most = vec![b'a'; HANDSHAKE_BYTES_MAX];
        let ok = |line: &[u8]| Some(Ok(Bytes::copy_from_slice(line)));
        let long = Some(Err(Bytes::from(most.clone())));
        let cases: [Case<'_>; 10] = [
            (&[], None, b""),
            (&[b"1|4"], None, b""),
            (&[b"1|4", b"", b"|unix"], None, b""),
            (&[b"\n"], ok(b""), b""),
            (&[b"1|4\n"], ok(b"1|4"), b""),
            (&[b"1|", b"4\r\nmo", b"re\n"], ok(b"1|4\r"), b"more\n"),
            (&[&most], None, b""),
            (&[&most, b"\n", b"x"], ok(&most), b"x"),
            (&[&most, b"b\nc", b"d"], long.clone(), b"cd"),
            (&[b"a", &most, b"\n"], long, b"\n"),
        ];
        for (chunks, line, behind) in cases {
            assert_eq!(first(chunks), (line, behind.to_vec()), "{}", chunks.len());
        }
    }

    /// Both tasks share one thread, and each has its turn when the other one waits.
    #[tokio::test]
    async fn a_flood_of_short_lines_leaves_others_their_turn() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec yes y >&2"]).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let lines = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lines);
        let output: Output = Arc::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let reading = tokio::spawn(read_logs(stderr, Arc::default(), output));
        let _reading = AbortOnDropHandle::new(reading);
        let (mut before, mut most) = (0, 0);
        let watching = async {
            while before < 200_000 {
                yield_now().await;
                let now = lines.load(Ordering::Relaxed);
                most = most.max(now - before);
                before = now;
            }
        };
        timeout(Duration::from_secs(60), watching).await.unwrap();
        assert!(most <= LOG_READ_BYTES, "{most} lines in one turn");
    }

    #[test]
    fn the_last_lines_are_kept_and_cut() {
        let said = Said::default();
        assert_eq!(said.last_words(), "it printed nothing on standard error");
        for number in 0..SAID_LINES_MAX + 5 {
            said.add(number.to_string().as_bytes());
        }
        said.add(&"é".repeat(60_000).into_bytes());
        said.add(&[0xff; 70_000]);
        said.add(b"last\x1b[2J\0 \r");
        let text = said.text();
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!((lines.len(), lines[0]), (SAID_LINES_MAX, "8"));
        assert_eq!(lines[SAID_LINES_MAX - 1], "last\u{fffd}[2J\u{fffd}");
        assert!(lines.iter().all(|line| line.chars().count() <= SAID_CHARACTERS_MAX));
        assert!(said.last_words().starts_with("the last on its standard error: 8\n"));
    }
}
