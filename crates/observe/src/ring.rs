//! The last N of something. Full, it overwrites the oldest and counts that.

use std::collections::VecDeque;

/// See the module.
#[derive(Debug)]
pub struct Ring<T> {
    items: VecDeque<T>,
    items_max: usize,
    overwritten: u64,
}

impl<T> Ring<T> {
    /// Room for `items_max`, at least one. Memory is taken as it fills.
    #[must_use]
    pub fn new(items_max: usize) -> Self {
        Self { items: VecDeque::new(), items_max: items_max.max(1), overwritten: 0 }
    }

    /// Adds the newest.
    pub fn push(&mut self, item: T) {
        if self.items.len() == self.items_max {
            self.items.pop_front();
            self.overwritten += 1;
        }
        self.items.push_back(item);
    }

    /// From the oldest to the newest.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.items.iter()
    }

    /// How many were lost to newer ones, since the beginning.
    #[must_use]
    pub const fn overwritten(&self) -> u64 {
        self.overwritten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn holds_the_last(items in proptest::collection::vec(any::<u8>(), 0..50), room in 0usize..20) {
            let mut ring = Ring::new(room);
            items.iter().for_each(|item| ring.push(*item));
            let kept = items.len().min(room.max(1));
            prop_assert!(ring.iter().eq(&items[items.len() - kept..]));
            prop_assert_eq!(ring.overwritten(), (items.len() - kept) as u64);
        }
    }
}
