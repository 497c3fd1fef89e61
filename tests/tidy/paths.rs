//! The names that a Rust file declares, imports and mentions. A small parser on tokens: it knows `mod`,
//! `use`, items, and paths like `a::b`. It leaves out comments, literals, and items under `cfg(test)`.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default)]
pub(crate) struct Module {
    /// `mod name;`
    pub(crate) files: Vec<String>,
    /// `mod name { … }`
    pub(crate) inline: BTreeMap<String, Module>,
    /// Functions, types, constants, macros.
    pub(crate) items: BTreeSet<String>,
    pub(crate) imports: Vec<Import>,
    /// Paths in code, and single names that are types, constants or calls.
    pub(crate) mentions: BTreeSet<Vec<String>>,
}

/// One name of a `use`.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    /// `*` takes all.
    pub(crate) name: String,
    pub(crate) path: Vec<String>,
    /// `pub use`: for others.
    pub(crate) re_export: bool,
}

pub(crate) fn parse(text: &str) -> Module {
    let tokens = tokens(text);
    Parser { tokens: &tokens, next: 0 }.module()
}

/// The first names of all paths: in code and its tests, in imports and in attributes. A name inside the
/// braces of an import is not the first one of its path.
pub(crate) fn first_names(text: &str) -> BTreeSet<String> {
    let tokens = tokens(text);
    let mut parser = Parser { tokens: &tokens, next: 0 };
    let (mut imports, mut names) = (Vec::new(), BTreeSet::new());
    while parser.next < tokens.len() {
        if parser.peek(0) == "use" && parser.peek(1) != "<" {
            parser.next += 1;
            parser.tree(&mut imports, &[], false);
            continue;
        }
        if parser.peek(1) == "::" && parser.before(1) != "::" {
            names.insert(parser.peek(0).to_owned());
        }
        parser.next += 1;
    }
    names.extend(imports.into_iter().filter_map(|import| import.path.into_iter().next()));
    names
}

