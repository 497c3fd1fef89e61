//! What is put aside in FLEX_DEAD, made to fit: a message that could not be kept there would be tried
//! again for ever, and everything behind it would wait.

use async_nats::HeaderMap;
use bytes::Bytes;
use flexcore_broker::size::{HEADERS_BYTES_MAX, headers_bytes, line_bytes};
use flexcore_domain::command::header;

use crate::headers;

/// Longest reason, in characters: it is read in a list.
const REASON_CHARS_MAX: usize = 400;
/// Longest subject, in characters: what the broker takes on one line.
const SUBJECT_CHARS_MAX: usize = 4_096;
/// Room for the two headers that say what was cut, each with a number.
const NOTES_BYTES: usize = 128;
/// The headers that say what became of a message: only we write them, whatever it brings along.
const OURS: [&str; 4] = [
    header::DEAD_REASON,
    header::DEAD_SUBJECT,
    header::DEAD_HEADERS_LEFT_OUT,
    header::DEAD_BODY_BYTES,
];

/// Headers and body of a message to be put aside, within `bytes_max` together. What has no room is cut,
/// and headers say so.
pub(crate) fn fitted(
    reason: &str,
    subject: &str,
    headers: Option<&HeaderMap>,
    mut body: Bytes,
    bytes_max: usize,
) -> (HeaderMap, Bytes) {
    let mut all = HeaderMap::new();
    all.insert(header::DEAD_REASON, one_line(reason, REASON_CHARS_MAX));
    all.insert(header::DEAD_SUBJECT, one_line(subject, SUBJECT_CHARS_MAX));
    let bytes_max = bytes_max.saturating_sub(NOTES_BYTES);
    let headers_max = bytes_max.min(HEADERS_BYTES_MAX - NOTES_BYTES);
    let mut room = headers_max.saturating_sub(headers_bytes(&all));
    let mut left_out = 0;
    for (name, value) in kept(headers) {
        match room.checked_sub(line_bytes(name, value)) {
            Some(left) => {
                all.append(name, value);
                room = left;
            }
            None => left_out += 1,
        }
    }
    let body_max = bytes_max.saturating_sub(headers_bytes(&all));
    if left_out > 0 {
        all.insert(header::DEAD_HEADERS_LEFT_OUT, left_out.to_string());
    }
    if body.len() > body_max {
        all.insert(header::DEAD_BODY_BYTES, body.len().to_string());
        body.truncate(body_max);
    }
    (all, body)
}

/// The headers that a message brings along, with all their values: those that a command is read by
/// before others.
fn kept(headers: Option<&HeaderMap>) -> Vec<(&str, &str)> {
    let (id, mut kept) = (headers::of_id(headers), Vec::new());
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let name: &str = name.as_ref();
        let brokers = name.starts_with("Nats-") && name != id;
        let ours = OURS.iter().any(|ours| ours.eq_ignore_ascii_case(name));
        if !brokers && !ours {
            // The id moves to another header, or the broker would take a second burial of the
            // same id for a repetition of the first.
            let name = if name == id { header::OWN_COMMAND_ID } else { name };
            kept.extend(values.iter().map(|value| (name, value.as_str())));
        }
    }
    let first: Vec<&str> = headers::read().collect();
    kept.sort_by_key(|(name, _)| first.iter().position(|of| of == name).unwrap_or(first.len()));
    kept
}

