//! Scripts that mean harm, or that were written without thinking: each is an answer, in time.

#![expect(clippy::unwrap_used, reason = "the whole file is tests")]

mod support;

use std::time::{Duration, Instant};

use flexcore_domain::{Decider, State};
use flexcore_script::{ScriptDecider, check};
use support::{application, decider, event, faulty, run};

/// Longest that a hostile call may take, on a busy machine and without optimisation.
const BOUNDED: Duration = Duration::from_secs(5);

const EVOLVE: &str = "(state, event) => ({ last: event.data })";
const GO: &str = "() => [{ event: 'gone' }]";

/// An aggregate with one command, `go`, and one event, `gone`, whose data are free.
fn yaml(decide: &str, evolve: &str) -> String {
    let block = |text: &str| text.replace('\n', "\n      ");
    format!(
        "aggregate: thing
commands:
  go:
    payload: {{ type: object }}
    decide: |
      {}
events:
  gone:
    data: {{ type: object }}
    evolve: |
      {}
",
        block(decide),
        block(evolve)
    )
}

fn thing(decide: &str, evolve: &str) -> ScriptDecider {
    decider(&yaml(decide, evolve))
}

/// Runs one `decide`, which must be faulty within the time, and after which the decider must still
/// work: the second command of the same decider is a good one.
fn refused(decide: &str) -> String {
    let decide = format!(
        "(state, payload, context) => {{ if (payload.good) return [{{ event: 'gone' }}];\n{decide}\n}}"
    );
    let mut decider = thing(&decide, EVOLVE);
    let since = Instant::now();
    let message = faulty(run(&mut decider, &State::none(), "go", "{}"));
    assert!(since.elapsed() < BOUNDED, "{decide}: {:?}", since.elapsed());
    assert!(message.starts_with("app.yaml:"), "{message}");
    let good = run(&mut decider, &State::none(), "go", r#"{"good":true}"#).unwrap();
    assert_eq!(good.state.as_str(), r#"{"last":{}}"#, "{decide}");
    message
}

#[test]
fn endless_loops_end() {
    for decide in [
        "while (true) {}",
        "for (;;) { try { while (true) {} } catch {} }",
        "try { while (true) {} } finally { while (true) {} }",
        "const a = []; a.length = 4294967295; return a.map((x) => x);",
        "const a = []; a.length = 4294967295; return a.indexOf(1);",
        "const a = []; a.length = 4294967295; return a.concat([]);",
        "const a = []; a.length = 4294967295; return a.slice(1);",
        "const a = []; a.length = 4294967295; return a.sort();",
        "const a = []; a.length = 4294967295; return a.reverse();",
        "const a = []; a.length = 4294967295; return a.flat();",
        "const a = []; a.length = 4294967295; return a.join('').length;",
        "const a = []; a.length = 4294967295; return new Set(a);",
        "const a = [], i = a.values(); a.length = 4294967295; return new Set(i);",
        "const a = []; a.length = 4294967295; const keys = () => a.values();
         return new Set([undefined]).isSupersetOf({ size: 1, has: () => true, keys });",
        "const a = []; a.length = 4294967295; return a.values().drop(4294967290).next();",
        "return [].includes.call({ length: 2 ** 53 - 1 }, 1);",
        "return [].copyWithin.call({ length: 2 ** 53 - 1 }, 0, 1);",
        "return [].unshift.call({ length: 2 ** 53 - 2 }, 1);",
        "return [].lastIndexOf.call({ length: 2 ** 53 - 1 }, 1);",
        "return Array.from({ length: 2 ** 32 - 1 });",
        "return /(a+)+$/.test('a'.repeat(40) + 'b');",
        "return 'a'.repeat(4e6).indexOf('a'.repeat(2e6) + 'b');",
        "return 'a'.repeat(4e6).split('a'.repeat(2e6) + 'b');",
        "return 'a'.repeat(4e6).lastIndexOf('b' + 'a'.repeat(2e6));",
        "return 'a'.repeat(4e6).replaceAll('a'.repeat(2e6) + 'b', '');",
        "return (2n ** 4000000n) ** 4n;",
        "return BigInt('9'.repeat(4e6)).toString();",
        "const o = { get event() { while (true) {} } }; return [o];",
        "return [{ event: 'gone', data: { toJSON() { while (true) {} } } }];",
        "throw { toJSON() { while (true) {} } };",
        "const e = new Error(); Object.defineProperty(e, 'message', { get() { while (true) {} } }); throw e;",
    ] {
        refused(decide);
    }
}

#[test]
fn endless_allocation_ends() {
    for decide in [
        "const a = []; while (true) a.push(new Array(1000).fill(1));",
        "let s = 'x'; while (true) s += s;",
        "let s = 'x'; for (;;) try { s += s; } catch {}",
        "return 'x'.repeat(2 ** 29);",
        "return new Array(2 ** 30).fill(0);",
        "let o = {}; while (true) o = { o };",
        "const m = new Map(); for (let i = 0; ; i++) m.set(i, {});",
        "const o = {}; for (let i = 0; ; i++) o['k' + i] = i;",
        "return [{ event: 'gone', data: { toJSON() { return 'x'.repeat(2e7); } } }];",
    ] {
        refused(decide);
    }
}

#[test]
fn deep_recursion_ends() {
    for decide in [
        "const f = () => f() + 1; return f();",
        "let o = {}; for (let i = 0; i < 1e5; i++) o = { o }; return [{ event: 'gone', data: o }];",
        "let o = {}; for (let i = 0; i < 200; i++) o = { o }; return [{ event: 'gone', data: o }];",
        "const o = {}; o.o = o; return [{ event: 'gone', data: o }];",
        "return JSON.parse('['.repeat(1e6));",
        "return new RegExp('('.repeat(1e5) + ')'.repeat(1e5));",
        "const f = () => [1].map(f); return f();",
    ] {
        refused(decide);
    }
}

#[test]
fn what_is_thrown_or_returned_is_said() {
    for (decide, said) in [
        ("throw new TypeError('no such thing')", "TypeError: no such thing"),
        ("throw 'a text'", r#"threw "a text""#),
        ("throw undefined", "threw undefined"),
        ("throw null", "threw null"),
        ("throw Symbol('s')", "threw undefined"),
        ("throw { toString() { throw 1; }, toJSON() { throw 1; } }", "cannot be shown"),
        ("return", "must return a list"),
        ("return { event: 'gone' }", "must return a list"),
        ("return [null]", "TypeError"),
        ("return [{ event: 'went' }]", r#"the event "went", which is not declared"#),
        ("return [{ event: 'toString' }]", "not declared"),
        ("return [{ event: '__proto__' }]", "not declared"),
        ("return [{ event: { toString: () => 'gone' } }]", "not declared"),
        ("return [{ event: 'gone', data: () => 1 }]", "is not JSON"),
        ("return [{ event: 'gone', data: 'text' }]", "does not match its schema"),
        ("return [{ event: 'gone', data: { n: 1n } }]", "TypeError"),
        ("return [{ event: 'gone', data: { s: '\\ud800' } }]", "half a character"),
        (
            "return [{ event: 'gone', data: { '$serde_json::private::RawValue': '{}' } }]",
            "reserved",
        ),
        ("return Array(300).fill({ event: 'gone' })", "300 events"),
        ("return (async () => [])()", "promise"),
        ("Promise.resolve().then(() => 1); return []", "promise"),
        ("return Date.now()", "Date"),
        ("return Math.random()", "not a function"),
        ("return eval('1')", "eval"),
        ("return Function('return 1')()", "Function"),
        ("return (() => 1).constructor('return 1')()", "not a function"),
        ("return (function* () {}).constructor('return 1')()", "not a function"),
        ("return (async () => 1).constructor('return 1')()", "not a function"),
        ("return new Proxy([], {})", "Proxy"),
        ("return reject('No Code')", "reject needs a code"),
    ] {
        let message = refused(decide);
        assert!(message.contains(said), "{decide}: {message}");
    }
}

#[test]
fn a_fault_names_its_line() {
    let mut decider = thing(
        "() => [{ event: 'gone' }]",
        "(state, event) => {\n  const a = 1;\n  return a.b.c;\n}",
    );
    let message = faulty(run(&mut decider, &State::none(), "go", "{}"));
    assert!(message.starts_with("app.yaml:13: evolve of gone: TypeError"), "{message}");
    let message = faulty(decider.evolve(&State::none(), &[event("gone", 1, 1, "{}")]));
    assert!(message.starts_with("app.yaml:13: evolve of gone: TypeError"), "{message}");
    let mut outside = thing(GO, "() => reject('no')");
    let message = faulty(run(&mut outside, &State::none(), "go", "{}"));
    assert!(message.contains("outside decide"), "{message}");
    let mut nothing = thing(GO, "() => {}");
    let message = faulty(run(&mut nothing, &State::none(), "go", "{}"));
    assert!(message.contains("returned no state"), "{message}");
}

#[test]
fn nothing_survives_a_call() {
    let decide = "(state, payload, context) => {
  const tries = [
    () => { globalThis.kept = 1; },
    () => { Object.prototype.kept = 1; },
    () => { [].__proto__.kept = 1; },
    () => { JSON.parse = () => 1; },
    () => { Math.kept = 1; },
    () => { (() => 1).__proto__.kept = 1; },
    () => { Error.prepareStackTrace = () => 'kept'; },
    () => { reject.kept = 1; },
    () => { reject.prototype.kept = 1; },
    () => { [][Symbol.iterator]().__proto__.kept = 1; },
    () => { (function* () {})().__proto__.__proto__.kept = 1; },
    () => { Object.setPrototypeOf(Array.prototype, {}); },
    () => { ''.matchAll(/a/g).__proto__.kept = 1; },
    () => { (async () => {}).__proto__.kept = 1; },
    () => { String.prototype.at = () => 'kept'; },
    () => { try { reject('a'); } catch (e) { e.__proto__.kept = 1; } },
    () => { try { reject('a'); } catch (e) { e.constructor.kept = 1; } },
    () => { Object.getPrototypeOf(context).kept = 1; },
    () => { Object.setPrototypeOf(Object.getPrototypeOf(context), { kept: 1 }); },
    () => { payload.kept = 1; state.kept = 1; return 'its own'; },
  ];
  const went = tries.flatMap((run, i) => { try { return run() ?? i; } catch (e) { return []; } });
  return [{ event: 'gone', data: { went, kept: ({}).kept ?? null, name: [].at.name } }];
}";
    let mut decider = thing(decide, "(state, { data }) => ({ ...state, ...data })");
    let state = State::from_json("{}");
    let first = run(&mut decider, &state, "go", "{}").unwrap();
    assert_eq!(first.state.as_str(), r#"{"went":["its own"],"kept":null,"name":"at"}"#);
    let second = run(&mut decider, &state, "go", "{}").unwrap();
    assert_eq!(second.state, first.state);
}

#[test]
fn a_function_must_be_one_plain_function() {
    let problems = |decide: &str| {
        let application = application(&yaml(decide, EVOLVE));
        let problems = check(&application).unwrap_err();
        let definition = application.aggregates.values().next().unwrap().clone();
        assert!(ScriptDecider::new(definition).is_err());
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    for (decide, said) in [
        ("(state) => {\n  const a = ;\n}", "app.yaml:7: JavaScript: "),
        ("(state) => {", "app.yaml:6: JavaScript: "),
        ("(() => { let n = 0; return () => n++; })()", "app.yaml:6: must be one function"),
        ("1", "must be one function"),
        ("undefinedName", "app.yaml:6:"),
        ("Math.max", "must be one function"),
        ("async () => []", "neither async"),
        ("function* () {}", "neither async"),
        ("() => 1); globalThis.x = 1; (() => 2", "app.yaml:6:"),
        ("(() => { while (true) {} })()", "app.yaml:6:"),
        ("with (a) {}", "app.yaml:6: JavaScript"),
    ] {
        let problems = problems(decide);
        assert!(problems.contains(said), "{decide}: {problems}");
    }
    for good in
        ["// why\n() => [] /* nothing */", "(function decide() { return []; })", "((state) => [])"]
    {
        assert!(check(&application(&yaml(good, EVOLVE))).is_ok(), "{good}");
    }
}

#[test]
fn a_function_cannot_remember() {
    let mut named = thing("function f() { f.n = (f.n ?? 0) + 1; return []; }", EVOLVE);
    assert!(faulty(run(&mut named, &State::none(), "go", "{}")).contains("TypeError"));
    let mut prototype = thing("function f() { f.prototype.n = 1; return []; }", EVOLVE);
    assert!(faulty(run(&mut prototype, &State::none(), "go", "{}")).contains("TypeError"));
}

#[test]
fn decide_cannot_change_the_state_but_by_events() {
    let mut decider = thing(
        "(state) => { state.n = 99; return [{ event: 'gone' }, { event: 'gone' }]; }",
        "(state) => ({ n: state.n + 1, lost: undefined, odd: NaN })",
    );
    let decision = run(&mut decider, &State::from_json(r#"{"n":1}"#), "go", "{}").unwrap();
    assert_eq!(decision.state.as_str(), r#"{"n":3,"odd":null}"#);
}

#[test]
fn states_have_a_largest_size_and_depth() {
    let mut large = thing(GO, "() => 'x'.repeat(600 * 1024)");
    assert!(faulty(run(&mut large, &State::none(), "go", "{}")).contains("the state has"));
    let mut deep =
        thing(GO, "() => { let o = {}; for (let i = 0; i < 40; i++) o = { o }; return o; }");
    assert!(faulty(run(&mut deep, &State::none(), "go", "{}")).contains("nested deeper"));
    let mut fine = thing(GO, "() => ({ text: 'x'.repeat(500 * 1024) })");
    assert!(run(&mut fine, &State::none(), "go", "{}").is_ok());
}
