//! Calling a plugin of the contract.

use std::{error::Error as _, time::Duration};

use bytes::Bytes;
use prost::Message;
use tokio::time::timeout;
use tonic::{Code, Request, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::{
    batches::Batches,
    check,
    decide::Decider,
    exchange::failed,
    messages::{
        CALL, CONFIGURE, CallOutcome, CallRequest, CallResponse, ConfigureRequest,
        ConfigureResponse, Context, DESCRIBE, DescribeRequest, Description, Failure,
    },
};
use crate::{
    Connection, Error,
    limits::{
        CALL_WAIT_MAX, CONTROL_BYTES_MAX, DESCRIBE_WAIT, DESCRIPTION_BYTES_MAX, ENVELOPE_BYTES_MAX,
        OUTPUT_BYTES_MAX,
    },
};

/// A plugin of the contract, for callers. A cheap clone.
///
/// Its errors: [`Error::TooLarge`] is the caller's fault, and nothing was sent. [`Error::Contract`]
/// is the plugin's: it said what the contract does not allow. With [`Error::Status`] the plugin, or
/// the connection to it, refused. [`is_unknown`] tells whether something may have been done.
#[derive(Clone, Debug)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Nothing is sent until it is asked.
    #[must_use]
    pub fn new(connection: &Connection) -> Self {
        Self { connection: connection.clone() }
    }

    /// What the plugin can do, within [`DESCRIBE_WAIT`].
    pub async fn describe(&self) -> Result<Description, Error> {
        let (within, answer_max) = (DESCRIBE_WAIT, DESCRIPTION_BYTES_MAX);
        let description: Description =
            self.unary(DESCRIBE, DescribeRequest {}, within, answer_max).await?;
        let fault = description.fault();
        fault.map_or(Ok(description), |fault| Err(faulty("Describe", &fault)))
    }

    /// Gives a tenant's configuration, which is JSON; `null` takes it away. The inner error is the
    /// plugin's: it cannot work with it, or takes no more calls now.
    pub async fn configure(
        &self,
        tenant: &str,
        configuration: Bytes,
        within: Duration,
    ) -> Result<Result<(), Failure>, Error> {
        let request = ConfigureRequest { tenant: tenant.to_owned(), configuration };
        request.check()?;
        let answer_max = CONTROL_BYTES_MAX + ENVELOPE_BYTES_MAX;
        let answered = self.unary(CONFIGURE, request, within, answer_max).await;
        let answer: ConfigureResponse = match answered {
            Ok(answer) => answer,
            Err(error) => return full(error).map(Err),
        };
        let Some(failure) = answer.failure else { return Ok(Ok(())) };
        check::taken(failure).map(Err).map_err(|fault| faulty("Configure", &fault))
    }

    /// Calls a function once, and tells the plugin how long its answer is waited for. The inner
    /// error is the plugin's answer that it was not done.
    pub async fn call(&self, request: CallRequest, within: Duration) -> Result<CallOutcome, Error> {
        self.call_within(request, within, OUTPUT_BYTES_MAX + ENVELOPE_BYTES_MAX).await
    }

    /// As [`Client::call`], but takes no larger answer than this, with what stands around the output:
    /// as much is in memory for each call. One that is larger is [`Error::Contract`].
    pub async fn call_within(
        &self,
        request: CallRequest,
        within: Duration,
        answer_bytes_max: usize,
    ) -> Result<CallOutcome, Error> {
        self.call_lingering(request, within, Duration::ZERO, answer_bytes_max).await
    }

    /// As [`Client::call_within`], but is late after `lingers` at the earliest. The plugin is told
    /// `within` all the same. Whoever waits no longer than that and lets the call run on gives up few
    /// calls: the other side of a connection ends it when many are given up soon after they began.
    pub async fn call_lingering(
        &self,
        request: CallRequest,
        within: Duration,
        lingers: Duration,
        answer_bytes_max: usize,
    ) -> Result<CallOutcome, Error> {
        let limited = CallRequest { context: Some(request.context.unwrap_or_default()), ..request };
        limited.check()?;
        self.called(limited, within, lingers, answer_bytes_max).await
    }

    /// As [`Client::call`], but sends what breaks a limit, too: for tests of plugins.
    pub async fn call_unchecked(
        &self,
        request: CallRequest,
        within: Duration,
    ) -> Result<CallOutcome, Error> {
        let answer_max = OUTPUT_BYTES_MAX + ENVELOPE_BYTES_MAX;
        self.called(request, within, Duration::ZERO, answer_max).await
    }

    async fn called(
        &self,
        mut request: CallRequest,
        within: Duration,
        lingers: Duration,
        answer_max: usize,
    ) -> Result<CallOutcome, Error> {
        let within = within.min(CALL_WAIT_MAX);
        request.context.get_or_insert_default().timeout_ms = milliseconds(within);
        let limit = within.max(lingers);
        let answer: CallResponse = self.unary(CALL, request, limit, answer_max).await?;
        answer.taken().map_err(|fault| faulty("Call", &fault))
    }

    /// Begins many calls of a function, which all have to be done within this time.
    #[must_use]
    pub fn stream(&self, mut context: Context, function: &str, within: Duration) -> Batches {
        let within = within.min(CALL_WAIT_MAX);
        context.timeout_ms = milliseconds(within);
        Batches::open(&self.connection, context, function, within)
    }

    /// For decisions. All callers should share one, so that their questions go together.
    #[must_use]
    pub fn decider(&self) -> Decider {
        Decider::new(&self.connection)
    }

    async fn unary<Q, A>(
        &self,
        path: &'static str,
        question: Q,
        limit: Duration,
        answer_bytes_max: usize,
    ) -> Result<A, Error>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let called = async {
            let mut grpc = self.connection.grpc().max_decoding_message_size(answer_bytes_max);
            grpc.ready().await?;
            let mut request = Request::new(question);
            request.set_timeout(limit);
            let path = PathAndQuery::from_static(path);
            grpc.unary(request, path, ProstCodec::<Q, A>::default()).await
        };
        let late = Error::Late { what: "the plugin's answer", limit };
        match timeout(limit, called).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) if status.code() == Code::DeadlineExceeded => Err(late),
            Ok(Err(status)) => Err(failed(path, status)),
            Err(_) => Err(late),
        }
    }
}

