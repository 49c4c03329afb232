use super::*;
use std::collections::BTreeSet;
use weft_model::id::Identity;

fn set(pairs: &[(&str, &str)]) -> LabelSet {
    LabelSet(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
}

fn values(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|value| (*value).to_owned()).collect()
}

fn rows() -> Vec<LabelSet> {
    let mut rows = vec![LabelSet::reserved(Identity::HOST), LabelSet::reserved(Identity::WORLD_IPV4)];
    for namespace in ["shop", "ops"] {
        for app in ["web", "db", ""] {
            for other in [None, Some("k8s:tier"), Some("ci:tier")] {
                let mut labels = set(&[(NAMESPACE, namespace)]);
                if !app.is_empty() {
                    labels.0.insert("k8s:app".to_owned(), app.to_owned());
                }
                labels.0.extend(other.map(|key| (key.to_owned(), "front".to_owned())));
                rows.push(labels);
            }
        }
    }
    rows
}

fn selectors() -> Vec<EndpointSelector> {
    let mut requirements = Vec::new();
    for key in ["k8s:app", "any:app", "any:tier", "ci:tier", "reserved:host", "any:host", "any:absent"] {
        let key = || key.to_owned();
        requirements.push(Requirement::In(key(), values(&["web", "front"])));
        requirements.push(Requirement::In(key(), values(&[""])));
        requirements.push(Requirement::NotIn(key(), values(&["web", "front"])));
        requirements.push(Requirement::Exists(key()));
        requirements.push(Requirement::DoesNotExist(key()));
    }
    let mut selectors = vec![EndpointSelector::EVERY_POD];
    for namespace in [None, Some("shop".to_owned()), Some("nowhere".to_owned())] {
        for (n, first) in requirements.iter().enumerate() {
            selectors.push(EndpointSelector { namespace: namespace.clone(), requirements: vec![first.clone()] });
            for second in &requirements[n..] {
                let requirements = vec![first.clone(), second.clone()];
                selectors.push(EndpointSelector { namespace: namespace.clone(), requirements });
            }
        }
    }
    selectors
}

#[test]
fn the_index_finds_what_a_selector_matches() {
    let mut index = LabelIndex::default();
    let rows = rows();
    for (n, labels) in (0..).zip(&rows) {
        index.insert(n * 3, labels);
    }
    // Rows come and go without a trace.
    index.insert(1, &rows[5]);
    index.remove(1, &rows[5]);
    for selector in selectors() {
        let expected: Vec<u32> =
            (0..).zip(&rows).filter(|(_, labels)| selector.matches(labels)).map(|(n, _)| n * 3).collect();
        assert_eq!(index.select(&selector), expected, "{selector:?}");
    }
    for (n, labels) in (0..).zip(&rows) {
        index.remove(n * 3, labels);
    }
    assert!(index.by_key.is_empty() && index.sources.is_empty());
}

#[test]
fn the_buckets_miss_no_selector_that_matches() {
    let mut buckets = Buckets::default();
    let selectors = selectors();
    for (n, selector) in selectors.iter().enumerate() {
        buckets.insert(selector, &n);
    }
    for labels in rows() {
        let candidates = buckets.candidates(&labels);
        for (n, selector) in selectors.iter().enumerate() {
            assert!(!selector.matches(&labels) || candidates.contains(&n), "{selector:?} {labels}");
        }
    }
    for (n, selector) in selectors.iter().enumerate() {
        buckets.remove(selector, &n);
    }
    assert!(buckets.scopes.is_empty());
}
