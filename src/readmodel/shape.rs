//! The columns and the key of a version, as they are kept beside it.

use flexcore_definition::{Column, ColumnType, Index, ReadModelDefinition};
use flexcore_domain::Name;
use serde::{Deserialize, Serialize};

use crate::Error;

/// The shape of a version's rows, as `flexcore.projections` keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    columns: Vec<(String, ColumnType)>,
    key: Vec<String>,
}

impl Shape {
    pub(crate) fn of(model: &ReadModelDefinition) -> Self {
        let column = |column: &Column| (column.name.to_string(), column.column_type);
        let columns = model.columns.iter().map(column).collect();
        Self { columns, key: model.key.iter().map(ToString::to_string).collect() }
    }

    /// The declaration with these columns in place of its own. Fails when a name is none.
    pub(crate) fn put_on(
        &self,
        declared: &ReadModelDefinition,
    ) -> Result<ReadModelDefinition, Error> {
        let name =
            |text: &String| Name::parse(text).map_err(|error| Error::Database(error.to_string()));
        let column = |(text, column_type): &(String, ColumnType)| {
            Ok::<_, Error>(Column { name: name(text)?, column_type: *column_type })
        };
        let columns = self.columns.iter().map(column).collect::<Result<Vec<_>, _>>()?;
        Ok(ReadModelDefinition {
            indexes: fitting(declared, &columns),
            columns,
            key: self.key.iter().map(name).collect::<Result<_, _>>()?,
            ..declared.clone()
        })
    }
}

/// The declared indexes that rows with these columns can have.
pub(crate) fn fitting(model: &ReadModelDefinition, columns: &[Column]) -> Vec<Index> {
    model.indexes.iter().filter(|index| index.fits(columns)).cloned().collect()
}
