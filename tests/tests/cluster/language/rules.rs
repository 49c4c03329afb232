//! Allow, deny, ports, defaults, ICMP, tiers.

use super::{Fragments, Ping, Sctp, Stage, Tcp, Udp, on_server};
use anyhow::{Result, ensure};

pub(super) fn open_and_closed(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    for from in [client, other] {
        for what in [Tcp(80), Udp(80), Ping] {
            stage.passes(from, s, what)?;
        }
    }
    for (kind, body) in [
        ("netpol", "spec: {podSelector: {}, ingress: []}".to_owned()),
        ("cnp", on_server("ingress: [{}]")),
        ("cnp", on_server("ingress: [{fromEndpoints: [], toPorts: [{ports: [{port: '80'}]}]}]")),
        ("ccnp", on_server("ingress: [{fromEntities: [none]}]")),
    ] {
        stage.with(&[(kind, "closed", &body)], || {
            for from in [client, other] {
                stage.drops(from, s, Tcp(80))?;
                stage.drops(from, s, Ping)?;
            }
            ensure!(stage.last_drop(other, server)?.0 == 133, "the reason is not 133");
            // Its own node gets in, and it reaches itself.
            for address in &server.addresses {
                let answer = stage.cluster.toolbox_in("node-1", &["connect", &address.to_string(), "80"])?;
                ensure!(answer == "refused", "node-1 -> {address}: {answer}");
            }
            stage.passes(server, s, Tcp(80))
        })?;
    }
    Ok(())
}

pub(super) fn ports(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    let rules = on_server("ingress: [{toPorts: [{ports: [{port: '80'}]}]}]");
    stage.with(&[("cnp", "port", &rules)], || {
        for what in [Tcp(80), Udp(80)] {
            stage.passes(client, s, what)?;
            stage.passes(other, s, what)?;
        }
        stage.drops(client, s, Tcp(81))?;
        stage.drops(other, s, Ping)
    })?;
    let range = on_server(
        "ingress: [{toPorts: [{ports: [{port: '8000', endPort: 8100, protocol: TCP}]}]}], \
                 ingressDeny: [{toPorts: [{ports: [{port: '8050', protocol: TCP}]}]}]",
    );
    stage.with(&[("cnp", "range", &range)], || {
        stage.passes(other, s, Tcp(8049))?;
        stage.drops(other, s, Tcp(8050))?;
        stage.passes(client, s, Tcp(8051))?;
        stage.passes(client, s, Tcp(8100))?;
        stage.drops(client, s, Tcp(8101))
    })?;
    let all = on_server("ingress: [{toPorts: [{ports: [{port: '1', endPort: 65535, protocol: TCP}]}]}]");
    stage.with(&[("cnp", "all", &all)], || {
        stage.passes(other, s, Tcp(65_535))?;
        stage.drops(other, s, Udp(80))?;
        stage.drops(client, s, Ping)
    })
}

pub(super) fn deny(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    let allow = on_server("ingress: [{fromEndpoints: [{matchLabels: {role: client}}]}]");
    let deny = on_server("ingressDeny: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]");
    stage.with(&[("cnp", "allow", &allow), ("cnp", "deny", &deny)], || {
        stage.drops(client, s, Tcp(80))?;
        let (reason, rule) = stage.last_drop(client, server)?;
        ensure!((reason, rule.as_str()) == (181, "deny ingressDeny[0]"), "{reason} {rule}");
        stage.passes(client, s, Tcp(81))?;
        stage.passes(other, s, Ping)
    })?;
    let allow = on_server("ingress: [{fromEntities: [all]}]");
    let deny = on_server("ingressDeny: [{fromEndpoints: [{matchLabels: {app: client}}]}]");
    stage.with(&[("cnp", "allow", &allow), ("cnp", "deny", &deny)], || {
        for what in [Tcp(80), Tcp(81), Udp(80), Ping] {
            stage.drops(client, s, what)?;
            stage.passes(other, s, what)?;
        }
        Ok(())
    })
}

pub(super) fn default_deny(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    let deny = on_server(
        "enableDefaultDeny: {ingress: false}, ingressDeny: [{fromEndpoints: [{matchLabels: {app: client}}]}]",
    );
    stage.with(&[("cnp", "deny", &deny)], || {
        stage.drops(client, s, Tcp(80))?;
        stage.passes(other, s, Tcp(80))?;
        let from_nobody = "spec: {podSelector: {matchLabels: {app: server}}, \
                           ingress: [{from: [{podSelector: {matchLabels: {app: far-server}}}]}]}";
        stage.with(&[("netpol", "allow", from_nobody)], || {
            stage.passes(&stage.far_server, s, Tcp(80))?;
            stage.drops(client, s, Tcp(80))?;
            stage.drops(other, s, Tcp(80))
        })
    })
}

