//! Single cases that name what they are about.

use super::*;

fn service(of: &str, routing: Routing) -> Change {
    Change::Service(Service { name: name(of), routing: Some(routing), ..Service::default() })
}

fn tcp(port: u16, node_port: u16) -> ServicePort {
    ServicePort { name: String::new(), protocol: Protocol::Tcp, port, node_port }
}

fn routing(cluster_ip: &str) -> Routing {
    Routing { ports: vec![tcp(80, 0)], cluster_ips: vec![ip(cluster_ip)], ..Routing::default() }
}

fn slice(of: &str, service: &str, endpoints: Vec<Backend>) -> Change {
    let ports = vec![NamedPort { name: String::new(), protocol: Protocol::Tcp, port: 8080 }];
    Change::Backends(Backends { slice: name(of), service: name(service), ports, endpoints })
}

fn started(changes: &[Change]) -> (Engine, Kernel) {
    let mut engine = Engine::new(settings(), 0);
    changes.iter().for_each(|change| engine.apply(change));
    let mut kernel = Kernel::default();
    kernel.follow(&mut engine);
    (engine, kernel)
}

fn shown(at: &str) -> String {
    if at.contains(':') { format!("[{at}]:80/TCP") } else { format!("{at}:80/TCP") }
}

fn texts(engine: &Engine, object: &Object) -> Vec<String> {
    engine.problems().get(object).into_iter().flatten().map(|problem| problem.text.clone()).collect()
}

/// An object of the namespace `aaa`, first of all by name.
fn first(name: &str) -> ObjectName {
    ObjectName { namespace: "aaa".to_owned(), name: name.to_owned() }
}

fn aged(created: &str) -> Age {
    Age { created: created.to_owned(), uid: String::new() }
}

fn older(change: Change, name: ObjectName) -> Change {
    let Change::Service(service) = change else { panic!("a Service") };
    Change::Service(Service { name, age: aged("2025"), ..service })
}

fn younger(change: Change, name: ObjectName) -> Change {
    let Change::Service(service) = change else { panic!("a Service") };
    Change::Service(Service { name, age: aged("2026"), ..service })
}

/// After a start, in either order of changes, and after another start that adopts: (frontend, its owner), all the same.
fn owned(changes: &[Change], at: &str) -> Object {
    let frontend = Frontend { address: ip(at), port: 80, protocol: Protocol::Tcp };
    let (engine, kernel) = started(changes);
    let mut turned = changes.to_vec();
    turned.reverse();
    let (back, _) = started(&turned);
    let (mut again, mut one_by_one) = (Engine::new(settings(), 0), Engine::new(settings(), 0));
    turned.iter().for_each(|change| again.apply(change));
    again.adopt(kernel.tables.clone());
    Kernel { tables: kernel.tables, ..Kernel::default() }.follow(&mut again);
    let mut grown = Kernel::default();
    for change in changes {
        one_by_one.apply(change);
        grown.follow(&mut one_by_one);
    }
    let all = [engine, back, again, one_by_one].map(|engine| owners_now(&engine)[&frontend].clone());
    assert!(all.iter().all(|owner| *owner == all[0]), "{all:?}");
    all[0].clone()
}

#[test]
fn the_older_object_has_a_frontend_also_after_a_cold_start() {
    for (of, at) in [(["10.96.0.1", "10.96.0.2"], "203.0.113.1"), (["fd96::1", "fd96::2"], "2001:db8:1::1")] {
        let shared = |of: &str| Routing { external_ips: vec![ip(at)], ..routing(of) };
        let old = older(service("web", shared(of[0])), name("web"));
        let young = younger(service("api", shared(of[1])), first("api"));
        assert_eq!(owned(&[young.clone(), old.clone()], at), Object::Service(name("web")));
        let (mut engine, mut kernel) = started(&[young, old]);
        let api = Object::Service(first("api"));
        let told = format!("{}: already in use by Service shop/web", shown(at));
        assert_eq!(texts(&engine, &api), [told]);
        // It goes to the other as soon as the first is gone.
        engine.apply(&Change::ServiceGone(name("web")));
        kernel.follow(&mut engine);
        assert_eq!(texts(&engine, &api), Vec::<String>::new());
    }
}

