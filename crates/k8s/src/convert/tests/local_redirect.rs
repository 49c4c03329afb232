//! CiliumLocalRedirectPolicy: what is read, and what is wrong with the rest.

use super::super::*;
use super::is;
use crate::wire::WireCustom;
use serde_json::{Value, json};
use weft_model::intent::{LocalRedirect, ObjectName, Protocol, RedirectFrontend, RedirectPort};

fn read(spec: Value) -> Result<LocalRedirect, Problems> {
    let object = json!({"metadata": {"name": "l", "namespace": "n"}, "spec": spec});
    local_redirect(serde_json::from_value::<WireCustom>(object).expect("an object"))
}

fn full() -> Value {
    json!({
        "redirectFrontend": {"addressMatcher": {"ip": "169.254.20.10", "toPorts": [
            {"port": "53", "protocol": "UDP", "name": "dns"}, {"port": "53", "protocol": "TCP", "name": "DNS-TCP"}]}},
        "redirectBackend": {"localEndpointSelector": {"matchLabels": {"app": "cache"}}, "toPorts": [
            {"port": "5353", "protocol": "TCP", "name": "dns-tcp"}, {"port": "5353", "protocol": "UDP", "name": "dns"}]},
        "description": "name servers",
    })
}

fn port(name: &str, protocol: Protocol, port: u16) -> RedirectPort {
    RedirectPort { name: name.to_owned(), protocol, port }
}

#[test]
fn addresses_and_services_are_redirected() {
    for ip in ["169.254.20.10", "fd00::53"] {
        let mut spec = full();
        spec["redirectFrontend"]["addressMatcher"]["ip"] = json!(ip);
        let read = read(spec).expect("usable");
        let ports = vec![port("dns", Protocol::Udp, 53), port("dns-tcp", Protocol::Tcp, 53)];
        let address = ip.parse().expect("an address");
        assert_eq!(read.frontend, RedirectFrontend::Address { address, ports });
        assert_eq!(read.selector.requirements, [is("app", "cache")]);
        assert_eq!(read.ports, [port("dns-tcp", Protocol::Tcp, 5353), port("dns", Protocol::Udp, 5353)]);
        assert!(!read.skip_from_backend && read.name.to_string() == "n/l");
    }
    let mut spec = full();
    spec["skipRedirectFromBackend"] = json!(true);
    spec["redirectFrontend"] = json!({"serviceMatcher": {"serviceName": "kube-dns", "namespace": "n"}});
    spec["redirectBackend"]["localEndpointSelector"] = json!({});
    let read = read(spec).expect("usable");
    let name = ObjectName { namespace: "n".to_owned(), name: "kube-dns".to_owned() };
    assert_eq!(read.frontend, RedirectFrontend::Service { name, ports: Vec::new() });
    assert!(read.skip_from_backend && read.selector.requirements.is_empty());
}

#[test]
fn one_port_goes_to_one_port_without_names() {
    let mut spec = full();
    spec["redirectFrontend"]["addressMatcher"]["toPorts"] = json!([{"port": "80", "protocol": "TCP"}]);
    spec["redirectBackend"]["toPorts"] = json!([{"port": "8080", "protocol": "TCP"}]);
    assert_eq!(read(spec).expect("usable").ports, [port("", Protocol::Tcp, 8080)]);
}

#[test]
fn what_is_wrong_is_named() {
    const ADDRESS: &str = "/redirectFrontend/addressMatcher";
    let at = |pointer: &str| format!("{ADDRESS}{pointer}");
    let service =
        |namespace: &str, name: &str| json!({"serviceMatcher": {"serviceName": name, "namespace": namespace}});
    let both = json!({"addressMatcher": {}, "serviceMatcher": {}});
    let table: [(String, Value, &str); 18] = [
        (
            "/redirectFrontend".into(),
            json!({}),
            "spec.redirectFrontend: expected addressMatcher or serviceMatcher, found n",
        ),
        (
            "/redirectFrontend".into(),
            both,
            "spec.redirectFrontend: expected addressMatcher or serviceMatcher, found both",
        ),
        ("/redirectFrontend".into(), json!(null), "spec.redirectFrontend: required"),
        (
            "/redirectFrontend".into(),
            service("m", "s"),
            "spec.redirectFrontend.serviceMatcher.namespace: \"m\", expected",
        ),
        ("/redirectFrontend".into(), service("n", ""), "spec.redirectFrontend.serviceMatcher.serviceName: required"),
        (at("/ip"), json!("x"), "spec.redirectFrontend.addressMatcher.ip: \"x\", expected an IP address"),
        (at("/ip"), json!("127.0.0.1"), "spec.redirectFrontend.addressMatcher.ip: 127.0.0.1, expected an address that"),
        (at("/ip"), json!("::"), "spec.redirectFrontend.addressMatcher.ip: ::, expected"),
        (at("/toPorts"), json!([]), "spec.redirectFrontend.addressMatcher.toPorts: required"),
        (at("/toPorts/0/port"), json!("0"), "spec.redirectFrontend.addressMatcher.toPorts[0].port: \"0\", expected"),
        (at("/toPorts/0/port"), json!("+53"), "spec.redirectFrontend.addressMatcher.toPorts[0].port: \"+53\", exp"),
        (at("/toPorts/0/port"), json!(53), "spec.redirectFrontend.addressMatcher.toPorts[0].port: expected a string"),
        (at("/toPorts/1/name"), json!(""), "spec.redirectFrontend.addressMatcher.toPorts[1].name: required"),
        (at("/toPorts/1/name"), json!("dns"), "spec.redirectFrontend.addressMatcher.toPorts[1].name: another port"),
        (
            at("/toPorts/1/name"),
            json!("x"),
            "spec.redirectFrontend.addressMatcher.toPorts[1]: no port of spec.redirectB",
        ),
        (
            at("/toPorts/1/protocol"),
            json!("SCTP"),
            "spec.redirectFrontend.addressMatcher.toPorts[1].protocol: \"SCTP\"",
        ),
        (
            "/redirectBackend/toPorts/0/protocol".into(),
            json!("UDP"),
            "spec.redirectBackend.toPorts[1].port: another port",
        ),
        (
            "/redirectBackend/localEndpointSelector".into(),
            json!(7),
            "spec.redirectBackend.localEndpointSelector: expected",
        ),
    ];
    for (pointer, value, expected) in table {
        let mut spec = full();
        *spec.pointer_mut(&pointer).expect("a field") = value;
        let problem = read(spec).expect_err(expected).to_string();
        assert!(problem.starts_with(expected), "{problem}\n{expected}");
    }
    let mut spec = full();
    spec["redirectFrontend"]["addressMatcher"]["toPorts"] = json!([{"port": "80", "protocol": "TCP"}]);
    spec["redirectBackend"]["toPorts"] = json!([{"port": "80", "protocol": "UDP"}]);
    assert!(read(spec.clone()).expect_err("unusable").to_string().contains("has another protocol"));
    spec["sometimes"] = json!(true);
    assert!(read(spec).expect_err("unusable").to_string().starts_with("spec.sometimes: unknown field"));
}
