//! How many connections there may be: in all, and from one address.
//!
//! At the limit, whoever has kept us waiting longest for a request gives way to the newcomer, so that connections on
//! which nothing comes, or one byte a second, keep nobody out. Whoever has a whole request by the time that it hears of
//! it stays, and the next one goes. Only where all places are taken by requests that are being answered is a newcomer
//! refused.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::peer::network_of;

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub in_all: usize,
    pub per_address: usize,
}

#[derive(Default)]
pub(super) struct Places {
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    in_all: usize,
    by_address: HashMap<IpAddr, usize>,
    /// Who waits for its peer, longest first.
    waiting: BTreeMap<u64, Waiting>,
    /// Who was told to go and has yet to do so.
    told: HashMap<u64, Told>,
    waits: u64,
    gave_way: u64,
}

struct Waiting {
    address: Option<IpAddr>,
    /// Of a body that is not whole.
    holds_bytes: u64,
    give_way: Arc<Notify>,
}

struct Told {
    holds_bytes: u64,
    /// Dropped with it: whom that keeps waiting hears of it.
    _keeps_waiting: oneshot::Sender<()>,
}

/// Which limit a newcomer met, with nobody to give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    InAll,
    Address,
}

/// Why there is no place yet.
#[derive(Debug)]
enum NoPlace {
    Full(Full),
    /// Somebody was told to go: to be tried again after this, which ends without a word.
    Until(oneshot::Receiver<()>),
}

/// The place of one connection, until it is dropped. It begins as one that waits.
pub(super) struct Place {
    places: Arc<Places>,
    address: Option<IpAddr>,
    give_way: Arc<Notify>,
    /// Its key in [`Taken::waiting`] or [`Taken::told`].
    wait: Mutex<Option<u64>>,
}

impl Taken {
    /// The one of them that has waited longest is told to go. What is returned ends once it has heard.
    fn make_room(&mut self, among: impl Fn(&Waiting) -> bool) -> Option<oneshot::Receiver<()>> {
        let wait = self.waiting.iter().find(|(_, one)| among(one)).map(|(wait, _)| *wait)?;
        let one = self.waiting.remove(&wait)?;
        let (keeps_waiting, heard) = oneshot::channel();
        let told = Told { holds_bytes: one.holds_bytes, _keeps_waiting: keeps_waiting };
        self.told.insert(wait, told);
        one.give_way.notify_one();
        Some(heard)
    }
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `address`: of whom only so many may come; `None`: of a proxy, which speaks for many.
    ///
    /// # Errors
    /// The limit that was met.
    pub(super) async fn take(
        self: &Arc<Places>,
        address: Option<IpAddr>,
        limits: Limits,
    ) -> Result<Place, Full> {
        loop {
            match self.try_take(address, limits) {
                Ok(place) => return Ok(place),
                Err(NoPlace::Full(full)) => return Err(full),
                // Nothing is ever sent: its end says so.
                Err(NoPlace::Until(heard)) => drop(heard.await),
            }
        }
    }

    fn try_take(
        self: &Arc<Places>,
        address: Option<IpAddr>,
        limits: Limits,
    ) -> Result<Place, NoPlace> {
        let address = address.map(network_of);
        let mut taken = self.lock();
        let of_address =
            address.map_or(0, |ip| taken.by_address.get(&ip).copied().unwrap_or_default());
        if of_address >= limits.per_address {
            let room = taken.make_room(|one| one.address == address);
            return Err(room.map_or(NoPlace::Full(Full::Address), NoPlace::Until));
        }
        if taken.in_all >= limits.in_all {
            let room = taken.make_room(|_| true);
            return Err(room.map_or(NoPlace::Full(Full::InAll), NoPlace::Until));
        }
        taken.in_all += 1;
        if let Some(ip) = address {
            *taken.by_address.entry(ip).or_default() += 1;
        }
        drop(taken);
        let place = Place {
            places: Arc::clone(self),
            address,
            give_way: Arc::default(),
            wait: Mutex::default(),
        };
        place.waits();
        Ok(place)
    }

    /// Connections open now.
    pub(super) fn open(&self) -> usize {
        self.lock().in_all
    }

    /// Connections that gave way since the start.
    pub(super) fn gave_way(&self) -> u64 {
        self.lock().gave_way
    }
}

impl Place {
    /// The peer is to send something.
    pub(super) fn waits(&self) {
        self.works();
        let mut taken = self.places.lock();
        let wait = taken.waits;
        taken.waits += 1;
        let waiting =
            Waiting { address: self.address, holds_bytes: 0, give_way: Arc::clone(&self.give_way) };
        taken.waiting.insert(wait, waiting);
        *self.wait.lock().unwrap_or_else(PoisonError::into_inner) = Some(wait);
    }

    /// More of a body has come.
    pub(super) fn holds(&self, bytes: u64) {
        let wait = *self.wait.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = self.places.lock();
        if let Some(waiting) = wait.and_then(|wait| taken.waiting.get_mut(&wait)) {
            waiting.holds_bytes += bytes;
        }
    }

    /// Somebody else's body is needed room for: of those that are not whole the longest waiting goes. `false`: there is
    /// none, nor one that is about to go.
    pub(super) fn make_room_for_a_body(&self) -> bool {
        let mut taken = self.places.lock();
        let is_another = |one: &Waiting| !Arc::ptr_eq(&one.give_way, &self.give_way);
        taken.make_room(|one| one.holds_bytes > 0 && is_another(one)).is_some()
            || taken.told.values().any(|told| told.holds_bytes > 0)
    }

