//! Resolved policies in their three maps.
//!
//! A policy exists once its `POLICY_INFO` is written: that is done last, and undone first. What a crash left without it
//! is swept up at the next start.

use crate::map::TypedMap;
use std::collections::{BTreeMap, BTreeSet};
use weft_abi::{
    PolicyEntryKey, PolicyEntryValue, PolicyInfo, PolicyPeerKey, map_name, policy_action, policy_flags, policy_shape,
};
use weft_model::desired::{Action, CompiledPolicy, DataplaneError, PolicyPatch, PortPrefix, Verdict};
use weft_model::id::{ClassId, Identity, PolicyId, RuleId};

/// What a policy has in the maps.
#[derive(Default)]
struct Keys {
    peers: BTreeSet<u32>,
    entries: BTreeSet<PolicyEntryKey>,
}

/// The policies of a node.
pub(super) struct Policies {
    peers: TypedMap<PolicyPeerKey, u32>,
    entries: TypedMap<PolicyEntryKey, PolicyEntryValue>,
    infos: TypedMap<u32, PolicyInfo>,
    /// By policy id, so that capacity is known and removal touches what is there and nothing else.
    keys: BTreeMap<u32, Keys>,
    peer_count: u64,
    entry_count: u64,
}

/// How to take back one write.
enum Undo {
    Peer(PolicyPeerKey, Option<u32>),
    Entry(PolicyEntryKey, Option<PolicyEntryValue>),
}

impl Policies {
    pub(super) fn open(
        peers: TypedMap<PolicyPeerKey, u32>,
        entries: TypedMap<PolicyEntryKey, PolicyEntryValue>,
        infos: TypedMap<u32, PolicyInfo>,
    ) -> Result<Self, DataplaneError> {
        let mut keys: BTreeMap<u32, Keys> = infos.dump()?.into_iter().map(|(id, _)| (id, Keys::default())).collect();
        let (mut peer_count, mut entry_count) = (0, 0);
        for (key, _) in peers.dump()? {
            match keys.get_mut(&key.policy) {
                Some(keys) => {
                    keys.peers.insert(key.peer);
                    peer_count += 1;
                }
                None => drop(peers.remove(&key)?),
            }
        }
        for (key, _) in entries.dump()? {
            match keys.get_mut(&key.policy) {
                Some(keys) => {
                    keys.entries.insert(key);
                    entry_count += 1;
                }
                None => drop(entries.remove(&key)?),
            }
        }
        Ok(Self { peers, entries, infos, keys, peer_count, entry_count })
    }

