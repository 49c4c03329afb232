use super::slices::{ENDPOINTS_MAX, Plan, Wanted, plan};
use super::*;

fn service(change: impl FnOnce(&mut Value)) -> Value {
    let mut service = json!({
        "metadata": {"name": "web", "namespace": "a", "labels": {"app": "web"}},
        "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4", "IPv6"], "clusterIP": "10.96.0.9",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}]},
    });
    change(&mut service);
    service
}

fn pod(number: usize, port: u16, change: impl FnOnce(&mut Value)) -> Value {
    let (node, ready) = (format!("node-{}", number % 2 + 1), "True");
    let mut pod = json!({
        "metadata": {"name": format!("web-{number}"), "namespace": "a", "uid": format!("u{number}"),
            "labels": {"app": "web"}},
        "spec": {"nodeName": node,
            "containers": [{"ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}]}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}], "podIPs": [
            {"ip": format!("10.244.{}.{}", number / 250, number % 250 + 1)}, {"ip": format!("fd44::{number:x}")}]},
    });
    change(&mut pod);
    pod
}

fn zones() -> Zones {
    let of = [("node-1", "a"), ("node-2", "b")].map(|(n, z)| (n.to_owned(), z.to_owned()));
    Zones { of: of.into(), ready: ["a".to_owned(), "b".to_owned()].into(), all: true }
}

fn groups(service: &Value, pods: &[Value]) -> Vec<Wanted> {
    wanted(service, &pods.iter().collect::<Vec<_>>(), &zones())
}

/// A slice as the API server would keep it.
fn stored(name: &str, slice: &Wanted, labels: &Value) -> Value {
    json!({"metadata": {"name": name, "labels": labels}, "addressType": slice.family, "ports": slice.ports,
        "endpoints": slice.endpoints})
}

/// What the plan makes of the slices.
fn apply(present: &[Value], plan: &Plan, labels: &Value) -> Vec<Value> {
    let mut after: Vec<Value> = present.iter().filter(|s| !plan.delete.iter().any(|d| d == name(s))).cloned().collect();
    for (own, slice) in &plan.update {
        let place = after.iter_mut().find(|s| name(s) == own).expect("only what is there is updated");
        *place = stored(own, slice, labels);
    }
    let number = present.len();
    after.extend(plan.create.iter().enumerate().map(|(n, s)| stored(&format!("new-{}", number + n), s, labels)));
    after
}

#[test]
fn conditions_are_those_of_the_pod() {
    let ending = |p: &mut Value| p["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
    let unready = |p: &mut Value| p["status"]["conditions"][0]["status"] = "False".into();
    let done = |p: &mut Value| p["status"]["phase"] = "Succeeded".into();
    let pods = [
        pod(1, 80, |_| {}),
        pod(2, 80, ending),
        pod(3, 80, unready),
        pod(4, 80, done),
        pod(5, 80, |p| {
            ending(p);
            unready(p);
        }),
    ];
    let states = |service: &Value| -> Vec<Value> {
        groups(service, &pods)[0].endpoints.iter().map(|e| e["conditions"].clone()).collect()
    };
    let state = |r: bool, s: bool, t: bool| json!({"ready": r, "serving": s, "terminating": t});
    assert_eq!(
        states(&service(|_| {})),
        [state(true, true, false), state(false, true, true), state(false, false, false), state(false, false, true)]
    );
    let published = service(|s| s["spec"]["publishNotReadyAddresses"] = true.into());
    assert_eq!(
        states(&published),
        [state(true, true, false), state(true, true, true), state(true, false, false), state(true, false, true)]
    );
}

#[test]
fn endpoints_tell_where_they_are_and_which_ports_they_have() {
    let pods = [
        pod(1, 80, |_| {}),
        pod(2, 8080, |p| {
            p["spec"]["hostname"] = "two".into();
            p["spec"]["subdomain"] = "web".into();
        }),
    ];
    let all = groups(&service(|_| {}), &pods);
    assert_eq!(all.len(), 4, "two families, two port numbers");
    for (family, address) in [("IPv4", "10.244.0.3"), ("IPv6", "fd44::2")] {
        let own = all.iter().find(|g| g.family == family && g.ports[0]["port"] == 8080).expect("a group");
        let expected = json!({"addresses": [address], "conditions": {"ready": true, "serving": true,
            "terminating": false}, "targetRef": {"kind": "Pod", "name": "web-2", "namespace": "a", "uid": "u2"},
            "nodeName": "node-1", "zone": "a", "hostname": "two"});
        assert_eq!(own.endpoints, [expected]);
    }
    // Nobody has a port of that name: the endpoint is there, the port is not.
    let other = service(|s| s["spec"]["ports"][0]["targetPort"] = "none".into());
    assert!(groups(&other, &pods).iter().all(|g| g.ports == json!([])));
}

#[test]
fn hints_follow_what_the_service_asks_for() {
    let pods = [pod(1, 80, |_| {}), pod(2, 80, |_| {})];
    let hints = |service: &Value, pods: &[Value]| -> Vec<Value> {
        groups(service, pods)[0].endpoints.iter().map(|e| e["hints"].clone()).collect()
    };
    let zone = |z: &str| json!({"forZones": [{"name": z}]});
    assert_eq!(hints(&service(|_| {}), &pods), [Value::Null, Value::Null]);
    for distribution in ["PreferClose", "PreferSameZone"] {
        let asks = service(|s| s["spec"]["trafficDistribution"] = distribution.into());
        assert_eq!(hints(&asks, &pods), [zone("b"), zone("a")]);
        assert_eq!(hints(&asks, &pods[..1]), [zone("b")]);
    }
    let same = service(|s| s["spec"]["trafficDistribution"] = "PreferSameNode".into());
    assert_eq!(hints(&same, &pods[..1]), [json!({"forZones": [{"name": "b"}], "forNodes": [{"name": "node-2"}]})]);
    let auto = service(|s| s["metadata"]["annotations"]["service.kubernetes.io/topology-mode"] = "Auto".into());
    assert_eq!(hints(&auto, &pods), [zone("b"), zone("a")]);
    assert_eq!(hints(&auto, &pods[..1]), [Value::Null], "zone a would have nobody");
}

#[test]
fn slices_are_full_at_a_hundred_and_stable() {
    let labels = json!({"l": "x"});
    let one_family = service(|s| s["spec"]["ipFamilies"] = json!(["IPv6"]));
    let mut pods: Vec<Value> = (0..250).map(|n| pod(n, 80, |_| {})).collect();
    let mut slices: Vec<Value> = Vec::new();
    let mut step = |pods: &[Value]| -> (Plan, Vec<Value>) {
        let present: Vec<&Value> = slices.iter().collect();
        let plan = plan(&groups(&one_family, pods), &present, &labels);
        slices = apply(&slices, &plan, &labels);
        let held: BTreeSet<String> = slices
            .iter()
            .flat_map(|s| items(s, &["endpoints"]))
            .map(|e| text(e, &["targetRef", "uid"]).to_owned())
            .collect();
        let asked: BTreeSet<String> = pods.iter().map(|p| uid(p).to_owned()).collect();
        assert_eq!(held, asked);
        assert!(slices.iter().all(|s| items(s, &["endpoints"]).len() <= ENDPOINTS_MAX));
        (plan, slices.clone())
    };
    let (_, first) = step(&pods);
    assert_eq!(first.iter().map(|s| items(s, &["endpoints"]).len()).collect::<Vec<_>>(), [100, 100, 50]);
    assert_eq!(step(&pods).0, Plan::default(), "nothing changed, nothing is written");
    // One pod more, and one other state: one write each.
    pods.push(pod(250, 80, |_| {}));
    let (plan, _) = step(&pods);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
    pods[7]["status"]["conditions"][0]["status"] = "False".into();
    let (plan, after) = step(&pods);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
    assert_eq!(after.iter().map(name).collect::<Vec<_>>(), first.iter().map(name).collect::<Vec<_>>());
    // A pod that is replaced: its successor takes its place with the same write.
    pods[3] = pod(400, 80, |_| {});
    let (plan, _) = step(&pods);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 1, 0));
    // Other ports: no slice goes, all change.
    pods.iter_mut().for_each(|p| p["spec"]["containers"][0]["ports"][0]["containerPort"] = 81.into());
    let (plan, _) = step(&pods);
    assert_eq!((plan.create.len(), plan.update.len(), plan.delete.len()), (0, 3, 0));
    // Everybody goes: one slice stays and says so.
    let (_, empty) = step(&[]);
    assert_eq!(empty.len(), 1);
}

#[test]
fn headless_services_are_marked() {
    assert_eq!(labels(&service(|_| {})), json!({"app": "web", SERVICE_NAME: "web", MANAGED_BY: MANAGER}));
    let headless = service(|s| s["spec"]["clusterIP"] = "None".into());
    assert_eq!(labels(&headless)[HEADLESS], "");
}
