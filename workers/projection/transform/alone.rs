//! Events under which a plugin gave no answer are asked for alone, each right after another one that the plugin
//! answers: so it is known whose fault it is.

use std::ops::ControlFlow;

use flexcore_domain::Hash;
use flexcore_readmodel::Transformed;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Passing, Round, TRANSFORM_FOR, Transforms,
    call::{self, Came},
    called, prepare,
};
use crate::projection::{
    batch::Upcasted,
    waiting::{Failed, Suspicion},
};

/// Ends with the reason where there is no answer now, and without one where the first event is not suspected.
type Step = ControlFlow<Option<String>>;

impl Transforms {
    /// Asks for the first events, one after the other, as long as they are suspected. Returns the reason where there is
    /// no answer now.
    pub(super) async fn alone(
        &self,
        round: &mut Round<'_>,
        upcasted: &mut Upcasted,
        stop: &CancellationToken,
    ) -> Option<String> {
        let mut well = None;
        while let Some(passing) = round.left.front().copied() {
            let step = tokio::select! {
                () = stop.cancelled() => return None,
                step = self.first(round, passing, upcasted, &mut well) => step,
            };
            if let Step::Break(reason) = step {
                return reason;
            }
            // What is there is written first, so that rows move on.
            if round.last.is_some() && round.began.elapsed() >= TRANSFORM_FOR {
                return None;
            }
        }
        None
    }

    /// Asks for the first event, which is this one, alone, or puts it aside. `well` is the transformation for which the
    /// plugin was found to answer in this round.
    async fn first<'a>(
        &self,
        round: &mut Round<'a>,
        passing: Passing<'a>,
        upcasted: &mut Upcasted,
        well: &mut Option<Hash>,
    ) -> Step {
        let Transformed { transform, fingerprint, .. } = passing.transformed;
        let (suspects, whose) = (&self.waiting.suspects, passing.whose());
        let (reason, rests) = match suspects.of(&passing.at, &whose, Instant::now()) {
            Suspicion::Nothing => return Step::Break(None),
            Suspicion::Rests(reason) => return Step::Break(Some(reason)),
            Suspicion::Fault(reason) => {
                round.first_done(Err(call::at_fault(transform, &reason)), upcasted);
                return Step::Continue(());
            }
            Suspicion::Ask => {
                return match self.answers_another(round, &passing, upcasted).await {
                    Ok(is_proven) => self.ask(round, passing, upcasted, is_proven).await,
                    Err(reason) => Step::Break(Some(reason)),
                };
            }
            Suspicion::Likely { reason, rests } => (reason, rests),
        };
        if *well != Some(*fingerprint) {
            match self.answers_another(round, &passing, upcasted).await {
                Ok(true) => *well = Some(*fingerprint),
                Ok(false) if rests => return Step::Break(Some(reason)),
                Ok(false) => return self.ask(round, passing, upcasted, false).await,
                Err(reason) => return Step::Break(Some(reason)),
            }
        }
        suspects.put_aside(&passing.at, whose, Instant::now());
        round.first_done(Err(call::at_fault_too(transform, &reason)), upcasted);
        Step::Continue(())
    }

    /// Asks for the first event, which is this one, alone. It is proven that the plugin is well if it has just answered
    /// another one.
    async fn ask<'a>(
        &self,
        round: &mut Round<'a>,
        passing: Passing<'a>,
        upcasted: &mut Upcasted,
        is_proven: bool,
    ) -> Step {
        let call = match prepare(&passing, upcasted) {
            Ok(call) => call,
            Err(reason) => {
                round.first_done(Err(reason), upcasted);
                return Step::Continue(());
            }
        };
        let (suspects, whose) = (&self.waiting.suspects, passing.whose());
        let (_, came) = called(self.client.clone(), passing, call).await;
        let ends = matches!(came, Came::Ended(_));
        let came = match came {
            Came::Busy(reason) | Came::Away(reason) => return Step::Break(Some(reason)),
            Came::Ended(reason) | Came::Failing(reason) => {
                let failed = Failed { reason: reason.clone(), ends, is_proven };
                let is_at_fault = suspects.failed(&passing.at, &whose, failed, Instant::now());
                // At fault, it is put aside next.
                return if is_at_fault { Step::Continue(()) } else { Step::Break(Some(reason)) };
            }
            Came::Data(data) => {
                self.keep(&passing, upcasted);
                Ok(data)
            }
            Came::Nothing(reason) => Err(reason),
        };
        suspects.cleared(&passing.at);
        round.first_done(came, upcasted);
        Step::Continue(())
    }

    /// True if the plugin answers for another event with the same transformation: one that had an answer before, or
    /// the next one that is not suspected. False if there is none, or there is no telling now. Fails with the reason
    /// where the plugin ends under that one, too.
    async fn answers_another(
        &self,
        round: &mut Round<'_>,
        passing: &Passing<'_>,
        upcasted: &mut Upcasted,
    ) -> Result<bool, String> {
        let (suspects, fingerprint) = (&self.waiting.suspects, passing.transformed.fingerprint);
        for call in suspects.kept(&fingerprint, passing.tenant()) {
            let transform = &passing.transformed.transform;
            match call::make(&self.client, call, transform).await {
                Came::Data(_) => return Ok(true),
                Came::Ended(reason) => {
                    suspects.unwell(&fingerprint);
                    return Err(reason);
                }
                // It may be the trouble of that tenant alone.
                Came::Nothing(_) | Came::Failing(_) | Came::Busy(_) | Came::Away(_) => {}
            }
        }
        let Some(other) = self.another(round, passing) else { return Ok(false) };
        let call = match prepare(&other, upcasted) {
            Ok(call) => call,
            Err(reason) => {
                round.done(other, Err(reason), upcasted);
                return Ok(false);
            }
        };
        let (_, came) = called(self.client.clone(), other, call.clone()).await;
        let came = match came {
            // It is asked for again in another round.
            Came::Failing(_) | Came::Busy(_) | Came::Away(_) => return Ok(false),
            Came::Ended(reason) => {
                suspects.note(other.at, &reason, Instant::now());
                return Err(reason);
            }
            Came::Data(data) => {
                suspects.keep(fingerprint, other.tenant().clone(), call);
                Ok(data)
            }
            Came::Nothing(reason) => Err(reason),
        };
        let is_answer = came.is_ok();
        round.done(other, came, upcasted);
        Ok(is_answer)
    }

    /// Takes an event out of the round that is not suspected and has this one's transformation: of another tenant,
    /// where there is one.
    fn another<'a>(&self, round: &mut Round<'a>, passing: &Passing<'_>) -> Option<Passing<'a>> {
        let (suspects, fingerprint) = (&self.waiting.suspects, passing.transformed.fingerprint);
        let fits =
            |it: &Passing<'_>| it.transformed.fingerprint == fingerprint && !suspects.has(&it.at);
        let is_others = |it: &Passing<'_>| it.tenant() != passing.tenant() && fits(it);
        let nth = round.left.iter().position(is_others);
        let nth = nth.or_else(|| round.left.iter().position(fits))?;
        round.left.remove(nth)
    }
}
