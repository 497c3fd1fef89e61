//! A message as SMTP sends it.

/// The message with lines that end with CR LF and no other way, where each one that begins with a dot
/// has a second one. Servers differ in whether a CR or an LF alone ends a line: with such a one, a
/// text could end the message for the next server, and go on with commands.
pub(super) fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len().saturating_add(message.len() / 32));
    let mut bytes = message.iter().copied().peekable();
    let mut begins = true;
    while let Some(byte) = bytes.next() {
        if matches!(byte, b'\r' | b'\n') {
            if byte == b'\r' {
                let _ = bytes.next_if_eq(&b'\n');
            }
            out.extend_from_slice(b"\r\n");
            begins = true;
            continue;
        }
        if begins && byte == b'.' {
            out.push(b'.');
        }
        begins = false;
        out.push(byte);
    }
    if !begins {
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_ends_a_message() {
        for (text, sent) in [
            ("", ""),
            ("a", "a\r\n"),
            ("a\r\n", "a\r\n"),
            (".", "..\r\n"),
            ("a\n.\nb", "a\r\n..\r\nb\r\n"),
            ("a\r.\rQUIT", "a\r\n..\r\nQUIT\r\n"),
            ("a\r\n.\r\nMAIL FROM:<x@y>", "a\r\n..\r\nMAIL FROM:<x@y>\r\n"),
            ("a\r\r\n\n..b", "a\r\n\r\n\r\n...b\r\n"),
            ("a.b\r\n.c", "a.b\r\n..c\r\n"),
        ] {
            assert_eq!(String::from_utf8(stuffed(text.as_bytes())).unwrap(), sent, "{text:?}");
        }
    }

    #[test]
    fn whatever_the_bytes_the_end_is_not_among_them() {
        let alphabet = [b'.', b'\r', b'\n', b'a'];
        for number in 0..4_usize.pow(7) {
            let text: Vec<u8> = (0..7).map(|at| alphabet[number / 4_usize.pow(at) % 4]).collect();
            let sent = stuffed(&text);
            let mut all = b"\r\n".to_vec();
            all.extend(&sent);
            for end in [&b"\n.\n"[..], b"\n.\r", b"\r.\r", b"\r.\n"] {
                assert!(!all.windows(end.len()).any(|part| part == end), "{text:?}");
            }
            assert!(sent.is_empty() || sent.ends_with(b"\r\n"));
        }
    }
}
