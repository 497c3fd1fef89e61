//! The problems of one file, noted while it is read.

use std::{fmt, sync::Arc};

use serde_json::Value;

use super::{
    FileLine, Problem,
    problem::PROBLEMS_MAX,
    yaml::{Data, Node},
};

/// The problems of one file as they are found.
pub(super) struct Notes {
    pub(super) file: Arc<str>,
    pub(super) problems: Vec<Problem>,
}

impl Notes {
    pub(super) fn new(file: Arc<str>) -> Self {
        Self { file, problems: Vec::new() }
    }

    /// Notes a problem. Returns `None`, so that a reader can end with it.
    pub(super) fn add<T>(&mut self, line: usize, message: impl Into<String>) -> Option<T> {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { place: self.place(line), message: message.into() });
        }
        None
    }

    pub(super) fn place(&self, line: usize) -> FileLine {
        FileLine { file: self.file.clone(), line }
    }

    /// A name that follows its rule; `None` and a note otherwise.
    pub(super) fn name<T, E: fmt::Display>(
        &mut self,
        parse: impl Fn(&str) -> Result<T, E>,
        text: &str,
        line: usize,
    ) -> Option<T> {
        match parse(text) {
            Ok(name) => Some(name),
            Err(error) => self.add(line, error.to_string()),
        }
    }

    /// The text of a node.
    pub(super) fn text<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        match &node.data {
            Data::Scalar(Value::String(text)) => Some(text),
            _ => self.add(node.line, format!("{what} must be a text, and is {}", node.describe())),
        }
    }
}
