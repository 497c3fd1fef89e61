//! The part of SQL that is needed to see that a named query is one statement, and which names it
//! uses. Tokens are those of Postgres's own scanner; a text is refused where its meaning depends on
//! a setting or on Postgres's version.

/// The names in a statement.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names<'a> {
    /// Each `:name`, with the offset of its line from the first.
    pub(super) parameters: Vec<(&'a str, usize)>,
    /// Each `rm.name`, likewise.
    pub(super) read_models: Vec<(&'a str, usize)>,
}

/// The problem with a statement, with the offset of its line from the first.
pub(super) type Wrong = (usize, String);

/// Reads a statement. Fails when it is not one `select` (or `with … select`), whole in itself: it
/// is run inside of parentheses.
pub(super) fn read(sql: &str) -> Result<Names<'_>, Wrong> {
    if let Some(at) = sql.find('\0') {
        let line = sql[..at].matches('\n').count();
        return Err((line, "a statement has no character U+0000".to_owned()));
    }
    let mut names = Names::default();
    let (mut rest, mut line, mut depth) = (sql, 0_usize, 0_usize);
    // The last two tokens that count, to see `rm.name`.
    let mut before = ["", ""];
    let mut last = Token::Blank;
    while !rest.is_empty() {
        let (token, what) = next_token(rest).map_err(|error| (line, error.to_owned()))?;
        rest = &rest[token.len()..];
        let first = before[1].is_empty();
        match what {
            Token::Blank => {}
            // Postgres reads them as one, and the meaning of a backslash in the second depends on
            // the first.
            Token::Text if last == Token::Text && token.starts_with('\'') => {
                return Err((line, "two texts, one after the other: write one".to_owned()));
            }
            _ if first && !is_read(token) => {
                return Err((line, "a statement begins with `select` or `with`".to_owned()));
            }
            Token::Parameter => names.parameters.push((&token[1..], line)),
            Token::Word if token.eq_ignore_ascii_case("set_config") => {
                return Err((line, "`set_config` would choose another tenant".to_owned()));
            }
            Token::Word if before[1] == "." && before[0].eq_ignore_ascii_case("rm") => {
                names.read_models.push((token, line));
            }
            Token::Positional => {
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
        if what != Token::Blank {
            before = [before[1], token];
            last = what;
        }
        line += token.matches('\n').count();
    }
    match depth {
        _ if before[1].is_empty() => Err((0, "the statement is missing".to_owned())),
        0 => Ok(names),
        _ => Err((line, "a `(` is not closed".to_owned())),
    }
}

/// A statement without its last `;`, with something else for each `:name`, line by line as it was. Fails,
/// in words, when there is nothing for a name, or a token has no end.
pub fn with_parameters(
    sql: &str,
    mut by: impl FnMut(&str) -> Option<String>,
) -> Result<String, String> {
    let mut rest = sql.trim_end().trim_end_matches(';');
    let mut out = String::with_capacity(sql.len());
    while !rest.is_empty() {
        let (token, what) = next_token(rest)?;
        rest = &rest[token.len()..];
        if what == Token::Parameter {
            let unknown = || format!("{token} is not a declared parameter");
            out.push_str(&by(&token[1..]).ok_or_else(unknown)?);
        } else {
            out.push_str(token);
        }
    }
    Ok(out)
}

fn is_read(word: &str) -> bool {
    word.eq_ignore_ascii_case("select") || word.eq_ignore_ascii_case("with")
}

/// The kind of a piece of a statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    /// Space or comment.
    Blank,
    /// A name or key word that is not quoted.
    Word,
    /// `:name`
    Parameter,
    /// `$1`
    Positional,
    /// `'…'` or `e'…'`
    Text,
    /// Anything else.
    Other,
}

/// The first token of a text that is not empty, as Postgres takes it. Fails with what is wrong with it,
/// in words: a text, quoted name or comment that has no end.
fn next_token(text: &str) -> Result<(&str, Token), &'static str> {
    let bytes = text.as_bytes();
    let until = |mark: &str, what| text[1..].find(mark).map(|at| 1 + at + mark.len()).ok_or(what);
    let (length, token) = match (bytes[0], bytes.get(1)) {
        (first, _) if first.is_ascii_whitespace() => (1, Token::Blank),
        // A line ends at a carriage return, too.
        (b'-', Some(b'-')) => (text.find(['\n', '\r']).unwrap_or(text.len()), Token::Blank),
        (b'/', Some(b'*')) => (comment(text)?, Token::Blank),
        (b'\'', _) => (quoted(bytes, 1, false)?, Token::Text),
        (b'"', _) => (until("\"", "a `\"` is not closed")?, Token::Other),
        (b'e' | b'E', Some(b'\'')) => (quoted(bytes, 2, true)?, Token::Text),
        (b':', Some(b':')) => (2, Token::Other),
        (b':', Some(b'a'..=b'z')) => (1 + word(&text[1..]), Token::Parameter),
        (b'$', Some(b'0'..=b'9')) => (1 + word(&text[1..]), Token::Positional),
        (b'$', _) => (dollar_quoted(text)?, Token::Other),
        // Letters that touch a number are a word of their own to some versions of Postgres.
        (b'0'..=b'9', _) => (count(bytes, |byte| byte.is_ascii_digit()), Token::Other),
        (first, _) if begins_a_word(first) => (word(text), Token::Word),
        _ => (1, Token::Other),
    };
    Ok((&text[..length], token))
}