/// Names, `::`, and single signs. No white space, comments, literals or lifetimes.
fn tokens(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            _ if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            _ if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            _ if raw_string(rest).is_some() => raw_string(rest).unwrap_or_default(),
            '"' => string(rest),
            '\'' => quote(rest),
            _ if is_name(first) => {
                let length = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                if !first.is_ascii_digit() {
                    found.push(&rest[..length]);
                }
                length
            }
            _ if rest.starts_with("::") => {
                found.push("::");
                2
            }
            _ => {
                if !first.is_whitespace() {
                    found.push(&rest[..first.len_utf8()]);
                }
                first.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    found
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Length of a raw string at the beginning, if there is one.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let begin = text.len() - after.len() + hashes;
    text[begin..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(begin + 1 + text[begin + 1..].find(&end)? + end.len())
}

fn string(text: &str) -> usize {
    let mut escaped = true;
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of a character like `'x'`, or of a lifetime like `'a`.
fn quote(text: &str) -> usize {
    let mut inside = text[1..].chars();
    let (first, second) = (inside.next().unwrap_or(' '), inside.next());
    if first == '\\' {
        3 + text[3..].find('\'').unwrap_or_default()
    } else if second == Some('\'') {
        2 + first.len_utf8()
    } else {
        1 + text[1..].find(|c| !is_name(c)).unwrap_or(text.len() - 1)
    }
}

struct Parser<'a> {
    tokens: &'a [&'a str],
    next: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self, ahead: usize) -> &'a str {
        self.tokens.get(self.next + ahead).copied().unwrap_or_default()
    }

    fn before(&self, back: usize) -> &'a str {
        self.next.checked_sub(back).map_or("", |index| self.tokens[index])
    }

    /// Up to the brace that ends it, or the end of the file.
    fn module(&mut self) -> Module {
        const ITEMS: &[&str] = &["fn", "struct", "enum", "trait", "type", "const", "static"];
        let mut module = Module::default();
        let mut depth = 0_u32;
        while self.next < self.tokens.len() {
            match self.peek(0) {
                "#" if depth == 0 && self.peek(1) == "[" => {
                    self.attribute();
                    continue;
                }
                "{" | "(" | "[" => depth += 1,
                "}" if depth == 0 => break,
                "}" | ")" | "]" => depth -= 1,
                "use" if self.peek(1) != "<" => {
                    let restricted = self.before(1) == ")" && self.before(4) == "pub";
                    let re_export = self.before(1) == "pub" || restricted;
                    self.next += 1;
                    self.tree(&mut module.imports, &[], re_export);
                    continue;
                }
                "mod" if depth == 0 => {
                    let name = self.peek(1).to_owned();
                    let is_inline = self.peek(2) == "{";
                    self.next += 3;
                    if is_inline {
                        module.inline.insert(name, self.module());
                        self.next += 1;
                    } else {
                        module.files.push(name);
                    }
                    continue;
                }
                "macro_rules" => {
                    module.items.insert(self.peek(2).to_owned());
                }
                item if depth == 0 && ITEMS.contains(&item) => {
                    module.items.insert(self.peek(1).to_owned());
                }
                name if name.starts_with(is_name) => {
                    self.path(&mut module.mentions);
                    continue;
                }
                _ => {}
            }
            self.next += 1;
        }
        module
    }

    /// Passes an attribute, and its item where that is for tests alone.
    fn attribute(&mut self) {
        let begin = self.next;
        self.group();
        let said = &self.tokens[begin..self.next];
        if !(said.contains(&"cfg") && said.contains(&"test")) || said.contains(&"not") {
            return;
        }
        while self.peek(0) == "#" {
            self.group();
        }
        let is_use = (0..5).any(|ahead| self.peek(ahead) == "use");
        while self.next < self.tokens.len() {
            match self.peek(0) {
                "{" if !is_use => return self.group(),
                "(" | "[" | "{" => self.group(),
                ";" => {
                    self.next += 1;
                    return;
                }
                _ => self.next += 1,
            }
        }
    }

    /// Passes the next brackets, with their content.
    fn group(&mut self) {
        let mut depth = 0_u32;
        while self.next < self.tokens.len() {
            match self.peek(0) {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            self.next += 1;
            if depth == 0 && ["}", ")", "]"].contains(&self.before(1)) {
                return;
            }
        }
    }

    /// A tree of imports, up to the sign behind it.
    fn tree(&mut self, imports: &mut Vec<Import>, above: &[String], re_export: bool) {
        let mut path = above.to_vec();
        while self.next < self.tokens.len() {
            let token = self.peek(0);
            self.next += 1;
            match token {
                "{" => {
                    while !["}", ""].contains(&self.peek(0)) {
                        self.tree(imports, &path, re_export);
                        self.next += usize::from(self.peek(0) == ",");
                    }
                    self.next += 1;
                    return;
                }
                "*" => {
                    imports.push(Import { name: "*".to_owned(), path, re_export });
                    return;
                }
                "::" => continue,
                // `{self}` is the module itself.
                "self" if !path.is_empty() => {}
                name => path.push(name.to_owned()),
            }
            if self.peek(0) != "::" {
                break;
            }
        }
        let mut name = path.last().cloned().unwrap_or_default();
        if self.peek(0) == "as" {
            name = self.peek(1).to_owned();
            self.next += 2;
        }
        imports.push(Import { name, path, re_export });
    }

    /// A name in code, with those that follow on `::`.
    fn path(&mut self, mentions: &mut BTreeSet<Vec<String>>) {
        let is_outside = [".", "::", "'"].contains(&self.before(1));
        let mut path = vec![self.peek(0).to_owned()];
        self.next += 1;
        while self.peek(0) == "::" && self.peek(1).starts_with(is_name) {
            path.push(self.peek(1).to_owned());
            self.next += 2;
        }
        let is_call = ["(", "!"].contains(&self.peek(0));
        let is_local = path.len() == 1 && path[0].starts_with(char::is_lowercase) && !is_call;
        if !is_outside && !is_local {
            mentions.insert(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_parsed_into_its_names() {
        let module = parse(
            r##"
            //! use crate::comment;
            mod child;
            #[cfg(test)]
            mod only_tests;
            #[cfg(test)]
            use crate::{for_tests};
            pub mod header { pub const NAME: &str = "crate::text"; }
            pub(crate) use child::{Thing, deep::{self, Other as Renamed}};
            use super::*;
            struct Own<'a>(&'a str, char);
            fn call() -> Own<'static> {
                let field = own.crate_like.method();
                crate::elsewhere::act(r#"super::raw"#, '"', '\'', Kind::First)
            }
            #[cfg(test)]
            mod tests { use crate::never; }
            "##,
        );
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(module.files, names(&["child"]));
        assert!(module.inline["header"].items.contains("NAME"));
        assert_eq!(module.items, names(&["Own", "call"]).into_iter().collect());
        let imports: Vec<_> = module
            .imports
            .iter()
            .map(|import| (&*import.name, import.path.join("::"), import.re_export))
            .collect();
        let expected = [
            ("Thing", "child::Thing", true),
            ("deep", "child::deep", true),
            ("Renamed", "child::deep::Other", true),
            ("*", "super", false),
        ];
        assert_eq!(imports, expected.map(|(name, path, all)| (name, path.to_owned(), all)));
        assert!(module.mentions.contains(&names(&["crate", "elsewhere", "act"])));
        assert!(module.mentions.contains(&names(&["Kind", "First"])));
        let all: Vec<_> = module.mentions.iter().flatten().collect();
        for left_out in ["comment", "text", "raw", "never", "for_tests", "method", "field"] {
            assert!(!all.iter().any(|name| *name == left_out), "{left_out}");
        }
    }

    #[test]
    fn a_path_begins_with_its_first_name() {
        let names = first_names(
            r#"
            use std::{fmt, time::Duration};
            use flexcore_out as out;
            #[derive(thiserror::Error)]
            enum Error { #[error("time::Date")] Late }
            fn run() -> tokio::time::Instant { metrics::counter!("x"); }
            #[cfg(test)]
            mod tests { use proptest::prelude::*; }
            "#,
        );
        let expected = ["flexcore_out", "metrics", "proptest", "std", "thiserror", "tokio"];
        assert_eq!(names.iter().collect::<Vec<_>>(), expected);
    }
}
