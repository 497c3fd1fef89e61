//! Named queries are prepared before they are deployed.

use crate::support::{
    Dev,
    app::{bank, refused},
    process::texts,
};

/// Once each of these was deployed, and answered 503 "being built" for ever.
#[tokio::test]
async fn a_query_with_bad_sql_is_refused_with_file_and_line() {
    let dev = Dev::shared();
    for (old, new, said) in [
        ("order by balance desc", "ordr by balance desc", "syntax error"),
        ("deposited - withdrawn as balance", "deposit - withdrawn as balance", "does not exist"),
        ("order by balance desc", "order by pg_sleep(1)::text", "a query may call"),
        ("order by balance desc", "order by \"set_config\"('a', 'b', true)", "a query may call"),
        // A column is renamed, and a query is not.
        ("owner: text", "holder: text", "does not exist"),
    ] {
        let bad = match new {
            "holder: text" => bank()
                .with(old, new)
                .with("owner: $.owner", "holder: $.owner")
                .with("select account,", "select account, owner,"),
            _ => bank().with(old, new),
        };
        let at = bad.place(if new == "holder: text" { "select account, owner," } else { new });
        let place = format!("{at}: query `richest`: ");
        let error = refused(&dev, &bad);
        assert!(error.contains(&place) && error.contains(said), "{new} at {place}: {error}");
        let (_folder, path) = bad.write();
        let dry = dev.run(&["apply", &path, "--dry-run"]);
        assert!(!dry.status.success() && texts(&dry).1.contains(&place), "{:?}", texts(&dry));
    }
}
