//! The limits in `schemas/README.md` are those of the code.

use crate::{
    INDEX_COLUMNS_MAX, INDEX_TEXT_BYTES_MAX, INDEX_TEXTS_MAX, INDEXES_MAX, aggregate, documents,
    expression, query, read_model, schema, yaml,
};

#[test]
fn the_limits_are_those_of_the_document() {
    let kib = |bytes: usize| format!("{} KiB", bytes / 1024);
    assert_eq!(aggregate::FUNCTION_BYTES_MAX, schema::BYTES_MAX, "one row says both");
    let rows = [
        (
            "files of an application, their text together",
            format!("{}, {}", documents::FILES_MAX, kib(documents::BYTES_MAX)),
        ),
        ("documents", documents::DOCUMENTS_MAX.to_string()),
        ("commands, and events, of an aggregate", format!("{} each", aggregate::MEMBERS_MAX)),
        ("a function, a schema", kib(schema::BYTES_MAX)),
        ("version of an event", aggregate::EVENT_VERSION_MAX.to_string()),
        (
            "columns, key columns, events of a read model",
            format!(
                "{}, {}, {}",
                read_model::COLUMNS_MAX,
                read_model::KEY_COLUMNS_MAX,
                read_model::EVENTS_MAX
            ),
        ),
        (
            "indexes of a read model, columns of one, text columns of one beside the key's",
            format!("{INDEXES_MAX}, {INDEX_COLUMNS_MAX}, {INDEX_TEXTS_MAX}"),
        ),
        ("steps of a path", expression::PATH_STEPS_MAX.to_string()),
        (
            "parameters, read models, text of a query",
            format!(
                "{}, {}, {}",
                query::PARAMETERS_MAX,
                query::READS_MAX,
                kib(query::SQL_BYTES_MAX)
            ),
        ),
        ("nesting of YAML", format!("{} levels", yaml::DEPTH_MAX)),
    ];
    let document = include_str!("../../../schemas/README.md");
    for (what, most) in rows {
        let row = format!("| {what} | {most} |");
        assert!(document.contains(&row), "schemas/README.md lacks {row}");
    }
    let texts = format!("An index holds texts of up to {INDEX_TEXT_BYTES_MAX} bytes.");
    assert!(document.contains(&texts), "schemas/README.md lacks: {texts}");
}
