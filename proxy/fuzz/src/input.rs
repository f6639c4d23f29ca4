//! Structured inputs of targets.

use arbitrary::{Arbitrary, Unstructured};

/// An input out of `bytes`. `None`: they are too few.
pub fn input<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Option<T> {
    T::arbitrary_take_rest(Unstructured::new(bytes)).ok()
}