/// True if the plugin may have done what was asked of it: it was late, it ended, or it answered
/// with something that is no answer. False if it, or this side, refused to begin. A status that
/// stands for the end of a stream or connection is no refusal, whatever its code.
#[must_use]
pub fn is_unknown(error: &Error) -> bool {
    let refused = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::Unimplemented,
        Code::ResourceExhausted,
        Code::FailedPrecondition,
        Code::PermissionDenied,
        Code::Unauthenticated,
    ];
    match error {
        Error::TooLarge { .. } => false,
        Error::Status { status, .. } => {
            !refused.contains(&status.code()) || status.source().is_some()
        }
        _ => true,
    }
}

/// A refusal for lack of room, as a failure that passes: nothing was done.
fn full(error: Error) -> Result<Failure, Error> {
    match &error {
        Error::Status { status, .. }
            if status.code() == Code::ResourceExhausted && !is_unknown(&error) =>
        {
            Ok(Failure::passing("resource_exhausted", status.message()))
        }
        _ => Err(error),
    }
}

fn faulty(method: &str, fault: &str) -> Error {
    Error::Contract(format!("the plugin's answer to {method}: {fault}"))
}

/// At least one: with none the plugin need not begin.
fn milliseconds(within: Duration) -> u64 {
    u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use tonic::Status;

    use super::*;

    /// A plugin whose threads were all taken was said to have broken the contract.
    #[test]
    fn a_lack_of_room_passes_and_nothing_was_done() {
        let error = |status| Error::Status { method: "a.B/C".to_owned(), status: Box::new(status) };
        let refused = error(Status::resource_exhausted("too many calls"));
        assert!(!is_unknown(&refused));
        let failure = full(refused).unwrap();
        assert!(failure.temporary);
        assert_eq!(failure.to_string(), "resource_exhausted: too many calls");
        assert!(full(error(Status::invalid_argument("no"))).is_err());
        // The connection ended with a code of HTTP/2 for which gRPC has the same one.
        let mut ended = Status::resource_exhausted("h2 protocol error");
        ended.set_source(Arc::new(io::Error::other("calm down")));
        let ended = error(ended);
        assert!(is_unknown(&ended));
        assert!(full(ended).is_err());
    }
}
