//! All that a broker knows: services that the other side announced, services that this side
//! serves, knocks at these, and the one knock of our own that waits for an answer. Pure: time is
//! an argument. Every list has a bound, since the other side fills it.

use std::collections::{HashMap, VecDeque};

use tokio::{sync::mpsc, time::Instant};

use crate::{
    Error,
    limits::{BROKER_GIVEN_UP_MAX, BROKER_KNOCKS_MAX, BROKER_PENDING_MAX, BROKER_WAIT, KNOCK_WAIT},
    transport::{Address, BoxIo},
    wire::{ConnInfo, Knock},
};

/// The place where the streams of a multiplexed connection go that are for one service.
pub(super) type Streams = mpsc::Sender<BoxIo>;

#[derive(Default)]
pub(super) struct BrokerState {
    /// Why there is no exchange with the other side any more. None: there is one, or will be.
    ended: Option<String>,
    announced: HashMap<u32, Announced>,
    /// Our services; with streams if the connection is multiplexed.
    served: HashMap<u32, Option<Streams>>,
    /// In the order in which they came.
    knocks: VecDeque<(u32, Instant)>,
    asked: Option<Asked>,
    /// Services at which we knocked and that did not answer in time.
    given_up: VecDeque<u32>,
    /// Streams that the other side expects of us, since it answered a knock too late.
    owed: usize,
}

/// A service of the other side, as it announced it.
#[derive(Debug)]
pub(super) struct Announced {
    /// The error is for whoever dials it.
    pub(super) address: Result<Address, Error>,
    pub(super) at: Instant,
}

struct Asked {
    id: u32,
    answer: Option<Result<(), String>>,
}

/// The next thing to do about the other side's knocks.
#[derive(Debug)]
pub(super) enum Due {
    /// Open up: the next stream goes here.
    Serve(u32, Streams),
    /// Say that there is no such service.
    Refuse(u32),
    /// There may be such a service by then.
    Later(Instant),
    Nothing,
}

/// The next thing to do for our own knock.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Open a stream and close it, for a knock that we gave up.
    Owed,
    /// Open the stream, or fail with the other side's reason.
    Answered(Result<(), String>),
    /// There will be no answer.
    Ended(String),
}

impl BrokerState {
    /// Takes a message of the other side.
    pub(super) fn take(&mut self, info: ConnInfo, now: Instant) {
        match info.knock {
            None => self.announce(info, now),
            Some(Knock { ack: true, error, .. }) => self.answer(info.service_id, error),
            Some(Knock { knock: true, .. }) if self.knocks.len() < BROKER_KNOCKS_MAX => {
                self.knocks.push_back((info.service_id, now));
            }
            Some(_) => {}
        }
    }

    /// As in the reference, the first announcement counts as long as nobody has dialled it; after
    /// a while the other side may have something else under this number.
    fn announce(&mut self, info: ConnInfo, now: Instant) {
        let is_old = |announced: &Announced| now.duration_since(announced.at) >= BROKER_WAIT;
        let is_known = self.announced.contains_key(&info.service_id);
        if !is_known && self.announced.len() >= BROKER_PENDING_MAX {
            self.announced.retain(|_, announced| !is_old(announced));
        }
        let has_room = is_known || self.announced.len() < BROKER_PENDING_MAX;
        if has_room && self.announced.get(&info.service_id).is_none_or(is_old) {
            let address = Address::parse(&info.network, &info.address);
            self.announced.insert(info.service_id, Announced { address, at: now });
        }
    }

    fn answer(&mut self, id: u32, error: String) {
        if let Some(asked) = &mut self.asked
            && asked.id == id
            && asked.answer.is_none()
        {
            asked.answer = Some(if error.is_empty() { Ok(()) } else { Err(error) });
        } else if error.is_empty()
            && let Some(at) = self.given_up.iter().position(|given_up| *given_up == id)
        {
            self.given_up.remove(at);
            self.owed += 1;
        }
    }

    /// Takes the announcement of a service, which can be dialled once.
    pub(super) fn announcement(&mut self, id: u32) -> Option<Announced> {
        self.announced.remove(&id)
    }

