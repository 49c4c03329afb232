//! Consistent hashing of clients to backends: Maglev (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Every backend has a permutation of the table's slots, derived from its address alone, and in turn each takes the first
//! free slot of its permutation. So all nodes fill the same table, and adding or removing a backend moves few slots of the
//! others.

use sha2::{Digest as _, Sha256};
use std::net::IpAddr;
use weft_model::intent::Protocol;

/// A slot that is not assigned yet.
const FREE: u16 = u16::MAX;

/// The lookup table: the backend's index for each slot. `size` must be prime, or a permutation might not reach every slot.
/// Empty for no backends, 65,535 or more, or a size below 2.
#[must_use]
pub fn table(backends: &[(IpAddr, u16)], protocol: Protocol, size: u32) -> Vec<u16> {
    let size = size as usize;
    if backends.is_empty() || backends.len() >= usize::from(FREE) || size < 2 {
        return Vec::new();
    }
    let mut permutations: Vec<Permutation> =
        backends.iter().map(|backend| Permutation::of(backend, protocol, size)).collect();
    let mut table = vec![FREE; size];
    let mut left = size;
    loop {
        for (backend, permutation) in (0..).zip(&mut permutations) {
            let mut slot = permutation.step(size);
            while table[slot] != FREE {
                slot = permutation.step(size);
            }
            table[slot] = backend;
            left -= 1;
            if left == 0 {
                return table;
            }
        }
    }
}

/// The permutation of a backend.
struct Permutation {
    next: usize,
    skip: usize,
}

impl Permutation {
    fn of((address, port): &(IpAddr, u16), protocol: Protocol, size: usize) -> Self {
        let octets = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let hash = Sha256::new()
            .chain_update(octets)
            .chain_update(port.to_be_bytes())
            .chain_update([protocol.number()])
            .finalize();
        let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|n| hash[at + n]));
        let below = |word: u64, limit: usize| usize::try_from(word % limit as u64).unwrap_or(0);
        Self { next: below(word(0), size), skip: 1 + below(word(8), size - 1) }
    }

    fn step(&mut self, size: usize) -> usize {
        let slot = self.next;
        self.next += self.skip;
        if self.next >= size {
            self.next -= size;
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(n: u16) -> Vec<(IpAddr, u16)> {
        (0..n).map(|n| (IpAddr::from([10, 244, n.to_be_bytes()[0], n.to_be_bytes()[1]]), 8080)).collect()
    }

    #[test]
    fn every_backend_has_its_share() {
        let table = table(&backends(100), Protocol::Tcp, 16_381);
        let mut shares = [0_u32; 100];
        table.iter().for_each(|backend| shares[usize::from(*backend)] += 1);
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert!(most - least <= 1, "{least} to {most}");
    }

    #[test]
    fn one_of_a_hundred_moves_few_of_the_others() {
        let before = backends(100);
        let old = table(&before, Protocol::Tcp, 16_381);
        for gone in 0..100 {
            let mut after = before.clone();
            after.remove(gone);
            let new = table(&after, Protocol::Tcp, 16_381);
            let stays = old.iter().zip(&new).filter(|(old, _)| before[usize::from(**old)] != before[gone]);
            let moved = stays.filter(|(old, new)| before[usize::from(**old)] != after[usize::from(**new)]).count();
            assert!(moved * 100 <= 2 * old.len(), "without {gone}: {moved} of {} slots moved", old.len());
        }
    }

    #[test]
    fn edges() {
        assert_eq!(table(&[], Protocol::Tcp, 251), []);
        assert_eq!(table(&backends(1), Protocol::Udp, 251), vec![0; 251]);
        // More backends than slots: only the first ones get one.
        assert_eq!(table(&backends(300), Protocol::Udp, 251).len(), 251);
        assert_ne!(table(&backends(9), Protocol::Udp, 251), table(&backends(9), Protocol::Tcp, 251));
    }
}
