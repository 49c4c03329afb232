//! The default policy class for classes of identities, `rest`: the most common class needs no rows.

use super::super::peers::Peers;
use super::super::ports::Entries;
use super::{BTreeMap, HashMap, Hit, Index, Resolved};

/// Rows that a policy may gain after its compilation before another `rest` is considered.
const GROWTH: usize = 256;

impl Resolved {
    /// The entries that more than half of all identities have, if any.
    pub(super) fn best_rest(&self, peers: &Peers, marked: &BTreeMap<Index, Vec<Hit>>) -> Option<Entries> {
        let mut counts: HashMap<&[Hit], usize> = HashMap::default();
        for (class, hits) in marked {
            let row = peers.classes().get(*class);
            if !row.is_prefix {
                *counts.entry(hits).or_default() += row.members;
            }
        }
        let (hits, members) = counts.into_iter().max_by_key(|(hits, members)| (*members, *hits))?;
        let entries = (members * 2 > peers.pod_identities()).then(|| self.entries_of(hits))?;
        (!entries.is_empty()).then_some(entries)
    }

    /// Whether it has grown so much that recompiling it with another `rest` would halve it.
    pub fn is_outgrown(&mut self, peers: &Peers) -> bool {
        let rows = self.compiled.classes.len();
        if rows < 2 * self.rows_when_compiled + GROWTH {
            return false;
        }
        // The check is expensive: repeat it only after the same growth.
        self.rows_when_compiled = rows;
        let marked = self.marked_classes(peers.classes());
        let best = self.best_rest(peers, &marked);
        let is_default = |entries: &Entries| best.as_ref().unwrap_or(&self.any) == entries;
        let mut needed = 0;
        for (class, row) in peers.classes().iter() {
            needed += match (marked.get(&class), row.is_prefix, best.is_some()) {
                (Some(hits), false, true) => usize::from(!is_default(&self.entries_of(hits))),
                (Some(_), ..) => 1,
                (None, false, true) => 1,
                (None, ..) => 0,
            };
        }
        needed * 2 < rows
    }
}
