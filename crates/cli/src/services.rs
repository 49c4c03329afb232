//! `weft service list`: Services as the nodes have them in force. As a table, nodes that say the same share its lines.

use crate::args::ListOptions;
use crate::list::{OfNode, gather};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use weft_api::agent::{Request, Response, Service, ServiceBackend, ServiceFrontend};

pub fn list(options: &ListOptions) -> Result<ExitCode> {
    let mut gathered = gather(options, &Request::Services, |answer| match answer {
        Response::Services(rows) => Some(rows),
        _ => None,
    })?;
    gathered.rows.sort_by(|a, b| key(a).cmp(&key(b)));
    gathered.print_lines(options, ["NODES", "SERVICE", "FRONTEND", "BACKEND", "STATE", "OPTIONS"], lines)
}

/// Order of the rows.
fn key(OfNode { node, row }: &OfNode<Service>) -> (&str, &str, &str, u16, &str, &str) {
    (&row.namespace, &row.name, &row.kind, row.port, &row.protocol, node)
}

/// What nodes agree about: everything but which backends are their own.
fn common(row: &Service) -> Service {
    let backends = row.backends.iter().map(|backend| ServiceBackend { local: false, ..backend.clone() });
    Service { backends: backends.collect(), ..row.clone() }
}

fn lines(rows: &[OfNode<Service>]) -> Vec<[String; 6]> {
    let nodes: BTreeSet<&str> = rows.iter().map(|row| row.node.as_str()).collect();
    let mut homes: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for OfNode { node, row } in rows {
        homes.extend(
            row.backends.iter().filter(|backend| backend.local).map(|backend| (backend.address, node.as_str())),
        );
    }
    let mut groups: Vec<(Service, Vec<&str>)> = Vec::new();
    for OfNode { node, row } in rows {
        let row = common(row);
        match groups.iter_mut().rev().take_while(|(known, _)| same_port(known, &row)).find(|(known, _)| *known == row) {
            Some((_, of)) => of.push(node),
            None => groups.push((row, vec![node])),
        }
    }
    let mut lines = Vec::new();
    for (row, of) in &groups {
        let of = if of.len() == nodes.len() && nodes.len() > 1 { "all".to_owned() } else { of.join(",") };
        let kind = if row.kind == "Service" { String::new() } else { format!(" ({})", row.kind) };
        for n in 0..row.frontends.len().max(row.backends.len()).max(1) {
            let (nodes, name, options) = if n == 0 {
                (of.clone(), format!("{}/{}{kind}", row.namespace, row.name), options(row))
            } else {
                Default::default()
            };
            let frontend = row.frontends.get(n).map(|frontend| frontend_text(frontend, &row.protocol));
            let backend = row.backends.get(n);
            lines.push([
                nodes,
                name,
                frontend.unwrap_or_default(),
                backend.map(|backend| backend_text(backend, &homes)).unwrap_or_default(),
                backend.map(state).unwrap_or_else(|| if n == 0 { "no backend".to_owned() } else { String::new() }),
                options,
            ]);
        }
    }
    lines
}

fn same_port(one: &Service, other: &Service) -> bool {
    let port =
        |row: &Service| (row.kind.clone(), row.namespace.clone(), row.name.clone(), row.port, row.protocol.clone());
    port(one) == port(other)
}

fn frontend_text(frontend: &ServiceFrontend, protocol: &str) -> String {
    let at = if frontend.address.is_unspecified() {
        let family = if frontend.address.is_ipv6() { "6" } else { "4" };
        format!("*:{} (IPv{family})", frontend.port)
    } else {
        SocketAddr::new(frontend.address, frontend.port).to_string()
    };
    format!("{} {at}/{protocol}", frontend.kind)
}

fn backend_text(backend: &ServiceBackend, homes: &BTreeMap<IpAddr, &str>) -> String {
    let at = SocketAddr::new(backend.address, backend.port);
    homes.get(&backend.address).map_or_else(|| at.to_string(), |node| format!("{at} on {node}"))
}

/// Terminating or active, and for whom it is not chosen.
fn state(backend: &ServiceBackend) -> String {
    match (backend.internal, backend.external) {
        (false, false) => format!("{}, not chosen", backend.state),
        (true, false) => format!("{}, for clients inside", backend.state),
        (false, true) => format!("{}, for clients outside", backend.state),
        (true, true) => backend.state.clone(),
    }
}

fn options(row: &Service) -> String {
    let mut options = vec![row.algorithm.clone()];
    if row.frontends.iter().any(|frontend| !matches!(frontend.kind.as_str(), "ClusterIP" | "LocalRedirect")) {
        options.push(row.forwarding.clone());
    }
    options.extend(row.affinity_s.map(|seconds| format!("affinity {seconds}s")));
    let any = |of: fn(&ServiceFrontend) -> bool| row.frontends.iter().any(of);
    let flags = [
        (any(|frontend| frontend.internal_local), "inside: local only"),
        (any(|frontend| frontend.external_local), "outside: local only"),
        (any(|frontend| frontend.source_ranges), "source ranges"),
    ];
    options.extend(flags.into_iter().filter(|(on, _)| *on).map(|(_, text)| text.to_owned()));
    options.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(node: &str, local: bool, backends: usize) -> OfNode<Service> {
        let backend = |n: usize| ServiceBackend {
            address: IpAddr::from([10, 244, 0, u8::try_from(n).expect("few")]),
            port: 8080,
            state: "active".into(),
            local: local && n == 0,
            internal: true,
            external: n == 0,
        };
        let frontend = |kind: &str, address: &str, port| ServiceFrontend {
            kind: kind.into(),
            address: address.parse().expect("address"),
            port,
            internal_local: false,
            external_local: kind == "NodePort",
            source_ranges: false,
        };
        let row = Service {
            kind: "Service".into(),
            namespace: "shop".into(),
            name: "web".into(),
            port: 80,
            protocol: "TCP".into(),
            frontends: vec![frontend("ClusterIP", "fd96::1", 80), frontend("NodePort", "0.0.0.0", 30_080)],
            backends: (0..backends).map(backend).collect(),
            affinity_s: Some(60),
            algorithm: "maglev".into(),
            forwarding: "snat".into(),
        };
        OfNode { node: node.into(), row }
    }

    #[test]
    fn nodes_that_agree_share_lines() {
        let lines = lines(&[row("n1", true, 2), row("n2", false, 2)]);
        let expected = [
            [
                "all",
                "shop/web",
                "ClusterIP [fd96::1]:80/TCP",
                "10.244.0.0:8080 on n1",
                "active",
                "maglev, snat, affinity 60s, outside: local only",
            ],
            ["", "", "NodePort *:30080 (IPv4)/TCP", "10.244.0.1:8080", "active, for clients inside", ""],
        ];
        assert_eq!(lines, expected.map(|line| line.map(str::to_owned)));
    }

    #[test]
    fn nodes_that_differ_have_their_own() {
        let lines = lines(&[row("n1", true, 1), row("n2", false, 0)]);
        let first = |node: &str| lines.iter().find(|line| line[0] == node).map(|line| line[4].clone());
        assert_eq!((first("n1"), first("n2")), (Some("active".into()), Some("no backend".into())));
    }
}
