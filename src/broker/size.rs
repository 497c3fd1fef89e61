//! The size of a message on its way to the broker, and the largest permitted size.

use async_nats::HeaderMap;

/// Kept free for the headers of an atomic batch, which a message gets after its size was checked: id,
/// number and end take 88 bytes.
const BATCH_HEADERS_BYTES: usize = 128;

/// Bytes of a message as they count against the broker's `max_payload`: headers and body.
#[must_use]
pub fn encoded_bytes(headers: &HeaderMap, body_bytes: usize) -> usize {
    headers_bytes(headers) + body_bytes
}

/// Bytes of the header block alone, which a stream takes up to [`HEADERS_BYTES_MAX`] of.
#[must_use]
pub fn headers_bytes(headers: &HeaderMap) -> usize {
    if headers.is_empty() {
        return 0;
    }
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(|value| line_bytes(name, value.as_str()))
    });
    "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>()
}

/// Bytes of one header's line.
#[must_use]
pub fn line_bytes(name: &str, value: &str) -> usize {
    name.len() + ": ".len() + value.len() + "\r\n".len()
}

/// Longest header block that a stream of the broker takes.
pub const HEADERS_BYTES_MAX: usize = u16::MAX as usize;

/// Fails, with both sizes in words, when the broker does not take a message of these headers and body.
/// `max_payload` is what the server has announced.
pub fn check(headers: &HeaderMap, body_bytes: usize, max_payload: usize) -> Result<(), String> {
    let bytes = encoded_bytes(headers, body_bytes);
    if bytes > max_payload {
        return Err(too_large(bytes, max_payload));
    }
    let bytes = headers_bytes(headers);
    if bytes > HEADERS_BYTES_MAX {
        return Err(too_large(bytes, HEADERS_BYTES_MAX));
    }
    Ok(())
}

/// The same of a message that may be sent in a batch.
pub fn check_in_batch(
    headers: &HeaderMap,
    body_bytes: usize,
    max_payload: usize,
) -> Result<(), String> {
    check(headers, body_bytes, max_payload.saturating_sub(BATCH_HEADERS_BYTES))
}

/// Both sizes in words.
#[must_use]
pub fn too_large(bytes: usize, bytes_max: usize) -> String {
    format!("it takes {bytes} bytes, and at most {bytes_max} are stored")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_message_is_taken_and_one_byte_more_is_not() {
        let mut headers = HeaderMap::new();
        headers.insert("A", "12");
        headers.append("A", "3");
        assert_eq!(headers_bytes(&headers), "NATS/1.0\r\nA: 12\r\nA: 3\r\n\r\n".len());
        assert_eq!(headers_bytes(&HeaderMap::new()), 0);
        let room = 1_000 - headers_bytes(&headers);
        for (body, is_taken) in [(room - 1, true), (room, true), (room + 1, false)] {
            assert_eq!(check(&headers, body, 1_000).is_ok(), is_taken, "{body}");
            let in_batch = check_in_batch(&headers, body, 1_000 + BATCH_HEADERS_BYTES);
            assert_eq!(in_batch.is_ok(), is_taken, "{body}");
        }
        let long = HEADERS_BYTES_MAX - headers_bytes(&headers) - line_bytes("B", "");
        for (value, is_taken) in [(long - 1, true), (long, true), (long + 1, false)] {
            headers.insert("B", "x".repeat(value));
            assert_eq!(check(&headers, 0, 1 << 20).is_ok(), is_taken, "{value}");
        }
    }
}
