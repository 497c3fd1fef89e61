//! The limits of typed queries: the columns and the key of the version that serves. They are those
//! of the declaration, but while a changed one is built: until the swap the version in use answers,
//! by its own columns.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use flexcore_definition::ReadModelDefinition;
use flexcore_domain::{Name, Tenant};
use sqlx::{Row as _, types::Json};

use crate::{Error, Page, ReadModels, Select, shape::Shape};

/// Read models whose serving version has the columns that are declared, as they were found last: for
/// these nobody is asked. A query finds out when it is no longer so.
#[derive(Default)]
pub(crate) struct AsDeclared(Mutex<HashMap<Name, Shape>>);

impl AsDeclared {
    fn has(&self, model: &ReadModelDefinition) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&model.name).is_some_and(|shape| *shape == Shape::of(model))
    }

    fn put(&self, model: &ReadModelDefinition) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(model.name.clone(), Shape::of(model));
    }

    fn forget(&self, name: &Name) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

impl ReadModels {
    /// The rows of one tenant that a query string asks for, from the version that serves and by its
    /// columns. Fails as [`Select::parse`] and [`ReadModels::select`] do, and with
    /// [`Error::ColumnNotBuilt`] when a column is declared, but not there yet.
    #[boxed::async_recursion]
    pub async fn query(
        &self,
        tenant: &Tenant,
        declared: &ReadModelDefinition,
        pairs: &[(String, String)],
    ) -> Result<Page, Error> {
        match self.query_once(tenant, declared, pairs).await {
            // Swapped since it was looked up, or deployed by somebody whom this process has not heard
            // of yet: the next look finds what serves now.
            Err(Error::NotBuilt(_)) => {
                self.as_declared.forget(&declared.name);
                self.query_once(tenant, declared, pairs).await
            }
            result => result,
        }
    }

    async fn query_once(
        &self,
        tenant: &Tenant,
        declared: &ReadModelDefinition,
        pairs: &[(String, String)],
    ) -> Result<Page, Error> {
        match self.served(declared).await? {
            None => self.select(tenant, declared, &Select::parse(declared, pairs)?).await,
            Some(served) => {
                let select = parse(&served, declared, pairs)?;
                self.select(tenant, &served, &select).await
            }
        }
    }

    /// Checks a query string before anybody waits for a position: against the declaration, and when it
    /// does not fit that, against what serves. Fails as [`Select::parse`] does.
    #[boxed::async_recursion]
    pub async fn check(
        &self,
        declared: &ReadModelDefinition,
        pairs: &[(String, String)],
    ) -> Result<(), Error> {
        let Err(error) = Select::parse(declared, pairs) else { return Ok(()) };
        match self.served(declared).await? {
            Some(served) => parse(&served, declared, pairs).map(drop),
            None => Err(error),
        }
    }

    /// The declaration with the columns of the version that serves; `None`: they are its own, or none
    /// serves yet.
    pub(crate) async fn served(
        &self,
        declared: &ReadModelDefinition,
    ) -> Result<Option<ReadModelDefinition>, Error> {
        if self.as_declared.has(declared) {
            return Ok(None);
        }
        let row = sqlx::query(
            "select declaration from flexcore.projections \
             where read_model = $1 and state = 'serving'",
        )
        .bind(declared.name.as_str())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let shape: Option<Json<Shape>> = row.try_get(0)?;
        match shape {
            Some(Json(shape)) if shape != Shape::of(declared) => Ok(Some(shape.put_on(declared)?)),
            Some(_) => {
                self.as_declared.put(declared);
                Ok(None)
            }
            // Made before this was kept.
            None => Ok(None),
        }
    }
}

/// Reads a query string by the columns that serve. A column that is declared by now is on its way.
fn parse(
    served: &ReadModelDefinition,
    declared: &ReadModelDefinition,
    pairs: &[(String, String)],
) -> Result<Select, Error> {
    let is_declared = |name: &str| declared.columns.iter().any(|c| c.name.as_str() == name);
    Select::parse(served, pairs).map_err(|error| match error {
        Error::UnknownColumn { read_model, column, .. } if is_declared(&column) => {
            Error::ColumnNotBuilt { read_model, column }
        }
        error => error,
    })
}
