//! Indexes of labels and of selectors, in both directions: which rows a selector selects, and which selectors may select a
//! given label set.

use foldhash::HashMap;
use weft_model::intent::EndpointSelector;
use weft_model::label::{LabelSet, NAMESPACE};
use weft_model::selector::Requirement;

/// A bitmap of row numbers.
#[derive(Clone, Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, row: u32) {
        let (word, bit) = (row as usize / 64, row % 64);
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << bit;
    }

    fn clear(&mut self, row: u32) {
        if let Some(word) = self.0.get_mut(row as usize / 64) {
            *word &= !(1 << (row % 64));
        }
    }

    fn union(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word |= other;
        }
    }

    fn intersect(&mut self, other: &Self) {
        for (n, word) in self.0.iter_mut().enumerate() {
            *word &= other.0.get(n).copied().unwrap_or(0);
        }
    }

    fn subtract(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word &= !other;
        }
    }

    fn rows(&self) -> Vec<u32> {
        let mut rows = Vec::new();
        for (n, word) in (0u32..).zip(&self.0) {
            let mut rest = *word;
            while rest != 0 {
                rows.push(n * 64 + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
        rows
    }
}

/// Inverted index from labels to rows. A row is a small number that the caller allocates.
#[derive(Clone, Debug, Default)]
pub struct LabelIndex {
    by_key: HashMap<String, HashMap<String, Vec<u32>>>,
    /// Full keys by their part after the source.
    sources: HashMap<String, Vec<String>>,
    pods: Bits,
    others: Bits,
}

/// A key without its source.
pub fn bare(key: &str) -> &str {
    key.split_once(':').map_or(key, |(_, name)| name)
}

impl LabelIndex {
    pub fn insert(&mut self, row: u32, labels: &LabelSet) {
        for (key, value) in &labels.0 {
            if !self.by_key.contains_key(key) {
                self.by_key.insert(key.clone(), HashMap::default());
                self.sources.entry(bare(key).to_owned()).or_default().push(key.clone());
            }
            let values = self.by_key.get_mut(key).expect("put above");
            match values.get_mut(value) {
                Some(rows) => rows.push(row),
                None => {
                    values.insert(value.clone(), vec![row]);
                }
            }
        }
        if labels.get(NAMESPACE).is_some() { self.pods.set(row) } else { self.others.set(row) }
    }

    /// `labels` must be those of the insertion.
    pub fn remove(&mut self, row: u32, labels: &LabelSet) {
        for (key, value) in &labels.0 {
            let Some(values) = self.by_key.get_mut(key) else { continue };
            let Some(rows) = values.get_mut(value) else { continue };
            if let Some(place) = rows.iter().position(|other| *other == row) {
                rows.swap_remove(place);
            }
            if rows.is_empty() {
                values.remove(value);
            }
            if values.is_empty() {
                self.by_key.remove(key);
                if let Some(keys) = self.sources.get_mut(bare(key)) {
                    keys.retain(|other| other != key);
                    if keys.is_empty() {
                        self.sources.remove(bare(key));
                    }
                }
            }
        }
        self.pods.clear(row);
        self.others.clear(row);
    }

    /// Rows that are not pods.
    pub fn others(&self) -> Vec<u32> {
        self.others.rows()
    }

    pub fn pods(&self) -> Vec<u32> {
        self.pods.rows()
    }

    /// The rows whose labels satisfy [`EndpointSelector::matches`].
    pub fn select(&self, selector: &EndpointSelector) -> Vec<u32> {
        let mut selected = match &selector.namespace {
            Some(namespace) => {
                let mut rows = Bits::default();
                for row in self.by_key.get(NAMESPACE).and_then(|values| values.get(namespace)).into_iter().flatten() {
                    rows.set(*row);
                }
                rows
            }
            None => {
                let mut rows = self.pods.clone();
                if selector.names_reserved() {
                    rows.union(&self.others);
                }
                rows
            }
        };
        for requirement in &selector.requirements {
            let (key, values, wanted) = match requirement {
                Requirement::In(key, values) => (key, Some(values), true),
                Requirement::NotIn(key, values) => (key, Some(values), false),
                Requirement::Exists(key) => (key, None, true),
                Requirement::DoesNotExist(key) => (key, None, false),
            };
            let mut having = Bits::default();
            for key in self.keys(key) {
                let Some(known) = self.by_key.get(key) else { continue };
                let rows: &mut dyn Iterator<Item = &u32> = match values {
                    Some(values) => &mut values.iter().filter_map(|value| known.get(value)).flatten(),
                    None => &mut known.values().flatten(),
                };
                for row in rows {
                    having.set(*row);
                }
            }
            if wanted { selected.intersect(&having) } else { selected.subtract(&having) }
        }
        selected.rows()
    }

    fn keys<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let (any, own) = match key.strip_prefix("any:") {
            Some(name) => (self.sources.get(name), None),
            None => (None, Some(key)),
        };
        any.into_iter().flatten().map(String::as_str).chain(own)
    }
}

/// Items by selector, bucketed by a label that the selector requires: finds the few that may select a given label set.
#[derive(Clone, Debug)]
pub struct Buckets<T> {
    scopes: HashMap<Option<String>, Scope<T>>,
}

impl<T> Default for Buckets<T> {
    fn default() -> Self {
        Self { scopes: HashMap::default() }
    }
}

#[derive(Clone, Debug)]
struct Scope<T> {
    all: Vec<T>,
    by_label: HashMap<String, HashMap<String, Vec<T>>>,
}

impl<T: Clone + Ord> Buckets<T> {
    pub fn insert(&mut self, selector: &EndpointSelector, item: &T) {
        let empty = || Scope { all: Vec::new(), by_label: HashMap::default() };
        let scope = self.scopes.entry(selector.namespace.clone()).or_insert_with(empty);
        match first_in(selector) {
            None => scope.all.push(item.clone()),
            Some((key, values)) => {
                let by_value = scope.by_label.entry(bare(key).to_owned()).or_default();
                for value in values {
                    by_value.entry(value.clone()).or_default().push(item.clone());
                }
            }
        }
    }

    pub fn remove(&mut self, selector: &EndpointSelector, item: &T) {
        let Some(scope) = self.scopes.get_mut(&selector.namespace) else { return };
        match first_in(selector) {
            None => scope.all.retain(|other| other != item),
            Some((key, values)) => {
                let Some(by_value) = scope.by_label.get_mut(bare(key)) else { return };
                for value in values {
                    if let Some(items) = by_value.get_mut(value) {
                        items.retain(|other| other != item);
                        if items.is_empty() {
                            by_value.remove(value);
                        }
                    }
                }
                if by_value.is_empty() {
                    scope.by_label.remove(bare(key));
                }
            }
        }
        if scope.all.is_empty() && scope.by_label.is_empty() {
            self.scopes.remove(&selector.namespace);
        }
    }

    /// The items whose selectors may select these labels, each once.
    pub fn candidates(&self, labels: &LabelSet) -> Vec<T> {
        let mut items = Vec::new();
        let own = labels.get(NAMESPACE).map(|namespace| Some(namespace.to_owned()));
        for scope in [Some(None), own].into_iter().flatten().filter_map(|name| self.scopes.get(&name)) {
            items.extend_from_slice(&scope.all);
            if scope.by_label.is_empty() {
                continue;
            }
            for (key, value) in &labels.0 {
                if let Some(found) = scope.by_label.get(bare(key)).and_then(|values| values.get(value)) {
                    items.extend_from_slice(found);
                }
            }
        }
        items.sort_unstable();
        items.dedup();
        items
    }
}

fn first_in(selector: &EndpointSelector) -> Option<(&String, &std::collections::BTreeSet<String>)> {
    selector.requirements.iter().find_map(|requirement| match requirement {
        Requirement::In(key, values) => Some((key, values)),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
