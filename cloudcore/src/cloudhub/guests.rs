//! Connections that are no sessions yet, up to the hello. They are bounded in number by the port (`listener`), and
//! here it is decided whose turn it is and who has to go, so that no address uses the port up for the others.
//!
//! A handshake takes a turn only from the client's first message on, and gives it back after a while, whatever has become of it:
//! who opens a connection and says nothing takes none. Turns go round by address. When there is no room left, the oldest
//! connection of the address that has the most goes: of a site behind one address that is nobody as long as there is room, and
//! its connections, which get through their handshakes, are not the oldest for long.
//!
//! A fleet that comes back all at once wants more than there is. Over QUIC, where who waits repeats himself, only as many wait as get
//! a turn soon; the others are told that it is busy, and come back later by themselves. Of those that wait at an address the newest
//! is the next: an edge gives up after a while, and the oldest would be those that have. And until cloudcore has heard of all that
//! there is in the cluster, turns are given out one by one: what a session asks of the API server is asked while that is listing
//! everything.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time};
use tokio_util::sync::CancellationToken;

/// Handshakes under way at once: each costs signatures, and a core makes a few thousand a second. More at once would only
/// have all of them late.
const TURNS: usize = 128;
/// Connections that wait for a turn before others are told to come back later: about as many as get one within two seconds.
const WAITING: usize = 512;
/// What a handshake may keep its turn for: on a slow line it goes on without.
const TURN: Duration = Duration::from_secs(1);

/// Whose connections count together: an IPv4 address, or what one customer has of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl Source {
    pub(super) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into(),
            address @ IpAddr::V4(_) => address,
        })
    }
}

#[derive(Debug, Default)]
pub(super) struct Guests {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether turns are taken as they are free.
    open: bool,
    next: u64,
    /// The oldest first.
    present: HashMap<Source, VecDeque<(u64, CancellationToken)>>,
    /// Turns that are taken.
    taken: usize,
    /// Those with somebody waiting, the next one first.
    round: VecDeque<Source>,
    /// The oldest first.
    waiting: HashMap<Source, VecDeque<(u64, oneshot::Sender<Turn>)>>,
}

/// A connection's place among the guests; dropping it gives it up.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Arc<Guests>,
    source: Source,
    id: u64,
    leave: CancellationToken,
}

/// One of the handshakes that are under way.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Guests>>);

impl Guests {
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Guest {
        let (source, leave) = (Source::of(address), CancellationToken::new());
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.present.entry(source).or_default().push_back((id, leave.clone()));
        Guest { guests: Arc::clone(self), source, id, leave }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().present.values().map(VecDeque::len).sum()
    }

    /// Somebody has to go. `false` when nobody is here.
    pub(super) fn make_room(&self) -> bool {
        let mut state = self.lock();
        let fullest = state.present.values_mut().max_by_key(|guests| guests.len());
        let Some((_, leave)) = fullest.and_then(VecDeque::pop_front) else { return false };
        leave.cancel();
        true
    }

    pub(super) fn has_free_turn(&self) -> bool {
        let state = self.lock();
        state.taken < TURNS && state.round.is_empty()
    }

    /// Whether one more from this address would wait for long. An address with less than its share of those that wait is always
    /// let in.
    pub(super) fn is_crowded(&self, address: IpAddr) -> bool {
        let state = self.lock();
        let waiting: usize = state.waiting.values().map(VecDeque::len).sum();
        if waiting < WAITING {
            return false;
        }
        let source = Source::of(address);
        let own = state.waiting.get(&source).map_or(0, VecDeque::len);
        let sources = state.waiting.len() + usize::from(own == 0);
        own >= waiting / sources
    }

    /// Turns are given out one by one until [`open`](Self::open).
    pub(super) fn is_open(&self) -> bool {
        self.lock().open
    }

    /// From now on turns are taken as they are free.
    pub(super) fn open(self: &Arc<Self>) {
        self.lock().open = true;
        while self.admit_one() {}
    }

    /// Gives a turn to the next that waits; `false` if nobody does, or there is none.
    pub(super) fn admit_one(self: &Arc<Self>) -> bool {
        let mut state = self.lock();
        if state.taken == TURNS {
            return false;
        }
        state.taken += 1;
        let given = state.give(self);
        if !given {
            state.taken -= 1;
        }
        given
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // It is whole whatever panicked beside it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a turn back, or on to the next that waits.
    fn pass_on(self: &Arc<Self>) {
        let mut state = self.lock();
        if !state.open || !state.give(self) {
            state.taken -= 1;
        }
    }
}

impl State {
    /// Gives a turn that is taken to the next that waits; `false` if nobody does.
    fn give(&mut self, guests: &Arc<Guests>) -> bool {
        while let Some(source) = self.round.pop_front() {
            let Some(queue) = self.waiting.get_mut(&source) else { continue };
            let next = queue.pop_back();
            if queue.is_empty() {
                self.waiting.remove(&source);
            } else {
                self.round.push_back(source);
            }
            match next.map(|(_, next)| next.send(Turn(Some(Arc::clone(guests))))) {
                Some(Ok(())) => return true,
                // Who has stopped waiting does not take it.
                Some(Err(mut unwanted)) => unwanted.0 = None,
                None => {}
            }
        }
        false
    }
}

impl Guest {
    /// Resolves when it has to go.
    pub(super) async fn told_to_leave(&self) {
        self.leave.cancelled().await;
    }

