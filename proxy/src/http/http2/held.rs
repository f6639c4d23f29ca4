//! The memory that a stream is charged for: its head from the start, and bodies for as long as
//! their reader has stopped.

use crate::memory::{Charge, Use};
use crate::upstream::http2::SMALL_WINDOW;

/// Up to this is small. The small window fits in, so that streams make progress while memory is
/// short.
const LITTLE: usize = 2 * SMALL_WINDOW as usize;

/// The charge of one stream.
#[derive(Debug)]
pub(super) struct Held {
    charge: Charge,
    /// The charge of the stream without any body.
    head: usize,
}

impl Held {
    pub fn new(charge: Charge) -> Self {
        Self {
            head: charge.bytes(),
            charge,
        }
    }

    /// Charges `waiting` bytes. False: the budget has no room for them. Data for a reader that has
    /// stopped wakes the stream's task ([`super::inflow`]), which then charges it.
    pub fn has_room(&mut self, waiting: usize) -> bool {
        let what = match waiting <= LITTLE {
            true => Use::SmallBody,
            false => Use::Body,
        };
        self.charge.follow(what, self.head, waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Budget;

    #[test]
    fn a_body_is_charged_while_it_waits() {
        let budget = Budget::new(1 << 20);
        let charge = budget.charge(Use::Stream, 1_000).expect("room");
        let mut held = Held::new(charge);
        let charged = [0, 100, 5_000, 60_000, 20_000, 0].map(|waiting| {
            assert!(held.has_room(waiting));
            budget.charged()
        });
        assert_eq!(charged, [1_000, 1_000, 6_000, 61_000, 21_000, 1_000]);
        assert!(!held.has_room(1 << 20));
        drop(held);
        assert_eq!(budget.charged(), 0);
    }
}