/// True if a word begins with this byte. All that is not ASCII is a letter to Postgres.
fn begins_a_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

/// Length of a word.
fn word(text: &str) -> usize {
    count(text.as_bytes(), |byte| begins_a_word(byte) || byte.is_ascii_digit() || byte == b'$')
}

/// Number of such bytes from the first on.
fn count(bytes: &[u8], is_such: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|byte| !is_such(*byte)).unwrap_or(bytes.len())
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

/// Length of `'…'`, in which a doubled quote is one; and with escapes one behind a backslash.
fn quoted(bytes: &[u8], from: usize, escapes: bool) -> Result<usize, &'static str> {
    let mut at = from;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'\\', _) if escapes => at += 2,
            (b'\'', Some(b'\'')) => at += 2,
            (b'\'', _) => return Ok(at + 1),
            _ => at += 1,
        }
    }
    Err("a `'` is not closed")
}

/// `$tag$ … $tag$`
fn dollar_quoted(text: &str) -> Result<usize, &'static str> {
    let bytes = text.as_bytes();
    let end = 1 + count(&bytes[1..], |byte| begins_a_word(byte) || byte.is_ascii_digit());
    match bytes.get(end) {
        Some(b'$') => {
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

    /// Each would end in the middle, and go on as something else, in a scanner that is not Postgres's.
    #[test]
    fn what_postgres_reads_otherwise_than_it_looks_is_seen() {
        let evil = "); drop table x; select (1";
        for sql in [
            format!("select 1 -- x\r{evil}"),
            format!("select 1 -- x\n{evil}"),
            format!("select a as é$$ {evil} as é$$"),
            format!("select a as \u{2014}$$ {evil} as \u{2014}$$"),
            format!("select a as x\u{a0}$$ {evil} as x\u{a0}$$"),
            format!("select e'a'\n'\\'' {evil} --'"),
            format!("select e'a' -- b\n'\\'' {evil} --'"),
            format!("select e'a''\\'' {evil} --'"),
            format!("select 1e'\\'' {evil} --'"),
            format!("select a$$ {evil} $$"),
            format!("select /* /* */ */ 1 {evil}"),
            "select 1 \0".to_owned(),
            "select '\0'".to_owned(),
            "select /* \0 */ 1".to_owned(),
        ] {
            assert!(read(&sql).is_err(), "{sql:?}: {:?}", read(&sql));
        }
        let whole = "select 'it''s', e'a\\'b', \"c\"\"d\", $é$ -- ' $é$ from rm.a where x < 1.5e3 and y = 'é';";
        assert_eq!(read(whole).unwrap().read_models, [("a", 0)]);
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