    /// A turn at shaking hands.
    pub(super) async fn turn(&self) -> Turn {
        let waiting = {
            let mut state = self.guests.lock();
            if state.open && state.taken < TURNS {
                state.taken += 1;
                return Turn(Some(Arc::clone(&self.guests)));
            }
            let (turn, waiting) = oneshot::channel();
            let queue = state.waiting.entry(self.source).or_default();
            queue.push_back((self.id, turn));
            if queue.len() == 1 {
                state.round.push_back(self.source);
            }
            waiting
        };
        // Nobody is forgotten; without a turn the bound is all that would be lost.
        waiting.await.unwrap_or(Turn(None))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut state = self.guests.lock();
        if let Some(guests) = state.present.get_mut(&self.source) {
            guests.retain(|(id, _)| *id != self.id);
            if guests.is_empty() {
                state.present.remove(&self.source);
            }
        }
        if let Some(queue) = state.waiting.get_mut(&self.source) {
            queue.retain(|(id, _)| *id != self.id);
            if queue.is_empty() {
                state.waiting.remove(&self.source);
                state.round.retain(|source| *source != self.source);
            }
        }
    }
}

impl Turn {
    /// Does the work of the turn. What takes longer than a turn goes on without it.
    pub(super) async fn spent_on<T>(self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Ok(done) = time::timeout(TURN, &mut work).await {
            return done;
        }
        drop(self);
        work.await
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(guests) = self.0.take() {
            guests.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};

    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn open() -> Arc<Guests> {
        let guests = Arc::new(Guests::default());
        guests.open();
        guests
    }

    #[test]
    fn what_one_customer_has_counts_as_one() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::3"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::3"), of("2001:db8:1:3::3"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn the_oldest_of_the_fullest_address_goes() {
        let guests = Arc::new(Guests::default());
        assert!(!guests.make_room());
        let one = guests.enter(address(1));
        let many: Vec<_> = (0..3).map(|_| guests.enter(address(2))).collect();
        let told = |guest: &Guest| guest.told_to_leave().now_or_never().is_some();
        assert!(guests.make_room() && told(&many[0]) && !told(&many[1]) && !told(&one));
        drop(many);
        assert!(guests.make_room() && told(&one) && !guests.make_room());
    }

    #[tokio::test(start_paused = true)]
    async fn turns_go_round_by_address_and_end() {
        let guests = open();
        let crowd: Vec<_> = (0..2 * TURNS + 10).map(|_| guests.enter(address(1))).collect();
        let held = join_all(crowd.iter().take(TURNS).map(Guest::turn)).await;
        assert!(!guests.has_free_turn());
        let mut waiting: Vec<_> = crowd.iter().skip(TURNS).map(|guest| Box::pin(guest.turn())).collect();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let (other, gone) = (guests.enter(address(2)), guests.enter(address(3)));
        let mut turn = Box::pin(other.turn());
        assert!((&mut turn).now_or_never().is_none());
        assert!(gone.turn().now_or_never().is_none(), "it waits, and is gone");
        // Nobody gives one back: each has had its time.
        let mut spent: Vec<_> =
            held.into_iter().map(|turn| Box::pin(turn.spent_on(std::future::pending::<()>()))).collect();
        assert!(spent.iter_mut().all(|work| work.now_or_never().is_none()));
        time::sleep(TURN + Duration::from_millis(1)).await;
        assert!(spent.iter_mut().take(2).all(|work| work.now_or_never().is_none()), "the work goes on");
        let turn = turn.now_or_never().expect("the second to be given back is for the other address");
        assert_eq!(waiting.iter_mut().filter_map(FutureExt::now_or_never).map(std::mem::forget).count(), 1);
        drop((turn, spent, waiting));
    }

    #[test]
    fn only_so_many_wait_and_no_address_keeps_another_from_it() {
        let guests = Arc::new(Guests::default());
        let wait = |crowd: &[Guest]| {
            let mut turns: Vec<_> = crowd.iter().map(|guest| Box::pin(guest.turn())).collect();
            let (last, first) = turns.split_last_mut().unwrap();
            assert!(first.iter_mut().all(|turn| turn.now_or_never().is_none()));
            let before = guests.is_crowded(address(1));
            assert!(last.now_or_never().is_none());
            (before, guests.is_crowded(address(1)), guests.is_crowded(address(2)))
        };
        let crowd: Vec<_> = (0..WAITING).map(|_| guests.enter(address(1))).collect();
        assert_eq!(wait(&crowd), (false, true, false), "the other has its share");
        drop(crowd);
        assert!(
            !guests.is_crowded(address(1)) && guests.lock().round.is_empty(),
            "who has left does not wait"
        );
        let some = 1..=u32::try_from(WAITING).unwrap();
        let fleet: Vec<_> = some.map(|number| guests.enter(number.to_be_bytes().into())).collect();
        assert_eq!(wait(&fleet), (false, true, true), "one an address, and as many as can be");
    }

    #[test]
    fn before_it_is_open_turns_are_given_out_one_by_one_and_the_newest_is_the_next() {
        let guests = Arc::new(Guests::default());
        let crowd: Vec<_> = (0..4).map(|_| guests.enter(address(1))).collect();
        assert!(guests.has_free_turn() && !guests.admit_one());
        let mut waiting: Vec<_> = crowd.iter().map(|guest| Some(Box::pin(guest.turn()))).collect();
        let mut given = || -> Vec<usize> {
            let mut given = Vec::new();
            for (number, turn) in waiting.iter_mut().enumerate() {
                if turn.as_mut().and_then(FutureExt::now_or_never).is_some() {
                    *turn = None;
                    given.push(number);
                }
            }
            given
        };
        assert!(given().is_empty() && !guests.has_free_turn());
        assert!(guests.admit_one());
        assert_eq!(given(), [3], "and nobody has it from who gives it back");
        assert!(given().is_empty());
        assert!(guests.admit_one());
        assert_eq!(given(), [2]);
        guests.open();
        assert_eq!(given(), [0, 1]);
        assert!(crowd[0].turn().now_or_never().is_some(), "all have been given back");
    }
}
