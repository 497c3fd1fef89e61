//! Mistakes, each with the line that the message names.

use super::*;

/// The problems of the small application with one text in place of another.
fn problems(from: &str, to: &str) -> Vec<String> {
    assert!(SHOP.contains(from), "{from}");
    let text = SHOP.replacen(from, to, 1);
    let problems = read(&[("shop.yaml", &text)]).expect_err(to);
    problems.iter().map(ToString::to_string).collect()
}

fn check(cases: &[(&str, &str, &str, &str)]) {
    for (from, to, place, message) in cases {
        let found = problems(from, to);
        let named = found.iter().any(|problem| {
            problem.starts_with(&format!("shop.yaml:{place}: ")) && problem.contains(message)
        });
        assert!(named, "{to:?} should say {place}: {message}, and says {found:#?}");
    }
}

#[test]
fn the_small_application_is_right() {
    let shop = read(&[("shop.yaml", SHOP)]).unwrap();
    let order = &shop.aggregates["order"];
    assert_eq!(order.commands["place"].decide.place().line, 10);
    assert_eq!(order.events["placed"].evolve.place.line, 25);
    assert_eq!(order.events["placed"].upcast[&1].place.line, 28);
    assert_eq!(order.events["placed"].data.place.line, 17);
}

#[test]
fn aggregates() {
    check(&[
        ("aggregate: order", "aggregate: Order", "1", "must match"),
        ("aggregate: order", "agregate: order", "1", "did you mean `aggregate`?"),
        ("description: An", "descripton: An", "2", "did you mean `description`?"),
        ("description: An order.", "description: [a]", "2", "must be a text, and is a list"),
        ("  place:", "  place.it:", "4", "command must match"),
        ("    decide: |", "    decied: |", "9", "did you mean `decide`?"),
        ("    decide: |", "    decied: |", "5", "needs `decide`"),
        ("(state, event) => event.data", "''", "25", "a function is missing"),
        ("(state, event) => event.data", "[1]", "25", "must be a text"),
        ("    version: 2", "    version: 1", "27", "`upcast`"),
        ("    version: 2", "    version: 3", "27", "from version 2 is missing"),
        ("    version: 2", "    version: 0", "15", "`version` is a whole number"),
        ("    version: 2", "    version: x", "15", "`version` is a whole number"),
        ("      1: |", "      one: |", "27", "`upcast`"),
        ("  placed:\n    version", "  placed:\n  placed:\n    version", "15", "twice"),
    ]);
}

#[test]
fn schemas() {
    check(
        &[
            ("required: [customer]\n", "required: customer\n", "7", "not a JSON Schema"),
            ("lines: { type: integer }", "lines: { type: int }", "22", "not a JSON Schema"),
            ("lines: { type: integer }", "lines: { format: dat }", "22", "JSON Schema"),
            ("lines: { type: integer }", "lines: { pattern: '(a' }", "22", "JSON Schema"),
            ("'#/$defs/place'", "https://example.org/a.json", "23", "refers only to its own parts"),
            ("'#/$defs/place'", "other.json#/a", "23", "refers only to its own parts"),
            ("'#/$defs/place'", "'#/$defs/none'", "", "not a JSON Schema"),
            (
                "    data:\n      type: object",
                "    data: 7\n    x:\n      type: object",
                "16",
                "must be a map",
            ),
        ]
        .map(|(from, to, place, message)| {
            // The place of a broken reference is that of the schema, wherever the compiler saw it.
            let place = if place.is_empty() { "17" } else { place };
            (from, to, place, message)
        }),
    );
}

