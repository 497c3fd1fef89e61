//! Every route, in one list. What is under `/v1/` needs a token, everything else needs none.

use std::sync::Arc;

use axum::{
    Router,
    http::header,
    middleware::from_fn_with_state,
    routing::{MethodRouter, get, post},
};

use crate::{
    error::Problem,
    problems, request,
    routes::{aggregates, cluster, commands, documents, events, health, queries},
    shared::Shared,
};

/// A route: method, path, and what answers.
pub(crate) struct Route {
    #[cfg(test)]
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    handler: fn() -> MethodRouter<Arc<Shared>>,
}

macro_rules! routes {
    ($($method:ident $path:literal $handler:path;)*) => {
        &[$(Route {
            #[cfg(test)]
            method: stringify!($method),
            path: $path,
            handler: || $method($handler),
        }),*]
    };
}

/// What clients may ask for.
pub(crate) static ROUTES: &[Route] = routes! {
    post "/v1/commands/{aggregate}/{id}/{command}" commands::send;
    get  "/v1/commands/{command_id}"               commands::outcome;
    get  "/v1/aggregates/{aggregate}/{id}"         aggregates::state;
    get  "/v1/aggregates/{aggregate}/{id}/events"  aggregates::events;
    get  "/v1/query/{read_model}"                  queries::read_model;
    get  "/v1/query/{read_model}/explain"          queries::explain_read_model;
    get  "/v1/queries/{name}"                      queries::named;
    get  "/v1/queries/{name}/explain"              queries::explain_named;
    get  "/v1/events"                              events::stream;
    get  "/v1/cluster"                             cluster::view;
    get  "/"                                       documents::index;
    get  "/openapi.json"                           documents::openapi;
    get  "/asyncapi.json"                          documents::asyncapi;
    get  "/problems/{code}"                        documents::problem;
    get  "/.well-known/jwks.json"                  documents::jwks;
    get  "/livez"                                  health::live;
    get  "/readyz"                                 health::ready;
    get  "/startupz"                               health::started;
    get  "/metrics"                                health::metrics;
};

/// What there is on the port for metrics, when it is another one.
pub(crate) static METRICS: &[Route] = routes! {
    get "/livez"   health::live;
    get "/readyz"  health::ready;
    get "/metrics" health::metrics_apart;
};

/// The router of these routes; every request goes through [`request::run`], those that match
/// nothing included.
pub(crate) fn of(routes: &'static [Route], shared: Arc<Shared>) -> Router {
    let mut router = Router::new();
    for route in routes {
        router = router.route(route.path, (route.handler)());
    }
    router
        .fallback(async || Problem::new(&problems::NOT_FOUND, "the index at / lists what there is"))
        .method_not_allowed_fallback(async || {
            let detail = "the header Allow lists the methods that are allowed";
            Problem::new(&problems::METHOD_NOT_ALLOWED, detail)
        })
        .layer(from_fn_with_state(shared.clone(), request::run))
        .with_state(shared)
}

/// The path of the route that matched, as a `'static` string; `none` for no route.
pub(crate) fn label(matched: Option<&str>) -> &'static str {
    let route = matched.and_then(|path| ROUTES.iter().find(|route| route.path == path));
    route.map_or("none", |route| route.path)
}

/// Headers that the router itself sets on problems.
pub(crate) const KEPT_ON_PROBLEMS: &[header::HeaderName] = &[header::ALLOW];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flexcore_definition::Catalog;
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
        let open = [
            "/",
            "/openapi.json",
            "/asyncapi.json",
            "/problems/{code}",
            "/.well-known/jwks.json",
            "/livez",
            "/readyz",
            "/startupz",
            "/metrics",
        ];
        for route in ROUTES {
            assert_ne!(
                route.path.starts_with("/v1/"),
                open.contains(&route.path),
                "{}",
                route.path
            );
        }
    }
}
