//! The declared indexes that the serving version has by now.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use flexcore_definition::{Index, ReadModelDefinition};
use flexcore_domain::Name;
use sqlx::Row as _;

use crate::{Error, ReadModels, index};

/// Time for which an answer holds. A query whose index has come or gone since is slower, and right.
const HOLDS: Duration = Duration::from_secs(5);

/// The last results, by read model.
#[derive(Default)]
pub(crate) struct Built(Mutex<HashMap<Name, (Instant, Found)>>);

/// The version that serves, and its indexes that are whole.
#[derive(Clone, Default)]
struct Found {
    id: i64,
    names: BTreeSet<String>,
}

impl ReadModels {
    /// The indexes of the read model, as it serves, that are whole; in the order of their declaration.
    pub(crate) async fn built(&self, model: &ReadModelDefinition) -> Result<Vec<Index>, Error> {
        if model.indexes.is_empty() {
            return Ok(Vec::new());
        }
        let known = self.built.lock().get(&model.name).cloned();
        let found = match known.filter(|(since, _)| since.elapsed() < HOLDS) {
            Some((_, found)) => found,
            None => {
                let found = self.look_for_indexes(&model.name).await?;
                self.built.lock().insert(model.name.clone(), (Instant::now(), found.clone()));
                found
            }
        };
        let is_whole = |declared: &&Index| {
            let made = index::made(found.id, declared, &model.columns, &model.key);
            made.iter().all(|made| found.names.contains(&made.name))
        };
        Ok(model.indexes.iter().filter(is_whole).cloned().collect())
    }

    async fn look_for_indexes(&self, name: &Name) -> Result<Found, Error> {
        let rows = sqlx::query(
            "select p.id, c.relname from flexcore.projections p \
             join pg_index i on i.indisvalid \
                 and i.indrelid = to_regclass(format('rm.%I', p.read_model || '_v' || p.version)) \
             join pg_class c on c.oid = i.indexrelid \
             where p.read_model = $1 and p.state = 'serving'",
        )
        .bind(name.as_str())
        .fetch_all(&self.pool)
        .await?;
        let mut found = Found::default();
        for row in &rows {
            found.id = row.try_get(0)?;
            found.names.insert(row.try_get(1)?);
        }
        Ok(found)
    }
}

impl Built {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Name, (Instant, Found)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