    /// Puts an announcement back that nobody waits for any more, unless there is a newer one.
    pub(super) fn put_back(&mut self, id: u32, announced: Announced) {
        if self.announced.len() < BROKER_PENDING_MAX {
            self.announced.entry(id).or_insert(announced);
        }
    }

    /// Begins to serve. Fails if this number is served already.
    pub(super) fn serve(&mut self, id: u32, streams: Option<Streams>) -> Result<(), Error> {
        if self.served.contains_key(&id) {
            return Err(Error::Broker(format!("service {id} is served already; take a next_id")));
        }
        self.served.insert(id, streams);
        Ok(())
    }

    pub(super) fn serves(&self, id: u32) -> bool {
        self.served.contains_key(&id)
    }

    pub(super) fn stop_serving(&mut self, id: u32) {
        self.served.remove(&id);
    }

    /// Takes the next knock that can be answered. One at a service that is not there waits a
    /// little: the other side may hear of a service's number before this side serves it.
    pub(super) fn due(&mut self, now: Instant) -> Due {
        let served = self.knocks.iter().enumerate().find_map(|(at, (id, since))| {
            let streams = self.served.get(id)?.clone()?;
            // Nobody waits any more for an answer to an old one.
            (now < *since + KNOCK_WAIT).then_some((at, *id, streams))
        });
        if let Some((at, id, streams)) = served {
            self.knocks.remove(at);
            return Due::Serve(id, streams);
        }
        match self.knocks.front() {
            None => Due::Nothing,
            Some((_, at)) if now < *at + KNOCK_WAIT => Due::Later(*at + KNOCK_WAIT),
            Some((id, _)) => {
                let id = *id;
                self.knocks.pop_front();
                Due::Refuse(id)
            }
        }
    }

    /// Knocks. One at a time: the caller has the turn, until [`Self::opened`] or [`Self::give_up`].
    pub(super) fn knock(&mut self, id: u32) {
        self.asked = Some(Asked { id, answer: None });
    }

    /// Changes nothing: whoever does the step may be dropped before it is done.
    pub(super) fn step(&self) -> Option<Step> {
        if self.owes() {
            return Some(Step::Owed);
        }
        let answer = self.asked.as_ref().and_then(|asked| asked.answer.clone());
        answer.map(Step::Answered).or_else(|| self.ended().map(Step::Ended))
    }

    /// The stream that the other side expects after its answer to our knock is open.
    pub(super) fn opened(&mut self) {
        self.asked = None;
    }

    /// Nobody waits for our knock any more. The other side may answer still, and would then give
    /// our next stream to this service.
    pub(super) fn give_up(&mut self) {
        match self.asked.take() {
            Some(Asked { answer: Some(Ok(())), .. }) => self.owed += 1,
            Some(Asked { id, answer: None }) => {
                if self.given_up.len() >= BROKER_GIVEN_UP_MAX {
                    self.given_up.pop_front();
                }
                self.given_up.push_back(id);
            }
            Some(Asked { answer: Some(Err(_)), .. }) | None => {}
        }
    }

    /// True if the other side expects a stream for a knock that we gave up.
    pub(super) fn owes(&self) -> bool {
        self.owed > 0
    }

    /// One such stream has been opened.
    pub(super) fn settled(&mut self) {
        self.owed = self.owed.saturating_sub(1);
    }

    /// Why there is no exchange any more.
    pub(super) fn ended(&self) -> Option<String> {
        self.ended.clone()
    }

    pub(super) fn end(&mut self, reason: String) {
        self.ended = Some(reason);
    }

