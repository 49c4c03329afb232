//! Services: in which order they are written, what becomes of failures, and what a restart leaves alone.

use super::{attach, position, synced_writer};
use crate::fakes::{World, first_news, ip, name, pod, writer};
use weft_api::agent::{ExplainPeer, ExplainRequest, ExplainedBackend};
use weft_model::intent::{
    Backend, Backends, Change, HostPort, LocalRedirect, NamedPort, Protocol, RedirectFrontend, RedirectPort, Routing,
    Service, ServicePort,
};
use weft_model::selector::{Requirement, Selector};

fn service(of: &str, cluster_ips: &[&str]) -> Change {
    let routing = Routing {
        ports: vec![ServicePort { name: String::new(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
        cluster_ips: cluster_ips.iter().map(|text| ip(text)).collect(),
        ..Routing::default()
    };
    Change::Service(Service { name: name(of), routing: Some(routing), ..Service::default() })
}

fn backends(of: &str, addresses: &[&str]) -> Change {
    Change::Backends(Backends {
        slice: name(&format!("{of}-1")),
        service: name(of),
        ports: vec![NamedPort { name: String::new(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: addresses.iter().map(|text| Backend::ready(ip(text))).collect(),
    })
}

#[test]
fn a_backend_is_known_before_a_frontend_leads_there() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    world.take_log();
    let endpoint = super::remote("u1", 300, "10.244.2.7");
    writer.apply(vec![
        service("shop/web", &["10.96.0.1", "fd96::1"]),
        backends("shop/web", &["10.244.2.7"]),
        super::slice("one", &[endpoint]),
    ]);
    writer.flush();
    let log = world.take_log();
    assert!(position(&log, "set_ipcache 10.244.2.7") < position(&log, "patch_services"));
    assert_eq!(world.held().services.frontends.len(), 2);
    assert_eq!(writer.snapshot().status().services, 1);
    let [listed] = writer.list_services().try_into().expect("one");
    assert_eq!((listed.frontends.len(), listed.backends.len(), listed.backends[0].state.as_str()), (2, 1, "active"));
    assert_eq!(writer.snapshot().service_at(ip("10.96.0.1"), 80, Protocol::Tcp), Some(&name("shop/web")));
    assert_eq!(writer.snapshot().service_at(ip("10.96.0.1"), 81, Protocol::Tcp), None);
}

#[test]
fn what_becomes_of_services_is_counted_when_it_is_in_force() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    let metrics = writer.service_metrics();
    let counted =
        || ["add", "update", "delete"].map(|action| metrics.events.get_or_create(&[("action", action)]).get());
    let delays = || {
        let text = crate::metrics::Metrics::new(&metrics, None).text();
        let count = |line: &str| line.split(' ').nth(1)?.parse::<u64>().ok();
        text.lines()
            .filter(|line| line.starts_with("cilium_service_implementation_delay_count"))
            .filter_map(count)
            .sum()
    };
    world.fail("patch_services");
    writer.apply(vec![service("shop/web", &["10.96.0.1", "fd96::1"])]);
    let retry = writer.flush().expect("it is tried again");
    assert_eq!((counted(), delays()), ([0, 0, 0], 0), "not in force");
    world.heal();
    writer.set_time(retry);
    writer.flush();
    assert_eq!((counted(), delays()), ([1, 0, 0], 1));
    writer.apply(vec![backends("shop/web", &["10.244.2.7"])]);
    writer.flush();
    assert_eq!((counted(), delays()), ([1, 1, 0], 2));
    // The same again is no event.
    writer.apply(vec![backends("shop/web", &["10.244.2.7"]), service("shop/web", &["10.96.0.1", "fd96::1"])]);
    writer.flush();
    assert_eq!((counted(), delays()), ([1, 1, 0], 2));
    let ending = Backend { terminating: true, ..Backend::ready(ip("10.244.2.7")) };
    let Change::Backends(slice) = backends("shop/web", &[]) else { unreachable!() };
    writer.apply(vec![Change::Backends(Backends { endpoints: vec![ending], ..slice })]);
    writer.apply(vec![Change::ServiceGone(name("shop/web"))]);
    writer.flush();
    assert_eq!((counted(), delays(), metrics.terminating.get()), ([1, 1, 1], 3, 1));
}

#[test]
fn explain_says_where_a_service_leads() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    attach(&mut writer, &pod("shop/client", "u1", &[]), "c1");
    writer.apply(vec![Change::Node(crate::fakes::node("two", 2))]);
    let node_port = |mut change: Change| {
        if let Change::Service(Service { routing: Some(routing), .. }) = &mut change {
            routing.node_ports = true;
            routing.ports[0].node_port = 30080;
        }
        change
    };
    let mut both = |of: &str, addresses: [&str; 2], behind: [&str; 2]| {
        let [v4, v6] = behind;
        let Change::Backends(slice) = backends(of, &[v6]) else { unreachable!() };
        let of_v6 = Change::Backends(Backends { slice: name(&format!("{of}-6")), ..slice });
        writer.apply(vec![node_port(service(of, &addresses)), backends(of, &[v4]), of_v6]);
        writer.flush();
    };
    both("shop/web", ["10.96.0.1", "fd96::1"], ["10.244.2.7", "fd44:0:0:2::7"]);
    writer.apply(vec![super::slice("one", &[super::remote("u2", 300, "10.244.2.7")])]);
    writer.flush();
    let ask = |from: &str, to: &str, port: u16, as_it_stands: bool| {
        let end = |text: &str| text.parse().map_or_else(|_| ExplainPeer::Pod(text.into()), ExplainPeer::Ip);
        let request = ExplainRequest { from: end(from), to: end(to), port, protocol: "TCP".into(), as_it_stands };
        writer.explain(&request).expect("an answer").service
    };
    let cases = [
        // A pod of this node; the node itself.
        ("shop/client", "10.96.0.1", 80, "10.244.2.7", None),
        ("shop/client", "fd96::1", 80, "fd44:0:0:2::7", None),
        ("shop/client", "172.31.0.11", 30080, "10.244.2.7", None),
        ("172.31.0.11", "10.96.0.1", 80, "10.244.2.7", None),
        // Clients outside reach a backend elsewhere as the node.
        ("192.0.2.1", "172.31.0.11", 30080, "10.244.2.7", Some("172.31.0.11")),
        ("2001:db8::1", "fd31::11", 30080, "fd44:0:0:2::7", Some("fd31::11")),
        // Another node's port leads pods and processes of this one where its own does.
        ("shop/client", "172.31.0.12", 30080, "10.244.2.7", None),
        ("shop/client", "fd31::12", 30080, "fd44:0:0:2::7", None),
        ("172.31.0.11", "172.31.0.12", 30080, "10.244.2.7", None),
    ];
    for (from, to, port, behind, seen_as) in cases {
        let service = ask(from, to, port, false).unwrap_or_else(|| panic!("{from} -> {to}: no service"));
        assert_eq!((service.namespace.as_str(), service.name.as_str(), service.refused), ("shop", "web", None));
        let expected = ExplainedBackend { address: ip(behind), port: 8080, seen_as: seen_as.map(ip) };
        assert_eq!(service.backends, [expected], "{from} -> {to}");
    }
    for (from, to, port, as_it_stands) in [
        ("shop/client", "10.96.0.1", 80, true),
        ("shop/client", "10.96.0.1", 81, false),
        ("192.0.2.1", "172.31.0.12", 30080, false),
        // Its own node knows where it leads from there, whichever node's port it asks for.
        ("10.244.2.7", "10.96.0.1", 80, false),
        ("10.244.2.7", "172.31.0.11", 30080, false),
    ] {
        assert_eq!(ask(from, to, port, as_it_stands), None, "{from} -> {to}:{port}");
    }
    let outside = ask("192.0.2.1", "10.96.0.1", 80, false).expect("a service");
    assert!(outside.refused.expect("refused").contains("inside the cluster") && outside.backends.is_empty());
}

#[test]
fn a_failed_write_is_made_good() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    world.fail("patch_services");
    writer.apply(vec![service("shop/web", &["10.96.0.1"]), backends("shop/web", &["10.244.2.7", "10.244.2.8"])]);
    let retry = writer.flush().expect("it is tried again");
    assert!(
        writer.snapshot().status().problems.iter().any(|text| text.starts_with("services:")),
        "{:?}",
        writer.snapshot().status().problems
    );
    assert!(writer.snapshot().status().revision_in_force < writer.snapshot().status().revision);
    world.heal();
    writer.set_time(retry);
    writer.flush();
    assert!(writer.snapshot().status().problems.is_empty(), "{:?}", writer.snapshot().status().problems);
    assert_eq!(world.held().services.backends.len(), 2);
    writer.apply(vec![backends("shop/web", &["10.244.2.8"])]);
    writer.flush();
    let left: Vec<_> = world.held().services.backends.values().map(|backend| backend.address).collect();
    assert_eq!(left, [ip("10.244.2.8")]);
}

#[test]
fn a_restart_changes_nothing_and_waits_for_everything() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut old = synced_writer(&world, dir.path());
    let news = [service("shop/web", &["10.96.0.1"]), backends("shop/web", &["10.244.2.7"])];
    old.apply(news.to_vec());
    old.apply(vec![service("shop/old", &["10.96.0.2"])]);
    old.flush();
    drop(old);
    let before = world.held().services.clone();
    let mut new = writer(&world, dir.path());
    new.restore(Vec::new(), &[]).expect("restore");
    new.apply(vec![service("shop/web", &["10.96.0.1"])]);
    new.flush();
    assert_eq!(world.held().services, before, "not every source is complete");
    new.apply(news.to_vec());
    new.apply(first_news());
    new.flush();
    let mut expected = before;
    expected.frontends.retain(|frontend, _| frontend.address != ip("10.96.0.2"));
    assert_eq!(world.held().services, expected, "numbers are kept, and what nobody wants is gone");
}

#[test]
fn pods_of_this_node_have_host_ports_and_redirects() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut writer = synced_writer(&world, dir.path());
    let mut cache = pod("shop/cache", "u1", &[("app", "cache")]);
    cache.host_ports = vec![HostPort { host_ip: None, port: 8080, protocol: Protocol::Tcp, container_port: 80 }];
    let port = |port| RedirectPort { name: String::new(), protocol: Protocol::Udp, port };
    writer.apply(vec![Change::LocalRedirect(LocalRedirect {
        name: name("shop/dns"),
        frontend: RedirectFrontend::Address { address: ip("169.254.20.10"), ports: vec![port(53)] },
        selector: Selector { requirements: vec![Requirement::In("app".into(), ["cache".to_owned()].into())] },
        ports: vec![port(5353)],
        skip_from_backend: true,
        age: weft_model::intent::Age::default(),
    })]);
    writer.flush();
    assert!(world.held().services.frontends.is_empty());
    let id = attach(&mut writer, &cache, "c1");
    assert_eq!(world.held().services.frontends.len(), 3, "the node's port in both families, and the address");
    cache.ready = false;
    writer.apply(vec![Change::Pod(cache)]);
    writer.flush();
    assert_eq!(world.held().services.frontends.len(), 2, "who is not ready is nobody's backend");
    writer.deactivate(id).expect("down");
    writer.flush();
    assert!(world.held().services.frontends.is_empty());
    assert!(world.held().services.backends.is_empty() && world.held().services.sets.is_empty());
}
