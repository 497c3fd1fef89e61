//! Installed plugins: which there are, and calls of their functions.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode, response::Response};
use bytes::Bytes;
use flexcore_auth::Permission;
use flexcore_domain::{
    CommandId, Name, PluginFunction, PluginReply, Tenant,
    plugin::{INPUT_BYTES_MAX, call_subject},
};
use flexcore_operations::plugins::{self as installed, OfWorker, PluginCall, PluginView};
use flexcore_resilience::Deadline;
use serde::{Serialize, de::IgnoredAny};
use tokio::time::{Instant, timeout};

use super::{
    JSON, answer,
    commands::{IDEMPOTENCY_KEY, new_id, value},
};
use crate::{
    error::{self, Problem},
    extract::{self, Call},
    limits, problems,
    shared::Shared,
};

/// A state of a plugin that no worker runs.
const AWAY: &str = "away";

/// A plugin as tenants see it.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<&'a str>,
    number: u32,
    state: &'a str,
    /// Of one plugin, not in the list of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    functions: Option<&'a [PluginFunction]>,
    /// For those who may see the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    workers: Option<&'a [OfWorker]>,
}

/// All plugins that a tenant may call.
#[derive(Serialize)]
struct List<'a> {
    plugins: Vec<Shown<'a>>,
}

/// `GET /v1/plugins`
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    call.parameters()?.finish(&[])?;
    let deadline = extract::deadline(&call.headers)?;
    let seen = seen(&shared, call.tenant(), deadline).await?;
    let plugins = visible(&seen, &call).map(|plugin| shown(plugin, &call)).collect();
    Ok(json(&List { plugins }))
}

/// `GET /v1/plugins/{plugin}`
pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let name = call.name("plugin", Name::parse)?;
    call.parameters()?.finish(&[])?;
    let deadline = extract::deadline(&call.headers)?;
    let seen = seen(&shared, call.tenant(), deadline).await?;
    let Some(plugin) = visible(&seen, &call).find(|plugin| plugin.name == name.as_str()) else {
        let known: Vec<&str> = visible(&seen, &call).map(|plugin| plugin.name.as_str()).collect();
        let detail = "known lists the plugins that your tenant may call";
        return Err(Problem::new(&problems::UNKNOWN_PLUGIN, detail).with("known", known));
    };
    Ok(json(&Shown { functions: Some(functions(plugin)), ..shown(plugin, &call) }))
}

/// `POST /v1/plugins/{plugin}/{function}`
pub(crate) async fn call(
    State(shared): State<Arc<Shared>>,
    mut call: Call,
) -> Result<Response, Problem> {
    let asked = Asked::read(&call)?;
    let _place = shared.admission.call(call.tenant(), asked.deadline).await?;
    let input = call.json_body(INPUT_BYTES_MAX).await?;
    // What the function takes is checked by the worker, which has its schema.
    serde_json::from_slice::<IgnoredAny>(&input)
        .map_err(|error| Problem::new(&problems::MALFORMED_JSON, error.to_string()))?;
    let key = asked.key.clone();
    let returned = installed::call(&shared.store, asked.of(&call, input)).await;
    let problem = match returned {
        Ok(PluginReply::Output(output)) => {
            let mut response = answer(StatusCode::OK, JSON, output.get().to_owned());
            response.headers_mut().insert(IDEMPOTENCY_KEY, value(key.as_str()));
            return Ok(response);
        }
        Ok(other) => error::not_returned(other),
        Err(error) => error.into(),
    };
    // Whoever sent no key must learn it, to be able to repeat the call.
    Err(problem.header(IDEMPOTENCY_KEY, value(key.as_str())))
}

/// A call as its sender asks for it, read from everything but the body.
struct Asked {
    plugin: Name,
    function: String,
    key: CommandId,
    deadline: Deadline,
}

impl Asked {
    fn read(call: &Call) -> Result<Self, Problem> {
        let plugin = call.name("plugin", Name::parse)?;
        let function = call.part("function").to_owned();
        if call_subject(&plugin, &function).is_none() {
            let detail = "a function has at most 256 letters, digits, and _ - / . in its name";
            return Err(Problem::new(&problems::INVALID_NAME, detail));
        }
        call.parameters()?.finish(&[])?;
        let key = extract::idempotency_key(&call.headers)?.unwrap_or_else(new_id);
        let client = extract::clients_deadline(&call.headers)?;
        let deadline = client.unwrap_or_else(|| Deadline::after(limits::CALL_TIMEOUT));
        Ok(Self { plugin, function, key, deadline })
    }

    /// With its input, on behalf of who holds the token.
    fn of(self, call: &Call, input: Bytes) -> PluginCall {
        let identity = call.identity();
        PluginCall {
            plugin: self.plugin,
            function: self.function,
            tenant: identity.tenant.clone(),
            actor: identity.subject.clone(),
            key: self.key,
            input,
            within: self.deadline.remaining(Instant::now()),
            trace: Some(call.trace().clone()),
        }
    }
}

/// All that is installed, as it was a moment ago.
async fn seen(
    shared: &Shared,
    tenant: &Tenant,
    deadline: Deadline,
) -> Result<Arc<[PluginView]>, Problem> {
    let _place = shared.admission.read(tenant).await?;
    let looked = shared.installed.look(&shared.store);
    let looked = timeout(deadline.remaining(Instant::now()), looked).await;
    looked.map_err(|_| Problem::unavailable(&"nobody says in time which plugins there are"))?
}

/// Those that the sender may see.
fn visible<'a>(seen: &'a [PluginView], call: &Call) -> impl Iterator<Item = &'a PluginView> {
    let (tenant, sees_all) = (call.tenant().clone(), sees_workers(call));
    seen.iter().filter(move |plugin| sees_all || may_call(plugin, &tenant))
}

fn may_call(plugin: &PluginView, tenant: &Tenant) -> bool {
    plugin.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
}

fn sees_workers(call: &Call) -> bool {
    call.identity().may(Permission::SeeCluster)
}

fn shown<'a>(plugin: &'a PluginView, call: &Call) -> Shown<'a> {
    Shown {
        name: &plugin.name,
        version: &plugin.version,
        summary: plugin.summary.as_deref(),
        number: plugin.number,
        state: state(plugin),
        functions: None,
        workers: sees_workers(call).then_some(plugin.workers.as_slice()),
    }
}

/// Ready if a worker takes calls; else what the first one says.
fn state(plugin: &PluginView) -> &str {
    let ready = plugin.workers.iter().find(|worker| worker.status.ready > 0);
    let said = ready.or(plugin.workers.first());
    said.map_or(AWAY, |worker| worker.status.state.as_str())
}

/// Its functions as the worker tells them that has taken up most; none while nobody knows them.
fn functions(plugin: &PluginView) -> &[PluginFunction] {
    let described = plugin.workers.iter().filter(|worker| worker.status.description.is_some());
    let latest = described.max_by_key(|worker| worker.status.number);
    let description = latest.and_then(|worker| worker.status.description.as_ref());
    description.map_or(&[][..], |description| description.functions.as_slice())
}

fn json(body: &impl Serialize) -> Response {
    let body = serde_json::to_vec(body).expect("BUG: names and numbers serialise");
    answer(StatusCode::OK, JSON, body)
}
