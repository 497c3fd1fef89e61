//! What a route is: its method and path, the permission that it needs, and what answers.

use std::sync::Arc;

use axum::{extract::MatchedPath, extract::Request, http::Method, routing::MethodRouter};
use flexcore_auth::Permission;
use flexcore_http::health::{LIVEZ, METRICS, READYZ, STARTUPZ};

use crate::shared::Shared;

/// A route.
pub(crate) struct Route {
    /// In lower case.
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// `None`: strangers may ask, without a token.
    pub(crate) needs: Option<Permission>,
    pub(crate) handler: fn() -> MethodRouter<Arc<Shared>>,
}

impl Route {
    /// The route of these that a request is for. A method that its path does not take has that of the
    /// path: who may not ask need not learn which methods there are.
    pub(crate) fn of(routes: &'static [Self], request: &Request) -> Option<&'static Self> {
        let path = request.extensions().get().map(MatchedPath::as_str)?;
        let mut on_path = routes.iter().filter(|route| route.path == path);
        let first = on_path.clone().next();
        on_path.find(|route| route.takes(request.method())).or(first)
    }

    /// It is answered whatever strangers do: whoever runs the gateway asks by it how the gateway is, or other
    /// services by which keys they know a good token. Neither costs much.
    pub(crate) fn is_always_answered(&self) -> bool {
        matches!(self.path, LIVEZ | READYZ | STARTUPZ | METRICS | "/.well-known/jwks.json")
    }

    fn takes(&self, method: &Method) -> bool {
        let asked = if method == Method::HEAD { "get" } else { method.as_str() };
        asked.eq_ignore_ascii_case(self.method)
    }
}
