//! A body of `multipart/form-data` (RFC 7578), read part by part and piece by piece: a part may be larger than what
//! fits into memory.

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::{
    error::Problem,
    limits::{BODY_IDLE_TIMEOUT, UPLOAD_TIMEOUT},
    problems,
};

/// Longest boundary, in bytes (RFC 2046).
const BOUNDARY_BYTES_MAX: usize = 70;
/// Longest head of a part, in bytes: it has a name, a file's name and a type.
const HEAD_BYTES_MAX: usize = 4 * 1024;
/// Ends the head of a part.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// A form as far as it has been read.
pub(crate) struct Form {
    body: Body,
    /// What has come and is not taken yet: a piece of the body, and what may be the beginning of a boundary.
    buffer: BytesMut,
    /// What stands between parts: a line break, two dashes and the boundary.
    delimiter: Vec<u8>,
    /// Bytes that may still come.
    left: u64,
    bytes_max: u64,
    ends: Instant,
    is_begun: bool,
}

impl Form {
    /// The form in a body of so many bytes at most. Fails where the head says that there is none, or a larger one.
    pub(crate) fn of(headers: &HeaderMap, body: Body, bytes_max: u64) -> Result<Self, Problem> {
        let boundary = boundary(headers)?;
        let announced = headers.get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > bytes_max) {
            return Err(too_large(bytes_max));
        }
        Ok(Self {
            body,
            // The first boundary has no line before it.
            buffer: BytesMut::from(&b"\r\n"[..]),
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            left: bytes_max,
            bytes_max,
            ends: Instant::now() + UPLOAD_TIMEOUT,
            is_begun: false,
        })
    }

    /// The name of the next part, whose pieces come next; `None`: there is none. The one before must have been read
    /// to its end.
    pub(crate) async fn part(&mut self) -> Result<Option<String>, Problem> {
        if !self.is_begun {
            self.has(self.delimiter.len()).await?;
            if !self.buffer.starts_with(&self.delimiter) {
                return Err(broken("the form does not begin with its boundary"));
            }
            self.buffer.advance(self.delimiter.len());
            self.is_begun = true;
        }
        self.has(2).await?;
        if self.buffer.starts_with(b"--") {
            return Ok(None);
        }
        let end = loop {
            if !self.buffer.starts_with(b"\r\n") {
                return Err(broken("a boundary does not end its line"));
            }
            let end = find(&self.buffer, HEAD_END);
            if end.unwrap_or(self.buffer.len()) > HEAD_BYTES_MAX {
                return Err(broken("the head of a part is too long"));
            }
            if let Some(end) = end {
                break end;
            }
            self.more().await?;
        };
        let head = self.buffer.split_to(end);
        self.buffer.advance(HEAD_END.len());
        match std::str::from_utf8(&head).ok().and_then(name) {
            Some(name) => Ok(Some(name)),
            None => Err(broken("a part has no name: Content-Disposition: form-data; name=\"…\"")),
        }
    }

    /// The next piece of the part; `None`: it has ended.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            match find(&self.buffer, &self.delimiter) {
                Some(0) => {
                    self.buffer.advance(self.delimiter.len());
                    return Ok(None);
                }
                Some(at) => return Ok(Some(self.buffer.split_to(at).freeze())),
                None => {}
            }
            let certain = self.buffer.len().saturating_sub(self.delimiter.len());
            if certain > 0 {
                return Ok(Some(self.buffer.split_to(certain).freeze()));
            }
            self.more().await?;
        }
    }

    /// Reads until there are so many bytes.
    async fn has(&mut self, bytes: usize) -> Result<(), Problem> {
        while self.buffer.len() < bytes {
            self.more().await?;
        }
        Ok(())
    }

    /// Reads one more piece of the body. Fails at its end, which comes too early.
    async fn more(&mut self) -> Result<(), Problem> {
        let until = self.ends.min(Instant::now() + BODY_IDLE_TIMEOUT);
        let frame = timeout_at(until, self.body.frame()).await.map_err(|_| {
            Problem::new(&problems::REQUEST_TIMEOUT, "the body did not arrive in time")
        })?;
        let Some(Ok(frame)) = frame else {
            return Err(broken("the body broke off before the end of the form"));
        };
        let Ok(data) = frame.into_data() else { return Ok(()) };
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        self.left = self.left.checked_sub(bytes).ok_or_else(|| too_large(self.bytes_max))?;
        self.buffer.extend_from_slice(&data);
        Ok(())
    }
}

