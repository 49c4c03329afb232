use super::*;
use proptest::prelude::*;
use weft_model::id::Identity;
use weft_model::intent::{ObjectName, Written};

fn endpoint(uid: u8, identity: u32) -> RemoteEndpoint {
    RemoteEndpoint {
        name: ObjectName { namespace: "n".into(), name: format!("pod-{uid}") },
        pod_uid: format!("uid-{uid}"),
        identity: Identity::from_raw(256 + identity),
        addresses: vec![
            format!("10.244.2.{uid}").parse().expect("address"),
            format!("fd44:0:0:2::{uid:x}").parse().expect("address"),
        ],
        node: "172.31.0.12".parse().expect("address"),
        named_ports: Vec::new(),
    }
}

fn slice(name: &str, endpoints: &[(u8, u32)]) -> EndpointSlice {
    let endpoints = endpoints.iter().map(|(uid, identity)| endpoint(*uid, *identity)).collect();
    EndpointSlice { name: name.into(), endpoints, written: Written::default() }
}

fn put(uid: u8, identity: u32) -> RemoteChange {
    RemoteChange::Upsert(Arc::new(endpoint(uid, identity)))
}

#[test]
fn the_last_change_wins_and_the_version_before_comes_back() {
    let mut remotes = Remotes::default();
    assert_eq!(remotes.set(&slice("a", &[(1, 0)]), |_| false), [put(1, 0)]);
    assert_eq!(remotes.set(&slice("b", &[(1, 1)]), |_| false), [put(1, 1)]);
    assert!(remotes.set(&slice("a", &[(1, 0)]), |_| false).is_empty(), "an unchanged source changes nothing");
    assert_eq!(remotes.remove("b"), [put(1, 0)]);
    assert_eq!(remotes.remove("a"), [RemoteChange::Delete("uid-1".into())]);
    assert!(remotes.rows.is_empty() && remotes.sources.is_empty());
}

#[test]
fn deleting_a_source_that_does_not_win_changes_nothing() {
    let mut remotes = Remotes::default();
    remotes.set(&slice("a", &[(1, 0)]), |_| false);
    remotes.set(&slice("b", &[(1, 0)]), |_| false);
    assert!(remotes.remove("a").is_empty());
    assert!(remotes.has_source("uid-1", |source| source == "b"));
    assert_eq!(remotes.uids_only_from(|source| source == "a").count(), 0);
    assert_eq!(remotes.uids_only_from(|source| source == "b").collect::<Vec<_>>(), ["uid-1"]);
}

/// If a source lists an endpoint twice, the second entry counts, and the same content again changes nothing.
#[test]
fn of_two_entries_of_one_source_the_last_counts() {
    let mut remotes = Remotes::default();
    let twice = slice("a", &[(1, 0), (2, 0), (1, 1)]);
    let mut first = remotes.set(&twice, |_| false);
    first.sort_by_key(|change| format!("{change:?}"));
    assert_eq!(first.len(), 2);
    assert!(first.contains(&put(1, 1)) && first.contains(&put(2, 0)), "{first:?}");
    assert!(remotes.set(&twice, |_| false).is_empty());
    assert_eq!(remotes.set(&slice("a", &[(1, 0), (2, 0)]), |_| false), [put(1, 0)]);
    assert_eq!(remotes.set(&slice("a", &[(2, 0)]), |_| false), [RemoteChange::Delete("uid-1".into())]);
    assert_eq!(remotes.remove("a"), [RemoteChange::Delete("uid-2".into())]);
    assert!(remotes.rows.is_empty() && remotes.sources.is_empty());
}

proptest! {
    /// In any order, an endpoint exists exactly while a source has it, in the version of the last change.
    #[test]
    fn any_order_gives_what_a_plain_model_gives(
        events in prop::collection::vec((0_u8..4, prop::collection::btree_map(0_u8..5, 0_u32..3, 0..4)), 1..40),
    ) {
        let mut remotes = Remotes::default();
        let mut seen: BTreeMap<String, Arc<RemoteEndpoint>> = BTreeMap::new();
        // Of each endpoint: the sources that have it, in the order of their last change.
        let mut model: BTreeMap<u8, Vec<(u8, u32)>> = BTreeMap::new();
        for (source, holds) in events {
            let endpoints: Vec<(u8, u32)> = holds.iter().map(|(uid, identity)| (*uid, *identity)).collect();
            let merged = if endpoints.is_empty() {
                remotes.remove(&source.to_string())
            } else {
                remotes.set(&slice(&source.to_string(), &endpoints), |_| false)
            };
            for change in merged {
                match change {
                    RemoteChange::Upsert(endpoint) => drop(seen.insert(endpoint.pod_uid.clone(), endpoint)),
                    RemoteChange::Delete(uid) => prop_assert!(seen.remove(&uid).is_some(), "deleted twice"),
                }
            }
            for uid in 0_u8..5 {
                let versions = model.entry(uid).or_default();
                match holds.get(&uid) {
                    Some(identity) if versions.contains(&(source, *identity)) => {}
                    Some(identity) => {
                        versions.retain(|(held, _)| *held != source);
                        versions.push((source, *identity));
                    }
                    None => versions.retain(|(held, _)| *held != source),
                }
                let now = seen.get(&format!("uid-{uid}")).map(|endpoint| endpoint.identity.raw() - 256);
                prop_assert_eq!(now, versions.last().map(|(_, identity)| *identity));
            }
        }
    }
}
