//! As much of SQL as is needed to see that a named query is one statement, and what it names.

/// What a statement names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names<'a> {
    /// Each `:name`, with the offset of its line from the first.
    pub(super) parameters: Vec<(&'a str, usize)>,
    /// Each `rm.name`, likewise.
    pub(super) read_models: Vec<(&'a str, usize)>,
}

/// What is wrong with a statement, with the offset of its line from the first.
pub(super) type Wrong = (usize, String);

/// Reads a statement. Fails when it is not one `select` (or `with … select`), whole in itself: it
/// is run inside of parentheses.
pub(super) fn read(sql: &str) -> Result<Names<'_>, Wrong> {
    let mut names = Names::default();
    let (mut rest, mut line, mut depth) = (sql, 0_usize, 0_usize);
    // The last two tokens that count, to see `rm.name`.
    let mut before = ["", ""];
    while !rest.is_empty() {
        let (token, kind) = next(rest).map_err(|what| (line, what.to_owned()))?;
        rest = &rest[token.len()..];
        let first = before[1].is_empty();
        match kind {
            Kind::Blank => {}
            _ if first && !is_read(token) => {
                return Err((line, "a statement begins with `select` or `with`".to_owned()));
            }
            Kind::Parameter => names.parameters.push((&token[1..], line)),
            Kind::Word if token.eq_ignore_ascii_case("set_config") => {
                return Err((line, "`set_config` would choose another tenant".to_owned()));
            }
            Kind::Word if before[1] == "." && before[0].eq_ignore_ascii_case("rm") => {
                names.read_models.push((token, line));
            }
            Kind::Positional => {
                return Err((line, format!("`{token}`: parameters are written `:name`")));
            }
            _ => {}
        }
        depth = match token {
            ";" if rest.trim().is_empty() => depth,
            ";" => {
                return Err((line, "one statement only; there is more after the `;`".to_owned()));
            }
            "(" => depth + 1,
            ")" => depth.checked_sub(1).ok_or((line, "this `)` closes nothing".to_owned()))?,
            _ => depth,
        };
        if kind != Kind::Blank {
            before = [before[1], token];
        }
        line += token.matches('\n').count();
    }
    match depth {
        _ if before[1].is_empty() => Err((0, "the statement is missing".to_owned())),
        0 => Ok(names),
        _ => Err((line, "a `(` is not closed".to_owned())),
    }
}

fn is_read(word: &str) -> bool {
    word.eq_ignore_ascii_case("select") || word.eq_ignore_ascii_case("with")
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Space or comment.
    Blank,
    Word,
    /// `:name`
    Parameter,
    /// `$1`
    Positional,
    Other,
}

/// The first token of a text that is not empty. Fails when it has no end.
fn next(text: &str) -> Result<(&str, Kind), &'static str> {
    let bytes = text.as_bytes();
    let until = |from: usize, mark: &str, what| {
        text[from..].find(mark).map(|at| from + at + mark.len()).ok_or(what)
    };
    let (length, kind) = match (bytes[0], bytes.get(1)) {
        (first, _) if first.is_ascii_whitespace() => (1, Kind::Blank),
        (b'-', Some(b'-')) => (text.find('\n').unwrap_or(text.len()), Kind::Blank),
        (b'/', Some(b'*')) => (comment(text)?, Kind::Blank),
        (b'\'', _) => (until(1, "'", "a `'` is not closed")?, Kind::Other),
        (b'"', _) => (until(1, "\"", "a `\"` is not closed")?, Kind::Other),
        (b'e' | b'E', Some(b'\'')) => (escaped(text)?, Kind::Other),
        (b':', Some(b':')) => (2, Kind::Other),
        (b':', Some(b'a'..=b'z')) => (1 + word(&text[1..]), Kind::Parameter),
        (b'$', Some(b'0'..=b'9')) => (1 + word(&text[1..]), Kind::Positional),
        (b'$', _) => (dollar_quoted(text)?, Kind::Other),
        (first, _) if first.is_ascii_alphanumeric() || first == b'_' || first >= 0x80 => {
            (word(text), Kind::Word)
        }
        _ => (1, Kind::Other),
    };
    Ok((&text[..length], kind))
}

/// Length of a word; at least one character.
fn word(text: &str) -> usize {
    let first = text.chars().next().map_or(0, char::len_utf8);
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'));
    end.unwrap_or(text.len()).max(first)
}

/// Comments nest.
fn comment(text: &str) -> Result<usize, &'static str> {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Ok(at);
            }
        } else {
            at += 1;
        }
    }
    Err("a `/*` is not closed")
}

/// `e'…'`, in which a backslash escapes a quote.
fn escaped(text: &str) -> Result<usize, &'static str> {
    let bytes = text.as_bytes();
    let mut at = 2;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'\'' => return Ok(at + 1),
            _ => at += 1,
        }
    }
    Err("a `'` is not closed")
}

/// `$tag$ … $tag$`
fn dollar_quoted(text: &str) -> Result<usize, &'static str> {
    let tag = text[1..].find(|c: char| !(c.is_alphanumeric() || c == '_')).map(|at| at + 1);
    match tag {
        Some(end) if text.as_bytes()[end] == b'$' => {
            let tag = &text[..=end];
            let close = text[tag.len()..].find(tag).ok_or("a `$…$` is not closed")?;
            Ok(close + 2 * tag.len())
        }
        _ => Err("a `$` stands alone"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_outside_of_strings_and_comments_only() {
        let sql = "select ':a', \":b\", e'\\':c', $$:d rm.x$$, x::e, a[1:2] -- :f rm.y\n\
                   /* :g /* */ :h */ from rm.flights\nwhere c = :min and d > :min_2;\n";
        let names = read(sql).unwrap();
        assert_eq!(names.parameters, [("min", 2), ("min_2", 2)]);
        assert_eq!(names.read_models, [("flights", 1)]);
        assert!(read("WITH a as (select 1) select * from a").is_ok());
    }

    #[test]
    fn what_is_not_one_statement_is_refused() {
        for (sql, line, what) in [
            ("", 0, "missing"),
            (" -- x", 0, "missing"),
            ("delete from rm.a", 0, "begins with"),
            ("(select 1)", 0, "begins with"),
            ("select 1;\nselect 2", 0, "one statement"),
            ("select 1; -- x", 0, "one statement"),
            ("select 1) as x, (select 2", 0, "closes nothing"),
            ("select\n(1", 1, "not closed"),
            ("select\n'a", 1, "not closed"),
            ("select \"a", 0, "not closed"),
            ("select /* /* */", 0, "not closed"),
            ("select e'\\'", 0, "not closed"),
            ("select $a$ $$", 0, "not closed"),
            ("select $1", 0, "written `:name`"),
            ("select SET_config('flexcore.tenant', 'b', true)", 0, "tenant"),
        ] {
            let (at, message) = read(sql).expect_err(sql);
            assert!(at == line && message.contains(what), "{sql}: {at} {message}");
        }
    }
}
