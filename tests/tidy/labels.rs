//! Labels of metrics stand in code and in deploy/README.md: their names, and those of their values that are
//! spelt out in code.

use std::collections::{BTreeMap, BTreeSet};

use crate::{none, sources};

const DOCUMENT: &str = "deploy/README.md";

/// Labels whose values are names, numbers, or true and false: the document lists none.
const NAMES: &[&str] = &[
    "application",
    "found",
    "lane",
    "method",
    "plugin",
    "read_model",
    "route",
    "server",
    "status",
];

/// The other labels whose values do not stand in the call of the macro: metric, label, the file and the
/// function where the values are (none: all files), and the text that each of them follows. After
/// `topology::` it is the name of a stream's constant.
const VALUES: &[(&str, &str, &str, &str)] = &[
    ("flexcore_append_refused_total", "reason", "src/eventstore/lib.rs count_refused", "=> \""),
    ("flexcore_breaker_state", "target", "", "Breaker::new(\""),
    ("flexcore_breaker_transitions_total", "target", "", "Breaker::new(\""),
    ("flexcore_breaker_transitions_total", "to", "src/resilience/circuit.rs word", "=> \""),
    ("flexcore_capacity_alarm", "limit", "workers/command/growth.rs name", "=> \""),
    ("flexcore_commands_total", "outcome", "workers/command/requests.rs count", "=> \""),
    ("flexcore_dead_total", "kind", "", ".bury(\""),
    ("flexcore_dead_total", "kind", "workers/projection/commit.rs bury", "format!(\""),
    ("flexcore_deadline_exceeded_total", "target", "", ".timeout(\""),
    ("flexcore_deadline_exceeded_total", "target", "", "Retry::new(\""),
    ("flexcore_failovers_total", "target", "", "Endpoints::new(\""),
    ("flexcore_http_shed_total", "reason", "", "shed(\""),
    ("flexcore_kept_trimmed_total", "stream", "", ".wrote(topology::"),
    ("flexcore_plugin_calls_total", "outcome", "src/pool/measure.rs outcome", "=> \""),
    ("flexcore_retries_total", "target", "", "Retry::new(\""),
    ("flexcore_retry_budget_exhausted_total", "target", "", "Retry::new(\""),
    ("flexcore_streams_remade_total", "stream", "src/eventstore/remade.rs lost_with", "topology::"),
];

/// A metric's labels, each with its values.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// The code of each file, by its path.
type Code = BTreeMap<String, String>;

#[test]
fn every_label_of_a_metric_is_documented_with_its_values() {
    let all = sources();
    let files = all.iter().filter(|source| source.is("rs") && source.below(&["src", "workers"]));
    let code: Code = files
        .map(|source| {
            let lines: Vec<_> = source.code(false).map(|(_, line)| line).collect();
            (source.path.clone(), lines.join("\n"))
        })
        .collect();
    let (coded, mut findings) = coded(&code);
    let document = all.iter().find(|source| source.path == DOCUMENT).unwrap();
    let documented = documented(&document.text);
    let names: BTreeSet<_> = coded.keys().chain(documented.keys()).collect();
    for name in names {
        let (code, said) = (coded.get(name), documented.get(name));
        if code != said {
            findings
                .push(format!("{name}: its labels are {code:?} in code, {said:?} in {DOCUMENT}"));
        }
    }
    assert!(coded.len() > 40, "{}", coded.len());
    none(findings);
}

/// What the code says, and the labels of which nothing is known.
fn coded(code: &Code) -> (BTreeMap<String, Labels>, Vec<String>) {
    let (mut coded, mut findings) = (BTreeMap::<String, Labels>::new(), Vec::new());
    for call in code.values().flat_map(|text| calls(text)) {
        let name = call[0].trim_matches('"');
        let labels = coded.entry(name.to_owned()).or_default();
        for (label, value) in call[1..].iter().filter_map(|argument| argument.split_once("=>")) {
            let label = label.trim().trim_matches('"');
            let values = labels.entry(label.to_owned()).or_default();
            let is_listed = VALUES.iter().any(|(of, known, ..)| (*of, *known) == (name, label));
            if let Some(value) = value.trim().strip_prefix('"') {
                values.insert(value.trim_end_matches('"').to_owned());
            } else if !is_listed && !NAMES.contains(&label) {
                findings.push(format!("{name}: say in VALUES or NAMES where {label} comes from"));
            }
        }
    }
    for (name, label, place, before) in VALUES {
        let found = values(code, place, before);
        let labels = coded.get_mut(*name).and_then(|labels| labels.get_mut(*label));
        match labels.filter(|_| !found.is_empty()) {
            Some(values) => values.extend(found),
            None => findings.push(format!("{name}: {label} does not come from {place} {before}")),
        }
    }
    (coded, findings)
}

