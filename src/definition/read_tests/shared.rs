//! Read models that may be shared among workers, and those that may not.

use super::*;

/// A read model of accounts with this key and these changes' keys.
fn shared(key: &str, columns: &str, changes: &[(&str, &str)]) -> Result<Application, Vec<Problem>> {
    let aggregate = |name| {
        format!(
            "aggregate: {name}\ncommands:\n  go: {{ decide: '() => []' }}\nevents:\n  went: {{ \
             data: {{ type: object, required: [a], properties: {{ a: {{ type: string }} }} }}, \
             evolve: '(state) => state' }}\n---\n"
        )
    };
    let on: String = changes
        .iter()
        .map(|(event, key)| format!("  {event}: {{ key: {key}, set: {{ n: $version }} }}\n"))
        .collect();
    let text = format!(
        "{}{}read_model: rows\nshared: true\nkey: {key}\ncolumns: {columns}\non:\n{on}",
        aggregate("car"),
        aggregate("bus"),
    );
    read(&[("shop.yaml", &text)])
}

#[test]
fn rows_are_shared_when_each_belongs_to_one_aggregate() {
    let columns = "{ id: text, a: text, n: integer }";
    let model = |read: Result<Application, Vec<Problem>>| {
        let read = read.unwrap_or_else(|problems| panic!("{problems:?}"));
        read.read_models["rows"].clone()
    };
    let whole = model(shared("[id]", columns, &[("car.went", "{ id: $id }")]));
    assert_eq!((whole.shared, whole.portions()), (true, 16));
    let also = model(shared("[a, id]", columns, &[("car.went", "{ a: $.a, id: $id }")]));
    assert!(also.shared);
    for (key, columns, changes, why) in [
        ("[a]", columns, &[("car.went", "{ a: $.a }")][..], "no text column of the key is `$id`"),
        // `7` and `007` are two aggregates and one row.
        (
            "[id]",
            "{ id: integer, n: integer }",
            &[("car.went", "{ id: $id }")],
            "no text column of the key is `$id`",
        ),
        (
            "[id]",
            columns,
            &[("car.went", "{ id: $id }"), ("bus.went", "{ id: $id }")],
            "`bus` and `car` may have a row in common",
        ),
    ] {
        let problems = shared(key, columns, changes).unwrap_err();
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let line = said.iter().find(|problem| problem.contains(why)).unwrap_or_else(|| {
            panic!("{key}: should say {why}, and says {said:?}");
        });
        assert!(line.starts_with("shop.yaml:14: `shared` divides the rows by aggregate"), "{line}");
    }
}
