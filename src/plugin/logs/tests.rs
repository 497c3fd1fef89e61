//! What plugins print, and what hostile ones do.

use serde_json::json;

use super::*;

fn line(bytes: &[u8]) -> Line {
    Lines::default().line(bytes, Part::Whole)
}

fn said(level: Level, message: &str) -> Line {
    plain(level, message)
}

#[test]
fn text_has_its_level_in_front_or_none() {
    for (text, level, message) in [
        ("hello", Level::Debug, "hello"),
        ("[TRACE] a", Level::Trace, "a"),
        ("[DEBUG]a", Level::Debug, "a"),
        ("[INFO]  a  \r", Level::Info, "a"),
        ("[WARN] a", Level::Warn, "a"),
        ("[ERROR]", Level::Error, ""),
        (" [ERROR] a", Level::Debug, " [ERROR] a"),
        ("[error] a", Level::Debug, "[error] a"),
        ("[WARNING] a", Level::Debug, "[WARNING] a"),
        ("2026/11/29 [ERROR] a", Level::Debug, "2026/11/29 [ERROR] a"),
        ("a panic: b", Level::Debug, "a panic: b"),
        ("panic: b", Level::Error, "panic: b"),
        ("fatal error: b", Level::Error, "fatal error: b"),
    ] {
        assert_eq!(line(text.as_bytes()), said(level, message), "{text}");
    }
}

#[test]
fn a_structured_line_is_taken_apart() {
    let text = br#" {"@level":"WARN","@message":"m\nn","@module":"a.b","@timestamp":"t","n":1,
        "deep":{"x":[1.5,null,true,-3]}} "#;
    let fields = json!({"@timestamp": "t", "n": 1, "deep": {"x": [1.5, null, true, -3]}});
    let expected = Line {
        level: Level::Warn,
        message: "m\nn".to_owned(),
        module: Some("a.b".to_owned()),
        fields: fields.as_object().unwrap().clone(),
    };
    assert_eq!(line(text), expected);
    for (name, level) in [
        ("trace", Level::Trace),
        ("debug", Level::Debug),
        ("info", Level::Info),
        ("warn", Level::Warn),
        ("error", Level::Error),
        ("off", Level::Debug),
        ("shout", Level::Debug),
    ] {
        let text = json!({"@level": name}).to_string();
        assert_eq!(line(text.as_bytes()), said(level, ""), "{name}");
    }
}

