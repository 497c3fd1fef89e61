//! Read models: rows by typed filters, and named queries. Either waits for a position when asked.

use std::{fmt::Write, sync::Arc};

use axum::{extract::State, http::StatusCode, response::Response};
use flexcore_definition::{Catalog, QueryDefinition, ReadModelDefinition};
use flexcore_domain::{Name, Position, Tenant};
use flexcore_readmodel::{Explained, ReadModels, Select};
use flexcore_resilience::Deadline;
use tokio::time::Instant;

use super::{JSON, answer};
use crate::{
    error::Problem,
    extract::{self, Call},
    former, postgres, problems,
    shared::Shared,
};

/// `GET /v1/query/{read_model}`
pub(crate) async fn read_model(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let name = call.name("read_model", Name::parse)?;
    let catalog = shared.catalog();
    let model = model(&catalog, &name)?;
    let mut parameters = call.parameters()?;
    let (positions, wait) = parameters.take_wait()?;
    let pairs = &parameters.rest();
    let client = extract::clients_deadline(&call.headers)?;
    let _place = shared.admission.read(call.tenant()).await?;
    let tenant = call.tenant();
    if let Err(error) = Select::parse(model, pairs) {
        if !error.hangs_on_columns() {
            return Err(error.into());
        }
        let fits = async |rows: ReadModels| rows.check(model, pairs).await;
        match postgres::read(&shared, tenant, client, fits).await {
            // Nobody can tell which version serves. Most likely it is the declared one.
            Err(problem) if problem.is(&problems::UNAVAILABLE) => return Err(error.into()),
            fits => fits?,
        }
    }
    if !positions.is_empty() {
        let models = std::slice::from_ref(&name);
        postgres::wait(&shared, tenant, client, models, &positions, wait).await?;
    }
    let read = async |rows: ReadModels| rows.query(tenant, model, pairs).await;
    let page = postgres::read(&shared, tenant, client, read).await?;
    let mut body = format!("{{\"rows\":{}", page.rows);
    if let Some(cursor) = &page.next_cursor {
        let cursor = serde_json::to_string(cursor).expect("BUG: text serialises");
        write!(body, ",\"next_cursor\":{cursor}").expect("BUG: writing to a String succeeds");
    }
    body.push('}');
    Ok(answer(StatusCode::OK, JSON, body))
}

/// `GET /v1/queries/{name}`
pub(crate) async fn named(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let name = call.name("name", Name::parse)?;
    let catalog = shared.catalog();
    let query = query(&catalog, &name)?;
    let mut parameters = call.parameters()?;
    let (positions, wait) = parameters.take_wait()?;
    let client = extract::clients_deadline(&call.headers)?;
    let _place = shared.admission.read(call.tenant()).await?;
    let (tenant, parameters) = (call.tenant(), &parameters.rest());
    let (positions, waits) = (&positions, Deadline::after(wait));
    let asked = Asked { shared: &shared, tenant, client, parameters, positions, waits };
    let rows = asked.rows(&catalog, query).await?;
    Ok(answer(StatusCode::OK, JSON, format!("{{\"rows\":{rows}}}")))
}

/// A question for a named query.
struct Asked<'a> {
    shared: &'a Shared,
    tenant: &'a Tenant,
    client: Option<Deadline>,
    parameters: &'a [(String, String)],
    /// What is read has to have passed these, and may take so long to get there.
    positions: &'a [Position],
    waits: Deadline,
}

