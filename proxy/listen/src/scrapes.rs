//! Metrics as text: rendered once for all concurrent scrapes, and never on a thread that serves
//! traffic.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Mutex as AsyncMutex;

/// Bound on renderings in memory while clients read them. At the bound, the newest is returned
/// again.
const MAX_HELD: usize = 4;

type Render = dyn Fn() -> Result<Vec<u8>, String> + Send + Sync;

/// A rendering, and when it was started.
type Last = (Instant, Arc<Rendered>);

/// Cheap to clone.
#[derive(Clone)]
pub struct Scrapes {
    inner: Arc<Inner>,
}

struct Inner {
    render: Box<Render>,
    /// Locked during a rendering. Contains the last rendering, as long as others wait for it.
    last: Arc<AsyncMutex<Option<Last>>>,
    waiting: AtomicUsize,
    newest: Mutex<Weak<Rendered>>,
    held: Arc<AtomicUsize>,
}

/// One rendering, counted as long as any part of it is in use.
struct Rendered {
    text: Vec<u8>,
    held: Arc<AtomicUsize>,
}

struct Shared(Arc<Rendered>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.text
    }
}

impl Drop for Rendered {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Relaxed);
    }
}

/// Counts a waiting scrape.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Scrapes {
    /// `render` may block: it is called on a thread for blocking work.
    pub fn new(render: impl Fn() -> Result<Vec<u8>, String> + Send + Sync + 'static) -> Self {
        Self {
            inner: Arc::new(Inner {
                render: Box::new(render),
                last: Arc::default(),
                waiting: AtomicUsize::new(0),
                newest: Mutex::default(),
                held: Arc::default(),
            }),
        }
    }

    /// The current metrics. Scrapes that arrive during a rendering share the next one.
    pub async fn text(&self) -> Result<Bytes, String> {
        let asked = Instant::now();
        let waiting = Waiting::new(&self.inner.waiting);
        let mut last = self.inner.last.clone().lock_owned().await;
        drop(waiting);
        if let Some((began, rendered)) = &*last
            && *began >= asked
        {
            let rendered = rendered.clone();
            if self.inner.waiting.load(Relaxed) == 0 {
                *last = None;
            }
            return Ok(rendered.into_bytes());
        }
        *last = None;
        if self.inner.held.load(Relaxed) >= MAX_HELD
            && let Some(newest) = self.inner.newest().upgrade()
        {
            return Ok(newest.into_bytes());
        }
        // Runs in a task of its own: when its client disconnects, no second rendering starts in
        // parallel.
        let inner = self.inner.clone();
        let rendering = tokio::spawn(async move {
            let began = Instant::now();
            let blocking = inner.clone();
            let rendered = tokio::task::spawn_blocking(move || (blocking.render)()).await;
            let text = rendered.map_err(|error| error.to_string())??;
            inner.held.fetch_add(1, Relaxed);
            let held = inner.held.clone();
            let rendered = Arc::new(Rendered { text, held });
            *inner.newest() = Arc::downgrade(&rendered);
            if inner.waiting.load(Relaxed) > 0 {
                *last = Some((began, rendered.clone()));
            }
            Ok(rendered)
        });
        let rendered = rendering.await.map_err(|error| error.to_string());
        rendered?.map(Rendered::into_bytes)
    }
}

impl Inner {
    fn newest(&self) -> std::sync::MutexGuard<'_, Weak<Rendered>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rendered {
    fn into_bytes(self: Arc<Self>) -> Bytes {
        Bytes::from_owner(Shared(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Scrapes with renderings that wait for a signal each, and have their number as text.
    fn scrapes() -> (Scrapes, mpsc::Sender<()>, Arc<AtomicUsize>) {
        #[expect(clippy::disallowed_methods, reason = "a test sends a handful")]
        let (go, may_go) = mpsc::channel();
        let may_go = Mutex::new(may_go);
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let scrapes = Scrapes::new(move || {
            let _ = may_go.lock().unwrap().recv();
            let number = counted.fetch_add(1, Relaxed) + 1;
            Ok(number.to_string().into_bytes())
        });
        (scrapes, go, count)
    }

    #[tokio::test]
    async fn scrapes_during_a_rendering_share_the_next_one() {
        let (scrapes, go, count) = scrapes();
        let ask = || {
            let scrapes = scrapes.clone();
            tokio::spawn(async move { scrapes.text().await })
        };
        let first = ask();
        while scrapes.inner.last.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..50).map(|_| ask()).collect();
        while scrapes.inner.waiting.load(Relaxed) < 50 {
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), "1");
        for other in others {
            assert_eq!(other.await.unwrap().unwrap(), "2");
        }
        assert_eq!(count.load(Relaxed), 2);
        assert_eq!(scrapes.inner.held.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn at_the_bound_on_held_renderings_the_newest_is_returned() {
        let (scrapes, go, _) = scrapes();
        let mut unread = Vec::new();
        for _ in 0..MAX_HELD {
            go.send(()).unwrap();
            unread.push(scrapes.text().await.unwrap());
        }
        let newest = unread.last().unwrap().clone();
        assert_eq!(scrapes.text().await.unwrap(), newest);
        drop((unread, newest));
        go.send(()).unwrap();
        let fresh = scrapes.text().await.unwrap();
        assert_eq!(fresh, (MAX_HELD + 1).to_string());
    }

    #[tokio::test]
    async fn a_client_that_disconnects_starts_no_second_rendering() {
        let (scrapes, go, count) = scrapes();
        for _ in 0..20 {
            let asked = scrapes.clone();
            let asking = tokio::spawn(async move { asked.text().await });
            tokio::task::yield_now().await;
            asking.abort();
        }
        assert_eq!(count.load(Relaxed), 0);
        for _ in 0..2 {
            go.send(()).unwrap();
        }
        assert!(scrapes.text().await.is_ok());
        assert!(count.load(Relaxed) <= 2);
    }
}