    /// Another exchange begins, with nothing of the one before: a question of ours gets no answer
    /// any more. Streams that are owed are owed still: their order is that of the connection.
    pub(super) fn begin(&mut self) {
        let is_another = self.ended.take().is_some();
        if let Some(asked) = self.asked.as_mut().filter(|_| is_another) {
            asked.answer.get_or_insert(Err("the other side has begun anew".to_owned()));
        }
        self.announced.clear();
        self.knocks.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn announces(id: u32, address: &str) -> ConnInfo {
        let (network, address) = ("unix".to_owned(), address.to_owned());
        ConnInfo { service_id: id, network, address, knock: None }
    }

    fn knocks(id: u32) -> ConnInfo {
        let knock = Some(Knock { knock: true, ..Knock::default() });
        ConnInfo { service_id: id, knock, ..ConnInfo::default() }
    }

    fn acks(id: u32, error: &str) -> ConnInfo {
        let knock = Some(Knock { knock: true, ack: true, error: error.to_owned() });
        ConnInfo { service_id: id, knock, ..ConnInfo::default() }
    }

    fn address(state: &mut BrokerState, id: u32) -> Option<String> {
        state.announcement(id).map(|announced| announced.address.unwrap().parts().1)
    }

    #[test]
    fn the_first_announcement_counts_and_can_be_taken_once() {
        let (mut state, now) = (BrokerState::default(), Instant::now());
        state.take(announces(1, "/a"), now);
        state.take(announces(1, "/b"), now);
        assert_eq!(address(&mut state, 1).unwrap(), "/a");
        assert_eq!(address(&mut state, 1), None);
        state.take(announces(1, "/c"), now);
        state.take(announces(1, "/d"), now + BROKER_WAIT);
        assert_eq!(address(&mut state, 1).unwrap(), "/d", "the earlier one is forgotten by then");
    }

    #[test]
    fn an_announcement_can_be_put_back_behind_no_newer_one() {
        let (mut state, now) = (BrokerState::default(), Instant::now());
        state.take(announces(1, "/a"), now);
        let taken = state.announcement(1).unwrap();
        state.put_back(1, taken);
        let taken = state.announcement(1).unwrap();
        state.take(announces(1, "/b"), now);
        state.put_back(1, taken);
        assert_eq!(address(&mut state, 1).unwrap(), "/b");
    }

    #[test]
    fn an_address_that_is_none_is_an_error_for_whoever_dials_it() {
        let (mut state, now) = (BrokerState::default(), Instant::now());
        state.take(announces(1, &format!("/{}", "x".repeat(4_000))), now);
        state.take(announces(2, "relative"), now);
        for id in [1, 2] {
            let error = state.announcement(id).unwrap().address.unwrap_err();
            assert!(matches!(error, Error::Address { .. }), "{error}");
        }
    }

    #[test]
    fn announcements_that_nobody_dials_do_not_grow_and_do_not_shut_others_out() {
        let (mut state, now) = (BrokerState::default(), Instant::now());
        for id in 0..10_000 {
            state.take(announces(id, "/flood"), now);
        }
        assert_eq!(state.announced.len(), BROKER_PENDING_MAX);
        assert_eq!(address(&mut state, 9_999), None, "it came when all places were taken");
        assert_eq!(address(&mut state, 0).unwrap(), "/flood");
        state.take(announces(20_000, "/fills the place"), now);
        state.take(announces(20_001, "/later"), now + BROKER_WAIT);
        assert_eq!(address(&mut state, 20_001).unwrap(), "/later");
    }

    #[test]
    fn a_knock_waits_a_little_for_its_service() {
        let (mut state, now) = (BrokerState::default(), Instant::now());
        assert!(matches!(state.due(now), Due::Nothing));
        state.take(knocks(7), now);
        assert!(matches!(state.due(now), Due::Later(at) if at == now + KNOCK_WAIT));
        state.serve(7, Some(mpsc::channel(1).0)).unwrap();
        assert!(matches!(state.due(now), Due::Serve(7, _)));
        state.stop_serving(7);
        state.take(knocks(7), now);
        assert!(matches!(state.due(now + KNOCK_WAIT), Due::Refuse(7)));
        assert!(matches!(state.due(now + KNOCK_WAIT), Due::Nothing));
        assert!(KNOCK_WAIT < BROKER_WAIT, "the other side hears the refusal while it waits");
    }

    #[test]
    fn a_served_knock_does_not_wait_behind_others_and_knocks_do_not_grow() {
        let (mut state, now) = (BrokerState::default(), Instant::now());
        state.serve(7, Some(mpsc::channel(1).0)).unwrap();
        state.take(knocks(1), now);
        state.take(knocks(7), now);
        assert!(matches!(state.due(now), Due::Serve(7, _)));
        state.take(knocks(7), now);
        let old = [state.due(now + KNOCK_WAIT), state.due(now + KNOCK_WAIT)];
        assert!(matches!(old, [Due::Refuse(1), Due::Refuse(7)]));
        for id in 0..10_000 {
            state.take(knocks(id), now);
        }
        assert_eq!(state.knocks.len(), BROKER_KNOCKS_MAX);
    }

    #[test]
    fn a_number_is_served_once_at_a_time() {
        let mut state = BrokerState::default();
        state.serve(1, None).unwrap();
        assert!(matches!(state.serve(1, None), Err(Error::Broker(_))));
        state.stop_serving(1);
        state.serve(1, None).unwrap();
        assert!(state.serves(1));
        // Without streams there is nothing that a knock could open.
        let now = Instant::now();
        state.take(knocks(1), now);
        assert!(matches!(state.due(now), Due::Later(_)));
    }

    #[test]
    fn only_the_answer_to_our_knock_is_taken() {
        let (mut state, now) = (BrokerState::default(), Instant::now());
        state.take(acks(5, ""), now);
        state.knock(5);
        assert_eq!(state.step(), None, "that was said before we knocked");
        state.take(acks(6, ""), now);
        state.take(announces(5, "/a"), now);
        assert_eq!(state.step(), None);
        state.take(acks(5, "no such service"), now);
        state.take(acks(5, ""), now);
        let refused = Step::Answered(Err("no such service".to_owned()));
        assert_eq!(state.step(), Some(refused), "the second answer to one knock is nothing");
        state.give_up();
        assert_eq!(state.step(), None, "a refused one is owed nothing");
        state.knock(6);
        state.take(acks(6, ""), now);
        assert_eq!(state.step(), Some(Step::Answered(Ok(()))));
        state.opened();
        assert_eq!(state.step(), None);
    }

    #[test]
    fn an_answer_that_comes_too_late_is_owed_a_stream_before_the_next() {
        let (mut state, now) = (BrokerState::default(), Instant::now());
        state.knock(5);
        state.give_up();
        state.knock(6);
        state.take(acks(5, ""), now);
        assert_eq!(state.step(), Some(Step::Owed));
        assert_eq!(state.step(), Some(Step::Owed), "no stream has been opened");
        state.settled();
        assert_eq!(state.step(), None);
        state.take(acks(5, ""), now);
        assert_eq!(state.step(), None, "nothing is owed twice");
        state.take(acks(6, ""), now);
        state.give_up();
        assert_eq!(state.step(), Some(Step::Owed), "answered, and not taken");
    }

    #[test]
    fn what_was_given_up_does_not_grow() {
        let (mut state, now) = (BrokerState::default(), Instant::now());
        for id in 0..1_000 {
            state.knock(id);
            state.give_up();
        }
        assert_eq!(state.given_up.len(), BROKER_GIVEN_UP_MAX);
        for id in 0..1_000 {
            state.take(acks(id, ""), now);
        }
        assert_eq!(state.owed, BROKER_GIVEN_UP_MAX);
    }

    #[test]
    fn the_end_is_told_until_something_begins_again() {
        let (mut state, now) = (BrokerState::default(), Instant::now() + Duration::from_secs(1));
        state.take(announces(1, "/a"), now);
        state.end("gone".to_owned());
        state.knock(1);
        assert_eq!(state.step(), Some(Step::Ended("gone".to_owned())));
        assert_eq!(address(&mut state, 1).unwrap(), "/a", "it was announced before the end");
        state.take(announces(2, "/b"), now);
        state.begin();
        assert_eq!((state.ended(), address(&mut state, 2)), (None, None));
        let Some(Step::Answered(Err(reason))) = state.step() else { panic!("nobody will answer") };
        assert!(reason.contains("anew"), "{reason}");
        state.give_up();
        assert_eq!(state.step(), None, "nobody has heard the question");
    }
}
