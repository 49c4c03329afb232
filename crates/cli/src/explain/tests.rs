use super::*;
use weft_api::agent::{ExplainedBackend, ExplainedService};
use weft_api::flow::PolicyRef;

fn agents() -> Vec<Agent> {
    ["node-1", "node-2"].map(|node| Agent { node: node.into(), socket: "/nowhere".into() }).into()
}

fn request(to: ExplainPeer) -> ExplainRequest {
    let from = ExplainPeer::Pod("a/client".into());
    ExplainRequest { from, to, port: 80, protocol: "TCP".into(), as_it_stands: false }
}

fn decision(allowed: bool) -> Option<Decision> {
    let policy = PolicyRef {
        kind: "NetworkPolicy".into(),
        namespace: "b".into(),
        name: "deny".into(),
        rule: (allowed).then(|| "ingress[0]".into()),
        log: None,
    };
    Some(Decision { allowed, reason: "because".into(), policies: vec![policy], others: Vec::new() })
}

fn answer(egress: Option<Decision>, ingress: Option<Decision>) -> Result<Response> {
    Ok(Response::Explanation(Explanation { egress, ingress, service: None }))
}

#[test]
fn it_passes_only_if_both_sides_let_it() {
    let pod = || request(ExplainPeer::Pod("b/web".into()));
    for (out, into) in [(true, true), (true, false), (false, true), (false, false)] {
        let answers = vec![answer(decision(out), None), answer(None, decision(into))];
        let merged = merge(pod(), &agents(), answers).expect("both sides are known");
        assert_eq!(merged.allowed, out && into);
        assert_eq!(merged.ingress.as_ref().map(|side| side.node.as_str()), Some("node-2"));
    }
}

#[test]
fn a_side_that_nobody_knows_is_not_allowed_by_silence() {
    let pod = request(ExplainPeer::Pod("b/web".into()));
    let error = merge(pod.clone(), &agents(), vec![answer(decision(true), None), answer(None, None)]);
    assert!(error.expect_err("ingress is unknown").to_string().contains("b/web"));
    let down = vec![answer(decision(true), None), Err(anyhow!("node-2 is down"))];
    assert!(format!("{:#}", merge(pod, &agents(), down).expect_err("unknown")).contains("node-2 is down"));
}

#[test]
fn the_world_has_no_side_of_its_own() {
    let world = request(ExplainPeer::Ip([192, 0, 2, 1].into()));
    let merged = merge(world, &agents(), vec![answer(decision(true), None), answer(None, None)]).expect("egress");
    assert!(merged.allowed && merged.ingress.is_none());
    let mut text = Vec::new();
    merged.print(&mut text).expect("memory");
    assert_eq!(
        String::from_utf8(text).expect("text"),
        "ALLOWED  a/client -> 192.0.2.1 80/tcp\n  egress   allowed: because (on node-1)\n             NetworkPolicy b/deny ingress[0]\n"
    );
}

fn service(refused: Option<&str>, backends: &[(&str, Option<&str>)]) -> Result<Response> {
    let ip = |text: &str| text.parse().expect("an address");
    let backends = backends.iter().map(|(address, seen_as)| ExplainedBackend {
        address: ip(address),
        port: 8080,
        seen_as: seen_as.map(ip),
    });
    let service = ExplainedService {
        kind: "Service".into(),
        namespace: "b".into(),
        name: "web".into(),
        refused: refused.map(str::to_owned),
        backends: backends.collect(),
    };
    Ok(Response::Explanation(Explanation { egress: None, ingress: None, service: Some(service) }))
}

/// Asks for a Service; its backends answer by their last digit: 1 lets in, others do not.
fn of_service(first: impl Fn() -> Vec<Result<Response>>, to: &str) -> Answer {
    let to = ExplainPeer::Ip(to.parse().expect("an address"));
    let ask = |request: &ExplainRequest| match &request.to {
        ExplainPeer::Ip(ip) if request.as_it_stands => {
            assert_eq!(request.port, 8080);
            let lets_in = ip.to_string().ends_with('1');
            let out = matches!(request.from, ExplainPeer::Pod(_)).then(|| decision(true)).flatten();
            vec![answer(out, None), answer(None, decision(lets_in))]
        }
        _ => first(),
    };
    explain(request(to), &agents(), &ask).expect("an answer")
}

#[test]
fn a_service_is_named_and_each_of_its_backends_asked_for() {
    for (vip, good, bad) in [("10.96.0.1", "10.244.1.1", "10.244.2.2"), ("fd96::1", "fd44::1", "fd44::2")] {
        let all = of_service(|| vec![service(None, &[(good, None)]), answer(None, None)], vip);
        assert!(all.allowed);
        let some = of_service(|| vec![answer(None, None), service(None, &[(good, None), (bad, None)])], vip);
        assert!(!some.allowed);
        let mut text = Vec::new();
        some.print(&mut text).expect("memory");
        let text = String::from_utf8(text).expect("text");
        for line in [
            format!("DEPENDS  a/client -> {vip} 80/tcp"),
            "  by Service b/web (on node-2)".to_owned(),
            format!("    ALLOWED  a/client -> {good} 8080/tcp"),
            format!("    DENIED  a/client -> {bad} 8080/tcp"),
        ] {
            assert!(text.contains(&line), "{line}: {text}");
        }
        // As the backend's node sees it who came through another one.
        let masked = of_service(|| vec![service(None, &[(good, Some("172.31.0.11"))]), answer(None, None)], vip);
        let shown = &masked.service.as_ref().expect("a service").backends[0];
        assert_eq!((shown.from.as_str(), shown.egress.is_none()), ("172.31.0.11", true));
    }
}

#[test]
fn a_service_that_serves_nobody_says_why() {
    let none = of_service(|| vec![service(None, &[]), answer(None, None)], "10.96.0.1");
    assert!(!none.allowed);
    assert!(none.service.expect("a service").refused.expect("why").contains("no backend"));
    let outside = of_service(|| vec![service(Some("outside"), &[]), answer(None, None)], "10.96.0.1");
    assert_eq!(outside.service.expect("a service").refused.as_deref(), Some("outside"));
    let many: Vec<String> = (0..40).map(|n| format!("10.244.{n}.1")).collect();
    let many: Vec<(&str, Option<&str>)> = many.iter().map(|text| (text.as_str(), None)).collect();
    let all = of_service(|| vec![service(None, &many), answer(None, None)], "10.96.0.1").service.expect("a service");
    assert_eq!((all.backends.len(), all.backends_total), (BACKENDS_MAX, 40));
}
