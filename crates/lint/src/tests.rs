use super::{Severity, lint};
use proptest::prelude::*;

const FILE: &str = "\
# Two policies and something else.
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {anything: [1, 2]}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: web
spec:
  endpointSelector:
    matchLabels:
      k8s:app.kubernetes.io/name: web
  ingress:
  - fromEndpoints:
    - matchLabels: {app: client}
    toPorts:
    - ports:
      - port: \"80\"
        protocol: tcp
      rules:
        http: [{path: /}]
  - fromEndpoint: []
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector:
        matchLabels:
          statefulset.kubernetes.io/pod-name: db-0
    - ipBlock: {cidr: 10.0.0.0/33}
";

fn rows(text: &str) -> Vec<(usize, usize, Severity, String)> {
    lint(text).into_iter().map(|f| (f.line, f.column, f.severity, f.path)).collect()
}

fn row(line: usize, column: usize, severity: Severity, path: &str) -> (usize, usize, Severity, String) {
    (line, column, severity, path.to_owned())
}

#[test]
fn errors_are_told_where_they_are() {
    let wanted = [
        row(21, 9, Severity::Error, "spec.ingress[0].toPorts[0].ports[0].protocol"),
        row(23, 9, Severity::Error, "spec.ingress[0].toPorts[0].rules.http"),
        row(24, 5, Severity::Error, "spec.ingress[1].fromEndpoint"),
        row(37, 17, Severity::Error, "spec.ingress[0].from[1].ipBlock.cidr"),
    ];
    assert_eq!(rows(FILE), wanted);
}

#[test]
fn what_is_right_but_hardly_meant_is_warned_of() {
    let mended = FILE.replace("    - ipBlock: {cidr: 10.0.0.0/33}\n", "").replace("  - fromEndpoint: []\n", "");
    let mended = mended.replace("      rules:\n        http: [{path: /}]\n", "").replace("tcp", "TCP");
    assert_eq!(rows(&mended), [row(33, 11, Severity::Warning, "spec.ingress[0]")]);
    let policy = |kind: &str, rest: &str| format!("apiVersion: cilium.io/v2\nkind: {kind}\nmetadata: {rest}\n");
    let text =
        policy("CiliumClusterwideNetworkPolicy", "{name: a, namespace: b}\nspec: {endpointSelector: {}, egress: []}");
    let wanted = [row(3, 21, Severity::Warning, "metadata.namespace"), row(4, 30, Severity::Warning, "spec.egress")];
    assert_eq!(rows(&text), wanted);
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec:\n  podSelector: {}\n  \
                policyTypes: [Egress]\n  ingress: [{}]\n";
    assert_eq!(rows(text), [row(7, 3, Severity::Warning, "spec.ingress")]);
}

#[test]
fn which_objects_are_judged() {
    let object = |version: &str, kind: &str| format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n");
    for (version, kind, line) in [
        ("cilium.io/v2", "CiliumNetworkPolicy", Some(1)),
        ("cilium.io/v1", "CiliumNetworkPolicy", Some(1)),
        ("cilium.io/v2", "CiliumNetworkPolcy", Some(2)),
        ("cilium.io/v2", "CiliumCIDRGroup", Some(1)),
        ("cilium.io/v3", "CiliumCIDRGroup", Some(1)),
        ("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", Some(2)),
        ("cilium.io/v2", "CiliumEnvoyConfig", None),
        ("crd.projectcalico.org/v1", "NetworkPolicy", None),
        ("crd.antrea.io/v1beta1", "ClusterNetworkPolicy", None),
        ("v1", "Service", None),
    ] {
        let found: Vec<usize> = lint(&object(version, kind)).iter().map(|finding| finding.line).collect();
        assert_eq!(found.first().copied(), line, "{version} {kind}: {found:?}");
    }
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: cilium.io/v2\n  kind: CiliumNetworkPolicy\n  metadata: \
                {name: a}\n  spec: {endpointSelector: {}, ingres: []}\n";
    assert_eq!(rows(list), [row(7, 32, Severity::Error, "items[0].spec.ingres")]);
    assert!(lint("").is_empty() && lint("---\n---\n# nothing\n").is_empty());
}

#[test]
fn what_is_no_yaml_is_told_where_it_ends_to_be() {
    let found = lint("a: 1\nb: [1, 2\nc: 3\n");
    assert_eq!((found.len(), found[0].severity, found[0].path.as_str()), (1, Severity::Error, ""));
    assert!(found[0].line >= 2, "{found:?}");
    let found = lint("spec: 1\nspec: 2\n");
    assert_eq!(found.len(), 1, "keys are there once: {found:?}");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in r#"([a-z:{}\[\], \n"*&|>-]|apiVersion: cilium.io/v2\n|kind: CiliumNetworkPolicy\n|spec:\n){0,40}"#) {
        for finding in lint(&text) {
            prop_assert!(finding.line >= 1 && finding.column >= 1);
        }
    }
}
