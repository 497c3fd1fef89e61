//! An author's plugin as the contract has it.

use std::{collections::HashMap, sync::Arc};

use flexcore_plugin::contract::{
    CallRequest, CallResponse, ConfigureRequest, DecideRequest, DecideResponse, Description,
    Messages, Serving, StreamRequest, StreamResponse,
};
use futures::StreamExt as _;
use tokio::{task::spawn_blocking, time::timeout_at};
use tonic::Status;

use crate::{
    Failure, Function, Plugin,
    call::{About, late},
    configured::Configured,
    decider::{Decide, decide},
    function::response,
    streamed::streamed,
};

/// A plugin that is served. A cheap clone.
#[derive(Clone)]
pub(crate) struct Served(Arc<Parts>);

struct Parts {
    description: Description,
    functions: HashMap<String, Arc<Function>>,
    configured: Arc<Configured>,
    decide: Option<Decide>,
}

impl Served {
    pub(crate) fn new(plugin: Plugin) -> Self {
        let description = plugin.described();
        let named = |function: Function| (function.described.name.clone(), Arc::new(function));
        Self(Arc::new(Parts {
            description,
            functions: plugin.functions.into_iter().map(named).collect(),
            configured: Arc::new(plugin.configured),
            decide: plugin.decide,
        }))
    }

    fn function(&self, name: &str) -> Result<Arc<Function>, Failure> {
        let found = self.0.functions.get(name).cloned();
        found.ok_or_else(|| {
            let name: String = name.chars().take(100).collect();
            Failure::new("unknown_function", format!("there is no function {name:?}"))
        })
    }
}

impl Serving for Served {
    fn describe(&self) -> Description {
        self.0.description.clone()
    }

    async fn configure(&self, request: ConfigureRequest) -> Result<(), Failure> {
        self.0.configured.set(&request.tenant, &request.configuration)
    }

    async fn call(&self, request: CallRequest) -> Result<CallResponse, Status> {
        let CallRequest { context, function, input } = request;
        let about = About::new(context.unwrap_or_default(), &self.0.configured);
        let function = match self.function(&function) {
            Ok(function) => function,
            Err(failure) => return Ok(response(Err(failure))),
        };
        let ends = about.ends;
        // Cancelled when this is dropped: the caller has given up, or the answer is there.
        let _stop = about.stop.clone().drop_guard();
        let called = function.answer(input, about);
        timeout_at(ends, called).await.map_err(|_| late())
    }

    fn stream(&self, requests: Messages<StreamRequest>) -> Messages<StreamResponse> {
        let own = self.clone();
        streamed(requests, move |context, name| {
            (About::new(context, &own.0.configured), own.function(name))
        })
    }

    fn decide(&self, requests: Messages<DecideRequest>) -> Messages<DecideResponse> {
        let own = self.clone();
        Messages::new(requests.then(move |request| {
            let own = own.clone();
            async move {
                let DecideRequest { number, questions } = request?;
                let Some(decider) = own.0.decide.clone() else {
                    return Err(Status::unimplemented("this plugin decides nothing"));
                };
                // Not where calls are served: nobody knows how long it takes.
                let decided = spawn_blocking(move || decide(&decider, questions)).await;
                let decisions = decided.map_err(|error| Status::internal(error.to_string()))?;
                Ok(DecideResponse { number, decisions })
            }
        }))
    }
}
