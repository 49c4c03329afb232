//! The classes of peers, which all policies of the node share.

use crate::map::TypedMap;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use weft_model::desired::DataplaneError;
use weft_model::id::{Identity, PeerClass};

/// The map, with its keys.
pub(super) struct Peers {
    map: TypedMap<u32, u32>,
    keys: HashSet<u32>,
}

impl Peers {
    pub(super) fn open(map: TypedMap<u32, u32>) -> Result<Self, DataplaneError> {
        let keys = map.dump()?.into_iter().map(|(peer, _)| peer).collect();
        Ok(Self { map, keys })
    }

    /// Number of entries.
    pub(super) fn len(&self) -> u64 {
        self.keys.len() as u64
    }

    pub(super) fn put(&mut self, peers: &BTreeMap<Identity, PeerClass>) -> Result<(), DataplaneError> {
        let new = peers.keys().filter(|peer| !self.keys.contains(&peer.raw())).count() as u64;
        self.map.reserve(self.len(), new)?;
        let mut before = Vec::new();
        for (peer, class) in peers {
            let old = self.map.get(&peer.raw()).and_then(|old| self.map.put(&peer.raw(), &class.0).map(|()| old));
            match old {
                Ok(old) => before.push((peer.raw(), old)),
                Err(error) => {
                    self.undo(before);
                    return Err(self.map.full_or(error, self.len(), new));
                }
            }
        }
        self.keys.extend(peers.keys().map(|peer| peer.raw()));
        Ok(())
    }

    pub(super) fn remove(&mut self, peers: &BTreeSet<Identity>) -> Result<(), DataplaneError> {
        for peer in peers {
            self.map.remove(&peer.raw())?;
            self.keys.remove(&peer.raw());
        }
        Ok(())
    }

    pub(super) fn read(&self) -> Result<BTreeMap<Identity, PeerClass>, DataplaneError> {
        let all = self.map.dump()?;
        Ok(all.into_iter().map(|(peer, class)| (Identity::from_raw(peer), PeerClass(class))).collect())
    }

    fn undo(&self, before: Vec<(u32, Option<u32>)>) {
        for (peer, old) in before {
            let result = match old {
                Some(class) => self.map.put(&peer, &class),
                None => self.map.remove(&peer).map(drop),
            };
            if let Err(error) = result {
                tracing::error!(%error, "cannot roll back peer classes that were refused: rows of no identity stay until the next start");
            }
        }
    }
}
