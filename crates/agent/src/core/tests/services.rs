//! Services: in which order they are written, what becomes of failures, and what a restart leaves alone.

use super::{attach, position, synced_core};
use crate::fakes::{World, core, first_news, ip, name, pod};
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
    let mut core = synced_core(&world, dir.path());
    world.take_log();
    let endpoint = super::remote("u1", 300, "10.244.2.7");
    core.apply(vec![
        service("shop/web", &["10.96.0.1", "fd96::1"]),
        backends("shop/web", &["10.244.2.7"]),
        super::slice("one", &[endpoint]),
    ]);
    core.flush();
    let log = world.take_log();
    assert!(position(&log, "set_ipcache 10.244.2.7") < position(&log, "patch_services"));
    assert_eq!(world.held().services.frontends.len(), 2);
    assert_eq!(core.status().services, 1);
    let [listed] = core.list_services().try_into().expect("one");
    assert_eq!((listed.frontends.len(), listed.backends.len(), listed.backends[0].state.as_str()), (2, 1, "active"));
    assert_eq!(core.service_at(ip("10.96.0.1"), 80, Protocol::Tcp), Some(name("shop/web")));
    assert_eq!(core.service_at(ip("10.96.0.1"), 81, Protocol::Tcp), None);
}

#[test]
fn a_failed_write_is_made_good() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut core = synced_core(&world, dir.path());
    world.fail("patch_services");
    core.apply(vec![service("shop/web", &["10.96.0.1"]), backends("shop/web", &["10.244.2.7", "10.244.2.8"])]);
    let retry = core.flush().expect("it is tried again");
    assert!(core.status().problems.iter().any(|text| text.starts_with("services:")), "{:?}", core.status().problems);
    assert!(core.status().revision_in_force < core.status().revision);
    world.heal();
    core.set_time(retry);
    core.flush();
    assert!(core.status().problems.is_empty(), "{:?}", core.status().problems);
    assert_eq!(world.held().services.backends.len(), 2);
    core.apply(vec![backends("shop/web", &["10.244.2.8"])]);
    core.flush();
    let left: Vec<_> = world.held().services.backends.values().map(|backend| backend.address).collect();
    assert_eq!(left, [ip("10.244.2.8")]);
}

#[test]
fn a_restart_changes_nothing_and_waits_for_everything() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let mut old = synced_core(&world, dir.path());
    let news = [service("shop/web", &["10.96.0.1"]), backends("shop/web", &["10.244.2.7"])];
    old.apply(news.to_vec());
    old.apply(vec![service("shop/old", &["10.96.0.2"])]);
    old.flush();
    drop(old);
    let before = world.held().services.clone();
    let mut new = core(&world, dir.path());
    new.restore(Vec::new(), &[]).expect("restore");
    new.apply(vec![service("shop/web", &["10.96.0.1"])]);
    new.flush();
    assert_eq!(world.held().services, before, "the cluster has not said everything");
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
    let mut core = synced_core(&world, dir.path());
    let mut cache = pod("shop/cache", "u1", &[("app", "cache")]);
    cache.host_ports = vec![HostPort { host_ip: None, port: 8080, protocol: Protocol::Tcp, container_port: 80 }];
    let port = |port| RedirectPort { name: String::new(), protocol: Protocol::Udp, port };
    core.apply(vec![Change::LocalRedirect(LocalRedirect {
        name: name("shop/dns"),
        frontend: RedirectFrontend::Address { address: ip("169.254.20.10"), ports: vec![port(53)] },
        selector: Selector { requirements: vec![Requirement::In("app".into(), ["cache".to_owned()].into())] },
        ports: vec![port(5353)],
        skip_from_backend: true,
    })]);
    core.flush();
    assert!(world.held().services.frontends.is_empty());
    let id = attach(&mut core, &cache, "c1");
    assert_eq!(world.held().services.frontends.len(), 3, "the node's port in both families, and the address");
    cache.ready = false;
    core.apply(vec![Change::Pod(cache)]);
    core.flush();
    assert_eq!(world.held().services.frontends.len(), 2, "who is not ready is nobody's backend");
    core.deactivate(id).expect("down");
    core.flush();
    assert!(world.held().services.frontends.is_empty());
    assert!(world.held().services.backends.is_empty() && world.held().services.sets.is_empty());
}
