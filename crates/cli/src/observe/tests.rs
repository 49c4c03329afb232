use super::*;
use weft_api::flow::{DropReason, PolicyRef};

fn peer(ip: &str, pod: Option<(&str, &str)>, labels: &[&str]) -> Peer {
    Peer {
        ip: ip.parse().expect("address"),
        identity: 300,
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        namespace: pod.map(|(namespace, _)| namespace.to_owned()),
        pod: pod.map(|(_, name)| name.to_owned()),
        node: None,
        service: None,
    }
}

fn dropped() -> Flow {
    Flow {
        time: "2026-11-23T03:41:07.123456789Z".into(),
        node: "node-1".into(),
        verdict: Verdict::Dropped,
        drop_reason: Some(DropReason { code: 133, text: "Policy denied".into() }),
        direction: Direction::Ingress,
        is_reply: false,
        source: peer("2001:db8::1", None, &["reserved:world-ipv6"]),
        destination: peer("fd44::5", Some(("shop", "web-1")), &["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop"]),
        protocol: "TCP".into(),
        source_port: Some(40_000),
        destination_port: Some(80),
        icmp: None,
        tcp_flags: "SYN".into(),
        length: 80,
        policies: vec![PolicyRef {
            kind: "NetworkPolicy".into(),
            namespace: "shop".into(),
            name: "deny-all".into(),
            rule: None,
            log: None,
        }],
        suppressed: 0,
    }
}

#[test]
fn a_drop_names_reason_and_policy() {
    assert_eq!(
        line(&dropped()),
        "03:41:07.123456 node-1 DROPPED   ingress [2001:db8::1]:40000 (reserved:world-ipv6) -> \
         shop/web-1 [fd44::5]:80 (app=web) TCP SYN: Policy denied: NetworkPolicy shop/deny-all"
    );
}

#[test]
fn a_backend_is_shown_with_its_service() {
    let mut flow = dropped();
    flow.destination.service = Some("shop/web".into());
    assert!(line(&flow).contains("-> shop/web-1 [fd44::5]:80 of service shop/web (app=web) TCP"), "{}", line(&flow));
}

#[test]
fn the_past_of_all_nodes_is_in_the_order_of_time() {
    let (sender, seen) = mpsc::sync_channel(16);
    for (node, times) in [("node-1", ["2", "5"]), ("node-2", ["1", "4"])] {
        for time in times {
            let flow = Flow { node: node.into(), time: time.into(), ..dropped() };
            sender.send(Seen::Flow(Arc::new(flow))).expect("room");
        }
        sender.send(Seen::End(Ok(()))).expect("room");
    }
    drop(sender);
    let mut text = Vec::new();
    past(&seen, 3, Output::Json, &mut text).expect("memory");
    let times: Vec<String> = String::from_utf8(text)
        .expect("text")
        .lines()
        .map(|line| serde_json::from_str::<Flow>(line).expect("a flow").time)
        .collect();
    assert_eq!(times, ["2", "4", "5"]);
}

#[test]
fn followed_flows_are_put_in_order_when_they_come_together() {
    let (sender, seen) = mpsc::sync_channel(16);
    for time in ["3", "1", "2"] {
        sender.send(Seen::Flow(Arc::new(Flow { time: time.into(), ..dropped() }))).expect("room");
    }
    sender.send(Seen::End(Ok(()))).expect("room");
    let mut text = Vec::new();
    follow(&seen, 1, Output::Json, &mut text).expect("memory");
    let text = String::from_utf8(text).expect("text");
    let order: Vec<usize> = ["\"1\"", "\"2\"", "\"3\""].iter().filter_map(|time| text.find(time)).collect();
    assert!(order.is_sorted() && order.len() == 3, "{text}");
}
