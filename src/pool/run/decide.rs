//! Decisions by one process.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use flexcore_plugin::{
    Error,
    contract::{Client, Decider, DecisionResult, Question},
};
use futures::future::join_all;

use super::{Broken, CallPlace, Run, Spoken, is_unreached, waited};
use crate::{
    error::PoolError,
    limits::{DECIDERS_MAX, LEFT_MIN, LINGER_MIN},
    locked::locked,
};

/// What came of a question.
pub(crate) type Decided = Result<DecisionResult, Broken>;

/// A stream of questions for each tenant that has asked lately. The plugin answers what is on one stream together,
/// and a stream ends where it does not: on a stream of its own no tenant waits for another one's question.
#[derive(Debug, Default)]
pub(super) struct Deciders(Mutex<Vec<(String, Decider)>>);

impl Deciders {
    fn of(&self, tenant: &str, client: &Client) -> Decider {
        let mut lately = locked(&self.0);
        let at = lately.iter().position(|(of, _)| of == tenant);
        let own = at.map(|at| lately.remove(at));
        let own = own.unwrap_or_else(|| {
            if lately.len() >= DECIDERS_MAX {
                // What is under way on it keeps it until it is answered.
                lately.remove(0);
            }
            (tenant.to_owned(), client.decider())
        });
        let decider = own.1.clone();
        lately.push(own);
        decider
    }

    /// Ends all streams on which nothing is under way.
    pub(super) fn end(&self) {
        locked(&self.0).clear();
    }
}

impl Run {
    /// True if the plugin says that it decides.
    pub(crate) fn decides(&self) -> bool {
        self.description().is_some_and(|description| description.decides)
    }
}

impl Broken {
    /// A question whose time was over before it was sent. It has waited, and the plugin is not late.
    pub(crate) fn no_time() -> Self {
        Self::not_made(PoolError::Away("no time was left in which to ask it".to_owned()))
    }
}

impl CallPlace {
    /// Asks a tenant's questions, each within its own time. Returns what came of each, in their order. They have
    /// one place together, until the last of them is over. `on_death` is for each question under which the
    /// process ended.
    pub(crate) async fn decide<D: FnOnce() + Send + 'static>(
        self,
        tenant: &str,
        questions: Vec<(Question, Duration)>,
        on_death: impl Fn() -> D,
    ) -> Vec<Decided> {
        let Spoken::Contract(client, _) = &self.run.spoken else {
            let none = |_| Err(Broken::not_made(PoolError::UnknownFunction));
            return questions.into_iter().map(none).collect();
        };
        let decider = self.run.deciders.of(tenant, client);
        let place = Arc::new(self);
        let asked = questions.into_iter().map(|(question, within)| {
            let (place, decider, on_death) = (Arc::clone(&place), decider.clone(), on_death());
            async move {
                if within < LEFT_MIN {
                    return Err(Broken::no_time());
                }
                let limit = within.max(LINGER_MIN);
                let asked = async move { place.asked(&decider, question, limit).await };
                waited(within, on_death, asked).await
            }
        });
        join_all(asked).await
    }

    async fn asked(&self, decider: &Decider, question: Question, limit: Duration) -> Decided {
        let error = match decider.ask(question, limit).await {
            Ok(decision) => return Ok(decision),
            Err(error) => error,
        };
        let was_alone = self.is_alone();
        let died = self.run.died(&error).await;
        let is_fault = matches!(error, Error::Late { .. }) || is_unreached(&error);
        let error = if died && !was_alone {
            PoolError::Away("it ended while it worked on this and on others".to_owned())
        } else {
            PoolError::of_call(&error)
        };
        Err(Broken { error, died, is_fault: is_fault && !died })
    }

    /// True if nothing else is under way at the process, or was when it ended. To be asked as soon as that shows, and
    /// before [`Run::died`]: that notes it, before the place is given back. So whoever was there has its place yet,
    /// or has noted it.
    fn is_alone(&self) -> bool {
        let others = self.run.under_way() > 1;
        !others && !self.run.ended_under_call.load(Ordering::Relaxed)
    }
}
