use super::*;
use crate::cluster_dns::tables::{Slice, object_name};
use serde_json::{Value, json};

fn zone() -> Zone {
    let ranges = ["10.96.0.0/16", "10.244.0.0/16", "fd96::/108", "fd44::/48"].map(|r| r.parse().expect("a range"));
    let mut zone = Zone::new("cluster.local", ranges.to_vec()).expect("a domain");
    let service = |name: &str, spec: Value| json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
    for object in [
        service(
            "web",
            json!({"clusterIPs": ["10.96.0.11", "fd96::b"], "ports": [
            {"name": "http", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        ),
        service("db", json!({"clusterIPs": ["None"], "ports": [{"name": "sql", "port": 5432}]})),
        service("empty", json!({"clusterIPs": ["None"]})),
        service("far", json!({"type": "ExternalName", "externalName": "example.org."})),
        service("near", json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"})),
        service("loop", json!({"type": "ExternalName", "externalName": "loop.shop.svc.cluster.local"})),
        service("none", json!({"type": "ExternalName", "externalName": "a..b"})),
    ] {
        zone.tables.put_service(object_name(&object), Service::read(&object));
    }
    let slice = |name: &str, addresses: [&str; 3]| {
        json!({"metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "db"}},
        "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [addresses[0]], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": [addresses[1]]},
            {"addresses": [addresses[2]], "hostname": "db-2", "conditions": {"ready": false}},
        ]})
    };
    for object in
        [slice("db-a", ["10.244.1.5", "10.244.2.6", "10.244.2.7"]), slice("db-b", ["fd44::5", "fd44::6", "fd44::7"])]
    {
        zone.tables.put_slice(object_name(&object), Slice::read(&object));
    }
    zone
}

fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
    let name = Name::from_ascii(format!("{name}.")).expect("a name");
    show(&zone.answer(&name, kind))
}

fn show(answer: &Answer) -> String {
    let line = |r: &Record| match &r.data {
        RData::A(a) => a.0.to_string(),
        RData::AAAA(a) => a.0.to_string(),
        RData::SRV(s) => format!("{} {}", s.port, s.target),
        other => other.to_string(),
    };
    match answer {
        Answer::NoData => "no data".into(),
        Answer::NoName => "no name".into(),
        Answer::NotOurs => "not ours".into(),
        Answer::Records { answers, elsewhere, .. } => {
            let lines: Vec<String> = answers.iter().map(line).collect();
            let rest = elsewhere.as_ref().map(|n| format!(" -> {n}")).unwrap_or_default();
            format!("{}{rest}", lines.join(", "))
        }
    }
}

#[test]
fn services_have_their_addresses() {
    use RecordType::{A, AAAA, MX, SRV, TXT};
    let zone = zone();
    for (name, kind, expected) in [
        ("web.shop.svc.cluster.local", A, "10.96.0.11"),
        ("WEB.Shop.svc.CLUSTER.local", AAAA, "fd96::b"),
        ("web.shop.svc.cluster.local", MX, "no data"),
        ("web.other.svc.cluster.local", A, "no name"),
        ("other.shop.svc.cluster.local", A, "no name"),
        ("shop.svc.cluster.local", A, "no data"),
        ("other.svc.cluster.local", A, "no name"),
        ("svc.cluster.local", TXT, "no data"),
        ("cluster.local", A, "no data"),
        ("x.cluster.local", A, "no name"),
        ("*.cluster.local", A, "no name"),
        ("*.shop.svc.cluster.local", A, "no name"),
        ("a.web.shop.svc.cluster.local", A, "no name"),
        ("_http._tcp.web.shop.svc.cluster.local", SRV, "80 web.shop.svc.cluster.local."),
        ("_http._tcp.web.shop.svc.cluster.local", A, "no data"),
        ("_dns._udp.web.shop.svc.cluster.local", SRV, "53 web.shop.svc.cluster.local."),
        ("_tcp.web.shop.svc.cluster.local", SRV, "no data"),
        ("_sctp.web.shop.svc.cluster.local", SRV, "no name"),
        ("_dns._tcp.web.shop.svc.cluster.local", SRV, "no name"),
        ("_._tcp.web.shop.svc.cluster.local", SRV, "no name"),
        ("example.org", A, "not ours"),
        ("local", A, "not ours"),
    ] {
        assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
    }
    let name = Name::from_ascii("_http._tcp.web.shop.svc.cluster.local.").expect("a name");
    let Answer::Records { additionals, .. } = zone.answer(&name, SRV) else { panic!("has records") };
    assert_eq!(additionals.len(), 2, "both families come along");
}

#[test]
fn headless_services_have_those_of_their_ready_endpoints() {
    use RecordType::{A, AAAA, SRV};
    let mut zone = zone();
    for (name, kind, expected) in [
        ("db.shop.svc.cluster.local", A, "10.244.1.5, 10.244.2.6"),
        ("db.shop.svc.cluster.local", AAAA, "fd44::5, fd44::6"),
        ("db-0.db.shop.svc.cluster.local", A, "10.244.1.5"),
        ("db-0.db.shop.svc.cluster.local", AAAA, "fd44::5"),
        ("10-244-2-6.db.shop.svc.cluster.local", A, "10.244.2.6"),
        ("10-244-2-6.db.shop.svc.cluster.local", AAAA, "no data"),
        ("db-2.db.shop.svc.cluster.local", A, "no name"),
        ("empty.shop.svc.cluster.local", A, "no data"),
        ("_sql._tcp.empty.shop.svc.cluster.local", SRV, "no name"),
        (
            "_sql._tcp.db.shop.svc.cluster.local",
            SRV,
            "5432 db-0.db.shop.svc.cluster.local., 5432 10-244-2-6.db.shop.svc.cluster.local., \
             5432 fd44--6.db.shop.svc.cluster.local.",
        ),
    ] {
        assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
    }
    // A slice that goes takes its endpoints along.
    zone.tables.put_slice(("shop".into(), "db-a".into()), None);
    assert_eq!(ask(&zone, "db.shop.svc.cluster.local", A), "no data");
    assert_eq!(ask(&zone, "db.shop.svc.cluster.local", AAAA), "fd44::5, fd44::6");
    zone.tables.put_service(("shop".into(), "db".into()), None);
    assert_eq!(ask(&zone, "db.shop.svc.cluster.local", AAAA), "no name");
}

#[test]
fn aliases_pods_and_addresses() {
    use RecordType::{A, AAAA, CNAME, NS, PTR, SOA};
    let zone = zone();
    for (name, kind, expected) in [
        ("far.shop.svc.cluster.local", A, "example.org. -> example.org."),
        ("far.shop.svc.cluster.local", CNAME, "example.org."),
        ("near.shop.svc.cluster.local", A, "web.shop.svc.cluster.local., 10.96.0.11"),
        ("none.shop.svc.cluster.local", A, "no data"),
        ("10-244-1-5.shop.pod.cluster.local", A, "10.244.1.5"),
        ("10-244-1-5.shop.pod.cluster.local", AAAA, "no data"),
        ("fd44--5.any.pod.cluster.local", AAAA, "fd44::5"),
        ("web-0.shop.pod.cluster.local", A, "no name"),
        ("shop.pod.cluster.local", A, "no data"),
        ("11.0.96.10.in-addr.arpa", PTR, "web.shop.svc.cluster.local."),
        ("11.0.96.10.in-addr.arpa", A, "no data"),
        ("12.0.96.10.in-addr.arpa", PTR, "no name"),
        ("5.1.244.10.in-addr.arpa", PTR, "db-0.db.shop.svc.cluster.local."),
        ("7.2.244.10.in-addr.arpa", PTR, "no name"),
        ("1.2.0.192.in-addr.arpa", PTR, "not ours"),
        (
            "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.d.f.ip6.arpa",
            PTR,
            "db-0.db.shop.svc.cluster.local.",
        ),
        ("cluster.local", NS, "ns.dns.cluster.local."),
    ] {
        assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
    }
    assert!(ask(&zone, "cluster.local", SOA).starts_with("ns.dns.cluster.local. hostmaster.cluster.local. "));
    // A name that leads to itself ends.
    assert_eq!(ask(&zone, "loop.shop.svc.cluster.local", A).matches("loop").count(), CHASE_MAX);
}

#[test]
fn labels_stand_for_addresses() {
    use crate::cluster_dns::tables::dashed;
    for text in ["10.0.0.1", "fd44::5", "::1", "fd44::"] {
        let address: IpAddr = text.parse().expect("an address");
        assert_eq!(undashed(&dashed(address)), Some(address), "{text}");
    }
    assert_eq!(undashed("web"), None);
}