#[test]
fn hostile_structured_lines_are_lines() {
    for (text, level, message) in [
        (r#"{"@message": 5}"#, Level::Debug, "5"),
        (r#"{"@message": null}"#, Level::Debug, ""),
        (r#"{"@message": {"a":[1]}}"#, Level::Debug, r#"{"a":[1]}"#),
        (r#"{"@message": "a", "@level": [], "@module": false}"#, Level::Debug, "a"),
        (r#"{"@message": "a", "@level": 3, "@module": {}}"#, Level::Debug, "a"),
        (r#"{"@message": "a", "@message": "b"}"#, Level::Debug, "b"),
        (r#"{"@level": "error"}"#, Level::Error, ""),
        (r#"{"@message": "\u001b[2Ja\u0000"}"#, Level::Debug, "\u{fffd}[2Ja\u{fffd}"),
        // None of these is an entry of go-plugin's loggers.
        ("{}", Level::Debug, "{}"),
        (r#"{"msg": "a"}"#, Level::Debug, r#"{"msg": "a"}"#),
        ("[1, 2]", Level::Debug, "[1, 2]"),
        ("5", Level::Debug, "5"),
        (r#"{"@message": "cut"#, Level::Debug, r#"{"@message": "cut"#),
        (r#"{"@message": "a"} b"#, Level::Debug, r#"{"@message": "a"} b"#),
        (r#"{"@message": "\ud800"}"#, Level::Debug, r#"{"@message": "\ud800"}"#),
        (r#"{"@message": 1e999}"#, Level::Debug, r#"{"@message": 1e999}"#),
    ] {
        assert_eq!(line(text.as_bytes()), said(level, message), "{text}");
    }
}

#[test]
fn bytes_that_are_no_text_are_replaced() {
    assert_eq!(line(b"a\xff\0b\x1b[1m\tc"), said(Level::Debug, "a\u{fffd}\u{fffd}b\u{fffd}[1m\tc"));
    assert_eq!(line(b"\xff\xfe\0\xc0\x80").message.chars().count(), 5);
    let broken = line(b"{\"@message\": \"a\xff\"}");
    assert_eq!(broken, said(Level::Debug, "{\"@message\": \"a\u{fffd}\"}"));
}

#[test]
fn a_message_has_no_more_bytes_than_a_line() {
    // Each of these is shown by three bytes.
    let (no_text, control) = (line(&[0xff; LOG_LINE_BYTES_MAX]), line(&[1; LOG_LINE_BYTES_MAX]));
    let wide = "\u{80}".repeat(32_000);
    let text = line(format!("{{\"@message\": \"{wide}\", \"@module\": \"{wide}\"}}").as_bytes());
    let json = line(format!("{{\"@message\": [\"{wide}\"]}}").as_bytes());
    assert_eq!(text.module.as_ref(), Some(&text.message));
    for Line { message, .. } in [no_text, control, text, json] {
        let bytes = message.len();
        assert!((LOG_LINE_BYTES_MAX - 2..=LOG_LINE_BYTES_MAX).contains(&bytes), "{bytes}");
    }
}

#[test]
fn text_in_an_error_is_short_and_on_one_line() {
    for (text, expected) in [
        ("as it is", "as it is"),
        ("\u{1b}]0;title\u{7}", "\u{fffd}]0;title\u{fffd}"),
        ("one\ntwo\r\n\tthree", "one\u{fffd}two\u{fffd}\u{fffd}\u{fffd}three"),
        ("one\u{2028}two\u{202e}eerht", "one\u{fffd}two\u{fffd}eerht"),
        ("\u{85}é", "\u{fffd}é"),
    ] {
        assert_eq!(shown(text), expected);
    }
    assert_eq!(shown(&"é".repeat(4_096)), "é".repeat(SHOWN_CHARACTERS_MAX));
}

#[test]
fn depth_and_fields_are_bounded() {
    let deep = |levels: usize| {
        let value = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        format!("{{\"@message\": \"a\", \"x\": {value}}}")
    };
    let most = line(deep(LOG_DEPTH_MAX - 1).as_bytes());
    assert_eq!((most.message.as_str(), most.fields.len()), ("a", 1));
    for levels in [LOG_DEPTH_MAX, 127, 30_000] {
        let text = deep(levels);
        assert_eq!(line(text.as_bytes()), said(Level::Debug, &text), "{levels}");
    }
    let open = "{\"@message\":".repeat(5_000);
    assert_eq!(line(open.as_bytes()), said(Level::Debug, &open));

    let wide: Vec<_> = (0..4_000).map(|number| format!("\"k{number}\": {number}")).collect();
    let wide = line(format!("{{{}, \"@message\": \"last\"}}", wide.join(",")).as_bytes());
    assert_eq!((wide.message.as_str(), wide.fields.len()), ("last", LOG_FIELDS_MAX));
    assert!(wide.fields.contains_key("k63") && !wide.fields.contains_key("k64"));
}

#[test]
fn an_object_that_poses_as_a_raw_value_is_an_object() {
    let posing = line(br#"{"@message": "a", "$serde_json::private::RawValue": "[1]"}"#);
    assert_eq!(posing.fields["$serde_json::private::RawValue"], "[1]");
    let posing = line(br#"{"@message": "a", "x": {"$serde_json::private::RawValue": "[1]"}}"#);
    assert_eq!(posing.fields["x"], json!({"$serde_json::private::RawValue": "[1]"}));
}

#[test]
fn text_after_a_panic_is_an_error() {
    let mut lines = Lines::default();
    let mut level = |text: &str| lines.line(text.as_bytes(), Part::Whole).level;
    assert_eq!(level("before"), Level::Debug);
    assert_eq!(level(r#"{"@message": "panic: no"}"#), Level::Debug);
    assert_eq!(level("before"), Level::Debug);
    assert_eq!(level("panic: runtime error"), Level::Error);
    assert_eq!(level("goroutine 1 [running]:"), Level::Error);
    assert_eq!(level("[INFO] says its level"), Level::Info);
    assert_eq!(level(r#"{"@message": "m", "@level": "warn"}"#), Level::Warn);
    assert_eq!(level("main.main()"), Level::Error);
}

/// The lines and pieces that come of these chunks.
fn split(chunks: &[&[u8]]) -> Vec<(Vec<u8>, Part)> {
    let (mut split, mut found) = (Split::default(), Vec::new());
    for chunk in chunks {
        split.push(chunk, |bytes, part| found.push((bytes.to_vec(), part)));
    }
    split.end(|bytes, part| found.push((bytes.to_vec(), part)));
    found
}

#[test]
fn lines_are_whole_wherever_the_chunks_end() {
    let text = b"one\n\n\r\ntwo\nthree";
    let expected =
        ["one", "\r", "two", "three"].map(|line| (line.as_bytes().to_vec(), Part::Whole));
    for size in 1..=text.len() {
        let chunks: Vec<&[u8]> = text.chunks(size).collect();
        assert_eq!(split(&chunks), expected, "{size}");
    }
    assert!(split(&[]).is_empty());
    assert!(split(&[b"", b"\n", b""]).is_empty());
}

#[test]
fn long_lines_come_in_pieces() {
    const MAX: usize = LOG_LINE_BYTES_MAX;
    for (length, expected) in [
        (MAX - 1, vec![(MAX - 1, Part::Whole)]),
        (MAX, vec![(MAX, Part::Whole)]),
        (MAX + 1, vec![(MAX, Part::First), (1, Part::Later)]),
        (70_000, vec![(MAX, Part::First), (70_000 - MAX, Part::Later)]),
        (MAX * 2, vec![(MAX, Part::First), (MAX, Part::Later)]),
    ] {
        let mut text = vec![b'b'; length];
        text.extend(b"\nend");
        for size in [text.len(), 4_096, 1_000, 7] {
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            let mut found = split(&chunks);
            assert_eq!(found.pop(), Some((b"end".to_vec(), Part::Whole)), "{length} {size}");
            let sizes: Vec<_> = found.iter().map(|(bytes, part)| (bytes.len(), *part)).collect();
            assert_eq!(sizes, expected, "{length} {size}");
        }
    }
}

#[test]
fn pieces_are_text_of_the_first_ones_level() {
    let mut lines = Lines::default();
    let first = lines.line(b"[WARN] {", Part::First);
    let later = lines.line(br#"{"@message": "no", "@level": "error"}"#, Part::Later);
    let last = lines.line(b"[ERROR] panic: no", Part::Later);
    let next = lines.line(b"next", Part::Whole);
    assert_eq!(first, said(Level::Warn, "{"));
    assert_eq!(later, said(Level::Warn, r#"{"@message": "no", "@level": "error"}"#));
    assert_eq!(last, said(Level::Warn, "[ERROR] panic: no"));
    assert_eq!(next, said(Level::Debug, "next"));
}