/// The arguments of each call that sets a metric; the first one is its name.
fn calls(text: &str) -> Vec<Vec<&str>> {
    let macros = ["counter!(", "gauge!(", "histogram!("];
    let calls = macros.into_iter().flat_map(|of| text.split(of).skip(1).map(arguments));
    calls.filter(|call| call.first().is_some_and(|name| name.starts_with('"'))).collect()
}

/// The arguments of a call, from behind its bracket on.
fn arguments(call: &str) -> Vec<&str> {
    let (mut depth, mut from, mut found) = (0_u32, 0, Vec::new());
    for (at, c) in call.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth > 0 => depth -= 1,
            ')' | ',' if depth == 0 => {
                found.push(call[from..at].trim());
                from = at + 1;
                if c == ')' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// The words that follow the text, in a file's function or everywhere.
fn values(code: &Code, place: &str, before: &str) -> BTreeSet<String> {
    let texts: Vec<_> = match place.split_once(' ') {
        Some((file, name)) => vec![code.get(file).map_or("", |text| function(text, name))],
        None => code.values().map(String::as_str).collect(),
    };
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let after = texts.iter().flat_map(|text| text.split(before).skip(1));
    let words = after.filter_map(|after| after.split(|c: char| !is_word(c)).next());
    words
        .map(|word| {
            let stream = before.ends_with("topology::").then(|| stream(code, word));
            stream.unwrap_or_else(|| word.to_owned())
        })
        .collect()
}

/// A function, up to the brace that stands as far left as it does; nothing where there is none.
fn function<'a>(text: &'a str, name: &str) -> &'a str {
    let Some(at) = text.find(&format!("fn {name}(")) else { return "" };
    let begin = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let left = text[begin..].len() - text[begin..].trim_start().len();
    let end = format!("\n{}}}", " ".repeat(left));
    let rest = &text[begin..];
    &rest[..rest.find(&end).unwrap_or(rest.len())]
}

/// The name of the stream whose constant this is.
fn stream(code: &Code, constant: &str) -> String {
    let declared = format!("const {constant}: &str = \"");
    let (_, name) = code["src/eventstore/topology.rs"].split_once(&declared).unwrap();
    name.split('"').next().unwrap().to_owned()
}

/// What the table of metrics says: in a row's third cell stand labels with semicolons between, each with
/// its values behind it.
fn documented(document: &str) -> BTreeMap<String, Labels> {
    let (_, table) = document.split_once("| metric |").unwrap();
    let rows = table.lines().take_while(|line| line.starts_with('|') || line.ends_with('|'));
    let quoted = |text: &str| -> Vec<String> {
        text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    rows.filter_map(|row| {
        let cells: Vec<_> = row.split('|').collect();
        let name = quoted(cells.get(1)?).into_iter().next()?;
        let labels = cells.get(3)?.split(';').filter_map(|label| {
            let mut words = quoted(label).into_iter();
            Some((words.next()?, words.collect()))
        });
        Some((name, labels.collect()))
    })
    .collect()
}

#[test]
fn labels_are_read_from_code_and_from_the_document() {
    let text = "fn shed(reason: &'static str) {\n    \
                metrics::counter!(\n\"flexcore_x_total\", \"to\" => to(1, 2), \"of\" => \"a\"\n);\n}\n\
                gauge!(\"flexcore_y\").set(f(1));\n    fn of() {\n        \"b\"\n    }\n";
    let expected = [
        vec!["\"flexcore_x_total\"", "\"to\" => to(1, 2)", "\"of\" => \"a\""],
        vec!["\"flexcore_y\""],
    ];
    assert_eq!(calls(text), expected);
    assert_eq!(function(text, "of"), "    fn of() {\n        \"b\"");
    let table = "| metric | kind |\n| --- | --- |\n| `flexcore_x_total` | counter | `to`; `of`: `a`, `b` | |\n\
                 | `flexcore_y` | gauge | | |\n\n`none`";
    let said = documented(table);
    assert_eq!(said["flexcore_x_total"]["of"], BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    assert!(said["flexcore_x_total"]["to"].is_empty());
    assert!(said["flexcore_y"].is_empty() && said.len() == 2);
}