#[test]
fn read_models() {
    check(&[
        ("orders: integer", "orders: int", "31", "`int` is no type"),
        ("orders: integer", "Orders: integer", "31", "must match"),
        ("orders: integer", "tenant: integer", "31", "`tenant` is taken"),
        ("orders: integer", "limit: integer", "31", "`limit` is taken"),
        ("read_model: customers", "read_model: customers_v1", "30", "names that end in _v"),
        ("orders: integer", "min_position: integer", "31", "`min_position` is taken"),
        ("key: [customer]", "key: customer", "32", "must be a list"),
        ("key: [customer]", "key: [customer]\nshared: 2", "33", "`shared` is true or false"),
        ("key: [customer]", "key: [customer]\nshared: true", "33", "divides the rows by aggregate"),
        ("key: [customer]", "key: []", "32", "1 to 8"),
        ("key: [customer]", "key: [custmer]", "32", "did you mean `customer`?"),
        ("key: [customer]", "key: [customer, customer]", "32", "twice"),
        ("  order.placed:", "  ordr.placed:", "34", "did you mean `order`?"),
        ("  order.placed:", "  order.place:", "34", "did you mean `placed`?"),
        ("  order.placed:", "  placed:", "34", "is no event"),
        ("key: { customer: $.customer }", "key: {}", "35", "needs `customer`"),
        ("key: { customer: $.customer }", "key: { customer: $.total }", "35", "may be absent"),
        ("key: { customer: $.customer }", "key: { customer: null }", "35", "can't be null"),
        ("key: { customer: $.customer }", "key: { customer: 1 }", "35", "takes a text"),
        ("city: $.at.city", "city: $.at.citi", "36", "did you mean `city`?"),
        ("city: $.at.city", "city: $.at..city", "36", "is none of"),
        ("city: $.at.city", "city: $now", "36", "is none of"),
        ("city: $.at.city", "city: $.lines", "36", "takes a text"),
        ("city: $.at.city", "city: [a]", "36", "a list"),
        ("city: $.at.city", "town: a", "36", "`columns` has no `town`"),
        ("city: $.at.city", "customer: a", "36", "part of the key"),
        ("city: $.at.city", "total: 1", "37", "two operations"),
        ("last: $time", "last: yesterday", "36", "takes a time"),
        ("last: $time", "vip: maybe", "36", "takes true or false"),
        ("add: { orders: 1,", "add: { last: 1,", "37", "does not work on a timestamp"),
        ("add: { orders: 1,", "max: { vip: true,", "37", "does not work on a boolean"),
        ("add: { orders: 1,", "add: { orders: 1.5,", "37", "takes a whole number"),
        ("add: { orders: 1,", "add: { orders: null,", "37", "null does nothing"),
        ("add: { orders: 1,", "increment: { orders: 1,", "37", "has no `increment`"),
        ("    add: {", "    delete: true\n    add: {", "38", "exclude each other"),
    ]);
}

#[test]
fn indexes() {
    let key = "key: [customer]";
    let cases: Vec<(String, &str)> = vec![
        ("indexes: city".to_owned(), "must be a list"),
        ("indexes: [citi]".to_owned(), "did you mean `city`?"),
        ("indexes: [tenant]".to_owned(), "has no `tenant`"),
        ("indexes: [{ columns: [city] }]".to_owned(), "must be a text"),
        ("indexes: [[]]".to_owned(), "1 to 4 columns"),
        ("indexes: [[city, orders, total, last, vip]]".to_owned(), "1 to 4 columns"),
        ("indexes: [[city, -city]]".to_owned(), "in the index twice"),
        ("indexes: [city, [city]]".to_owned(), "index [city] is declared twice"),
        ("indexes: [customer]".to_owned(), "the key has an index that does for [customer]"),
        (format!("indexes: [{}]", ["orders"; 9].join(", ")), "a read model has at most 8 indexes"),
    ];
    for (indexes, message) in &cases {
        check(&[(key, &format!("{key}\n{indexes}"), "33", message)]);
    }
    let texts = SHOP.replace("vip: boolean", "a: text, b: text, vip: boolean");
    let declare = |indexes: &str| {
        let text = texts.replace(key, &format!("{key}\n{indexes}"));
        read(&[("shop.yaml", &text)]).map(|shop| shop.read_models["customers"].clone())
    };
    let many = declare("indexes:\n- [city, a, b]").unwrap_err();
    assert!(
        many[0].to_string().starts_with("shop.yaml:34: an index has at most 2 text"),
        "{many:?}"
    );
    let right = declare("indexes: [-customer, city, [city, -last, customer, a], [-vip]]").unwrap();
    let shown: Vec<String> = right.indexes.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["[-customer]", "[city]", "[city, -last, customer, a]", "[-vip]"]);
    let without = declare("# none").unwrap();
    assert_eq!(without.fingerprint, right.fingerprint, "an index says nothing about the rows");
}

