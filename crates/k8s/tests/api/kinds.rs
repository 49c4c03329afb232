//! The list of kinds that an agent watches, and what must agree with it.

use crate::fake::Fake;
use serde_json::Value;
use std::collections::BTreeSet;
use weft_k8s::crd;
use weft_k8s::watch::watched;
use weft_model::intent::Source;

#[test]
fn every_source_is_watched_once() {
    let mut sources: Vec<Source> = watched().into_iter().map(|(source, _)| source).collect();
    sources.sort_unstable();
    let mut all: Vec<Source> = Source::all().collect();
    all.sort_unstable();
    assert_eq!(sources, all);
}

#[test]
fn the_role_of_the_agent_grants_to_list_and_watch_exactly_these_kinds() {
    let own = |(group, plural): (&str, &str)| (group.to_owned(), plural.to_owned());
    let mut wanted: BTreeSet<(String, String)> =
        watched().into_iter().map(|(_, resource)| own((resource.group, resource.plural))).collect();
    // Its turns with the operator, for addresses.
    wanted.extend([("cilium.io", "ciliumnodes"), ("cilium.io", "ciliumpodippools")].map(own));
    for verb in ["list", "watch"] {
        let granted = Fake::granted("weft-agent").into_iter().filter(|(.., granted)| *granted == verb);
        let granted: BTreeSet<(String, String)> = granted.map(|(group, plural, _)| (group, plural)).collect();
        assert_eq!(granted, wanted, "{verb}");
    }
}

#[test]
fn every_custom_kind_has_its_definition() {
    let served = |crd: &Value, version: &str| {
        crd["spec"]["versions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|v| v["name"] == version && v["served"] == true))
    };
    let crds: Vec<Value> =
        crd::MANIFESTS.iter().map(|(file, text)| crd::parse(file, text).expect("a definition")).collect();
    let custom = watched().into_iter().map(|(_, resource)| resource);
    let custom = custom.filter(|resource| ["cilium.io", "policy.networking.k8s.io"].contains(&resource.group));
    let mut count = 0;
    for resource in custom {
        let crd = crds.iter().find(|crd| crd["metadata"]["name"] == resource.to_string());
        let crd = crd.unwrap_or_else(|| panic!("deploy/crds has no {resource}"));
        assert!(served(crd, resource.version), "{resource}: {} is not served", resource.version);
        count += 1;
    }
    assert!(count >= 8, "{count} custom kinds");
}