#[test]
fn a_later_cluster_ip_takes_its_address_back() {
    for at in ["10.96.0.7", "fd96::7"] {
        let other = if at.contains(':') { "fd96::8" } else { "10.96.0.8" };
        let squat = older(service("x", Routing { external_ips: vec![ip(at)], ..routing(other) }), first("squat"));
        let dns = younger(service("x", routing(at)), name("dns"));
        assert_eq!(owned(std::slice::from_ref(&squat), at), Object::Service(first("squat")));
        assert_eq!(owned(&[squat, dns], at), Object::Service(name("dns")));
    }
}

#[test]
fn external_ips_of_machines_and_those_not_allowed_are_refused() {
    let node = Change::Node(Node {
        name: "n2".to_owned(),
        addresses: vec![ip("203.0.113.9"), ip("2001:db8:1::9")],
        pod_cidrs: nets(&["203.0.113.128/25", "2001:db8:1:1::/64"]),
        labels: BTreeMap::new(),
    });
    let cases = [
        ("198.51.100.1", "expected an address in --external-ips-allowed (203.0.113.0/24, "),
        ("2001:db8:2::1", "expected an address in --external-ips-allowed (203.0.113.0/24, "),
        ("203.0.113.3", "refused, it is the API server's"),
        ("2001:db8:1::3", "refused, it is the API server's"),
        ("203.0.113.9", "refused, it is node n2's"),
        ("2001:db8:1::9", "refused, it is node n2's"),
        ("203.0.113.130", "refused, it is in 203.0.113.128/25, the addresses of pods"),
        ("2001:db8:1:1::5", "refused, it is in 2001:db8:1:1::/64, the addresses of pods"),
    ];
    for (at, why) in cases {
        let of = if at.contains(':') { "fd96::1" } else { "10.96.0.1" };
        let web = service("web", Routing { external_ips: vec![ip(at)], ..routing(of) });
        // Whichever is known first.
        for changes in [[node.clone(), web.clone()], [web, node.clone()]] {
            let (engine, kernel) = started(&changes);
            assert!(!kernel.tables.frontends.keys().any(|frontend| frontend.address == ip(at)), "{at}");
            let told = texts(&engine, &Object::Service(name("web")));
            assert!(told.len() == 1 && told[0].starts_with(&format!("port 80: externalIPs {at}: {why}")), "{told:?}");
        }
    }
    let allowed = Allowed { external_ips: Vec::new(), ..settings().allowed };
    let mut engine = Engine::new(Settings { allowed, ..settings() }, 0);
    engine.apply(&service("web", Routing { external_ips: vec![ip("203.0.113.1")], ..routing("10.96.0.1") }));
    Kernel::default().follow(&mut engine);
    let told = texts(&engine, &Object::Service(name("web")));
    assert_eq!(
        told,
        ["port 80: externalIPs 203.0.113.1: expected an address in --external-ips-allowed (which is empty)"]
    );
}

