//! What most identities come to: it is not written down for each of their classes.

use super::super::peers::Peers;
use super::super::ports::Content;
use super::{BTreeMap, HashMap, Hit, Index, Resolved};

/// A policy that has this many rows more than when it was made may be better off if it is made anew.
const GROWTH: usize = 256;

impl Resolved {
    /// The content that most identities have, if it is worth not to write it down for each of their classes.
    pub(super) fn best_rest(&self, peers: &Peers, concerned: &BTreeMap<Index, Vec<Hit>>) -> Option<Content> {
        let mut counts: HashMap<&[Hit], usize> = HashMap::default();
        for (class, hits) in concerned {
            let row = peers.classes().get(*class);
            if !row.is_prefix {
                *counts.entry(hits).or_default() += row.members;
            }
        }
        let (hits, members) = counts.into_iter().max_by_key(|(hits, members)| (*members, *hits))?;
        let content = (members * 2 > peers.pod_identities()).then(|| self.content(hits))?;
        (!content.is_empty()).then_some(content)
    }

    /// Whether it has grown so much that another `rest` would make it much smaller.
    pub fn is_outgrown(&mut self, peers: &Peers) -> bool {
        let rows = self.compiled.classes.len();
        if rows < 2 * self.rows_when_made + GROWTH {
            return false;
        }
        // Ask again when it has grown as much once more.
        self.rows_when_made = rows;
        let concerned = self.concerned(peers.classes());
        let best = self.best_rest(peers, &concerned);
        let plain = |content: &Content| best.as_ref().unwrap_or(&self.any) == content;
        let mut needed = 0;
        for (class, row) in peers.classes().iter() {
            needed += match (concerned.get(&class), row.is_prefix, best.is_some()) {
                (Some(hits), false, true) => usize::from(!plain(&self.content(hits))),
                (Some(_), ..) => 1,
                (None, false, true) => 1,
                (None, ..) => 0,
            };
        }
        needed * 2 < rows
    }
}
