//! Every route, in one list, with the permission that it needs: `none` for strangers, as everything
//! outside of `/v1/` is.

use std::sync::Arc;

use axum::{
    Router,
    middleware::from_fn_with_state,
    routing::{delete, get, post, put},
};
use flexcore_auth::Permission;

use crate::{
    error::Problem,
    problems, request,
    route::Route,
    routes::{
        aggregates, cluster, commands, documents, events, health, managed_plugins,
        plugin_configuration, plugins, queries,
    },
    shared::Shared,
};

/// Method, path, permission, handler. A route without a permission does not compile.
macro_rules! routes {
    ($($method:ident $path:literal $needs:ident $handler:path;)*) => {
        &[$(Route {
            method: stringify!($method),
            path: $path,
            needs: needs!($needs),
            handler: || $method($handler),
        }),*]
    };
}

macro_rules! needs {
    (none) => {
        None
    };
    ($permission:ident) => {
        Some(Permission::$permission)
    };
}

/// What clients may ask for.
pub(crate) static ROUTES: &[Route] = routes! {
    post "/v1/commands/{aggregate}/{id}/{command}" SendCommands   commands::send;
    get  "/v1/commands/{command_id}"               SendCommands   commands::outcome;
    get  "/v1/aggregates/{aggregate}/{id}"         ReadAggregates aggregates::state;
    get  "/v1/aggregates/{aggregate}/{id}/events"  ReadAggregates aggregates::events;
    get  "/v1/query/{read_model}"                  RunQueries     queries::read_model;
    get  "/v1/query/{read_model}/explain"          RunQueries     queries::explain_read_model;
    get  "/v1/queries/{name}"                      RunQueries     queries::named;
    get  "/v1/queries/{name}/explain"              RunQueries     queries::explain_named;
    get  "/v1/events"                              ReadEvents     events::stream;
    get  "/v1/plugins"                             CallPlugins    plugins::list;
    get  "/v1/plugins/{plugin}"                    CallPlugins    plugins::show;
    post "/v1/plugins/{plugin}/{function}"         CallPlugins    plugins::call;
    put  "/v1/plugins/{plugin}"                    ManagePlugins  managed_plugins::put;
    post "/v1/plugins/{plugin}"                    ManagePlugins  managed_plugins::act;
    delete "/v1/plugins/{plugin}"                  ManagePlugins  managed_plugins::remove;
    get  "/v1/plugin-logs/{plugin}"                ManagePlugins  managed_plugins::logs;
    get  "/v1/plugin-configurations/{plugin}"      ConfigurePlugins plugin_configuration::show;
    put  "/v1/plugin-configurations/{plugin}"      ConfigurePlugins plugin_configuration::set;
    delete "/v1/plugin-configurations/{plugin}"    ConfigurePlugins plugin_configuration::remove;
    get  "/v1/cluster"                             SeeCluster     cluster::view;
    get  "/"                                       none           documents::index;
    get  "/openapi.json"                           none           documents::openapi;
    get  "/asyncapi.json"                          none           documents::asyncapi;
    get  "/problems/{code}"                        none           documents::problem;
    get  "/.well-known/jwks.json"                  none           documents::jwks;
    get  "/livez"                                  none           health::live;
    get  "/readyz"                                 none           health::ready;
    get  "/startupz"                               none           health::started;
    get  "/metrics"                                none           health::metrics;
};

