//! Resolved policies in their three maps.
//!
//! A policy exists once its `POLICY_INFO` is written: that is done last, and undone first. What a crash left without it
//! is swept up at the next start.

use crate::map::TypedMap;
use std::collections::{BTreeMap, BTreeSet};
use weft_abi::{
    CLASS_ADMIN, PolicyClassKey, PolicyEntryKey, PolicyEntryValue, PolicyInfo, map_name, policy_action, policy_flags,
    policy_shape,
};
use weft_model::desired::{Action, CompiledPolicy, DataplaneError, PolicyPatch, PortPrefix, Verdict};
use weft_model::id::{PeerClass, PolicyClass, PolicyId, RuleId};

/// What a policy has in the maps.
#[derive(Default)]
struct Keys {
    classes: BTreeSet<u32>,
    entries: BTreeSet<PolicyEntryKey>,
}

/// The policies of a node.
pub(super) struct Policies {
    classes: TypedMap<PolicyClassKey, u32>,
    entries: TypedMap<PolicyEntryKey, PolicyEntryValue>,
    infos: TypedMap<u32, PolicyInfo>,
    /// By policy id, so that capacity is known and removal touches what is there and nothing else.
    keys: BTreeMap<u32, Keys>,
    class_count: u64,
    entry_count: u64,
}

/// How to take back one write.
enum Undo {
    Class(PolicyClassKey, Option<u32>),
    Entry(PolicyEntryKey, Option<PolicyEntryValue>),
}

