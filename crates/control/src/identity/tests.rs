use super::*;
use weft_model::id::Identity;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn labels_of(pod: &[(&str, &str)]) -> LabelSet {
    let (labels, namespace_labels) = (map(pod), map(&[("kubernetes.io/metadata.name", "shop"), ("team", "a")]));
    label_set(&PodFacts {
        cluster: "weft",
        namespace: "shop",
        namespace_labels: &namespace_labels,
        labels: &labels,
        service_account: "default",
    })
}

#[test]
fn a_pod_gets_its_own_and_its_namespace_labels() {
    let expected = [
        ("k8s:app", "web"),
        ("k8s:app.kubernetes.io/name", "web"),
        ("k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name", "shop"),
        ("k8s:io.cilium.k8s.namespace.labels.team", "a"),
        ("k8s:io.cilium.k8s.policy.cluster", "weft"),
        ("k8s:io.cilium.k8s.policy.serviceaccount", "default"),
        ("k8s:io.kubernetes.pod.namespace", "shop"),
    ];
    assert_eq!(labels_of(&[("app", "web"), ("app.kubernetes.io/name", "web")]).0, map(&expected));
}

#[test]
fn labels_that_tools_write_are_left_out() {
    for key in [
        "pod-template-hash",
        "pod-template-generation",
        "controller-revision-hash",
        "controller-uid",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "beta.kubernetes.io/arch",
        "topology.kubernetes.io/zone",
        "k8s.io/cluster",
        "annotation.x",
        "etcd_node",
        "io.kubernetes.pod.namespace",
        "io.cilium.k8s.policy.cluster",
        "io.cilium.k8s.namespace.labels.team",
    ] {
        assert!(is_excluded(key), "{key}");
        assert_eq!(labels_of(&[(key, "forged")]), labels_of(&[]), "{key}");
    }
    for key in ["app", "app.kubernetes.io/name", "tier", "example.com/role", "hash"] {
        assert!(!is_excluded(key), "{key}");
    }
}

#[test]
fn equal_labels_propose_the_same_number_everywhere() {
    let (one, other) = (IdentityTable::new(), IdentityTable::new());
    let labels = labels_of(&[("app", "web")]);
    let proposed = one.number_of(&labels).unwrap();
    assert_eq!(proposed, other.number_of(&labels).unwrap());
    let NumberOf::Proposed(number) = proposed else { panic!("{proposed:?}") };
    assert!(Identity::ALLOCATED.contains(&number.raw()));
    // The number must never change: nodes of different versions meet.
    assert_eq!(number.raw(), 9715);
}

#[test]
fn a_taken_number_is_passed_over() {
    let mut table = IdentityTable::new();
    let labels = labels_of(&[("app", "web")]);
    let NumberOf::Proposed(first) = table.number_of(&labels).unwrap() else { panic!() };
    table.insert(first, labels_of(&[("app", "squatter")]));
    let NumberOf::Proposed(second) = table.number_of(&labels).unwrap() else { panic!() };
    assert_eq!(second.raw(), first.raw() + 1);
}

#[test]
fn of_duplicates_the_lowest_number_is_used_until_it_is_gone() {
    let mut table = IdentityTable::new();
    let labels = labels_of(&[("app", "web")]);
    let (low, high) = (Identity::allocated(300).unwrap(), Identity::allocated(4000).unwrap());
    assert!(table.insert(high, labels.clone()).1);
    assert!(table.insert(low, labels.clone()).1);
    assert!(!table.insert(low, labels.clone()).1);
    assert_eq!(table.number_of(&labels), Ok(NumberOf::Known(low)));
    table.remove(low);
    assert_eq!(table.number_of(&labels), Ok(NumberOf::Known(high)));
    table.remove(high);
    assert!(matches!(table.number_of(&labels), Ok(NumberOf::Proposed(_))));
    assert!(table.is_empty());
}

#[test]
fn an_object_that_changes_its_labels_is_another_identity() {
    let mut table = IdentityTable::new();
    let (web, db) = (labels_of(&[("app", "web")]), labels_of(&[("app", "db")]));
    let number = Identity::allocated(300).unwrap();
    table.insert(number, web.clone());
    assert!(table.insert(number, db.clone()).1);
    assert_eq!(table.number_of(&db), Ok(NumberOf::Known(number)));
    assert!(matches!(table.number_of(&web), Ok(NumberOf::Proposed(_))));
}

#[test]
fn a_full_table_says_so() {
    let mut table = IdentityTable::new();
    for number in Identity::ALLOCATED {
        table.insert(Identity::allocated(number).unwrap(), labels_of(&[("n", &number.to_string())]));
    }
    assert_eq!(table.number_of(&labels_of(&[("app", "web")])), Err(Exhausted));
    assert_eq!(Exhausted.to_string(), "all 65280 identities are in use");
}