/// The router of these routes; every request goes through [`request::run`], those that match
/// nothing included.
pub(crate) fn of(shared: Arc<Shared>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        router = router.route(route.path, (route.handler)());
    }
    router
        .fallback(async || Problem::new(&problems::NOT_FOUND, "the index at / lists what there is"))
        .method_not_allowed_fallback(async || {
            let detail = "the header Allow lists the methods that are allowed";
            Problem::new(&problems::METHOD_NOT_ALLOWED, detail)
        })
        .layer(from_fn_with_state((shared.clone(), ROUTES), request::run))
        .with_state(shared)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flexcore_definition::Catalog;
    use flexcore_http::health::{LIVEZ, METRICS, READYZ, STARTUPZ};
    use serde_json::Value;

    use super::*;

    /// Whether a documented path is one of the route's: `{…}` stands for any part, and the document
    /// may name what the route leaves open.
    fn covers(route: &str, documented: &str) -> bool {
        let (route, documented): (Vec<_>, Vec<_>) =
            (route.split('/').collect(), documented.split('/').collect());
        route.len() == documented.len()
            && route.iter().zip(&documented).all(|(r, d)| r.starts_with('{') || r == d)
    }

    fn operations(document: &Value) -> BTreeSet<(String, String)> {
        let paths = document["paths"].as_object().unwrap();
        let of_path = |(path, item): (&String, &Value)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(|method| (method.clone(), path.clone())).collect::<Vec<_>>()
        };
        paths.iter().flat_map(of_path).collect()
    }

    #[test]
    fn every_route_is_documented_and_every_documented_path_is_a_route() {
        let catalog = crate::fixture::catalog();
        let documented = operations(&crate::openapi::value(&catalog));
        for (method, path) in &documented {
            let found = ROUTES.iter().any(|r| r.method == method && covers(r.path, path));
            assert!(found, "{method} {path} is documented, and there is no such route");
        }
        for route in ROUTES {
            let found = documented.iter().any(|(m, p)| route.method == m && covers(route.path, p));
            assert!(found, "{} {} is not documented", route.method, route.path);
        }
    }

    #[test]
    fn without_an_application_only_what_is_always_there_is_documented() {
        for (method, path) in operations(&crate::openapi::value(&Catalog::default())) {
            assert!(ROUTES.iter().any(|r| r.method == method && r.path == path), "{path}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let catalog = crate::fixture::catalog();
        for text in [crate::openapi(&catalog), crate::asyncapi(&catalog)] {
            let document: Value = serde_json::from_str(&text).unwrap();
            let references: Vec<_> = text.split("\"$ref\": \"#").skip(1).collect();
            assert!(references.len() > 2);
            for reference in references {
                let pointer = reference.split('"').next().unwrap();
                assert!(document.pointer(pointer).is_some(), "{pointer}");
            }
        }
    }

    #[test]
    fn only_v1_is_behind_a_token_and_all_of_it_is() {
        for route in ROUTES {
            let path = route.path;
            assert_eq!(path.starts_with("/v1/"), route.needs.is_some(), "{path}");
        }
    }

    #[test]
    fn health_metrics_and_keys_are_answered_whatever_strangers_do() {
        let always = ROUTES.iter().filter(|route| route.is_always_answered());
        let always: Vec<&str> = always.map(|route| route.path).collect();
        assert_eq!(always, ["/.well-known/jwks.json", LIVEZ, READYZ, STARTUPZ, METRICS]);
    }

    #[test]
    fn every_route_is_in_the_index_and_the_index_names_nothing_else() {
        let index = include_str!("routes/index.json");
        let told: BTreeSet<&str> = index
            .split('"')
            .filter_map(|text| {
                let methods = ["GET ", "POST ", "PUT ", "DELETE "];
                methods.iter().find_map(|method| text.strip_prefix(method)).or(Some(text))
            })
            .filter(|text| text.starts_with('/'))
            .map(|text| text.split('?').next().unwrap())
            .collect();
        let routes: BTreeSet<&str> = ROUTES.iter().map(|route| route.path).collect();
        let others = routes.into_iter().filter(|path| *path != "/");
        assert_eq!(told, others.collect());
        for route in ROUTES.iter().filter(|route| route.needs.is_some()) {
            let asked = format!("\"{} {}", route.method.to_uppercase(), route.path);
            assert!(index.contains(&asked), "{asked}");
        }
    }
}
