//! Flags of `az aks create`: what each goal needs, and what is refused.

use super::*;
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: CreateOptions,
}

const VNET: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets";

fn check(flags: &str) -> Result<UpOptions, String> {
    let flags = flags.replace("{v}", VNET);
    let all = ["x", "--name", "c", "-g", "rg", "--location", "westeurope"].into_iter().chain(flags.split_whitespace());
    let line = Line::try_parse_from(all).map_err(|error| error.to_string())?;
    line.options.check().map_err(|refusal| refusal.to_string())
}

#[test]
fn each_goal_has_its_flags() {
    let azure = "--network-plugin azure --network-dataplane cilium";
    let subnets = "--vnet-subnet-id {v}/nodes --pod-subnet-id {v}/pods";
    let cases = [
        ("--network-plugin-mode overlay --pod-cidr 192.168.0.0/16", IpamMode::Overlay, 250),
        ("--network-plugin-mode overlay --ip-families ipv4,ipv6", IpamMode::Overlay, 250),
        (
            "--network-plugin-mode overlay --ip-families ipv4,ipv6 --pod-cidrs 10.9.0.0/16,fd00::/64 --service-cidrs 10.8.0.0/16,fd01::/108",
            IpamMode::Overlay,
            250,
        ),
        (&format!("{subnets} --max-pods 100"), IpamMode::PodSubnet, 100),
        (&format!("{subnets} --pod-ip-allocation-mode DynamicIndividual"), IpamMode::PodSubnet, 250),
        (&format!("{subnets} --pod-ip-allocation-mode StaticBlock -m 31"), IpamMode::PodSubnetBlock, 31),
        ("", IpamMode::NodeSubnet, 30),
        ("--vnet-subnet-id {v}/nodes --network-plugin-mode none --network-policy cilium", IpamMode::NodeSubnet, 30),
    ];
    for (flags, ipam, max_pods) in cases {
        let options = check(&format!("{azure} {flags}")).expect(flags);
        assert_eq!((options.ipam, options.max_pods), (Some(ipam), Some(max_pods)), "{flags}");
        options.check().unwrap_or_else(|error| panic!("{flags}: {error}"));
    }
    let dual = check(&format!("{azure} --network-plugin-mode overlay --ip-families ipv4,ipv6")).expect("dual stack");
    assert_eq!(dual.pod_cidr, ["10.244.0.0/16", "fd12:3456:789a::/64"]);
    assert_eq!(dual.service_cidr, ["10.0.0.0/16", "fd12:3456:789a:1::/108"]);
}

