//! Read models whose events go through a plugin.

use super::*;

const GEO: &str = "transform: { plugin: geo, function: locate, version: 1.2.0 }";

/// The small application, with this as the first line of its row change.
fn with(line: &str) -> Result<Application, Vec<Problem>> {
    let (from, to) = ("  order.placed:\n", format!("  order.placed:\n    {line}\n"));
    assert!(SHOP.contains(from));
    read(&[("shop.yaml", &SHOP.replacen(from, &to, 1))])
}

fn fingerprint(application: &Application) -> &str {
    &application.read_models["customers"].fingerprint
}

#[test]
fn a_change_names_a_plugins_function_and_its_version() {
    let shop = with(GEO).unwrap();
    let named: Vec<_> = shop.transforms().collect();
    let [geo] = named.as_slice() else { panic!("{named:?}") };
    assert_eq!((geo.plugin.as_str(), &*geo.function, &*geo.version), ("geo", "locate", "1.2.0"));
    assert_eq!(geo.place.to_string(), "shop.yaml:35");
    assert_eq!(read(&[("shop.yaml", SHOP)]).unwrap().transforms().count(), 0);
}

/// What decides on the rows is in the fingerprint, and a line more above it is not.
#[test]
fn another_plugin_function_or_version_is_another_version_of_the_read_model() {
    let shop = with(GEO).unwrap();
    let plain = read(&[("shop.yaml", SHOP)]).unwrap();
    let others =
        [GEO.replace("geo", "maps"), GEO.replace("locate", "find"), GEO.replace("1.2.0", "1.2.1")];
    let others: Vec<Application> = others.iter().map(|line| with(line).unwrap()).collect();
    let mut all: Vec<&str> = others.iter().map(fingerprint).collect();
    all.extend([fingerprint(&shop), fingerprint(&plain)]);
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "{all:?}");
    let lower = with(&format!("# Where it went.\n    {GEO}")).unwrap();
    assert_eq!(fingerprint(&lower), fingerprint(&shop));
}

/// The schema of what a plugin returns is not known.
#[test]
fn any_path_into_what_a_plugin_returns_is_read() {
    let from = "key: { customer: $.customer }";
    let to = "key: { customer: $.place.owner }";
    let text = SHOP.replacen(from, to, 1);
    read(&[("shop.yaml", &text)]).expect_err("the event has none");
    let text = text.replacen("  order.placed:\n", &format!("  order.placed:\n    {GEO}\n"), 1);
    read(&[("shop.yaml", &text)]).unwrap();
}

#[test]
fn mistakes_are_told_with_their_lines() {
    for (line, message) in [
        ("transform: geo", "must be a map"),
        ("transform: {}", "needs `plugin`"),
        ("transform: { plugin: geo, function: locate }", "needs `version`"),
        ("transform: { plugin: geo, version: 1.2.0 }", "needs `function`"),
        (&*GEO.replace("1.2.0", "1.2"), "`version` must be a text"),
        (&*GEO.replace("1.2.0", "''"), "`version` has 1 to 64 printable characters"),
        (&*GEO.replace("geo", "Geo"), "must match"),
        (&*GEO.replace("locate", "'a b'"), "no function's name"),
        (&*GEO.replace("locate", "''"), "no function's name"),
        (&*GEO.replace("function", "functoin"), "did you mean `function`?"),
        ("transfrom: geo", "did you mean `transform`?"),
    ] {
        let problems = with(line).expect_err(line);
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let found = said
            .iter()
            .any(|problem| problem.starts_with("shop.yaml:35: ") && problem.contains(message));
        assert!(found, "{line:?} should say {message}, and says {said:#?}");
    }
}
