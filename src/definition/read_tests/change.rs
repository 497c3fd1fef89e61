//! Versions of an application side by side.

use std::sync::Arc;

use super::*;
use crate::{Catalog, Comparison, DECLARED_MAX, compare};

/// The changes when one text stands in place of another.
fn changed(from: &str, to: &str) -> Comparison {
    assert!(SHOP.contains(from), "{from}");
    let old = read(&[("shop.yaml", SHOP)]).unwrap();
    let new = match read(&[("shop.yaml", &SHOP.replacen(from, to, 1))]) {
        Ok(new) => new,
        Err(problems) => panic!("{to}: {problems:?}"),
    };
    compare(&old, &new)
}

fn refusal(from: &str, to: &str) -> String {
    let refusals = changed(from, to).refusals;
    assert_eq!(refusals.len(), 1, "{to}: {refusals:?}");
    refusals[0].to_string()
}

#[test]
fn what_does_not_matter_is_no_change() {
    assert_eq!(changed("aggregate: order", "# a comment\naggregate: order"), Comparison::default());
    assert_eq!(changed("reads: [customers]", "reads:\n- customers"), Comparison::default());
}

#[test]
fn changes_are_said() {
    for (from, to, said) in [
        (
            "customer: { type: string }, total",
            "customer: { minLength: 1 }, total",
            "command order.place has another payload",
        ),
        ("data: payload", "data: { ...payload }", "command order.place has other rules"),
        ("=> event.data", "=> ({ ...event.data })", "event order.placed evolves"),
        ("vip: boolean", "vip: text", "read model customers changes"),
        ("orders: 1, total", "orders: 2, total", "read model customers changes"),
        (
            "key: [customer]",
            "key: [customer]\nindexes: [[city, -last]]",
            "read model customers: index [city, -last] is new",
        ),
        ("select customer,", "select lower(customer),", "query best changes"),
        ("default: 0", "default: 1", "query best changes"),
        ("An order", "One order", "aggregate order has another description"),
        ("events:\n", "events:\n  paid: { evolve: (state) => state }\n", "event order.paid is new"),
    ] {
        let found = changed(from, to);
        assert!(found.refusals.is_empty(), "{to}: {:?}", found.refusals);
        assert!(found.changes.len() == 1 && found.changes[0].starts_with(said), "{to}: {found:?}");
    }
    let (start, end) = (SHOP.find("query: best").unwrap(), SHOP.len());
    let found = changed(&SHOP[start..end], "");
    assert_eq!(found.changes, ["query best is removed"]);
    let start = SHOP.find("read_model: customers").unwrap();
    let found = changed(&SHOP[start..end], "");
    assert_eq!(found.changes.len(), 2, "{found:?}");
}

#[test]
fn incompatible_changes_are_refused() {
    let schema = ("lines: { type: integer }", "lines: { type: number }");
    assert!(refusal(schema.0, schema.1).contains("another schema"));
    assert!(refusal("({ ...data, lines: 1 })", "({ ...data, lines: 2 })").contains("upcast"));
    let raised = SHOP.replace("version: 2", "version: 4").replace(
        "    upcast:\n",
        "    upcast:\n      2: (data) => data\n      3: (data) => data\n",
    );
    assert!(refusal(SHOP, &raised).contains("one at a time"));
    let start = SHOP.find("    upcast:").unwrap();
    let end = SHOP.find("---\nread_model").unwrap();
    let lowered = SHOP.replace("version: 2", "version: 1").replace(&SHOP[start..end], "");
    assert!(refusal(SHOP, &lowered).contains("goes back from version 2 to 1"));
    let renamed = SHOP.replace("placed", "ordered");
    assert!(refusal(SHOP, &renamed).contains("event `order.placed` is gone"));
    let renamed = SHOP.replace("aggregate: order", "aggregate: sale").replace("order.p", "sale.p");
    assert!(refusal(SHOP, &renamed).contains("aggregate `order` is gone"));
}

#[test]
fn a_schema_changes_with_its_version_and_an_upcast() {
    let raised = SHOP
        .replace("version: 2", "version: 3")
        .replace("lines: { type: integer }", "lines: { type: integer, minimum: 1 }")
        .replace("    upcast:\n", "    upcast:\n      2: (data) => data\n");
    let found = changed(SHOP, &raised);
    assert_eq!(found.refusals, []);
    let model = "read model customers changes: a new version is built from the log beside the one \
                 in use";
    assert_eq!(found.changes, ["event order.placed goes from version 2 to 3", model]);
}