#[test]
fn queries() {
    check(&[
        ("reads: [customers]", "reads: [customer]", "40", "did you mean `customers`?"),
        ("reads: [customers]", "reads: []", "40", "1 to 16"),
        ("type: integer, default: 0", "type: integer, default: x", "41", "must be a whole number"),
        ("type: integer, default: 0", "default: 0", "41", "needs `type`"),
        // Was taken here, and refused whenever the query was asked.
        (
            "type: integer, default: 0",
            "type: date, default: \"0000-01-01\"",
            "41",
            "must be a date",
        ),
        ("city: text }", "city: string }", "41", "`string` is no type"),
        ("city: text }", "city: text, more: text }", "41", "does not use `:more`"),
        (":city", ":citi", "45", "did you mean `city`?"),
        ("rm.customers", "rm.others", "44", "does not name `others`"),
        ("rm.customers", "customers", "43", "has no `rm.customers`"),
        ("select customer", "delete customer", "43", "begins with"),
        ("and city = :city", "and city = :city; drop table x", "45", "one statement"),
    ]);
}

#[test]
fn all_problems_are_reported_in_order() {
    let first = SHOP.replace("payload:", "paylod:").replace("reads: [customers]", "reads: [x]");
    let problems = read(&[("a.yaml", &first), ("b.yaml", "query: [\n"), ("c.txt", "")]);
    let places: Vec<String> =
        problems.unwrap_err().iter().map(|problem| problem.place.to_string()).collect();
    assert_eq!(places, ["a.yaml:5", "a.yaml:40", "b.yaml:2", "c.txt:1"]);
}

#[test]
fn names_are_declared_once_and_something_is() {
    let problems = read(&[("a.yaml", SHOP), ("b.yaml", SHOP)]).unwrap_err();
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 3);
    assert_eq!(texts[0], "b.yaml:1: `order` is declared twice, first in a.yaml:1");
    for text in ["", "# nothing\n", "---\n---\n"] {
        assert!(read(&[("a.yaml", text)]).unwrap_err()[0].message.contains("no file declares"));
    }
    assert!(read(&[]).is_err());
}

#[test]
fn what_is_too_large_is_refused() {
    let large = format!("# {}\n{SHOP}", "x".repeat(600 * 1024));
    assert!(read(&[("a.yaml", &large)]).unwrap_err()[0].message.contains("at most"));
    let function = format!("(state, event) => \"{}\"", "x".repeat(65 * 1024));
    let found = problems("(state, event) => event.data", &function);
    assert!(found[0].contains("a function of"), "{found:?}");
    let schema = format!("city: {{ description: {} }}", "x".repeat(65 * 1024));
    let found = problems("city: { type: string }", &schema);
    assert!(found[0].contains("a schema of"), "{found:?}");
}

/// A payload must never exhaust a worker's stack, for any reference in its schema.
#[test]
fn a_schema_that_refers_to_itself_ends() {
    let (start, end) = (SHOP.find("    payload:").unwrap(), SHOP.find("    decide:").unwrap());
    for schema in [
        "{ $ref: '#' }",
        "{ allOf: [{ $ref: '#' }] }",
        "{ $ref: '#/$defs/a', $defs: { a: { $ref: '#/$defs/b' }, b: { $ref: '#/$defs/a' } } }",
    ] {
        let text = SHOP.replace(&SHOP[start..end], &format!("    payload: {schema}\n"));
        let shop = read(&[("a.yaml", &text)]).unwrap();
        let payload = &shop.aggregates["order"].commands["place"].payload;
        assert!(payload.validator.is_valid(&serde_json::json!({"a": 1})), "{schema}");
    }
}
