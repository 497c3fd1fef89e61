//! Calling a plugin whose contract this program was not built with: gRPC reflection tells its
//! services and messages, and JSON goes in and out.
//!
//! A plugin is not trusted with any of it. What it tells is bounded and looked at before it is used
//! ([`check`], [`bounds`]), and its answers are measured before they are decoded.

use std::{fmt, time::Duration};

use bytes::Bytes;
use futures::stream;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use serde::Serialize;
use serde_json::Value;
use tonic::{
    Request,
    codegen::{StdError, http::uri::PathAndQuery},
};

use crate::{Connection, Error, limits};

mod bounds;
mod check;
mod fetch;
mod files;
mod json;
mod raw;
mod schema;

/// The services of a plugin, as it tells them. Cheap to clone.
#[derive(Clone)]
pub struct Reflection {
    pool: DescriptorPool,
    services: Vec<String>,
}

/// A method of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Method {
    /// `package.Service/Method`.
    pub name: String,
    /// The full name of the message that it takes.
    pub input: String,
    /// The full name of the message that it answers with.
    pub output: String,
    /// It takes a stream of messages: a list in JSON.
    pub takes_stream: bool,
    /// It answers with a stream of messages: a list in JSON.
    pub answers_stream: bool,
}

impl Reflection {
    /// Asks a plugin what it offers. Fails where it has no reflection, within
    /// [`limits::REFLECTION_WAIT`], and where what it tells is wrong or too much.
    pub async fn load(connection: &Connection) -> Result<Self, Error> {
        let limit = limits::REFLECTION_WAIT;
        let late = |_| Error::Late { what: "the plugin's description of itself", limit };
        let told = tokio::time::timeout(limit, fetch::fetch(connection)).await.map_err(late)??;
        let pool = beside(move || told.files.pool()).await?;
        let is_described = |name: &String| pool.get_service_by_name(name).is_some();
        let services = told.services.into_iter().filter(is_described).collect();
        Ok(Self { pool, services })
    }

    /// Full names of the plugin's own services, without those of gRPC and go-plugin.
    #[must_use]
    pub fn services(&self) -> &[String] {
        &self.services
    }

    /// The methods of a service, by its full name. Fails where the plugin does not have it.
    pub fn methods(&self, service: &str) -> Result<Vec<Method>, Error> {
        let methods = self.descriptors(service)?;
        let method = |method: MethodDescriptor| Method {
            name: format!("{service}/{}", method.name()),
            input: method.input().full_name().to_owned(),
            output: method.output().full_name().to_owned(),
            takes_stream: method.is_client_streaming(),
            answers_stream: method.is_server_streaming(),
        };
        Ok(methods.into_iter().map(method).collect())
    }

    /// A JSON Schema of what a method (`package.Service/Method`) takes. Fails where there is none
    /// such, and where it would be too large.
    pub fn input_schema(&self, method: &str) -> Result<Value, Error> {
        schema::input(&self.method(method)?)
    }

    /// Calls a method (`package.Service/Method`), and returns its answer. A stream is a list, on
    /// either side; its answers come when it has ended.
    ///
    /// Fails where the input does not fit, and names the place; with [`Error::Late`] when the
    /// answer is not whole in time; with [`Error::Status`] where the plugin refuses; and where the
    /// answer is too large.
    pub async fn call(
        &self,
        connection: &Connection,
        method: &str,
        input: Value,
        within: Duration,
    ) -> Result<Value, Error> {
        let limit = within.min(limits::JSON_WAIT_MAX);
        let descriptor = self.method(method)?;
        let called = async {
            let takes = descriptor.clone();
            let requests = beside(move || json::requests(&takes, &input)).await?;
            let messages_max =
                if descriptor.is_server_streaming() { limits::JSON_MESSAGES_MAX } else { 1 };
            let call = Call { method, messages_max, limit };
            let answers = call.exchange(connection, requests).await?;
            beside(move || json::answer(&descriptor, answers)).await
        };
        let called = tokio::time::timeout(limit, called).await;
        called.map_err(|_| Error::Late { what: "the plugin's answer", limit })?
    }

    fn method(&self, name: &str) -> Result<MethodDescriptor, Error> {
        let Some((service, method)) = name.trim_start_matches('/').split_once('/') else {
            return Err(Error::Contract(format!("{name:?} is no package.Service/Method")));
        };
        let methods = self.descriptors(service)?;
        let found = methods.into_iter().find(|found| found.name() == method);
        found.ok_or_else(|| Error::Contract(format!("the plugin has no method {name:?}")))
    }

    fn descriptors(&self, service: &str) -> Result<Vec<MethodDescriptor>, Error> {
        let is_told = self.services.iter().any(|told| told == service);
        let found = self.pool.get_service_by_name(service).filter(|_| is_told);
        found.map(|service| service.methods().collect()).ok_or_else(|| {
            let known = self.services.join(", ");
            Error::Contract(format!("the plugin has no service {service:?}; it has: {known}"))
        })
    }
}

impl fmt::Debug for Reflection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reflection").field("services", &self.services).finish_non_exhaustive()
    }
}

struct Call<'a> {
    method: &'a str,
    messages_max: usize,
    limit: Duration,
}

impl Call<'_> {
    async fn exchange(
        &self,
        connection: &Connection,
        requests: Vec<Bytes>,
    ) -> Result<Vec<Bytes>, Error> {
        let path = PathAndQuery::try_from(format!("/{}", self.method.trim_start_matches('/')))
            .map_err(|error| Error::Contract(format!("{:?}: {error}", self.method)))?;
        let mut grpc = connection.grpc().max_decoding_message_size(limits::JSON_BYTES_MAX);
        grpc.ready().await.map_err(|error| not_ready(self.method, error))?;
        let mut request = Request::new(stream::iter(requests));
        request.set_timeout(self.limit);
        let answers = grpc.streaming(request, path, raw::Raw).await;
        let mut answers = answers.map_err(Error::status(self.method))?.into_inner();
        let (mut all, mut bytes) = (Vec::new(), 0_usize);
        while let Some(answer) = answers.message().await.map_err(Error::status(self.method))? {
            bytes = bytes.saturating_add(answer.len());
            Error::at_most("answer, in bytes,", bytes, limits::JSON_BYTES_MAX)?;
            all.push(answer);
            Error::at_most("number of answers", all.len(), self.messages_max)?;
        }
        Ok(all)
    }
}

fn not_ready(method: &str, error: impl Into<StdError>) -> Error {
    let error: StdError = error.into();
    Error::status(method)(tonic::Status::unavailable(error.to_string()))
}

/// Runs what may take long on a thread for such. A panic, which prost-reflect ends in where it
/// trusts a descriptor too much, ends there.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::Contract(format!("the plugin's description cannot be used: {error}")))
    })
}

#[cfg(test)]
mod tests;
