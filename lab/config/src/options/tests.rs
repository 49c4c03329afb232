use super::*;

fn options() -> UpOptions {
    UpOptions { name: "t".into(), ..UpOptions::default() }
}

fn error(change: impl FnOnce(&mut UpOptions)) -> String {
    let mut given = options();
    change(&mut given);
    given.check().expect_err("is wrong").to_string()
}

#[test]
fn defaults_are_dual_stack() {
    let config = options().check().expect("defaults are fine");
    assert_eq!(config.families(), "ipv4,ipv6");
    assert_eq!(config.nodes, 3);
    let texts: Vec<_> = config.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.244.0.0/16", "fd44::/48"]);
    let addresses: Vec<_> = config.node_addresses(2).iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["172.31.0.12", "fd31::12"]);
    assert_eq!(config.gateways()[1].to_string(), "fd31::1");
}

#[test]
fn one_family_alone() {
    let mut given = options();
    given.ip_families = Some("ipv6".into());
    let config = given.check().expect("IPv6 alone is fine");
    assert!(!config.ipv4);
    assert_eq!(config.pod_cidrs.len(), 1);
    assert_eq!(config.node_addresses(1).len(), 1);
}

#[test]
fn errors_name_the_option_and_what_was_expected() {
    /// Makes an option wrong.
    type Change = fn(&mut UpOptions);
    let cases: [(Change, &str); 12] = [
        (|o| o.name = "A_b".into(), "--name A_b: expected 1 to 20 lowercase"),
        (|o| o.nodes = Some(0), "--nodes 0: expected 1 to"),
        (|o| o.ip_families = Some("ipv5".into()), "--ip-families ipv5: expected"),
        (|o| o.routing = Some("geneve".into()), "--routing geneve: expected native or vxlan"),
        (|o| o.pod_cidr = vec!["10.0.0.0".into()], "--pod-cidr 10.0.0.0: expected address/length"),
        (|o| o.pod_cidr = vec!["10.0.0.1/16".into()], "expected 10.0.0.0/16"),
        (|o| o.pod_cidr = vec!["10.0.0.0/24".into()], "has room for 1 nodes (/24 each), expected at least 3"),
        (|o| o.pod_cidr = vec!["10.0.0.0/26".into()], "has room for 0 nodes"),
        (|o| o.pod_cidr = vec!["172.31.0.0/16".into()], "overlaps with 172.31.0.0/24, the nodes' network"),
        (|o| o.service_cidr = vec!["10.244.7.0/24".into()], "--service-cidr 10.244.7.0/24: overlaps with --pod-cidr"),
        (
            |o| {
                o.ip_families = Some("ipv4".into());
                o.pod_cidr = vec!["fd44::/48".into()];
            },
            "--pod-cidr fd44::/48: is IPv6, which --ip-families leaves out",
        ),
        (|o| o.kubeconfig = Some("/nowhere/config".into()), "--kubeconfig /nowhere/config: expected an existing file"),
    ];
    for (change, expected) in cases {
        let text = error(change);
        assert!(text.contains(expected), "{text:?} lacks {expected:?}");
    }
    for wrong in ["mtu", "=1", "--mtu=1400", "MTU=1400", "a b=1"] {
        let text = error(|o| o.agent = vec![wrong.into()]);
        assert!(text.contains(&format!("--agent {wrong}: expected SETTING=VALUE")), "{text}");
    }
    let text = error(|o| o.node_port_mode = Some("DSR".into()));
    assert!(text.contains("--node-port-mode DSR") && text.contains("snat or dsr"), "{text}");
}

#[test]
fn agents_get_the_clusters_settings_and_those_of_the_user() {
    let arguments = |agent: &[&str], ipam| {
        let mut given = options();
        (given.ipam, given.agent) = (Some(ipam), agent.iter().map(|text| (*text).to_owned()).collect());
        let place = vec![("node-name", "node-1".to_owned())];
        given.check().expect("fine").agent_arguments(1, place, std::path::Path::new("/h")).map_err(|e| e.to_string())
    };
    let found = arguments(&["mtu=1400", "bpf-ct-global-max=4096"], IpamMode::ClusterPool).expect("fine");
    for expected in
        [["--node-name", "node-1"], ["--ipam", "cluster-pool"], ["--mtu", "1400"], ["--bpf-ct-global-max", "4096"]]
    {
        assert!(found.chunks(2).any(|pair| pair == expected), "{found:?} lacks {expected:?}");
    }
    for taken in ["node-name=other", "routing=vxlan", "ipam=delegated"] {
        let text = arguments(&[taken], IpamMode::ClusterPool).expect_err("the cluster's own");
        assert!(text.starts_with(&format!("--agent {taken}: expected a setting other than")), "{text}");
        assert!(text.contains("node-name, routing, ip-families, ipam, max-pods"), "{text}");
    }
    // What a mode sets unless told otherwise.
    let found = arguments(&["no-masquerade=10.0.0.0/8"], IpamMode::NodeSubnet).expect("fine");
    let given: Vec<_> = found.chunks(2).filter(|pair| pair[0] == "--no-masquerade").map(|pair| &pair[1]).collect();
    assert_eq!(given, ["10.0.0.0/8"]);
}

#[test]
fn the_documentation_is_current() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kubernetes.md");
    let table = weft_settings::docs::table::<UpOptions>();
    weft_settings::docs::compare(&path, "weft up", &table).expect("current");
}

#[test]
fn routes_zones_and_name_servers() {
    let mut given = options();
    given.fabric_route = vec!["203.0.113.0/24=node-1".into(), "fd99::/64=node-2,node-3".into()];
    given.fabric_route.push("203.0.113.0/24=node-3".into());
    given.zones = vec!["a,b".into()];
    given.dns_upstream = vec!["192.0.2.1".into(), "[fd31::1]:5353".into()];
    let config = given.check().expect("fine");
    let texts: Vec<String> = config.fabric_routes.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["203.0.113.0/24=node-1,node-3", "fd99::/64=node-2,node-3"]);
    assert_eq!([1, 2, 3].map(|n| config.zone(n)), [Some("a"), Some("b"), Some("a")]);
    assert_eq!(config.dns_upstreams[0].port(), 53);
    assert_eq!(options().check().expect("fine").zone(1), None);
    for (route, expected) in [
        ("203.0.113.0/24", "expected CIDR=NODE"),
        ("203.0.113.1/24=node-1", "expected 203.0.113.0/24"),
        ("203.0.113.0/24=node-4", "expected nodes from node-1 to node-3"),
        ("10.244.1.0/24=node-1", "overlaps with 10.244.0.0/16"),
        ("fd31::/120=node-1", "overlaps with fd31::/64"),
    ] {
        let text = error(|o| o.fabric_route = vec![route.into()]);
        assert!(text.contains(expected), "{text:?} lacks {expected:?}");
    }
    assert!(error(|o| o.zones = vec!["a b".into()]).contains("--zones a b"));
    assert!(error(|o| o.dns_upstream = vec!["x".into()]).contains("--dns-upstream x: expected ADDRESS"));
}

#[test]
fn an_existing_cluster_keeps_what_was_not_given() {
    let mut first = options();
    first.nodes = Some(5);
    let existing = first.check().expect("fine");
    let again = options();
    assert_eq!(again.conflict(&existing, &again.check().expect("fine")), None);
    let mut other = options();
    other.routing = Some("vxlan".into());
    let conflict = other.conflict(&existing, &other.check().expect("fine")).expect("differs");
    assert!(conflict.to_string().starts_with("--routing vxlan: cluster t exists with native"), "{conflict}");
}