#[test]
fn a_host_port_is_at_the_nodes_own_addresses_and_leaves_its_ports_alone() {
    let world = World { host: vec![ip("192.0.2.1"), ip("2001:db8::1")], ..World::default() };
    let pod = |of: &str, created: &str, host_ip: Option<&str>, port: u16| LocalPod {
        name: name(of),
        labels: BTreeMap::new(),
        addresses: vec![ip("10.244.9.1"), ip("fd44:9::1")],
        ready: true,
        host_ports: vec![HostPort { host_ip: host_ip.map(ip), port, protocol: Protocol::Tcp, container_port: 80 }],
        age: aged(created),
    };
    for (at, port, why) in [
        (
            "192.0.2.2",
            8080,
            "hostPort 8080: hostIP 192.0.2.2: expected an address of this node (192.0.2.1, 2001:db8::1)",
        ),
        (
            "fd44:9::2",
            8080,
            "hostPort 8080: hostIP fd44:9::2: expected an address of this node (192.0.2.1, 2001:db8::1)",
        ),
        ("169.254.169.254", 80, "hostPort 80: hostIP 169.254.169.254: expected an address of this node (192.0.2.1, "),
        ("127.0.0.1", 80, "hostPort 80: hostIP 127.0.0.1: expected an address of this node (192.0.2.1, 2001:db8::1)"),
        ("0.0.0.0", 10_250, "hostPort 10250: 10248 to 10260 are reserved for the node (--host-ports-reserved)"),
        ("::", 22, "hostPort 22: 22 to 22 are reserved for the node (--host-ports-reserved)"),
    ] {
        let (mut engine, mut kernel) = started(&[Change::Node(node(&world))]);
        engine.put_pod(pod("p", "2025", Some(at), port));
        kernel.follow(&mut engine);
        assert!(kernel.tables.frontends.is_empty(), "{at}");
        let told = texts(&engine, &Object::Pod(name("p")));
        assert!(told.len() == 1 && told[0].starts_with(why), "{told:?}");
    }
    // A NodePort comes before a hostPort, at all addresses and at a single one; and goes back.
    for (host_ip, any) in [(None, "0.0.0.0"), (Some("192.0.2.1"), "0.0.0.0"), (Some("2001:db8::1"), "::")] {
        let (mut engine, mut kernel) = started(&[Change::Node(node(&world))]);
        engine.put_pod(pod("p", "2025", host_ip, 30_001));
        kernel.follow(&mut engine);
        let at = Frontend { address: ip(host_ip.unwrap_or(any)), port: 30_001, protocol: Protocol::Tcp };
        assert_eq!(owners_now(&engine)[&at], Object::Pod(name("p")));
        let clusters = vec![ip("10.96.0.1"), ip("fd96::1")];
        let web =
            Routing { cluster_ips: clusters, node_ports: true, ports: vec![tcp(80, 30_001)], ..Routing::default() };
        engine.apply(&younger(service("web", web), name("web")));
        kernel.follow(&mut engine);
        let wide = Frontend { address: ip(any), ..at };
        assert_eq!(owners_now(&engine)[&wide], Object::Service(name("web")));
        assert!(host_ip.is_none() || !owners_now(&engine).contains_key(&at), "{host_ip:?}");
        assert!(texts(&engine, &Object::Pod(name("p")))[0].ends_with("already in use by Service shop/web"));
        engine.apply(&Change::ServiceGone(name("web")));
        kernel.follow(&mut engine);
        assert_eq!(owners_now(&engine)[&at], Object::Pod(name("p")));
        // Of two pods the older one has it.
        engine.put_pod(pod("late", "2026", Some("192.0.2.1"), 30_001));
        kernel.follow(&mut engine);
        let late = owners_now(&engine).values().any(|owner| *owner == Object::Pod(name("late")));
        assert_eq!(late, any == "::", "{host_ip:?}");
    }
}

#[test]
fn a_node_port_outside_the_range_is_left_out() {
    let health = Some(29_999);
    let wrong = Routing {
        health_check_node_port: health,
        node_ports: true,
        ports: vec![tcp(80, 29_999), tcp(81, 30_001)],
        ..routing("10.96.0.1")
    };
    let (engine, kernel) = started(&[service("web", wrong)]);
    let ports: Vec<u16> = kernel.tables.frontends.keys().map(|frontend| frontend.port).collect();
    assert_eq!(ports, [30_001, 80, 81]);
    let told = texts(&engine, &Object::Service(name("web")));
    assert_eq!(told[0], "healthCheckNodePort 29999: expected 30000 to 30002, the node port range");
    assert_eq!(told[1..], ["port 80: nodePort 29999: expected 30000 to 30002, the node port range"]);
}

