//! Turns at work of bounded concurrency. Each key (a source, an identity) has a share, and waits
//! for its own turns in order, so that a busy key does not delay the others.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Cheap to clone.
#[derive(Debug)]
pub struct Turns<K: Eq + Hash + Clone> {
    inner: Arc<Inner<K>>,
}

#[derive(Debug)]
struct Inner<K> {
    all: Arc<Semaphore>,
    of_key: usize,
    keys: Mutex<HashMap<K, Key>>,
}

#[derive(Debug)]
struct Key {
    turns: Arc<Semaphore>,
    /// Users that have a turn or wait for one.
    users: usize,
}

/// A turn, released when this is dropped.
#[derive(Debug)]
pub struct Turn<K: Eq + Hash + Clone> {
    _all: OwnedSemaphorePermit,
    _of_key: OwnedSemaphorePermit,
    _user: User<K>,
}

/// Keeps a key in the table.
#[derive(Debug)]
struct User<K: Eq + Hash + Clone> {
    inner: Arc<Inner<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Clone for Turns<K> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<K: Eq + Hash + Clone> Turns<K> {
    /// `all` turns at once, `of_key` of them for one key.
    pub fn new(all: usize, of_key: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                all: Arc::new(Semaphore::new(all)),
                of_key,
                keys: Mutex::default(),
            }),
        }
    }

    /// Waits for a turn of `key`. `None`: too many of this key are waiting.
    pub async fn take(&self, key: K, most_waiting: usize) -> Option<Turn<K>> {
        let (user, turns) = self.inner.user(key, most_waiting)?;
        // The key's own share first: waiting for it occupies no turn of the others.
        let of_key = turns.acquire_owned().await.ok()?;
        let all = self.inner.all.clone().acquire_owned().await.ok()?;
        Some(Turn {
            _all: all,
            _of_key: of_key,
            _user: user,
        })
    }
}

impl<K: Eq + Hash + Clone> Inner<K> {
    fn keys(&self) -> MutexGuard<'_, HashMap<K, Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn user(self: &Arc<Self>, key: K, most_waiting: usize) -> Option<(User<K>, Arc<Semaphore>)> {
        let mut keys = self.keys();
        let entry = keys.entry(key.clone()).or_insert_with(|| Key {
            turns: Arc::new(Semaphore::new(self.of_key)),
            users: 0,
        });
        if entry.users >= self.of_key.saturating_add(most_waiting) {
            return None;
        }
        entry.users += 1;
        let turns = entry.turns.clone();
        let user = User {
            inner: self.clone(),
            key,
        };
        Some((user, turns))
    }
}

impl<K: Eq + Hash + Clone> Drop for User<K> {
    fn drop(&mut self) {
        let mut keys = self.inner.keys();
        if let Some(entry) = keys.get_mut(&self.key) {
            entry.users -= 1;
            if entry.users == 0 {
                keys.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    #[tokio::test]
    async fn a_busy_key_leaves_turns_for_others() {
        let turns = Turns::new(4, 2);
        let held = [turns.take("a", 8).await, turns.take("a", 8).await];
        let mut third = Box::pin(turns.take("a", 8));
        assert!(futures_poll(third.as_mut()).is_pending());
        let other = turns.take("b", 8).await;
        assert!(other.is_some());
        drop(held);
        assert!(third.await.is_some());
        drop(other);
        assert!(turns.inner.keys().is_empty());
    }

    #[tokio::test]
    async fn the_number_of_waiting_users_of_a_key_is_bounded() {
        let turns = Turns::new(4, 1);
        let held = turns.take("a", 1).await;
        let mut second = Box::pin(turns.take("a", 1));
        assert!(futures_poll(second.as_mut()).is_pending());
        assert!(turns.take("a", 1).await.is_none());
        drop(second);
        drop(held);
        assert!(turns.take("a", 1).await.is_some());
    }

    fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }
}