/// The read model's rows once stayed as they were when an event that it follows got an upcast.
#[test]
fn whatever_determines_a_row_makes_another_version_of_its_read_model() {
    let raised = |data: &str, upcast: &str| {
        SHOP.replace("version: 2", "version: 3")
            .replace("lines: { type: integer }", data)
            .replace("    upcast:\n", &format!("    upcast:\n      2: \"{upcast}\"\n"))
    };
    let of = |text: &str| {
        let shop = read(&[("shop.yaml", text)]).unwrap_or_else(|problems| panic!("{problems:?}"));
        shop.read_models["customers"].fingerprint.clone()
    };
    let (now, same) = (of(SHOP), "lines: { type: integer }");
    let edited = |from: &str, to: &str| {
        assert!(SHOP.contains(from), "{from}");
        SHOP.replacen(from, to, 1)
    };
    let others = [
        edited("vip: boolean", "vip: text"),
        edited("vip: boolean", "vips: boolean"),
        edited("city: text, vip: boolean", "vip: boolean, city: text"),
        edited("key: { customer: $.customer }", "key: { customer: $id }"),
        edited("last: $time", "last: null"),
        edited("set: { last: $time, ", "min: { last: $time }\n    set: { "),
        edited("orders: 1", "orders: 2"),
        edited("total: $.total }\n---", "total: $.lines }\n---"),
        // The same declaration, over other data.
        raised(same, "(data) => data"),
        raised(same, "(data) => ({ ...data, lines: 2 })"),
        raised("lines: { type: integer, minimum: 1 }", "(data) => data"),
        edited("({ ...data, lines: 1 })", "({ ...data, lines: 2 })"),
    ];
    let mut seen = std::collections::BTreeSet::from([now.clone()]);
    for other in others {
        assert!(seen.insert(of(&other)), "the same rows as before or as another: {other}");
    }
    let none = [
        edited("read_model: customers\n", "read_model: customers\ndescription: Who buys.\n"),
        edited("decide: |\n", "decide: |\n      // other rules\n"),
        edited("evolve: (state, event) => event.data", "evolve: (state) => state"),
        edited("select customer,", "select lower(customer),"),
        edited("events:\n", "events:\n  paid: { evolve: (state) => state }\n"),
    ];
    for other in none {
        assert_eq!(of(&other), now, "rows stay: {other}");
    }
}

#[test]
fn names_belong_to_one_application() {
    let shop = read(&[("shop.yaml", SHOP)]).unwrap();
    let catalog = Catalog::default().with(shop.clone()).unwrap();
    let again = catalog.with(Application { version: 2, ..shop.clone() }).unwrap();
    assert_eq!((again.applications.len(), again.applications["shop"].version), (1, 2));
    let other = Application { name: Name::parse("copy").unwrap(), ..shop };
    let problems = catalog.with(other).unwrap_err();
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "shop.yaml:1: aggregate `order` belongs to application `shop`",
            "shop.yaml:30: read model `customers` belongs to application `shop`",
            "shop.yaml:39: query `best` belongs to application `shop`",
        ]
    );
}

const CART: &str = "\
aggregate: cart
commands:
  fill:
    decide: |
      () => []
events:
  filled:
    evolve: |
      (state) => state
";

/// All aggregates of an application were compiled anew by every lane, and whose functions had run away was
/// forgotten.
#[test]
fn an_aggregate_that_a_deployment_leaves_as_it_was_stays_the_same_one() {
    let deploy = |catalog: &Catalog, cart: &str, shop: &str| {
        catalog.with(read(&[("cart.yaml", cart), ("shop.yaml", shop)]).unwrap()).unwrap()
    };
    let first = deploy(&Catalog::default(), CART, SHOP);
    let same = |second: &Catalog, name: &str| {
        Arc::ptr_eq(first.aggregate(name).unwrap(), second.aggregate(name).unwrap())
    };
    let both = |second: &Catalog| (same(second, "cart"), same(second, "order"));
    assert_eq!(both(&deploy(&first, CART, SHOP)), (true, true));
    for (from, to) in [
        ("=> event.data", "=> ({ ...event.data })"),
        ("data: payload", "data: { ...payload }"),
        ("lines: 1", "lines: 2"),
        ("customer: { type: string }, total", "customer: { minLength: 1 }, total"),
        ("An order", "One order"),
    ] {
        let changed = deploy(&first, CART, &SHOP.replacen(from, to, 1));
        assert_eq!(both(&changed), (true, false), "{to}");
    }
    // Messages tell the line.
    let moved = deploy(&first, &format!("# a comment\n{CART}"), SHOP);
    assert_eq!(both(&moved), (false, true));
}

#[test]
fn an_aggregate_is_found_as_long_as_an_application_declares_it() {
    let application = |name: &str, files: &[(&str, &str)]| {
        let name = Name::parse(name).unwrap();
        Application { name, ..read(files).unwrap() }
    };
    let (with, without) = ([("cart.yaml", CART), ("shop.yaml", SHOP)], [("shop.yaml", SHOP)]);
    let mut catalog = Catalog::default();
    catalog.put(application("b", &with));
    // As two old deployments may have it. The first counts.
    catalog.put(application("a", &[("a.yaml", CART)]));
    let file = |catalog: &Catalog, name: &str| {
        catalog.aggregate(name).map(|found| found.place.file.to_string())
    };
    assert_eq!(file(&catalog, "cart").as_deref(), Some("a.yaml"));
    catalog.put(application("a", &[("a.yaml", &CART.replace("cart", "basket"))]));
    assert_eq!(file(&catalog, "cart").as_deref(), Some("cart.yaml"));
    catalog.put(application("b", &without));
    assert_eq!(file(&catalog, "cart"), None);
    assert!(file(&catalog, "order").is_some() && file(&catalog, "basket").is_some());
}

/// Every process kept every read model that was ever deployed while it ran.
#[test]
fn an_application_that_is_deployed_again_and_again_takes_no_more_memory() {
    let version = |orders: usize| {
        let add = format!("orders: {}, total", orders + 1);
        read(&[("shop.yaml", &SHOP.replace("orders: 1, total", &add))])
    };
    let mut catalog = Catalog::default();
    for orders in 0..3 * DECLARED_MAX {
        // The second one changes nothing.
        catalog.put(version(orders).unwrap());
        catalog.put(version(orders).unwrap());
    }
    assert_eq!(catalog.declarations.len(), DECLARED_MAX);
    let kept = |orders: usize| {
        let declared = version(orders).unwrap().read_models["customers"].fingerprint.clone();
        catalog.declarations.contains_key(&declared)
    };
    assert!((2 * DECLARED_MAX..3 * DECLARED_MAX).all(kept) && !kept(0));
}
