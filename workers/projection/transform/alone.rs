//! Events under which a plugin gave no answer are asked for alone, each right after another one that the plugin
//! answers: so it is known whose fault it is.

use flexcore_domain::Hash;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Passing, Round, TRANSFORM_FOR, Transforms,
    call::{self, Came},
    called, prepare,
};
use crate::projection::{batch::Upcasted, waiting::Suspicion};

impl Transforms {
    /// Asks for the first events, one after the other, as long as they are suspected. Returns the reason where there is
    /// no answer now.
    pub(super) async fn alone(
        &self,
        round: &mut Round<'_>,
        upcasted: &mut Upcasted,
        stop: &CancellationToken,
    ) -> Option<String> {
        while let Some(passing) = round.left.front().copied() {
            match self.waiting.suspects.of(&passing.at, Instant::now()) {
                Suspicion::Nothing => return None,
                Suspicion::Rests(reason) => return Some(reason),
                Suspicion::Fault(reason) => {
                    let why = call::at_fault(&passing.transformed.transform, &reason);
                    round.first_done(Err(why), upcasted);
                }
                Suspicion::Ask => {
                    let reason = tokio::select! {
                        () = stop.cancelled() => return None,
                        reason = self.ask(round, passing, upcasted) => reason,
                    };
                    if reason.is_some() {
                        return reason;
                    }
                }
            }
            // What is there is written first, so that rows move on.
            if round.last.is_some() && round.began.elapsed() >= TRANSFORM_FOR {
                return None;
            }
        }
        None
    }

    /// Asks for the first event, which is this one, alone. Returns the reason where that says nothing of it.
    async fn ask<'a>(
        &self,
        round: &mut Round<'a>,
        passing: Passing<'a>,
        upcasted: &mut Upcasted,
    ) -> Option<String> {
        let call = match prepare(&passing, upcasted) {
            Ok(call) => call,
            Err(reason) => {
                round.first_done(Err(reason), upcasted);
                return None;
            }
        };
        let is_proven = match self.answers_another(round, &passing, upcasted).await {
            Ok(is_proven) => is_proven,
            Err(reason) => return Some(reason),
        };
        let (_, came) = called(self.client.clone(), passing, call).await;
        let came = match came {
            Came::Busy(reason) | Came::Away(reason) => return Some(reason),
            Came::Ended(reason) => {
                let now = Instant::now();
                self.waiting.suspects.failed(&passing.at, &reason, is_proven, now);
                return None;
            }
            Came::Data(data) => {
                self.keep(&passing, upcasted);
                Ok(data)
            }
            Came::Nothing(reason) => Err(reason),
        };
        self.waiting.suspects.cleared(&passing.at);
        round.first_done(came, upcasted);
        None
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
        if let Some(call) = suspects.kept(&fingerprint) {
            let transform = &passing.transformed.transform;
            match call::make(&self.client, call, transform).await {
                Came::Data(_) => return Ok(true),
                Came::Ended(reason) => {
                    suspects.unwell(&fingerprint);
                    return Err(reason);
                }
                // It may be the trouble of that tenant alone.
                Came::Nothing(_) | Came::Busy(_) | Came::Away(_) => {}
            }
        }
        let Some(other) = self.another(round, &fingerprint) else { return Ok(false) };
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
            Came::Busy(_) | Came::Away(_) => return Ok(false),
            Came::Ended(reason) => {
                suspects.note(other.at, &reason, Instant::now());
                return Err(reason);
            }
            Came::Data(data) => {
                suspects.keep(fingerprint, call);
                Ok(data)
            }
            Came::Nothing(reason) => Err(reason),
        };
        let is_answer = came.is_ok();
        round.done(other, came, upcasted);
        Ok(is_answer)
    }

    /// Takes an event out of the round that is not suspected and has this transformation.
    fn another<'a>(&self, round: &mut Round<'a>, fingerprint: &Hash) -> Option<Passing<'a>> {
        let suspects = &self.waiting.suspects;
        let is_another =
            |it: &Passing<'_>| it.transformed.fingerprint == *fingerprint && !suspects.has(&it.at);
        let nth = round.left.iter().position(is_another)?;
        round.left.remove(nth)
    }
}
