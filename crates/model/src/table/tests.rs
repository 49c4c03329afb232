//! Against a plain map: snapshots never change, and each consumer sees every change once.

use super::Table;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Step {
    Insert(u8, u8),
    Update(u8, u8),
    Remove(u8),
    Snapshot,
    Drain(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u8..12, 0_u8..3).prop_map(|(key, value)| Step::Insert(key, value)),
        2 => (0_u8..12, 0_u8..3).prop_map(|(key, value)| Step::Update(key, value)),
        2 => (0_u8..12).prop_map(Step::Remove),
        1 => Just(Step::Snapshot),
        1 => any::<bool>().prop_map(Step::Drain),
    ];
    prop::collection::vec(step, 1..80)
}

/// What a consumer knows, from what it drained alone.
fn follow(known: &mut BTreeMap<u8, u8>, drained: Vec<(u8, Option<std::sync::Arc<u8>>)>) -> Result<(), TestCaseError> {
    let keys: BTreeSet<u8> = drained.iter().map(|(key, _)| *key).collect();
    prop_assert_eq!(keys.len(), drained.len(), "each key once");
    for (key, row) in drained {
        match row {
            Some(row) => drop(known.insert(key, *row)),
            None => drop(known.remove(&key)),
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn agrees_with_a_plain_map(steps in steps()) {
        let mut table = Table::<u8, u8>::default();
        let mut plain: BTreeMap<u8, u8> = BTreeMap::new();
        let mut snapshots = Vec::new();
        let early = table.subscribe();
        table.insert(1, 1);
        plain.insert(1, 1);
        let late = table.subscribe();
        let (mut of_early, mut of_late) = (BTreeMap::new(), BTreeMap::new());
        for step in steps {
            let (revision, before) = (table.revision(), plain.clone());
            match step {
                Step::Insert(key, value) => {
                    let held = table.insert(key, value).map(|row| *row);
                    prop_assert_eq!(held, plain.insert(key, value));
                }
                Step::Update(key, value) => {
                    let changed = table.update(&key, |row| *row = value);
                    prop_assert_eq!(changed, plain.get(&key).is_some_and(|held| *held != value));
                    plain.entry(key).and_modify(|held| *held = value);
                }
                Step::Remove(key) => prop_assert_eq!(table.remove(&key).map(|row| *row), plain.remove(&key)),
                Step::Snapshot => snapshots.push((table.snapshot(), plain.clone())),
                Step::Drain(true) => follow(&mut of_early, table.drain(&early))?,
                Step::Drain(false) => follow(&mut of_late, table.drain(&late))?,
            }
            prop_assert_eq!(table.revision() > revision, before != plain, "a change is a revision, and nothing else is");
            prop_assert_eq!(table.len(), plain.len());
        }
        for (snapshot, then) in snapshots {
            prop_assert_eq!(snapshot.iter().map(|(key, row)| (*key, **row)).collect::<BTreeMap<_, _>>(), then);
        }
        follow(&mut of_early, table.drain(&early))?;
        follow(&mut of_late, table.drain(&late))?;
        prop_assert_eq!(&of_early, &plain);
        prop_assert_eq!(&of_late, &plain);
        prop_assert!(!table.has_changed(&early) && !table.has_changed(&late));
    }
}