    /// Number of entries by map.
    pub(super) fn entries(&self) -> [(&'static str, u64); 3] {
        [
            (map_name::POLICY_PEERS, self.peer_count),
            (map_name::POLICY_ENTRIES, self.entry_count),
            (map_name::POLICY_INFO, self.keys.len() as u64),
        ]
    }

    /// What is probed for a policy.
    #[cfg(test)]
    pub(super) fn info(&self, id: PolicyId) -> Option<PolicyInfo> {
        self.infos.get(&id.0).expect("readable")
    }

    pub(super) fn put(&mut self, id: PolicyId, policy: &CompiledPolicy) -> Result<(), DataplaneError> {
        // Written before: nobody uses it, so it is made anew, and its own entries make room.
        let (old_peers, old_entries, old_infos) =
            self.keys.get(&id.0).map_or((0, 0, 0), |keys| (keys.peers.len() as u64, keys.entries.len() as u64, 1));
        self.peers.reserve(self.peer_count - old_peers, policy.peers.len() as u64)?;
        self.entries.reserve(self.entry_count - old_entries, policy.entries.len() as u64)?;
        self.infos.reserve(self.keys.len() as u64 - old_infos, 1)?;
        self.remove(id)?;

        let (mut entry_keys, mut entry_values) = (Vec::new(), Vec::new());
        for ((class, port), verdict) in &policy.entries {
            entry_keys.push(entry_key(id, *class, *port));
            entry_values.push(entry_value(verdict));
        }
        let peer_keys: Vec<_> = policy.peers.keys().map(|peer| peer_key(id, *peer)).collect();
        let peer_values: Vec<u32> = policy.peers.values().map(|class| class.0).collect();
        let info = info(entry_keys.iter());

        if let Err((done, error)) = self.entries.put_all(&entry_keys, &entry_values) {
            self.take_back(&[], &entry_keys[..done]);
            return Err(self.entries_full(error, policy.entries.len()));
        }
        if let Err((done, error)) = self.peers.put_all(&peer_keys, &peer_values) {
            self.take_back(&peer_keys[..done], &entry_keys);
            return Err(self.peers_full(error, policy.peers.len()));
        }
        if let Err(error) = self.infos.put(&id.0, &info) {
            self.take_back(&peer_keys, &entry_keys);
            return Err(error);
        }
        self.peer_count += peer_keys.len() as u64;
        self.entry_count += entry_keys.len() as u64;
        let keys =
            Keys { peers: peer_keys.iter().map(|key| key.peer).collect(), entries: entry_keys.into_iter().collect() };
        self.keys.insert(id.0, keys);
        Ok(())
    }

    pub(super) fn patch(&mut self, id: PolicyId, patch: &PolicyPatch) -> Result<(), DataplaneError> {
        let Some(keys) = self.keys.get(&id.0) else {
            return Err(DataplaneError::System {
                what: format!("patch policy {}", id.0),
                source: std::io::Error::new(std::io::ErrorKind::NotFound, "there is no such policy"),
            });
        };
        let new_peers = patch.put_peers.keys().filter(|peer| !keys.peers.contains(&peer.raw())).count();
        let put_entries: BTreeMap<PolicyEntryKey, PolicyEntryValue> = patch
            .put_entries
            .iter()
            .map(|((class, port), verdict)| (entry_key(id, *class, *port), entry_value(verdict)))
            .collect();
        let new_entries = put_entries.keys().filter(|key| !keys.entries.contains(key)).count();
        self.peers.reserve(self.peer_count, new_peers as u64)?;
        self.entries.reserve(self.entry_count, new_entries as u64)?;

        let mut undo = Vec::new();
        let before = info(keys.entries.iter());
        let result = self.patch_maps(id, patch, &put_entries, before, &mut undo);
        if let Err(error) = result {
            self.undo(undo);
            // Writing back what was there takes no room.
            let _ = self.infos.put(&id.0, &before);
            return Err(error);
        }
        // The maps have changed, now the books do.
        let keys = self.keys.entry(id.0).or_default();
        let (peers_before, entries_before) = (keys.peers.len() as u64, keys.entries.len() as u64);
        keys.entries.extend(put_entries.keys().copied());
        keys.peers.extend(patch.put_peers.keys().map(|peer| peer.raw()));
        for peer in &patch.del_peers {
            keys.peers.remove(&peer.raw());
        }
        for (class, port) in &patch.del_entries {
            keys.entries.remove(&entry_key(id, *class, *port));
        }
        self.peer_count = self.peer_count + keys.peers.len() as u64 - peers_before;
        self.entry_count = self.entry_count + keys.entries.len() as u64 - entries_before;
        // Shapes that no entry has any more cost a probe each; to leave them is not wrong.
        let after = info(keys.entries.iter());
        self.infos.put(&id.0, &after)
    }

    /// Everything of a patch in its order, each step with the way back.
    fn patch_maps(
        &self,
        id: PolicyId,
        patch: &PolicyPatch,
        put_entries: &BTreeMap<PolicyEntryKey, PolicyEntryValue>,
        before: PolicyInfo,
        undo: &mut Vec<Undo>,
    ) -> Result<(), DataplaneError> {
        for (key, value) in put_entries {
            undo.push(Undo::Entry(*key, self.entries.get(key)?));
            self.entries.put(key, value).map_err(|error| self.entries_full(error, put_entries.len()))?;
        }
        let added = info(put_entries.keys());
        let both = PolicyInfo { shapes: before.shapes | added.shapes, flags: before.flags | added.flags };
        if both != before {
            self.infos.put(&id.0, &both)?;
        }
        for (peer, class) in &patch.put_peers {
            let key = peer_key(id, *peer);
            undo.push(Undo::Peer(key, self.peers.get(&key)?));
            self.peers.put(&key, &class.0).map_err(|error| self.peers_full(error, patch.put_peers.len()))?;
        }
        for peer in &patch.del_peers {
            let key = peer_key(id, *peer);
            undo.push(Undo::Peer(key, self.peers.get(&key)?));
            self.peers.remove(&key)?;
        }
        for (class, port) in &patch.del_entries {
            let key = entry_key(id, *class, *port);
            undo.push(Undo::Entry(key, self.entries.get(&key)?));
            self.entries.remove(&key)?;
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, id: PolicyId) -> Result<(), DataplaneError> {
        self.infos.remove(&id.0)?;
        let Some(keys) = self.keys.get(&id.0) else { return Ok(()) };
        for peer in &keys.peers {
            self.peers.remove(&PolicyPeerKey { policy: id.0, peer: *peer })?;
        }
        for key in &keys.entries {
            self.entries.remove(key)?;
        }
        self.peer_count -= keys.peers.len() as u64;
        self.entry_count -= keys.entries.len() as u64;
        self.keys.remove(&id.0);
        Ok(())
    }

    pub(super) fn read(&self) -> Result<BTreeMap<PolicyId, CompiledPolicy>, DataplaneError> {
        let mut policies: BTreeMap<PolicyId, CompiledPolicy> =
            self.infos.dump()?.into_iter().map(|(id, _)| (PolicyId(id), CompiledPolicy::default())).collect();
        for (key, class) in self.peers.dump()? {
            if let Some(policy) = policies.get_mut(&PolicyId(key.policy)) {
                policy.peers.insert(Identity::from_raw(key.peer), ClassId(class));
            }
        }
        for (key, value) in self.entries.dump()? {
            if let Some(policy) = policies.get_mut(&PolicyId(key.policy)) {
                let port = PortPrefix {
                    protocol: key.protocol,
                    port: u16::from_be(key.port_be),
                    prefix_len: key.port_prefix_len,
                };
                policy.entries.insert((ClassId(key.class), port), verdict(&value));
            }
        }
        Ok(policies)
    }

    /// Removes what a refused policy had written already. A failure here leaves entries that no policy refers to, which
    /// the next start removes.
    fn take_back(&self, peers: &[PolicyPeerKey], entries: &[PolicyEntryKey]) {
        for key in peers {
            let _ = self.peers.remove(key);
        }
        for key in entries {
            let _ = self.entries.remove(key);
        }
    }

    fn undo(&self, steps: Vec<Undo>) {
        for step in steps.into_iter().rev() {
            let result = match step {
                Undo::Peer(key, Some(class)) => self.peers.put(&key, &class),
                Undo::Peer(key, None) => self.peers.remove(&key).map(drop),
                Undo::Entry(key, Some(value)) => self.entries.put(&key, &value),
                Undo::Entry(key, None) => self.entries.remove(&key).map(drop),
            };
            if let Err(error) = result {
                tracing::error!(%error, "take back a refused change of a policy");
            }
        }
    }

    fn entries_full(&self, error: DataplaneError, wanted: usize) -> DataplaneError {
        self.told_full(error, || self.entries.full(self.entry_count, wanted as u64))
    }

    fn peers_full(&self, error: DataplaneError, wanted: usize) -> DataplaneError {
        self.told_full(error, || self.peers.full(self.peer_count, wanted as u64))
    }

    /// The kernel counts in its own way and may find a map full a little earlier than we do.
    fn told_full(&self, error: DataplaneError, full: impl FnOnce() -> DataplaneError) -> DataplaneError {
        match &error {
            DataplaneError::System { source, .. } if source.raw_os_error() == Some(libc::E2BIG) => full(),
            _ => error,
        }
    }
}

fn peer_key(policy: PolicyId, peer: Identity) -> PolicyPeerKey {
    PolicyPeerKey { policy: policy.0, peer: peer.raw() }
}

fn entry_key(policy: PolicyId, class: ClassId, port: PortPrefix) -> PolicyEntryKey {
    PolicyEntryKey {
        policy: policy.0,
        class: class.0,
        port_be: port.port.to_be(),
        port_prefix_len: port.prefix_len,
        protocol: port.protocol,
    }
}

fn entry_value(verdict: &Verdict) -> PolicyEntryValue {
    let action = match verdict.action {
        Action::Allow => policy_action::ALLOW,
        Action::Deny => policy_action::DENY,
    };
    PolicyEntryValue { precedence: verdict.precedence, rule: verdict.rule.0, action }
}

fn verdict(value: &PolicyEntryValue) -> Verdict {
    // Whatever does not say "allow" does not allow.
    let action = if value.action == policy_action::ALLOW { Action::Allow } else { Action::Deny };
    Verdict { action, precedence: value.precedence, rule: RuleId(value.rule) }
}

/// What a lookup must probe: the shapes, and the class of any peer where it has entries.
fn info<'a>(entries: impl Iterator<Item = &'a PolicyEntryKey>) -> PolicyInfo {
    entries.fold(PolicyInfo::default(), |info, key| {
        let shape = match key.protocol {
            0 => policy_shape::ANY,
            _ => policy_shape::port_prefix(u32::from(key.port_prefix_len.min(16))),
        };
        let any_peer = if key.class == ClassId::ANY.0 { policy_flags::ANY_PEER } else { 0 };
        PolicyInfo { shapes: info.shapes | shape, flags: info.flags | any_peer }
    })
}