impl Asked<'_> {
    /// The rows; while a changed read model is built, by the query's former declaration where the new one
    /// does not fit the version that serves.
    async fn rows(&self, catalog: &Catalog, query: &QueryDefinition) -> Result<String, Problem> {
        let is_building = |problem: &Problem| problem.is(&problems::READ_MODEL_BUILDING);
        let is_other = |problem: &Problem| problem.is(&problems::INVALID_PARAMETER);
        let problem = match self.run(query).await {
            Err(problem) if is_building(&problem) || is_other(&problem) => problem,
            rows => return rows,
        };
        let serving = async |rows: ReadModels| former::serving(rows, query).await;
        let serving = postgres::read(self.shared, self.tenant, self.client, serving).await;
        let Ok(Some(serving)) = serving else { return Err(problem) };
        let Shared { former, store, .. } = self.shared;
        let former = former.query(store, catalog, &query.name, serving).await;
        let Some(former) = former else { return Err(problem) };
        match self.run(&former).await {
            // Swapped meanwhile.
            Err(problem) if is_building(&problem) => self.run(query).await,
            // A parameter that is new.
            Err(other) if is_other(&other) => Err(problem),
            rows => rows,
        }
    }

    /// The rows by this declaration, once what it reads has passed the positions: a former one may read
    /// other read models.
    async fn run(&self, query: &QueryDefinition) -> Result<String, Problem> {
        let Self { shared, tenant, client, parameters, positions, waits } = *self;
        if !positions.is_empty() {
            let left = waits.remaining(Instant::now());
            postgres::wait(shared, tenant, client, &query.reads, positions, left).await?;
        }
        let run = async |rows: ReadModels| rows.run_query(tenant, query, parameters).await;
        postgres::read(shared, tenant, client, run).await
    }
}

/// `GET /v1/query/{read_model}/explain`: the index that the same query string uses, without its rows.
pub(crate) async fn explain_read_model(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let name = call.name("read_model", Name::parse)?;
    let catalog = shared.catalog();
    let model = model(&catalog, &name)?;
    let mut parameters = call.parameters()?;
    parameters.take_wait()?;
    let pairs = &parameters.rest();
    let client = extract::clients_deadline(&call.headers)?;
    let _place = shared.admission.read(call.tenant()).await?;
    let explain = async |rows: ReadModels| rows.explain(model, pairs).await;
    let explained = postgres::read(&shared, call.tenant(), client, explain).await?;
    Ok(explanation(&[explained]))
}

/// `GET /v1/queries/{name}/explain`: the indexes that the named query uses. It does not depend on
/// the parameters, so they are not needed.
pub(crate) async fn explain_named(
    State(shared): State<Arc<Shared>>,
    call: Call,
) -> Result<Response, Problem> {
    let name = call.name("name", Name::parse)?;
    let catalog = shared.catalog();
    let query = query(&catalog, &name)?;
    let models = query.reads.iter().filter_map(|name| catalog.read_model(name.as_str()));
    let models: Vec<&ReadModelDefinition> = models.map(AsRef::as_ref).collect();
    let client = extract::clients_deadline(&call.headers)?;
    let _place = shared.admission.read(call.tenant()).await?;
    let tenant = call.tenant();
    let explain = async |rows: ReadModels| rows.explain_query(tenant, query, &models).await;
    let explained = postgres::read(&shared, tenant, client, explain).await?;
    Ok(explanation(&explained))
}

fn explanation(explained: &[Explained]) -> Response {
    let body = serde_json::json!({ "explain": explained });
    answer(StatusCode::OK, JSON, body.to_string())
}

fn model<'c>(catalog: &'c Catalog, name: &Name) -> Result<&'c ReadModelDefinition, Problem> {
    catalog.read_model(name.as_str()).map(AsRef::as_ref).ok_or_else(|| {
        let models = catalog.applications.values().flat_map(|app| app.read_models.keys());
        let known: Vec<String> = models.map(ToString::to_string).collect();
        Problem::new(&problems::UNKNOWN_READ_MODEL, "known lists the existing ones")
            .with("known", known)
    })
}

fn query<'c>(catalog: &'c Catalog, name: &Name) -> Result<&'c QueryDefinition, Problem> {
    catalog.query(name.as_str()).map(AsRef::as_ref).ok_or_else(|| {
        let queries = catalog.applications.values().flat_map(|app| app.queries.keys());
        let known: Vec<String> = queries.map(ToString::to_string).collect();
        Problem::new(&problems::UNKNOWN_QUERY, "known lists the existing ones").with("known", known)
    })
}
