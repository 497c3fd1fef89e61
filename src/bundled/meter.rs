//! How much another side may send: what libraries read lies in memory until it is whole, whatever its
//! size.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes that are carried at once.
const CARRY_BYTES: usize = 16 * 1024;

/// What the other side may still send.
pub(crate) struct Meter {
    most: usize,
    left: AtomicUsize,
    total: AtomicUsize,
    is_over: AtomicBool,
}

impl Meter {
    /// For so many bytes until the next reset.
    pub(crate) fn new(most: usize) -> Self {
        Self::beginning(most, most)
    }

    /// The same, but for `first` bytes until the first reset.
    pub(crate) fn beginning(first: usize, most: usize) -> Self {
        Self {
            most,
            left: AtomicUsize::new(first),
            total: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    /// For the next question.
    pub(crate) fn reset(&self) {
        self.left.store(self.most, Ordering::Relaxed);
    }

    /// True if the other side has sent more, which has ended the connection.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// All bytes since the beginning.
    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Takes bytes that come, or that are announced. Fails where they are too many.
    pub(crate) fn take(&self, bytes: usize) -> io::Result<()> {
        let less = |left: usize| left.checked_sub(bytes);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if taken.is_err() {
            self.is_over.store(true, Ordering::Relaxed);
            return Err(io::Error::other("the other side sends more than this plugin takes"));
        }
        self.total.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// Carries all that comes, until its end, or until `look` fails: it sees bytes before they are handed on.
pub(crate) async fn carry<R, W>(
    mut from: R,
    mut to: W,
    mut look: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; CARRY_BYTES];
    while let read @ 1.. = from.read(&mut buffer).await? {
        let bytes = buffer.get(..read).unwrap_or_default();
        look(bytes)?;
        to.write_all(bytes).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_may_have_less() {
        let meter = Meter::beginning(1, 5);
        meter.take(2).unwrap_err();
        meter.reset();
        meter.take(5).unwrap();
    }

    #[tokio::test]
    async fn what_is_over_is_not_handed_on() {
        let meter = Meter::new(5);
        let mut to = Vec::new();
        carry(&b"abc"[..], &mut to, |bytes| meter.take(bytes.len())).await.unwrap();
        carry(&b"de"[..], &mut to, |bytes| meter.take(bytes.len())).await.unwrap();
        assert!(!meter.is_over());
        carry(&b"f"[..], &mut to, |bytes| meter.take(bytes.len())).await.unwrap_err();
        assert!(meter.is_over());
        assert_eq!((to.as_slice(), meter.total()), (&b"abcde"[..], 5));
        meter.reset();
        carry(&b"g"[..], &mut to, |bytes| meter.take(bytes.len())).await.unwrap();
        assert_eq!((to.as_slice(), meter.total()), (&b"abcdeg"[..], 6));
    }
}