fn broken(detail: &'static str) -> Problem {
    Problem::new(&problems::BAD_REQUEST, detail)
}

fn too_large(bytes_max: u64) -> Problem {
    Problem::new(&problems::PAYLOAD_TOO_LARGE, format!("this body has at most {bytes_max} bytes"))
}

/// The boundary of a form, as the head tells it.
fn boundary(headers: &HeaderMap) -> Result<String, Problem> {
    let unsupported =
        |detail: &'static str| Problem::new(&problems::UNSUPPORTED_MEDIA_TYPE, detail);
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(unsupported("compressed bodies are not taken"));
    }
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let (media_type, parameters) = value.unwrap_or_default().split_once(';').unwrap_or_default();
    if !media_type.trim().eq_ignore_ascii_case("multipart/form-data") {
        let detail =
            "the body must be multipart/form-data, and say so in Content-Type with its boundary";
        return Err(unsupported(detail));
    }
    let boundary = parameter(parameters, "boundary");
    let is_good = |text: &String| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&byte);
        (1..=BOUNDARY_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
    };
    boundary.filter(is_good).ok_or_else(|| unsupported("Content-Type has no boundary of a form"))
}

/// The name in the head of a part.
fn name(head: &str) -> Option<String> {
    let fields = head.split("\r\n").filter_map(|line| line.split_once(':'));
    let mut dispositions =
        fields.filter(|(field, _)| field.trim().eq_ignore_ascii_case("content-disposition"));
    let (_, value) = dispositions.next()?;
    let (disposition, parameters) = value.split_once(';')?;
    let is_form = disposition.trim().eq_ignore_ascii_case("form-data");
    if is_form { parameter(parameters, "name") } else { None }
}

/// A parameter of a field's value, plain or in double quotes; another one's quotes may hold anything.
fn parameter(parameters: &str, sought: &str) -> Option<String> {
    let mut rest = parameters;
    loop {
        let (key, value) = rest.split_once('=')?;
        let (text, behind) = match value.trim_start().strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let (text, behind) = value.split_once(';').unwrap_or((value, ""));
                (text.trim().to_owned(), behind)
            }
        };
        if key.trim().trim_start_matches(';').trim().eq_ignore_ascii_case(sought) {
            return Some(text);
        }
        rest = behind;
    }
}

/// The text up to the closing quote, and what stands behind that.
fn unquoted(quoted: &str) -> Option<(String, &str)> {
    let (mut text, mut is_escaped) = (String::new(), false);
    for (at, letter) in quoted.char_indices() {
        match letter {
            '"' if !is_escaped => return Some((text, quoted.get(at + 1..)?)),
            '\\' if !is_escaped => is_escaped = true,
            letter => {
                text.push(letter);
                is_escaped = false;
            }
        }
    }
    None
}

