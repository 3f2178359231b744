//! A bounded number of connections: when it is reached, an idle one goes, the oldest first, and one
//! that has never asked for anything before one that has.
//!
//! Clients that open connections and say nothing then cost each other their places, and not
//! Prometheus, which asks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The connections there are.
#[derive(Debug)]
pub(crate) struct Connections {
    limit: usize,
    open: Mutex<Open>,
    /// Somebody ended or became idle.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// By arrival, oldest first.
    places: BTreeMap<u64, Arc<Place>>,
}

#[derive(Debug, Default)]
struct Place {
    /// A request is being served.
    busy: AtomicBool,
    /// There has been a request.
    has_asked: AtomicBool,
    evicted: Notify,
}

/// One connection's place; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Seat {
    number: u64,
    place: Arc<Place>,
    connections: Arc<Connections>,
}

impl Connections {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            open: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Takes a place. If all are taken the oldest idle connection is told to end; if none is idle,
    /// waits until one is.
    pub(crate) async fn take(self: &Arc<Self>) -> Seat {
        loop {
            let changed = self.changed.notified();
            if let Some(seat) = self.try_take() {
                return seat;
            }
            changed.await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Seat> {
        let mut open = self.lock();
        if open.places.len() >= self.limit {
            let idle = |(_, place): &(&u64, &Arc<Place>)| !place.busy.load(Ordering::Acquire);
            let silent =
                |(_, place): &(&u64, &Arc<Place>)| !place.has_asked.load(Ordering::Acquire);
            let mut places = open.places.iter().filter(idle);
            let found = places.clone().find(silent).or_else(|| places.next());
            let (&number, _) = found?;
            let place = open.places.remove(&number)?;
            place.evicted.notify_one();
        }
        let number = open.next;
        open.next += 1;
        let place = Arc::new(Place::default());
        open.places.insert(number, Arc::clone(&place));
        Some(Seat {
            number,
            place,
            connections: Arc::clone(self),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Each statement leaves the map whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Ends when the place is needed for another connection.
    pub(crate) async fn evicted(&self) {
        self.place.evicted.notified().await;
    }

    /// A mark that is set while a request is served.
    pub(crate) fn busy(&self) -> Busy {
        Busy {
            place: Arc::clone(&self.place),
            connections: Arc::clone(&self.connections),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.lock().places.remove(&self.number);
        self.connections.changed.notify_one();
    }
}

/// Marks a connection as busy, for the middleware that sees its requests.
#[derive(Debug, Clone)]
pub(crate) struct Busy {
    place: Arc<Place>,
    connections: Arc<Connections>,
}

impl Busy {
    /// A request begins (`true`), or its answer is there (`false`).
    pub(crate) fn set(&self, busy: bool) {
        self.place.busy.store(busy, Ordering::Release);
        self.place.has_asked.store(true, Ordering::Release);
        if !busy {
            self.connections.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(5);
    const NOT_YET: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn the_oldest_idle_connection_makes_room() {
        let connections = Connections::new(2);
        let first = connections.take().await;
        let second = connections.take().await;
        first.busy().set(true);
        let third = timeout(SOON, connections.take()).await.unwrap();
        timeout(SOON, second.evicted()).await.unwrap();
        assert!(timeout(NOT_YET, first.evicted()).await.is_err());
        third.busy().set(true);
        assert!(timeout(NOT_YET, connections.take()).await.is_err());
        first.busy().set(false);
        let fourth = timeout(SOON, connections.take()).await.unwrap();
        timeout(SOON, first.evicted()).await.unwrap();
        fourth.busy().set(true);
        drop(third);
        timeout(SOON, connections.take()).await.unwrap();
    }

    #[tokio::test]
    async fn who_has_asked_stays_longer_than_who_never_did() {
        let connections = Connections::new(2);
        let scraper = connections.take().await;
        scraper.busy().set(true);
        scraper.busy().set(false);
        for _ in 0..3 {
            let silent = connections.take().await;
            let _other = connections.take().await;
            timeout(SOON, silent.evicted()).await.unwrap();
        }
        assert!(timeout(NOT_YET, scraper.evicted()).await.is_err());
    }
}
