//! The future of a public function is compiled in its own crate, where it is boxed. Else it is compiled in each
//! crate that waits for it, with all that it waits for, and a release build takes half as long again.

use crate::{none, sources};

const BOXED: &str = "#[boxed::async_recursion";

/// The crates that others wait for. What the plugins' side has is called by one other crate.
const CRATES: [&str; 9] = [
    "src/broker",
    "src/cluster",
    "src/eventstore",
    "src/gateway",
    "src/installation",
    "src/operations",
    "src/queue",
    "src/readmodel",
    "workers",
];

/// Its functions are of a generic type, and so generic themselves.
const OF_A_GENERIC_TYPE: &str = "workers/queue.rs";

/// True for what the attribute cannot do: generic functions are compiled where they are called in any case, and
/// a lifetime needs its name.
fn is_excused(signature: &str) -> bool {
    ["impl ", "<'_>", "dyn FnMut"].iter().any(|part| signature.contains(part))
}

#[test]
fn futures_of_public_functions_are_boxed() {
    let mut findings = Vec::new();
    for source in sources().iter().filter(|source| source.is("rs") && source.below(&CRATES)) {
        if source.path == OF_A_GENERIC_TYPE {
            continue;
        }
        let lines: Vec<_> = source.code(false).collect();
        for (at, (number, line)) in lines.iter().enumerate() {
            let Some(rest) = line.trim_start().strip_prefix("pub async fn ") else { continue };
            let is_generic = rest.split('(').next().is_some_and(|name| name.contains('<'));
            let mut signature = String::new();
            for (_, line) in &lines[at..] {
                signature.push_str(line);
                if line.ends_with('{') {
                    break;
                }
            }
            let is_boxed = at > 0 && lines[at - 1].1.trim_start().starts_with(BOXED);
            if !is_boxed && !is_generic && !is_excused(&signature) {
                findings.push(format!("{}:{number}: put {BOXED}] above it", source.path));
            }
        }
    }
    none(findings);
}