/// Where this stands first. Both begin with a carriage return, of which binaries have few.
fn find(text: &[u8], sought: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let rest = text.get(from..)?;
        let at = from + rest.iter().position(|byte| *byte == b'\r')?;
        if text.get(at..)?.starts_with(sought) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http::HeaderValue;
    use futures::stream;

    use super::*;

    fn headers(content_type: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::try_from(content_type).unwrap())])
    }

    /// The parts of a form that comes in pieces of this size.
    async fn parts(
        body: &[u8],
        piece: usize,
        most: u64,
    ) -> Result<Vec<(String, Vec<u8>)>, Problem> {
        let pieces: Vec<_> = body.chunks(piece).map(Bytes::copy_from_slice).collect();
        let body = Body::from_stream(stream::iter(pieces.into_iter().map(Ok::<_, Infallible>)));
        let mut form = Form::of(&headers("multipart/form-data; boundary=\"x-y\""), body, most)?;
        let mut parts = Vec::new();
        while let Some(name) = form.part().await? {
            let mut data = Vec::new();
            while let Some(piece) = form.piece().await? {
                assert!(!piece.is_empty());
                data.extend_from_slice(&piece);
            }
            parts.push((name, data));
        }
        Ok(parts)
    }

    /// As curl sends it.
    fn form(file: &[u8]) -> Vec<u8> {
        let head = "--x-y\r\nContent-Disposition: form-data; name=\"manifest\"; filename=\"a;name=b.yaml\"\r\n\
                    Content-Type: application/octet-stream\r\n\r\nname: a\r\n\r\n--x-y\r\n\
                    content-disposition: form-data; filename=\"\\\"\"; name=file\r\n\r\n";
        [head.as_bytes(), file, b"\r\n--x-y--\r\n"].concat()
    }

    #[tokio::test]
    async fn parts_are_the_same_however_the_body_is_cut() {
        let files: [&[u8]; 5] = [
            b"",
            b"\r\n--x-",
            b"\r\r\n--x-\r\n--x-z\r\n",
            b"\x7fELF\0\r\n--X-Y\r\n",
            &[b'\r'; 300],
        ];
        for file in files {
            let body = form(file);
            let expected = [
                ("manifest".to_owned(), b"name: a\r\n".to_vec()),
                ("file".to_owned(), file.to_vec()),
            ];
            for piece in 1..=body.len() {
                let found = parts(&body, piece, body.len() as u64).await;
                assert_eq!(found.unwrap(), expected, "{file:?} in pieces of {piece}");
            }
        }
    }

    #[tokio::test]
    async fn a_form_that_is_none_or_too_long_is_refused() {
        let whole = form(b"file");
        for end in 0..whole.len() - 2 {
            let refused = parts(&whole[..end], 7, 9_999).await.unwrap_err();
            assert_eq!(refused.status(), 400, "{end}");
        }
        let large = parts(&whole, 7, whole.len() as u64 - 3).await.unwrap_err();
        assert_eq!(large.status(), 413);
        let head = "x".repeat(HEAD_BYTES_MAX);
        for body in [
            "",
            "--x-z\r\n",
            "preamble\r\n--x-y\r\n",
            "--x-yz\r\n\r\n\r\n",
            "--x-y\r\n\r\nno head\r\n--x-y--",
            "--x-y\r\nContent-Type: text/plain\r\n\r\nno name\r\n--x-y--",
            "--x-y\r\nContent-Disposition: form-data; name=\"open\r\n\r\n\r\n--x-y--",
            "--x-y\r\nContent-Disposition: attachment; name=file\r\n\r\n\r\n--x-y--",
            &format!("--x-y\r\nContent-Disposition: form-data; name=\"{head}\"\r\n\r\n\r\n--x-y--"),
        ] {
            let refused = parts(body.as_bytes(), 100, 99_999).await;
            assert_eq!(refused.unwrap_err().status(), 400, "{body:.60}");
        }
    }

    #[test]
    fn the_head_says_that_there_is_a_form() {
        let of = |text: &str, more: &[(header::HeaderName, &'static str)]| {
            let mut headers = headers(text);
            let more =
                more.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            headers.extend(more);
            Form::of(&headers, Body::empty(), 100)
                .map(|form| form.delimiter)
                .map_err(|it| it.status())
        };
        assert_eq!(of("Multipart/Form-Data;boundary=a", &[]).unwrap(), b"\r\n--a");
        let long = format!("multipart/form-data; boundary={}", "b".repeat(71));
        for text in [
            "",
            "application/json",
            "multipart/form-data",
            "multipart/mixed; boundary=a",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"a b\"",
            "multipart/form-data; boundary=\"a",
            &long,
        ] {
            assert_eq!(of(text, &[]).unwrap_err(), 415, "{text}");
        }
        let form = "multipart/form-data; boundary=a";
        assert_eq!(of(form, &[(header::CONTENT_ENCODING, "gzip")]).unwrap_err(), 415);
        assert_eq!(of(form, &[(header::CONTENT_LENGTH, "101")]).unwrap_err(), 413);
        assert!(of(form, &[(header::CONTENT_LENGTH, "100")]).is_ok());
    }
}