#[test]
fn what_azure_refuses_is_refused() {
    let cases = [
        ("", "--network-plugin: this cluster's network is Weft"),
        ("--network-dataplane cilium", "--network-dataplane cilium requires --network-plugin azure."),
        ("--network-plugin-mode overlay", "--network-plugin-mode overlay requires --network-plugin azure."),
        (
            "--network-plugin azure --network-plugin-mode flat",
            "'flat' is not a valid value. Allowed values: overlay, none.",
        ),
        ("--network-plugin azure --network-policy calico", "Cilium dataplane requires network policy cilium."),
        ("--network-plugin azure --vnet-subnet-id x", "--vnet-subnet-id is not a valid Azure resource ID."),
        (
            "--network-plugin azure --vnet-subnet-id {v}/a --pod-subnet-id {v}",
            "--pod-subnet-id is not a valid Azure resource ID.",
        ),
        ("--network-plugin azure --pod-subnet-id {v}/a", "--pod-subnet-id requires --vnet-subnet-id."),
        ("--network-plugin azure --vnet-subnet-id {v}/a --pod-subnet-id {v}/a", "must be different subnets"),
        (
            "--network-plugin azure --vnet-subnet-id {v}w/subnets/a --pod-subnet-id {v}/a",
            "not a valid Azure resource ID.",
        ),
        (
            "--network-plugin azure --network-plugin-mode overlay --vnet-subnet-id {v}/a --pod-subnet-id {v}/b",
            "cannot be used with --network-plugin-mode overlay",
        ),
        ("--network-plugin azure --pod-ip-allocation-mode StaticBlock", "requires --pod-subnet-id"),
        ("--network-plugin azure --ip-families ipv4,ipv6", "requires --network-plugin-mode overlay"),
        ("--network-plugin azure --ip-families ipv6", "'ipv6' is not supported"),
        ("--network-plugin azure --network-plugin-mode overlay --ip-families ipv6,ipv4", "is not supported"),
        ("--network-plugin azure --pod-cidr 10.1.0.0/16", "Please specify network plugin mode `overlay`"),
        ("--pod-cidr 10.1.0.0/16", "Please explicitly specify the network plugin type"),
        ("--dns-service-ip 10.0.0.9", "Please explicitly specify the network plugin type"),
        (
            "--network-plugin azure --network-plugin-mode overlay --pod-cidr 10.1.0.0/16 --pod-cidrs 10.1.0.0/16",
            "mutually exclusive",
        ),
        (
            "--network-plugin azure --network-plugin-mode overlay --ip-families ipv4,ipv6 --pod-cidrs fd00::/64,10.1.0.0/16",
            "in that order",
        ),
        ("--network-plugin azure --network-plugin-mode overlay --pod-cidr 10.1.0.7/16", "is not a valid CIDR"),
        ("--network-plugin azure --network-plugin-mode overlay --pod-cidr 172.31.0.0/16", "may not use"),
        ("--network-plugin azure --network-plugin-mode overlay --pod-cidr 10.1.0.0/23", "no /24 for each of 3 nodes"),
        ("--network-plugin azure --service-cidr 10.0.0.0/12", "too large"),
        ("--network-plugin azure --network-plugin-mode overlay --service-cidr 10.244.3.0/24", "overlaps --pod-cidr"),
        ("--network-plugin azure --dns-service-ip 10.9.0.1", "must be within --service-cidr 10.0.0.0/16"),
        ("--network-plugin azure --dns-service-ip 10.0.0.1", "must not be the first address"),
        (
            "--network-plugin azure --max-pods 9",
            "--max-pods must be at least 10 for a managed Kubernetes cluster to function.",
        ),
        ("--network-plugin azure --max-pods 251", "must be at most 250"),
        ("--network-plugin azure --node-count 0", "at least 1"),
        ("--network-plugin azure --acns-advanced-networkpolicies L7", "requires --enable-acns"),
        ("--network-plugin azure --acns-transit-encryption-type wireguard", "requires --enable-acns"),
        ("--network-plugin azure --acns-datapath-acceleration-mode BpfVeth", "requires --enable-acns"),
        ("--network-plugin azure --enable-container-network-logs", "requires --enable-acns"),
        ("--network-plugin azure --enable-acns --disable-acns", "at the same time"),
        ("--network-plugin azure --disable-acns-security", "--disable-acns-security"),
        ("--network-plugin azure --enable-acns --disable-acns-security --disable-acns-observability", "--disable-acns"),
        (
            "--network-plugin azure --enable-acns --disable-acns-security --acns-advanced-networkpolicies FQDN",
            "cannot be used with --disable-acns-security",
        ),
        (
            "--network-plugin azure --enable-acns --disable-acns-security --acns-transit-encryption-type wireguard",
            "cannot be used with --disable-acns-security",
        ),
        (
            "--network-plugin azure --enable-acns --acns-advanced-networkpolicies L4",
            "'L4' is not a valid value. Allowed values: None, FQDN, L7.",
        ),
        ("--network-plugin azure --enable-acns --acns-advanced-networkpolicies L7", "not part of Weft yet"),
        ("--network-plugin azure --enable-acns --acns-transit-encryption-type wireguard", "not part of Weft yet"),
        ("--network-plugin azure --enable-acns --enable-container-network-logs", "not part of Weft yet"),
    ];
    for (flags, expected) in cases {
        let refusal = check(flags).expect_err(flags);
        assert!(refusal.contains(expected), "{flags}: {refusal}");
    }
}

#[test]
fn what_weft_always_does_may_be_asked_for() {
    for flags in [
        "--enable-acns",
        "--enable-acns --acns-datapath-acceleration-mode BpfVeth",
        "--enable-acns --acns-advanced-networkpolicies None --acns-transit-encryption-type none",
        "--enable-acns --disable-acns-security",
        "--disable-acns",
    ] {
        let azure = "--network-plugin azure --network-plugin-mode overlay --network-dataplane cilium";
        assert_eq!(check(&format!("{azure} {flags}")).expect(flags).ipam, Some(IpamMode::Overlay), "{flags}");
    }
}

#[test]
fn cluster_dns_gets_the_address_that_was_asked_for() {
    let azure = "--network-plugin azure --network-plugin-mode overlay --ip-families ipv4,ipv6";
    let options = check(&format!("{azure} --dns-service-ip 10.0.7.7")).expect("an address of the range");
    let addresses = options.check().expect("a cluster").dns_addresses();
    assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.7.7", "fd12:3456:789a:1::a"]);
    let options = check(azure).expect("no address");
    let addresses = options.check().expect("a cluster").dns_addresses();
    assert_eq!(addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.10", "fd12:3456:789a:1::a"]);
}