/// Header values hold no line breaks.
fn one_line(text: &str, chars_max: usize) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(chars_max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flexcore_broker::size::encoded_bytes;

    fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
        headers.get(name).map(|value| value.as_str())
    }

    #[test]
    fn a_body_is_kept_whole_where_it_fits_and_else_its_beginning() {
        let max = 1_000;
        let put = |body: usize| fitted("why\nnot", "cmd.a", None, vec![b'x'; body].into(), max);
        let (headers, _) = put(0);
        assert_eq!(value(&headers, header::DEAD_REASON), Some("why not"));
        let room = max - NOTES_BYTES - headers_bytes(&headers);
        for whole in [room - 1, room] {
            let (headers, body) = put(whole);
            assert_eq!((body.len(), value(&headers, header::DEAD_BODY_BYTES)), (whole, None));
        }
        for cut in [room + 1, room + 10_000] {
            let (headers, body) = put(cut);
            assert_eq!(body.len(), room);
            assert_eq!(value(&headers, header::DEAD_BODY_BYTES), Some(&*cut.to_string()));
            assert!(encoded_bytes(&headers, body.len()) <= max);
        }
    }

    #[test]
    fn what_a_message_says_of_itself_is_not_what_we_say_of_it() {
        let mut headers = HeaderMap::new();
        for name in OURS {
            headers.insert(name, "forged");
            headers.insert(name.to_lowercase(), "forged");
        }
        headers.insert("Other", "kept");
        let (kept, _) = fitted("why", "cmd.a", Some(&headers), "{}".into(), 1 << 20);
        let all: Vec<&str> =
            kept.iter().flat_map(|(_, values)| values).map(|value| value.as_str()).collect();
        assert!(!all.contains(&"forged") && all.contains(&"kept"), "{kept:?}");
        assert_eq!(value(&kept, header::DEAD_REASON), Some("why"));
        assert_eq!(value(&kept, header::DEAD_SUBJECT), Some("cmd.a"));
    }

    /// The last of two ids once lay beside what was read as the first's.
    #[test]
    fn all_values_are_kept_and_the_id_that_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert(header::COMMAND_ID, "third");
        let all = |headers: &HeaderMap, name: &str| {
            let values = headers.get_all(name).map(|value| value.as_str().to_owned());
            values.collect::<Vec<_>>()
        };
        let put = |headers: &HeaderMap| {
            let (kept, _) = fitted("why", "cmd.a", Some(headers), "{}".into(), 1 << 20);
            assert_eq!(all(&kept, header::COMMAND_ID), [""; 0]);
            (all(&kept, header::OWN_COMMAND_ID), all(&kept, header::ACTOR))
        };
        assert_eq!(put(&headers).0, ["third"]);
        for value in ["first", "last"] {
            headers.append(header::OWN_COMMAND_ID, value);
            headers.append(header::ACTOR, value);
        }
        let both = ["first", "last"].map(str::to_owned).to_vec();
        assert_eq!(put(&headers), (both.clone(), both));
    }

    #[test]
    fn headers_that_fill_a_message_leave_room_for_what_is_added() {
        let mut headers = HeaderMap::new();
        headers.insert("A-First", "x".repeat(40_000));
        headers.insert("B-Second", "x".repeat(24_700));
        headers.insert(header::COMMAND_ID, "c-1");
        headers.insert("Nats-Batch-Id", "7");
        assert!(headers_bytes(&headers) < HEADERS_BYTES_MAX);
        let reason = "y".repeat(10_000);
        let (kept, body) = fitted(&reason, "cmd.a", Some(&headers), "{}".into(), 1 << 20);
        assert_eq!(value(&kept, header::OWN_COMMAND_ID), Some("c-1"));
        assert_eq!(value(&kept, header::COMMAND_ID), None);
        assert_eq!((value(&kept, "Nats-Batch-Id"), &body[..]), (None, &b"{}"[..]));
        assert!(headers_bytes(&kept) <= HEADERS_BYTES_MAX, "{}", headers_bytes(&kept));
        assert_eq!(value(&kept, header::DEAD_HEADERS_LEFT_OUT), None, "both have room here");
        headers.insert("C-Third", "x".repeat(400));
        let (kept, _) = fitted(&reason, "cmd.a", Some(&headers), "{}".into(), 1 << 20);
        assert_eq!(value(&kept, header::DEAD_HEADERS_LEFT_OUT), Some("1"));
        assert!(headers_bytes(&kept) <= HEADERS_BYTES_MAX, "{}", headers_bytes(&kept));
    }
}
