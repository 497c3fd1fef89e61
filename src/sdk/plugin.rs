//! What an author says a plugin is.

use std::{any::Any, sync::Arc};

use flexcore_plugin::contract::Description;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    Event, Failure, Function, Question, Refused, configured::Configured, decider::Decide,
    function::text,
};

/// A plugin: its functions, its configuration, its decider.
#[must_use = "a plugin does nothing until it is run"]
#[derive(Default)]
pub struct Plugin {
    pub(crate) description: Description,
    pub(crate) functions: Vec<Function>,
    pub(crate) configured: Configured,
    pub(crate) decide: Option<Decide>,
}

impl Plugin {
    /// A plugin of this name and version, which people read.
    pub fn new(name: &str, version: &str) -> Self {
        let (name, version) = (name.to_owned(), version.to_owned());
        Self { description: Description { name, version, ..Default::default() }, ..Self::default() }
    }

    /// What it is for, in one sentence.
    pub fn summary(mut self, summary: &str) -> Self {
        self.description.summary = summary.to_owned();
        self
    }

    /// With a function.
    pub fn function(mut self, function: Function) -> Self {
        self.functions.push(function);
        self
    }

    /// With a configuration of each tenant, as serde reads it, and its JSON Schema (2020-12), as
    /// JSON or as its text: the host checks it before the plugin hears of it. In the schema
    /// `"writeOnly": true` marks a secret. Calls take it with
    /// [`Call::configured`](crate::Call::configured).
    pub fn configured<C>(self, schema: impl Into<Value>) -> Self
    where
        C: DeserializeOwned + Any + Send + Sync,
    {
        self.configured_by(schema, |settings: C| Ok(settings))
    }

    /// As [`Plugin::configured`], where calls use something that is made of it, such as a pool of
    /// connections. The failure of `make` is the answer to calls of this tenant, until it is
    /// configured otherwise. `make` has to return soon.
    pub fn configured_by<S, C>(
        mut self,
        schema: impl Into<Value>,
        make: impl Fn(S) -> Result<C, Failure> + Send + Sync + 'static,
    ) -> Self
    where
        S: DeserializeOwned + 'static,
        C: Any + Send + Sync,
    {
        self.description.configuration_schema = text(schema.into());
        self.configured = Configured::new(make);
        self
    }

    /// With a decider of commands. The same question has to have the same answer: no clock, no
    /// chance, no effect, and nothing that is kept from one question to the next. It is called on
    /// threads where it may use the processor, but waits for nothing.
    pub fn decider(
        mut self,
        decide: impl Fn(&Question) -> Result<Vec<Event>, Refused> + Send + Sync + 'static,
    ) -> Self {
        self.description.decides = true;
        self.decide = Some(Arc::new(decide));
        self
    }

    /// All that the host is told.
    pub(crate) fn described(&self) -> Description {
        let functions = self.functions.iter().map(|function| function.described.clone()).collect();
        Description { functions, ..self.description.clone() }
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("description", &self.described()).finish_non_exhaustive()
    }
}