impl Policies {
    pub(super) fn open(
        classes: TypedMap<PolicyClassKey, u32>,
        entries: TypedMap<PolicyEntryKey, PolicyEntryValue>,
        infos: TypedMap<u32, PolicyInfo>,
    ) -> Result<Self, DataplaneError> {
        let mut keys: BTreeMap<u32, Keys> = infos.dump()?.into_iter().map(|(id, _)| (id, Keys::default())).collect();
        let (mut class_count, mut entry_count) = (0, 0);
        for (key, _) in classes.dump()? {
            match keys.get_mut(&key.policy) {
                Some(keys) => {
                    keys.classes.insert(key.peer_class);
                    class_count += 1;
                }
                None => drop(classes.remove(&key)?),
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
        Ok(Self { classes, entries, infos, keys, class_count, entry_count })
    }

    /// Number of entries by map.
    pub(super) fn entries(&self) -> [(&'static str, u64); 3] {
        [
            (map_name::POLICY_CLASSES, self.class_count),
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
        // Written before and not in use: it is replaced, and its own entries make room.
        let (old_classes, old_entries, old_infos) =
            self.keys.get(&id.0).map_or((0, 0, 0), |keys| (keys.classes.len() as u64, keys.entries.len() as u64, 1));
        self.classes.reserve(self.class_count - old_classes, policy.classes.len() as u64)?;
        self.entries.reserve(self.entry_count - old_entries, policy.entries.len() as u64)?;
        self.infos.reserve(self.keys.len() as u64 - old_infos, 1)?;
        self.remove(id)?;

        let (mut entry_keys, mut entry_values) = (Vec::new(), Vec::new());
        for ((class, port), verdict) in &policy.entries {
            entry_keys.push(entry_key(id, *class, *port));
            entry_values.push(entry_value(verdict));
        }
        let class_keys: Vec<_> = policy.classes.keys().map(|class| class_key(id, *class)).collect();
        let class_values: Vec<u32> = policy.classes.values().map(|class| class.0).collect();
        let info = PolicyInfo {
            rest: policy.rest.0,
            flags: if policy.default_allow { policy_flags::DEFAULT_ALLOW } else { 0 },
            ..PolicyInfo::default()
        };
        let info = with_shapes(info, entry_keys.iter());

        if let Err((done, error)) = self.entries.put_all(&entry_keys, &entry_values) {
            self.roll_back(&[], &entry_keys[..done]);
            return Err(self.entries_full(error, policy.entries.len()));
        }
        if let Err((done, error)) = self.classes.put_all(&class_keys, &class_values) {
            self.roll_back(&class_keys[..done], &entry_keys);
            return Err(self.classes_full(error, policy.classes.len()));
        }
        if let Err(error) = self.infos.put(&id.0, &info) {
            self.roll_back(&class_keys, &entry_keys);
            return Err(error);
        }
        self.class_count += class_keys.len() as u64;
        self.entry_count += entry_keys.len() as u64;
        let keys = Keys {
            classes: class_keys.iter().map(|key| key.peer_class).collect(),
            entries: entry_keys.into_iter().collect(),
        };
        self.keys.insert(id.0, keys);
        Ok(())
    }

    pub(super) fn patch(&mut self, id: PolicyId, patch: &PolicyPatch) -> Result<(), DataplaneError> {
        let Some(keys) = self.keys.get(&id.0) else {
            return Err(DataplaneError::Invalid {
                what: format!("patch policy {}", id.0),
                why: "no such policy is in force".to_owned(),
            });
        };
        let new_classes = patch.put_classes.keys().filter(|class| !keys.classes.contains(&class.0)).count();
        let put_entries: BTreeMap<PolicyEntryKey, PolicyEntryValue> = patch
            .put_entries
            .iter()
            .map(|((class, port), verdict)| (entry_key(id, *class, *port), entry_value(verdict)))
            .collect();
        let new_entries = put_entries.keys().filter(|key| !keys.entries.contains(key)).count();
        self.classes.reserve(self.class_count, new_classes as u64)?;
        self.entries.reserve(self.entry_count, new_entries as u64)?;

        let mut undo = Vec::new();
        // Read, not computed from the entries: it has more than those.
        let before = self.infos.get(&id.0)?.unwrap_or_default();
        let result = self.patch_maps(id, patch, &put_entries, before, &mut undo);
        if let Err(error) = result {
            self.undo(undo);
            // Writing back what was there takes no room.
            let _ = self.infos.put(&id.0, &before);
            return Err(error);
        }
        // The maps have changed: update the counts.
        let keys = self.keys.entry(id.0).or_default();
        let (classes_before, entries_before) = (keys.classes.len() as u64, keys.entries.len() as u64);
        keys.entries.extend(put_entries.keys().copied());
        keys.classes.extend(patch.put_classes.keys().map(|class| class.0));
        for class in &patch.del_classes {
            keys.classes.remove(&class.0);
        }
        for (class, port) in &patch.del_entries {
            keys.entries.remove(&entry_key(id, *class, *port));
        }
        self.class_count = self.class_count + keys.classes.len() as u64 - classes_before;
        self.entry_count = self.entry_count + keys.entries.len() as u64 - entries_before;
        // Shapes that no entry has any more cost a probe each; to leave them is not wrong.
        let after = with_shapes(lasting(before), keys.entries.iter());
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
        let both = with_shapes(before, put_entries.keys());
        if both != before {
            self.infos.put(&id.0, &both)?;
        }
        for (peer_class, class) in &patch.put_classes {
            let key = class_key(id, *peer_class);
            undo.push(Undo::Class(key, self.classes.get(&key)?));
            self.classes.put(&key, &class.0).map_err(|error| self.classes_full(error, patch.put_classes.len()))?;
        }
        for peer_class in &patch.del_classes {
            let key = class_key(id, *peer_class);
            undo.push(Undo::Class(key, self.classes.get(&key)?));
            self.classes.remove(&key)?;
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
        for peer_class in &keys.classes {
            self.classes.remove(&PolicyClassKey { policy: id.0, peer_class: *peer_class })?;
        }
        for key in &keys.entries {
            self.entries.remove(key)?;
        }
        self.class_count -= keys.classes.len() as u64;
        self.entry_count -= keys.entries.len() as u64;
        self.keys.remove(&id.0);
        Ok(())
    }

    pub(super) fn read(&self) -> Result<BTreeMap<PolicyId, CompiledPolicy>, DataplaneError> {
        let empty = |info: PolicyInfo| CompiledPolicy {
            rest: PolicyClass(info.rest),
            default_allow: info.flags & policy_flags::DEFAULT_ALLOW != 0,
            ..CompiledPolicy::default()
        };
        let mut policies: BTreeMap<PolicyId, CompiledPolicy> =
            self.infos.dump()?.into_iter().map(|(id, info)| (PolicyId(id), empty(info))).collect();
        for (key, class) in self.classes.dump()? {
            if let Some(policy) = policies.get_mut(&PolicyId(key.policy)) {
                policy.classes.insert(PeerClass(key.peer_class), PolicyClass(class));
            }
        }
        for (key, value) in self.entries.dump()? {
            if let Some(policy) = policies.get_mut(&PolicyId(key.policy)) {
                let port = PortPrefix {
                    protocol: key.protocol,
                    port: u16::from_be(key.port_be),
                    prefix_len: key.port_prefix_len,
                };
                policy.entries.insert((PolicyClass(key.class), port), verdict(&value));
            }
        }
        Ok(policies)
    }

    /// Removes what a refused policy had written already. A failure here leaves entries that no policy refers to, which
    /// the next start removes.
    fn roll_back(&self, classes: &[PolicyClassKey], entries: &[PolicyEntryKey]) {
        for key in classes {
            let _ = self.classes.remove(key);
        }
        for key in entries {
            let _ = self.entries.remove(key);
        }
    }

    fn undo(&self, steps: Vec<Undo>) {
        for step in steps.into_iter().rev() {
            let result = match step {
                Undo::Class(key, Some(class)) => self.classes.put(&key, &class),
                Undo::Class(key, None) => self.classes.remove(&key).map(drop),
                Undo::Entry(key, Some(value)) => self.entries.put(&key, &value),
                Undo::Entry(key, None) => self.entries.remove(&key).map(drop),
            };
            if let Err(error) = result {
                tracing::error!(%error, "cannot roll back a refused change of a policy: some of its rows stay");
            }
        }
    }

    fn entries_full(&self, error: DataplaneError, wanted: usize) -> DataplaneError {
        self.entries.full_or(error, self.entry_count, wanted as u64)
    }

    fn classes_full(&self, error: DataplaneError, wanted: usize) -> DataplaneError {
        self.classes.full_or(error, self.class_count, wanted as u64)
    }
}

fn class_key(policy: PolicyId, peer_class: PeerClass) -> PolicyClassKey {
    PolicyClassKey { policy: policy.0, peer_class: peer_class.0 }
}

fn entry_key(policy: PolicyId, class: PolicyClass, port: PortPrefix) -> PolicyEntryKey {
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
        Action::Pass => policy_action::PASS,
    };
    PolicyEntryValue { precedence: verdict.precedence, rule: verdict.rule.0, action }
}

fn verdict(value: &PolicyEntryValue) -> Verdict {
    // Any other value denies.
    let action = match value.action {
        policy_action::ALLOW => Action::Allow,
        policy_action::PASS => Action::Pass,
        _ => Action::Deny,
    };
    Verdict { action, precedence: value.precedence, rule: RuleId(value.rule) }
}

/// The part of a policy's row that does not depend on its entries.
fn lasting(info: PolicyInfo) -> PolicyInfo {
    PolicyInfo { flags: info.flags & policy_flags::DEFAULT_ALLOW, rest: info.rest, ..PolicyInfo::default() }
}

/// Adds what a lookup must probe for the entries: the shapes, and the class of any peer where it has some.
fn with_shapes<'a>(info: PolicyInfo, entries: impl Iterator<Item = &'a PolicyEntryKey>) -> PolicyInfo {
    entries.fold(info, |info, key| {
        let shape = match key.protocol {
            0 => policy_shape::ANY,
            _ => policy_shape::port_prefix(u32::from(key.port_prefix_len.min(16))),
        };
        if key.class & CLASS_ADMIN != 0 {
            return PolicyInfo { admin_shapes: info.admin_shapes | shape, ..info };
        }
        let any_peer = if key.class == PolicyClass::ANY.0 { policy_flags::ANY_PEER } else { 0 };
        PolicyInfo { shapes: info.shapes | shape, flags: info.flags | any_peer, ..info }
    })
}