    /// A request is whole: its answer comes, whoever else does.
    pub(super) fn works(&self) {
        let wait = self.wait.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(wait) = wait {
            let mut taken = self.places.lock();
            taken.waiting.remove(&wait);
            taken.told.remove(&wait);
        }
    }

    /// Ready once another connection needs the place, and this one still waits for its peer.
    pub(super) async fn give_way(&self) {
        loop {
            self.give_way.notified().await;
            let wait = *self.wait.lock().unwrap_or_else(PoisonError::into_inner);
            let mut taken = self.places.lock();
            if wait.is_some_and(|wait| taken.told.contains_key(&wait)) {
                taken.gave_way += 1;
                return;
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.in_all -= 1;
        if let Some(ip) = self.address
            && let Some(count) = taken.by_address.get_mut(&ip)
        {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&ip);
            }
        }
        drop(taken);
        // Last: whom it kept waiting finds the place free.
        self.works();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    const LIMITS: Limits = Limits { in_all: 3, per_address: 2 };

    fn ip(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    fn told_to_go(place: &Place) -> bool {
        place.give_way().now_or_never().is_some()
    }

    /// At once.
    fn take(places: &Arc<Places>, last: u8) -> Result<Place, Full> {
        places.take(ip(last), LIMITS).now_or_never().expect("somebody is to give way")
    }

    #[test]
    fn who_has_waited_longest_gives_way() {
        let places = Arc::new(Places::default());
        let [first, second, third] = [1, 2, 3].map(|n| take(&places, n).unwrap());
        // The first one's request came and was answered: now the second has waited longest.
        first.works();
        first.waits();
        let mut newcomer = pin!(places.take(ip(4), LIMITS));
        assert!(newcomer.as_mut().now_or_never().is_none());
        assert_eq!([&first, &second, &third].map(told_to_go), [false, true, false]);
        drop(second);
        let fourth = newcomer.now_or_never().unwrap().unwrap();
        assert_eq!((places.open(), places.gave_way()), (3, 1));
        assert!(!told_to_go(&fourth));
    }

    /// It was closed while its event was being stored.
    #[test]
    fn who_has_a_whole_request_before_hearing_of_it_stays() {
        let places = Arc::new(Places::default());
        let [first, second, third] = [1, 2, 3].map(|n| take(&places, n).unwrap());
        let mut newcomer = pin!(places.take(ip(4), LIMITS));
        assert!(newcomer.as_mut().now_or_never().is_none());
        first.works();
        assert!(newcomer.as_mut().now_or_never().is_none());
        assert_eq!([&first, &second, &third].map(told_to_go), [false, true, false]);
        // What it did not hear then does not count for its next wait.
        first.waits();
        assert!(!told_to_go(&first));
        for place in [&second, &third, &first] {
            place.works();
        }
        assert_eq!(newcomer.now_or_never().unwrap().err(), Some(Full::InAll));
        assert_eq!(places.open(), 3);
    }

    #[test]
    fn who_is_being_answered_does_not_give_way() {
        let places = Arc::new(Places::default());
        let held = [1, 2, 3].map(|n| take(&places, n).unwrap());
        held.iter().for_each(Place::works);
        assert_eq!(take(&places, 4).err(), Some(Full::InAll));
        assert!(held.iter().all(|place| !told_to_go(place)));
        drop(held);
        assert_eq!(places.open(), 0);
        assert!(take(&places, 4).is_ok());
    }

    #[test]
    fn an_address_over_its_share_takes_from_itself() {
        let places = Arc::new(Places::default());
        let other = take(&places, 1).unwrap();
        let [first, second] = [2, 2].map(|n| take(&places, n).unwrap());
        let mut newcomer = pin!(places.take(ip(2), LIMITS));
        assert!(newcomer.as_mut().now_or_never().is_none());
        assert_eq!([&other, &first, &second].map(told_to_go), [false, true, false]);
        drop(first);
        let third = newcomer.now_or_never().unwrap().unwrap();
        third.works();
        second.works();
        assert_eq!(take(&places, 2).err(), Some(Full::Address));
        assert!(!told_to_go(&other));
    }

    #[test]
    fn for_a_body_those_give_way_that_hold_part_of_one() {
        let places = Arc::new(Places::default());
        let [silent, slow, own] = [1, 2, 3].map(|n| take(&places, n).unwrap());
        slow.holds(10);
        own.holds(10);
        assert!(own.make_room_for_a_body());
        assert_eq!([&silent, &slow, &own].map(told_to_go), [false, true, false]);
        // On a busy machine it has yet to go: that is no reason to refuse the newcomer.
        assert!(own.make_room_for_a_body());
        drop(slow);
        assert!(!own.make_room_for_a_body());
    }

    #[test]
    fn a_proxy_has_no_share_and_a_network_of_ipv6_is_one_address() {
        let places = Arc::new(Places::default());
        let limits = Limits { in_all: 100, per_address: 2 };
        let take = |address| places.take(address, limits).now_or_never();
        let proxied = [0; 5].map(|_| take(None).unwrap().unwrap());
        proxied.iter().for_each(Place::works);
        let of = |text: &str| take(Some(text.parse().unwrap()));
        let held =
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|a| of(a).unwrap().unwrap());
        assert!(of("2001:db8::3").is_none());
        assert_eq!(held.each_ref().map(told_to_go), [true, false, false]);
    }
}
