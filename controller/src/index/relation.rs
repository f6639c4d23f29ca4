//! The values of each key, sorted, so that every answer is the same on every replica.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

pub struct Relation<K, V>(HashMap<K, BTreeSet<V>>);

impl<K, V> Default for Relation<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V: Ord + Clone> Relation<K, V> {
    /// Adds or removes a pair. Both are idempotent.
    pub fn set(&mut self, key: K, value: &V, there: bool) {
        if there {
            self.0.entry(key).or_default().insert(value.clone());
        } else if let Some(values) = self.0.get_mut(&key) {
            values.remove(value);
            if values.is_empty() {
                self.0.remove(&key);
            }
        }
    }

    pub fn get<'a>(&'a self, key: &K) -> impl Iterator<Item = &'a V> + use<'a, K, V> {
        self.0.get(key).into_iter().flatten()
    }
}
