//! Which identities each selector in use selects, kept up to date by the change.

use crate::identity::is_excluded;
use foldhash::HashMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use weft_model::id::{Identity, PolicyId};
use weft_model::label::{LabelSet, NAMESPACE, NAMESPACE_LABELS};
use weft_model::selector::{Requirement, Selector};

/// Number of a selector while somebody uses it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SelectorId(u64);

/// A peer's selectors as one list of requirements on the labels of an identity.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerSelector {
    /// Pods of this namespace; `None`: of those that the requirements allow.
    namespace: Option<String>,
    /// On keys with their source.
    requirements: Vec<Requirement>,
}

impl PeerSelector {
    /// Every pod.
    pub const EVERY_POD: Self = Self { namespace: None, requirements: Vec::new() };

    /// Of a peer in a policy of `namespace`. `Err`: the pod label that identities do not carry; such a selector
    /// can not be judged and selects nobody.
    pub fn new(namespace: &str, namespaces: Option<&Selector>, pods: &Selector) -> Result<Self, String> {
        if let Some(key) = pods.requirements.iter().map(key).find(|key| is_excluded(key)) {
            return Err(key.to_owned());
        }
        let mut requirements: Vec<_> =
            pods.requirements.iter().map(|requirement| with_prefix(requirement, "k8s:")).collect();
        let in_namespaces = namespaces.iter().flat_map(|selector| &selector.requirements);
        requirements.extend(in_namespaces.map(|requirement| with_prefix(requirement, NAMESPACE_LABELS)));
        requirements.sort();
        requirements.dedup();
        Ok(Self { namespace: namespaces.is_none().then(|| namespace.to_owned()), requirements })
    }

    /// Whether an identity with these labels is selected. Only pods ever are.
    pub fn matches(&self, labels: &LabelSet) -> bool {
        let Some(namespace) = labels.get(NAMESPACE) else { return false };
        self.namespace.as_deref().is_none_or(|own| own == namespace)
            && self.requirements.iter().all(|requirement| holds(requirement, labels))
    }

    /// Where the index keeps it: under each label value that one of its requirements asks for.
    fn buckets(&self) -> Vec<Bucket> {
        let namespace = self.namespace.clone();
        for requirement in &self.requirements {
            if let Requirement::In(key, values) = requirement {
                let bucket =
                    |value: &String| Bucket { namespace: namespace.clone(), label: Some((key.clone(), value.clone())) };
                return values.iter().map(bucket).collect();
            }
        }
        vec![Bucket { namespace, label: None }]
    }
}

fn key(requirement: &Requirement) -> &str {
    match requirement {
        Requirement::In(key, _) | Requirement::NotIn(key, _) => key,
        Requirement::Exists(key) | Requirement::DoesNotExist(key) => key,
    }
}

fn with_prefix(requirement: &Requirement, prefix: &str) -> Requirement {
    let key = format!("{prefix}{}", key(requirement));
    match requirement {
        Requirement::In(_, values) => Requirement::In(key, values.clone()),
        Requirement::NotIn(_, values) => Requirement::NotIn(key, values.clone()),
        Requirement::Exists(_) => Requirement::Exists(key),
        Requirement::DoesNotExist(_) => Requirement::DoesNotExist(key),
    }
}

