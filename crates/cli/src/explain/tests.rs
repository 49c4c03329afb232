use super::*;
use weft_api::flow::PolicyRef;

fn agents() -> Vec<Agent> {
    ["node-1", "node-2"].map(|node| Agent { node: node.into(), socket: "/nowhere".into() }).into()
}

fn request(to: ExplainPeer) -> ExplainRequest {
    ExplainRequest { from: ExplainPeer::Pod("a/client".into()), to, port: 80, protocol: "TCP".into() }
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
    Ok(Response::Explanation(Explanation { egress, ingress }))
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