pub(super) fn icmp_sctp_fragments(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    let pings = "ingress: [{icmps: [{fields: [{family: IPv4, type: EchoRequest}, {family: IPv6, type: 128}]}]}]";
    stage.with(&[("cnp", "pings", &on_server(pings))], || {
        stage.passes(client, s, Ping)?;
        stage.passes(other, s, Ping)?;
        stage.drops(other, s, Tcp(80))
    })?;
    let masks = "ingress: [{icmps: [{fields: [{type: 17}]}]}]";
    stage.with(&[("cnp", "masks", &on_server(masks))], || stage.drops(other, s, Ping))?;
    // The refusal of a datagram that is allowed comes back.
    let datagrams = on_server("ingress: [{toPorts: [{ports: [{port: '80', protocol: UDP}]}]}]");
    stage.with(&[("cnp", "datagrams", &datagrams)], || {
        for from in [client, other] {
            let outcomes = stage.outcomes(from, s, Udp(80))?;
            ensure!(outcomes.iter().all(|outcome| outcome == "refused"), "port unreachable is lost: {outcomes:?}");
            stage.drops(from, s, Ping)?;
        }
        Ok(())
    })?;
    let sctp = on_server("ingress: [{toPorts: [{ports: [{port: '8080', protocol: SCTP}]}]}]");
    stage.with(&[("cnp", "sctp", &sctp)], || {
        stage.passes(other, s, Sctp(8080))?;
        stage.drops(other, s, Sctp(8081))?;
        stage.drops(client, s, Tcp(8080))
    })?;
    let udp = on_server("ingress: [{toPorts: [{ports: [{port: '8080', protocol: UDP}]}]}]");
    stage.with(&[("cnp", "udp", &udp)], || {
        for from in [client, other] {
            stage.passes(from, s, Fragments(8080))?;
            stage.drops(from, s, Fragments(8081))?;
        }
        Ok(())
    })
}

pub(super) fn tiers(stage: &Stage) -> Result<()> {
    let Stage { server, client, other, .. } = stage;
    let s = &server.addresses;
    let kind = "clusternetworkpolicy";
    let rule = |tier: &str, priority: u16, action: &str| {
        format!(
            "spec: {{tier: {tier}, priority: {priority}, subject: {{pods: {{namespaceSelector: {{}}, \
             podSelector: {{matchLabels: {{app: server}}}}}}}}, ingress: [{{name: r, action: {action}, \
             from: [{{pods: {{namespaceSelector: {{}}, podSelector: {{matchLabels: {{app: client}}}}}}}}]}}]}}"
        )
    };
    let (deny5, accept4) = (rule("Admin", 5, "Deny"), rule("Admin", 4, "Accept"));
    let (accept5, deny4) = (rule("Admin", 5, "Accept"), rule("Admin", 4, "Deny"));
    stage.with(&[(kind, "a", &deny5), (kind, "b", &accept4)], || stage.passes(client, s, Tcp(80)))?;
    stage.with(&[(kind, "a", &accept5), (kind, "b", &deny4)], || {
        stage.drops(client, s, Tcp(80))?;
        stage.passes(other, s, Tcp(80))?;
        // Left to the normal tier, which has nothing against it; and then to one that has.
        stage.with(&[(kind, "pass", &rule("Admin", 3, "Pass"))], || {
            stage.passes(client, s, Tcp(80))?;
            stage.with(&[("cnp", "closed", &on_server("ingress: [{}]"))], || stage.drops(client, s, Tcp(80)))
        })
    })?;
    stage.with(&[(kind, "base", &rule("Baseline", 0, "Deny"))], || {
        stage.drops(client, s, Tcp(80))?;
        stage.passes(other, s, Tcp(80))?;
        let normal = on_server("ingress: [{fromEndpoints: [{matchLabels: {app: client}}]}]");
        stage.with(&[("cnp", "normal", &normal)], || {
            stage.passes(client, s, Tcp(80))?;
            stage.drops(other, s, Tcp(80))
        })
    })
}