fn holds(requirement: &Requirement, labels: &LabelSet) -> bool {
    match requirement {
        Requirement::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
        Requirement::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
        Requirement::Exists(key) => labels.get(key).is_some(),
        Requirement::DoesNotExist(key) => labels.get(key).is_none(),
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Bucket {
    namespace: Option<String>,
    label: Option<(String, String)>,
}

#[derive(Debug)]
struct Row {
    selector: Arc<PeerSelector>,
    identities: BTreeSet<Identity>,
    users: BTreeSet<PolicyId>,
}

#[derive(Debug)]
struct IdentityRow {
    labels: Arc<LabelSet>,
    selectors: Vec<SelectorId>,
}

/// The identities and the selectors in use.
#[derive(Debug, Default)]
pub struct Selectors {
    identities: HashMap<Identity, IdentityRow>,
    by_namespace: HashMap<String, BTreeSet<Identity>>,
    rows: HashMap<SelectorId, Row>,
    ids: HashMap<Arc<PeerSelector>, SelectorId>,
    index: HashMap<Bucket, BTreeSet<SelectorId>>,
    next: u64,
}

impl Selectors {
    /// An identity is there. Returns the policies that must look at it again.
    pub fn put_identity(&mut self, identity: Identity, labels: &Arc<LabelSet>) -> BTreeSet<PolicyId> {
        if self.identities.get(&identity).is_some_and(|row| row.labels == *labels) {
            return BTreeSet::new();
        }
        let mut users = self.remove_identity(identity);
        let Some(namespace) = labels.get(NAMESPACE) else { return users };
        self.by_namespace.entry(namespace.to_owned()).or_default().insert(identity);
        let mut selectors = Vec::new();
        for scope in [None, Some(namespace.to_owned())] {
            let mut bucket = Bucket { namespace: scope, label: None };
            self.collect(&bucket, labels, &mut selectors);
            for (key, value) in &labels.0 {
                bucket.label = Some((key.clone(), value.clone()));
                self.collect(&bucket, labels, &mut selectors);
            }
        }
        for id in &selectors {
            let row = self.rows.get_mut(id).expect("the index names only selectors in use");
            row.identities.insert(identity);
            users.extend(&row.users);
        }
        self.identities.insert(identity, IdentityRow { labels: Arc::clone(labels), selectors });
        users
    }

    fn collect(&self, bucket: &Bucket, labels: &LabelSet, selectors: &mut Vec<SelectorId>) {
        let candidates = self.index.get(bucket).into_iter().flatten();
        selectors.extend(candidates.filter(|id| self.rows[id].selector.matches(labels)));
    }

    /// An identity is gone. Returns the policies that must look at it again.
    pub fn remove_identity(&mut self, identity: Identity) -> BTreeSet<PolicyId> {
        let Some(row) = self.identities.remove(&identity) else { return BTreeSet::new() };
        if let Some(namespace) = row.labels.get(NAMESPACE)
            && let Some(identities) = self.by_namespace.get_mut(namespace)
        {
            identities.remove(&identity);
            if identities.is_empty() {
                self.by_namespace.remove(namespace);
            }
        }
        let mut users = BTreeSet::new();
        for id in row.selectors {
            let row = self.rows.get_mut(&id).expect("an identity names only selectors in use");
            row.identities.remove(&identity);
            users.extend(&row.users);
        }
        users
    }

    /// Labels of an identity.
    pub fn labels(&self, identity: Identity) -> Option<&Arc<LabelSet>> {
        self.identities.get(&identity).map(|row| &row.labels)
    }

    /// Selectors in use that select an identity.
    pub fn of(&self, identity: Identity) -> &[SelectorId] {
        self.identities.get(&identity).map_or(&[], |row| &row.selectors)
    }

    /// Identities that a selector selects.
    pub fn identities(&self, id: SelectorId) -> &BTreeSet<Identity> {
        &self.rows[&id].identities
    }

    /// Policies that use a selector.
    pub fn users(&self, id: SelectorId) -> &BTreeSet<PolicyId> {
        &self.rows[&id].users
    }

    /// A policy uses a selector.
    pub fn acquire(&mut self, selector: &Arc<PeerSelector>, user: PolicyId) -> SelectorId {
        if let Some(id) = self.ids.get(selector) {
            self.rows.get_mut(id).expect("ids and rows agree").users.insert(user);
            return *id;
        }
        self.next += 1;
        let id = SelectorId(self.next);
        let identities = self.select(selector);
        for identity in &identities {
            self.identities.get_mut(identity).expect("selected from it").selectors.push(id);
        }
        for bucket in selector.buckets() {
            self.index.entry(bucket).or_default().insert(id);
        }
        self.ids.insert(Arc::clone(selector), id);
        self.rows.insert(id, Row { selector: Arc::clone(selector), identities, users: BTreeSet::from([user]) });
        id
    }

    fn select(&self, selector: &PeerSelector) -> BTreeSet<Identity> {
        let matching = |identity: &Identity| selector.matches(&self.identities[identity].labels);
        match &selector.namespace {
            Some(namespace) => {
                self.by_namespace.get(namespace).into_iter().flatten().copied().filter(matching).collect()
            }
            None => self.identities.keys().copied().filter(matching).collect(),
        }
    }

    /// A policy uses a selector no more.
    pub fn release(&mut self, id: SelectorId, user: PolicyId) {
        let Some(row) = self.rows.get_mut(&id) else { return };
        row.users.remove(&user);
        if !row.users.is_empty() {
            return;
        }
        let row = self.rows.remove(&id).expect("just looked at");
        self.ids.remove(&row.selector);
        for bucket in row.selector.buckets() {
            if let Some(ids) = self.index.get_mut(&bucket) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.index.remove(&bucket);
                }
            }
        }
        for identity in row.identities {
            if let Some(row) = self.identities.get_mut(&identity) {
                row.selectors.retain(|other| *other != id);
            }
        }
    }

    /// How many identities and selectors.
    pub fn len(&self) -> (usize, usize) {
        (self.identities.len(), self.rows.len())
    }
}
