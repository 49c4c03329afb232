//! Single cases that name what they are about.

use super::*;
use weft_model::desired::FrontendKind;

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

fn texts(engine: &Engine, object: &Object) -> Vec<String> {
    engine.problems().get(object).into_iter().flatten().map(|problem| problem.text.clone()).collect()
}

#[test]
fn a_frontend_stays_with_who_had_it_first() {
    let shared = |of: &str| Routing { external_ips: vec![ip("203.0.113.1")], ..routing(of) };
    let (mut engine, mut kernel) = started(&[service("web", shared("10.96.0.2")), slice("w", "web", vec![])]);
    engine.apply(&service("api", shared("10.96.0.1")));
    kernel.follow(&mut engine);
    let external = Frontend { address: ip("203.0.113.1"), port: 80, protocol: Protocol::Tcp };
    let owner = |engine: &Engine| owners_now(engine)[&external].clone();
    assert_eq!(owner(&engine), Object::Service(name("web")));
    let api = Object::Service(name("api"));
    assert_eq!(texts(&engine, &api), ["203.0.113.1:80/TCP: already in use by Service shop/web"]);
    // A new agent finds it so, though the other comes first by name.
    let tables = kernel.tables.clone();
    let mut again = Engine::new(settings(), 0);
    again.apply(&service("api", shared("10.96.0.1")));
    again.apply(&service("web", shared("10.96.0.2")));
    again.adopt(tables.clone());
    kernel.follow(&mut again);
    assert_eq!((owner(&again), &kernel.tables), (Object::Service(name("web")), &tables));
    // It goes to the other as soon as the first is gone.
    again.apply(&Change::ServiceGone(name("web")));
    kernel.follow(&mut again);
    assert_eq!((owner(&again), texts(&again, &api)), (api, Vec::<String>::new()));
}

#[test]
fn a_node_port_outside_the_range_is_left_out() {
    let wrong = Routing { node_ports: true, ports: vec![tcp(80, 29_999), tcp(81, 30_001)], ..routing("10.96.0.1") };
    let (engine, kernel) = started(&[service("web", wrong)]);
    let ports: Vec<u16> = kernel.tables.frontends.keys().map(|frontend| frontend.port).collect();
    assert_eq!(ports, [30_001, 80, 81]);
    let told = texts(&engine, &Object::Service(name("web")));
    assert_eq!(told, ["port 80: nodePort 29999: expected 30000 to 30002, the node port range"]);
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
