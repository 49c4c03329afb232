//! Which frontends there are, and which addresses have any: each such address has a row of its own, by which a packet
//! without ports is known to be for a service ([`FrontendKey::of_address`]).

use std::collections::{HashMap, HashSet};
use weft_abi::{Addr, FrontendKey};

/// Whether the key is that of an address's row.
pub(super) fn is_of_address(key: &FrontendKey) -> bool {
    *key == FrontendKey::of_address(key.addr) && has_row(&key.addr)
}

/// The node's own addresses have none: what comes to them may be for its processes.
fn has_row(address: &Addr) -> bool {
    ![FrontendKey::ANY_V4, FrontendKey::ANY_V6].contains(address)
}

/// Rows of the map, those of addresses included.
#[derive(Default)]
pub(super) struct Frontends {
    rows: HashSet<FrontendKey>,
    /// How many frontends an address has.
    counts: HashMap<Addr, usize>,
}

impl Frontends {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn contains(&self, key: &FrontendKey) -> bool {
        self.rows.contains(key)
    }

    pub(super) fn extend<'a>(&mut self, keys: impl IntoIterator<Item = &'a FrontendKey>) {
        for key in keys {
            if self.rows.insert(*key) && !is_of_address(key) {
                *self.counts.entry(key.addr).or_default() += 1;
            }
        }
    }

    pub(super) fn remove<'a>(&mut self, keys: impl IntoIterator<Item = &'a FrontendKey>) {
        for key in keys {
            if self.rows.remove(key)
                && !is_of_address(key)
                && let Some(count) = self.counts.get_mut(&key.addr)
            {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&key.addr);
                }
            }
        }
    }

    /// Rows that these frontends' addresses lack.
    pub(super) fn missing<'a>(&self, keys: impl IntoIterator<Item = &'a FrontendKey>) -> Vec<FrontendKey> {
        let addresses: HashSet<Addr> = keys.into_iter().map(|key| key.addr).filter(has_row).collect();
        let rows = addresses.into_iter().map(FrontendKey::of_address);
        rows.filter(|row| !self.rows.contains(row)).collect()
    }

    /// Rows of addresses that have no frontend any more: of these frontends' addresses.
    pub(super) fn surplus<'a>(&self, keys: impl IntoIterator<Item = &'a FrontendKey>) -> Vec<FrontendKey> {
        let addresses: HashSet<Addr> = keys.into_iter().map(|key| key.addr).collect();
        let without = addresses.into_iter().filter(|address| !self.counts.contains_key(address));
        without.map(FrontendKey::of_address).filter(|row| self.rows.contains(row)).collect()
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &FrontendKey> {
        self.rows.iter()
    }
}