#[test]
fn one_more_backend_costs_its_service_only() {
    let mut changes = Vec::new();
    for n in 0..50 {
        changes.push(service(&format!("svc{n}"), routing(&format!("10.96.0.{n}"))));
        let endpoints = (0..10).map(|backend| Backend::ready(IpAddr::from([10, 244, n, backend]))).collect();
        changes.push(slice(&format!("slice{n}"), &format!("svc{n}"), endpoints));
    }
    let (mut engine, _) = started(&changes);
    let endpoints = (0..11).map(|backend| Backend::ready(IpAddr::from([10, 244, 7, backend]))).collect();
    engine.apply(&slice("slice7", "svc7", endpoints));
    let patch = engine.plan().unwrap();
    let counts = (patch.put_backends.len(), patch.put_sets.len(), patch.put_frontends.len(), patch.del_sets.len());
    assert_eq!((counts, patch.del_backends.len()), ((1, 1, 1, 1), 0));
    engine.done(Outcome::Written);
    // The same again is nothing.
    let endpoints = (0..11).map(|backend| Backend::ready(IpAddr::from([10, 244, 7, backend]))).collect();
    engine.apply(&slice("slice7", "svc7", endpoints));
    assert_eq!(engine.plan(), None);
}

#[test]
fn a_failed_write_is_made_good_from_what_the_kernel_holds() {
    let backends = |n: u8| (0..n).map(|n| Backend::ready(IpAddr::from([10, 244, 0, n]))).collect();
    let (mut engine, mut kernel) = started(&[service("web", routing("10.96.0.1")), slice("w", "web", backends(3))]);
    engine.apply(&slice("w", "web", backends(5)));
    let patch = engine.plan().unwrap().clone();
    let half = ServicePatch { put_backends: patch.put_backends, put_sets: patch.put_sets, ..ServicePatch::default() };
    kernel.tables.apply(&half);
    engine.done(Outcome::Failed);
    engine.adopt(kernel.tables.clone());
    kernel.follow(&mut engine);
    assert_eq!((kernel.tables.backends.len(), kernel.tables.sets.len(), kernel.tables.frontends.len()), (5, 1, 1));
    let [entry] = kernel.tables.frontends.values().collect::<Vec<_>>()[..] else { panic!("one") };
    assert_eq!(entry.kind, FrontendKind::ClusterIp);
}

#[test]
fn what_ends_serves_only_while_nothing_else_does() {
    let ending = |n: u8| Backend { ready: false, terminating: true, ..Backend::ready(IpAddr::from([10, 244, 0, n])) };
    let ready = |n: u8| Backend::ready(IpAddr::from([10, 244, 0, n]));
    let state = |kernel: &Kernel| {
        let entry = kernel.tables.frontends.values().next().unwrap();
        let members = entry.internal.map(|set| kernel.tables.sets[&set].backends.len()).unwrap_or(0);
        let ending = kernel.tables.backends.values().filter(|backend| backend.terminating).count();
        (members, kernel.tables.backends.len(), ending)
    };
    let (mut engine, mut kernel) =
        started(&[service("web", routing("10.96.0.1")), slice("w", "web", vec![ready(1), ready(2)])]);
    assert_eq!(state(&kernel), (2, 2, 0));
    engine.apply(&slice("w", "web", vec![ready(1), ending(2)]));
    kernel.follow(&mut engine);
    assert_eq!(state(&kernel), (1, 2, 1), "it keeps its connections");
    engine.apply(&slice("w", "web", vec![ending(1), ending(2)]));
    kernel.follow(&mut engine);
    assert_eq!(state(&kernel), (2, 2, 2));
    engine.apply(&slice("w", "web", vec![]));
    kernel.follow(&mut engine);
    assert_eq!(state(&kernel), (0, 0, 0));
}
