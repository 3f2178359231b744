//! Frames for everybody who watches: one look a second for all of them, and none for nobody.
//!
//! # Invariants
//! - The number of watchers is bounded; one more is refused.
//! - A slow one skips frames: only the newest is kept, once for all.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use futures_util::stream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tracing::error;

use super::{COLUMNS, Sampler};
use crate::exporter::Exporter;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The time for which nothing is looked at is at least so many times that of a look: on a host with
/// thousands of vCPUs, watching costs no more than a twentieth of a CPU.
const REST: u32 = 20;

/// Those who watch.
#[derive(Debug)]
pub(crate) struct Hub {
    /// The newest frame as an event; empty before the first one, `None` at the end.
    newest: watch::Sender<Option<Bytes>>,
    places: Arc<Semaphore>,
    /// Somebody has come.
    came: Notify,
}

impl Hub {
    /// For at most `limit` watchers.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            newest: watch::Sender::new(Some(Bytes::new())),
            places: Arc::new(Semaphore::new(limit)),
            came: Notify::new(),
        })
    }

    /// A body of server-sent events; `None` if all places are taken.
    pub(crate) fn watch(&self) -> Option<Body> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let mut newest = self.newest.subscribe();
        // What is there already need not be waited for.
        newest.mark_changed();
        self.came.notify_one();
        let watcher = Watcher {
            newest,
            _place: place,
            greeting: Some(greeting()),
        };
        Some(Body::from_stream(stream::unfold(watcher, Watcher::next)))
    }

    /// Looks at the sources while there is somebody to see it.
    pub(crate) async fn run(self: Arc<Self>, exporter: Arc<Exporter>) {
        loop {
            while self.newest.receiver_count() == 0 {
                self.came.notified().await;
            }
            self.look(&exporter).await;
            // The next one who comes must not see an old moment.
            self.newest.send_replace(Some(Bytes::new()));
        }
    }

    /// Until the last one has gone.
    async fn look(&self, exporter: &Arc<Exporter>) {
        let mut sampler = Sampler::default();
        while self.newest.receiver_count() > 0 {
            let begin = Instant::now();
            let exporter = Arc::clone(exporter);
            let work = tokio::task::spawn_blocking(move || {
                let frame = sampler.take(&exporter.read());
                (event("frame", &frame), sampler)
            });
            let event = match work.await {
                Ok((event, kept)) => {
                    sampler = kept;
                    event
                }
                Err(error) => {
                    error!(%error, "Cannot look at the sources for the live page");
                    sampler = Sampler::default();
                    Bytes::new()
                }
            };
            self.newest.send_replace(Some(event));
            let took = begin.elapsed();
            let rest = INTERVAL.saturating_sub(took).max(took * REST);
            tokio::time::sleep(rest).await;
        }
    }

    /// Ends every stream.
    pub(crate) fn close(&self) {
        self.newest.send_replace(None);
    }
}

/// One who watches; dropping it frees the place.
struct Watcher {
    newest: watch::Receiver<Option<Bytes>>,
    _place: OwnedSemaphorePermit,
    greeting: Option<Bytes>,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if let Some(greeting) = self.greeting.take() {
            return Some((Ok(greeting), self));
        }
        loop {
            self.newest.changed().await.ok()?;
            let event = self.newest.borrow_and_update().clone()?;
            if !event.is_empty() {
                return Some((Ok(event), self));
            }
        }
    }
}

/// What comes first: how long to wait before coming again, and what the columns are.
fn greeting() -> Bytes {
    let columns = event("columns", COLUMNS);
    [&b"retry: 3000\n"[..], &columns].concat().into()
}

/// An event with JSON, which has no line break of its own.
fn event(name: &str, data: &(impl serde::Serialize + ?Sized)) -> Bytes {
    match serde_json::to_string(data) {
        Ok(json) => format!("event: {name}\ndata: {json}\n\n").into(),
        // Plain structures into memory.
        Err(error) => {
            error!(%error, "Cannot write an event; report this as a bug of ecs-exporter");
            Bytes::new()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http_body_util::BodyExt;
    use tokio::time::timeout;

    use super::*;
    use crate::config::Config;

    const SOON: Duration = Duration::from_secs(10);

    async fn next(body: &mut Body) -> Option<String> {
        let frame = timeout(SOON, body.frame()).await.unwrap()?;
        let bytes = frame.unwrap().into_data().unwrap();
        Some(String::from_utf8(bytes.to_vec()).unwrap())
    }

    fn hub(limit: usize) -> Arc<Hub> {
        let hub = Hub::new(limit);
        let config = Config {
            stats_socket: "/nonexistent".into(),
            ..Config::default()
        };
        let exporter = Arc::new(Exporter::new(&config).unwrap());
        tokio::spawn(Arc::clone(&hub).run(exporter));
        hub
    }

    #[tokio::test]
    async fn watchers_get_columns_and_frames_to_the_end() {
        let hub = hub(2);
        let mut body = hub.watch().unwrap();
        let greeting = next(&mut body).await.unwrap();
        assert!(greeting.starts_with("retry: 3000\nevent: columns\ndata: [{"));
        for number in 1..=2 {
            let event = next(&mut body).await.unwrap();
            let wanted = format!("event: frame\ndata: {{\"number\":{number},");
            assert!(event.starts_with(&wanted), "{event}");
            assert!(event.contains("No stats socket at /nonexistent"), "{event}");
            assert!(event.ends_with("\n\n") && event.lines().count() == 3);
        }
        hub.close();
        assert_eq!(next(&mut body).await, None);
        let mut late = hub.watch().unwrap();
        next(&mut late).await.unwrap();
        assert_eq!(next(&mut late).await, None);
    }

    #[tokio::test]
    async fn places_are_bounded_and_free_again() {
        let hub = hub(2);
        let bodies = [hub.watch().unwrap(), hub.watch().unwrap()];
        assert!(hub.watch().is_none());
        drop(bodies);
        assert!(hub.watch().is_some());
    }

    #[tokio::test]
    async fn a_slow_watcher_skips_and_nobody_means_no_look() {
        let hub = hub(2);
        let (mut quick, mut slow) = (hub.watch().unwrap(), hub.watch().unwrap());
        next(&mut slow).await.unwrap();
        for _ in 0..4 {
            next(&mut quick).await.unwrap();
        }
        let event = next(&mut slow).await.unwrap();
        assert!(event.contains("\"number\":3,"), "{event}");
        drop((quick, slow));
        timeout(SOON, async {
            while !matches!(&*hub.newest.borrow(), Some(event) if event.is_empty()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .unwrap();
        // The first look of whoever comes next is a first one.
        let mut next_one = hub.watch().unwrap();
        next(&mut next_one).await.unwrap();
        assert!(next(&mut next_one).await.unwrap().contains("\"number\":1,"));
    }
}
