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

fn put(uid: u8, identity: u32) -> Merged {
    Merged::Put(Arc::new(endpoint(uid, identity)))
}

#[test]
fn the_last_word_holds_and_the_one_before_comes_back() {
    let mut remotes = Remotes::default();
    assert_eq!(remotes.set(&slice("a", &[(1, 0)]), |_| false), [put(1, 0)]);
    assert_eq!(remotes.set(&slice("b", &[(1, 1)]), |_| false), [put(1, 1)]);
    assert!(remotes.set(&slice("a", &[(1, 0)]), |_| false).is_empty(), "the same word again is no news");
    assert_eq!(remotes.remove("b"), [put(1, 0)]);
    assert_eq!(remotes.remove("a"), [Merged::Gone("uid-1".into())]);
    assert!(remotes.rows.is_empty() && remotes.sources.is_empty());
}

#[test]
fn a_source_that_does_not_hold_may_leave_unnoticed() {
    let mut remotes = Remotes::default();
    remotes.set(&slice("a", &[(1, 0)]), |_| false);
    remotes.set(&slice("b", &[(1, 0)]), |_| false);
    assert!(remotes.remove("a").is_empty());
    assert!(remotes.is_told("uid-1", |source| source == "b"));
    assert_eq!(remotes.told_only(|source| source == "a").count(), 0);
    assert_eq!(remotes.told_only(|source| source == "b").collect::<Vec<_>>(), ["uid-1"]);
}

/// A source that tells of an endpoint twice is believed the second time, and told again the same it is no news.
#[test]
fn of_two_words_of_one_source_the_last_counts() {
    let mut remotes = Remotes::default();
    let twice = slice("a", &[(1, 0), (2, 0), (1, 1)]);
    let mut first = remotes.set(&twice, |_| false);
    first.sort_by_key(|news| format!("{news:?}"));
    assert_eq!(first.len(), 2);
    assert!(first.contains(&put(1, 1)) && first.contains(&put(2, 0)), "{first:?}");
    assert!(remotes.set(&twice, |_| false).is_empty());
    assert_eq!(remotes.set(&slice("a", &[(1, 0), (2, 0)]), |_| false), [put(1, 0)]);
    assert_eq!(remotes.set(&slice("a", &[(2, 0)]), |_| false), [Merged::Gone("uid-1".into())]);
    assert_eq!(remotes.remove("a"), [Merged::Gone("uid-2".into())]);
    assert!(remotes.rows.is_empty() && remotes.sources.is_empty());
}

proptest! {
    /// Whatever the order: an endpoint is there exactly while a source has it, and is as the last change said.
    #[test]
    fn any_order_gives_what_a_plain_model_gives(
        words in prop::collection::vec((0_u8..4, prop::collection::btree_map(0_u8..5, 0_u32..3, 0..4)), 1..40),
    ) {
        let mut remotes = Remotes::default();
        let mut told: BTreeMap<String, Arc<RemoteEndpoint>> = BTreeMap::new();
        // Of each endpoint: the sources that have it, in the order of their last change.
        let mut model: BTreeMap<u8, Vec<(u8, u32)>> = BTreeMap::new();
        for (source, holds) in words {
            let endpoints: Vec<(u8, u32)> = holds.iter().map(|(uid, identity)| (*uid, *identity)).collect();
            let merged = if endpoints.is_empty() {
                remotes.remove(&source.to_string())
            } else {
                remotes.set(&slice(&source.to_string(), &endpoints), |_| false)
            };
            for news in merged {
                match news {
                    Merged::Put(endpoint) => drop(told.insert(endpoint.pod_uid.clone(), endpoint)),
                    Merged::Gone(uid) => prop_assert!(told.remove(&uid).is_some(), "gone twice"),
                }
            }
            for uid in 0_u8..5 {
                let words = model.entry(uid).or_default();
                match holds.get(&uid) {
                    Some(identity) if words.contains(&(source, *identity)) => {}
                    Some(identity) => {
                        words.retain(|(held, _)| *held != source);
                        words.push((source, *identity));
                    }
                    None => words.retain(|(held, _)| *held != source),
                }
                let now = told.get(&format!("uid-{uid}")).map(|endpoint| endpoint.identity.raw() - 256);
                prop_assert_eq!(now, words.last().map(|(_, identity)| *identity));
            }
        }
    }
}
