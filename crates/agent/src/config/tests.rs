use super::{Config, Routing};
use std::path::Path;
use weft_settings::docs;

fn config(flags: &[&str]) -> Result<Config, String> {
    let args = [&["weft-agent"], flags].concat();
    let config: Config =
        weft_settings::from_args(args.into_iter().map(Into::into)).map_err(|error| error.to_string())?;
    config.check().map_err(|error| error.to_string())
}

#[test]
fn the_documentation_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kubernetes.md");
    docs::compare(&path, "weft-agent", &docs::table::<Config>()).expect("current");
}

#[test]
fn defaults_depend_on_the_ipam_mode() {
    let config = |mode| config(&["--node-name", "n", "--ipam", mode]).expect("good");
    let found = |mode| (config(mode).ipam().max_pods, config(mode).masquerades());
    assert_eq!(found("cluster-pool"), (250, true));
    assert_eq!(found("azure-node-subnet"), (30, true));
    assert_eq!(found("azure-pod-subnet"), (250, false));
}

#[test]
fn flags_beat_the_file() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("agent.yaml");
    std::fs::write(&file, "node-name: from-file\nrouting: vxlan\nmtu: 1400\n").expect("write");
    let path = file.to_str().expect("UTF-8");
    let found = config(&["--node-name", "from-flag", "--config", path]).expect("good");
    assert_eq!((found.node_name.as_str(), found.routing, found.mtu), ("from-flag", Routing::Vxlan, Some(1400)));
    for (text, problem) in [("nodename: x\n", "nodename"), ("mtu: big\n", "mtu"), ("- 1\n", "agent.yaml")] {
        std::fs::write(&file, text).expect("write");
        let error = config(&["--config", path]).expect_err(text);
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn bad_values_name_the_flag() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "node-name: expected the name"),
        (&["--node-name", "n", "--routing", "bgp"], "routing: expected `native` or `vxlan`, found bgp"),
        (&["--node-name", "n", "--ip-families", "ipv5"], "ip-families: expected"),
        (&["--node-name", "n", "--socket", "x"], "socket: expected an absolute path"),
        (&["--node-name", "n", "--mtu", "100"], "mtu: expected 576"),
        (&["--node-name", "n", "--mtu", "1000"], "mtu: expected 1280 to 65535 with IPv6, found 1000"),
        (&["--node-name", "n", "--max-pods", "4095"], "max-pods: expected 1 to 4094, found 4095"),
        (&["--node-name", "n", "--pod-cidr", "10.0.0.0/8"], "pod-cidr: expected nothing, with this ipam mode"),
        (&["--node-name", "n", "--ipam-plugin", "{}"], "ipam-plugin: expected a JSON object with `type`"),
        (&["--node-name", "n", "--ipam-plugin", r#"{"type":"x"}"#], "ipam-plugin: expected nothing, unless ipam is"),
        (
            &["--node-name", "n", "--ipam", "azure-overlay", "--routing", "vxlan"],
            "routing: expected `native`, with this ipam mode, found vxlan",
        ),
        (
            &["--node-name", "n", "--peer-key", "/k"],
            "peer-certificate: expected a file, as peer-key is given, found nothing",
        ),
        (&["--node-name", "n", "--no-masquerade", "10.0.0.0/8,x"], "no-masquerade: expected prefixes"),
        (&["--node-name", "n", "--cluster-name", "a b"], "cluster-name: expected"),
        (&["--node-name", "n", "--tunnel-port", "0"], "tunnel-port: expected"),
        (&["--node-name", "n", "--masquerade", "yes"], "masquerade: expected `true` or `false`"),
        (&["--node-name", "n", "--host-firewall", "on"], "host-firewall: expected `true` or `false`"),
        (&["--node-name", "n", "--policy-cidr-match-mode", "all"], "policy-cidr-match-mode: expected `nodes`"),
        (&["--node-name", "n", "--endpoint-propagation", "kvstore"], "endpoint-propagation: expected `cep`"),
        (&["--node-name", "n", "--node-port-range", "32767-30000"], "node-port-range: expected first and last"),
        (&["--node-name", "n", "--node-port-range", "0-5"], "node-port-range: expected first and last"),
        (&["--node-name", "n", "--node-port-range", "30000"], "node-port-range: expected first and last"),
        (
            &["--node-name", "n", "--node-port-bind-protection", "true"],
            "node-port-bind-protection: expected `services`, `range` or `none`, found true",
        ),
        (&["--node-name", "n", "--node-port-mode", "DSR"], "node-port-mode: expected `snat` or `dsr`, found DSR"),
        (
            &["--node-name", "n", "--node-port-acceleration", "native", "--routing", "vxlan"],
            "node-port-acceleration: expected `disabled` or `best-effort` with routing `vxlan`, found native",
        ),
        (
            &["--node-name", "n", "--node-port-acceleration", "generic"],
            "node-port-acceleration: expected `disabled`, `native` or `best-effort`, found generic",
        ),
        (&["--node-name", "n", "--maglev-table-size", "16384"], "maglev-table-size: expected 251, 509"),
        (&["--node-name", "n", "--healthz-bind-address", "10256"], "healthz-bind-address: expected an address"),
        (&["--node-name", "n", "--metrics-address", "[::]:0"], "metrics-address: expected an address"),
        (&["--node-name", "n", "--cni-conf-dir", "etc"], "cni-conf-dir: expected an absolute path"),
        (&["--node-name", "n", "--cgroup-root", "weft"], "cgroup-root: expected an absolute path"),
        (&["--node-name", "n", "--close-removed-backends", "sctp"], "close-removed-backends: expected `udp`"),
        (&["--node-name", "n", "--close-removed-backends", ""], "close-removed-backends: expected `udp`"),
    ];
    for (flags, problem) in cases {
        let error = config(flags).expect_err(problem);
        assert!(error.contains(problem), "{error}");
    }
    assert!(config(&["--no-such-flag"]).expect_err("unknown").contains("--no-such-flag"));
}
