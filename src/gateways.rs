//! Asks the gateways that an operator lists.

use std::time::Duration;

use anyhow::{anyhow, bail};
use flexcore_http::{
    self as http, Bytes, Limits, Method, Request, StatusCode, header, health::LIVEZ,
};
use flexcore_resilience::{self as resilience, Deadline, Endpoints, Order, Policies, Verdict};
use serde_json::Value;

/// An answer is waited for longer than a query may wait. The largest are pages of rows.
const LIMITS: Limits = Limits { within: Duration::from_secs(45), bytes_max: 64 << 20 };

/// A request to the gateway.
#[derive(Clone)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// With the query string.
    pub(crate) path: &'a str,
    pub(crate) token: &'a str,
    /// Further headers.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    /// JSON.
    pub(crate) body: Option<String>,
}

/// What the gateway answered.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// Sends the request to one of the gateways (`HOST:PORT`), and to the next when one does not answer:
/// it must be harmless to repeat. Fails when none answers; an answer with an error status is an
/// answer.
pub(crate) async fn call(gateways: Vec<String>, call: Call<'_>) -> anyhow::Result<Answer> {
    let (listed, several) = (gateways.join(", "), gateways.len() > 1);
    let policy = Policies::default().gateways;
    let gateways = Endpoints::new("gateways", gateways, Order::Preferred, policy);
    if several {
        // One that hangs would be waited for as long as a query may take.
        gateways.look(|authority| is_alive(authority)).await;
    }
    let judge = |result: &anyhow::Result<Answer>| match result {
        Ok(_) => Verdict::Success,
        Err(_) => Verdict::Failure,
    };
    let answered = gateways.call(
        Deadline::after(LIMITS.within),
        judge,
        |_| true,
        |authority| exchange(authority, call.clone()),
    );
    answered.await.map_err(|error| match error {
        resilience::Error::Failed(error) => error.context(format!("no gateway answers: {listed}")),
        other => anyhow!("no gateway answers in time: {listed}: {other}"),
    })
}

async fn is_alive(authority: &str) -> bool {
    let call = Call { method: Method::GET, path: LIVEZ, token: "", headers: &[], body: None };
    exchange(authority, call).await.is_ok_and(|answer| answer.status.is_success())
}

async fn exchange(authority: &str, call: Call<'_>) -> anyhow::Result<Answer> {
    let mut request = Request::builder()
        .method(call.method)
        .uri(call.path)
        .header(header::AUTHORIZATION, format!("Bearer {}", call.token));
    for (name, value) in call.headers {
        request = request.header(*name, *value);
    }
    if call.body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Bytes::from(call.body.unwrap_or_default()))?;
    let answer = http::ask(authority, request, LIMITS).await?;
    Ok(Answer { status: answer.status(), body: answer.into_body() })
}

impl Answer {
    /// The body of a success. Fails with what the problem details say.
    pub(crate) fn success(&self) -> anyhow::Result<Value> {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        if self.status.is_success() {
            return Ok(body);
        }
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let mut said = [text("title"), text("detail")];
        said.iter_mut().for_each(|part| part.retain(|c| !c.is_control()));
        let said = said.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ");
        if self.status == StatusCode::UNAUTHORIZED {
            bail!("the gateway does not accept the token ({said}); `flexcore token` mints one");
        }
        let known = body["known"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let errors = body["errors"].as_array().into_iter().flatten();
        let errors = errors.map(|error| format!("{} {}", error["field"], error["reason"]));
        let more: Vec<_> = known.map(str::to_owned).chain(errors).collect();
        let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join(", ")) };
        bail!("{} {said}{more}", self.status.as_u16())
    }
}
