//! Prints worlds and packets for people, close to YAML.

use crate::world::{End, Packet, World};
use std::collections::BTreeMap;
use std::fmt;
use weft_model::intent::{
    CidrGroups, Covers, EndpointSelector, NamedPort, Peer, Policy, PortMatch, PortRule, Rule, Services, Subject, Tier,
};
use weft_model::selector::{Requirement, Selector};

#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a World);

#[derive(Clone, Copy, Debug)]
pub struct ShownPacket<'a>(pub &'a World, pub &'a Packet);

impl fmt::Display for ShownPacket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(world, packet) = *self;
        for (word, end) in [("from", packet.from), ("to", packet.to)] {
            let address = world.address(end, packet.v6).map(|address| address.to_string()).unwrap_or_default();
            match end {
                End::Pod(n) => write!(f, "{word} pod {}/{} ({address}) ", world.pods[n].namespace, world.pods[n].name)?,
                End::Node(n) => write!(f, "{word} node {} ({address}) ", world.nodes[n].name)?,
                End::World(address) => write!(f, "{word} {address} ")?,
            }
        }
        write!(f, "protocol {} port {}", packet.protocol, packet.port)
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = self.0;
        writeln!(f, "settings: {:?}", world.settings)?;
        for (name, labels) in &world.namespaces {
            writeln!(f, "namespace {name}: {}", map(labels))?;
        }
        for node in &world.nodes {
            writeln!(f, "node {}: {:?} {}", node.name, node.addresses, map(&node.labels))?;
        }
        for pod in &world.pods {
            write!(f, "pod {}/{}: ", pod.namespace, pod.name)?;
            write!(f, "{} {:?} {}", world.nodes[pod.node].name, pod.addresses, map(&pod.labels))?;
            write!(f, " serviceAccount: {}", pod.service_account)?;
            if pod.host_network {
                write!(f, " hostNetwork")?;
            }
            if let Some(identity) = pod.reserved {
                write!(f, " identity {}", identity.reserved_name().unwrap_or("?"))?;
            }
            for NamedPort { name, protocol, port } in &pod.named_ports {
                write!(f, " {name}={protocol:?}/{port}")?;
            }
            writeln!(f)?;
        }
        if !world.outside.is_empty() {
            writeln!(f, "outside: {:?}", world.outside)?;
        }
        if !world.api_server.is_empty() {
            writeln!(f, "API server: {:?}", world.api_server)?;
        }
        for service in &world.services {
            let object = &service.object;
            let (labels, selector) = (map(&object.labels), map(&object.selector));
            writeln!(f, "service {}: {labels} selector {selector} {:?}", object.name, service.addresses)?;
        }
        for group in &world.cidr_groups {
            writeln!(f, "CIDR group {}: {} {:?}", group.name, map(&group.labels), group.cidrs)?;
        }
        for policy in &world.policies {
            show_policy(f, policy)?;
        }
        Ok(())
    }
}

fn show_policy(f: &mut fmt::Formatter<'_>, policy: &Policy) -> fmt::Result {
    writeln!(f, "{}:", policy.name)?;
    for spec in &policy.specs {
        match &spec.subject {
            Subject::Endpoints(selector) => writeln!(f, "- subject: {}", endpoints(selector))?,
            Subject::Nodes(selector) => writeln!(f, "- nodeSelector: {}", plain(selector))?,
        }
        match spec.tier {
            Tier::Normal => {}
            Tier::Admin(priority) => writeln!(f, "  tier: Admin\n  priority: {priority}")?,
            Tier::Baseline(priority) => writeln!(f, "  tier: Baseline\n  priority: {priority}")?,
        }
        writeln!(f, "  isolates: {{ingress: {}, egress: {}}}", spec.isolates_ingress, spec.isolates_egress)?;
        for (word, rules) in [("ingress", &spec.ingress), ("egress", &spec.egress)] {
            if !rules.is_empty() {
                writeln!(f, "  {word}:")?;
            }
            for rule in rules {
                show_rule(f, rule)?;
            }
        }
    }
    Ok(())
}

fn show_rule(f: &mut fmt::Formatter<'_>, rule: &Rule) -> fmt::Result {
    writeln!(f, "  - action: {:?}  # {}", rule.action, rule.place)?;
    match &rule.peers {
        None => {}
        Some(peers) if peers.is_empty() => writeln!(f, "    peers: []")?,
        Some(peers) => {
            writeln!(f, "    peers:")?;
            for peer in peers {
                writeln!(f, "    - {}", show_peer(peer))?;
            }
        }
    }
    if let Some(ports) = &rule.ports {
        writeln!(f, "    ports: [{}]", ports.iter().map(show_port).collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

fn show_peer(peer: &Peer) -> String {
    match peer {
        Peer::Endpoints(selector) => format!("endpoints: {}", endpoints(selector)),
        Peer::Cidr { cidr, except, covers } => format!("cidr: {cidr}, except: {except:?}{}", show_covers(*covers)),
        Peer::Entity(entity) => format!("entity: {entity:?}"),
        Peer::CidrGroups { groups: CidrGroups::Name(name), covers } => {
            format!("cidrGroupRef: {name}{}", show_covers(*covers))
        }
        Peer::CidrGroups { groups: CidrGroups::Selector(selector), covers } => {
            format!("cidrGroupSelector: {}{}", plain(selector), show_covers(*covers))
        }
        Peer::Services(Services::Name(name)) => format!("service: {name}"),
        Peer::Services(Services::Selector { namespace, selector }) => {
            format!("services: {} in {}", plain(selector), namespace.as_deref().unwrap_or("all namespaces"))
        }
        Peer::Nodes(selector) => format!("nodes: {}", plain(selector)),
    }
}

const fn show_covers(covers: Covers) -> &'static str {
    match (covers.pods, covers.nodes) {
        (false, false) => "",
        (true, false) => " (pods too)",
        (false, true) => " (nodes too)",
        (true, true) => " (pods and nodes too)",
    }
}

fn show_port(rule: &PortRule) -> String {
    let protocol = format!("{:?}", rule.protocol).to_uppercase();
    match &rule.port {
        PortMatch::Any => protocol,
        PortMatch::Range(first, last) if first == last => format!("{protocol}/{first}"),
        PortMatch::Range(first, last) => format!("{protocol}/{first}-{last}"),
        PortMatch::Name(name) => format!("{protocol}/{name}"),
    }
}

fn map(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

fn endpoints(selector: &EndpointSelector) -> String {
    let scope = selector.namespace.as_ref().map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    format!("{}{scope}", requirements(&selector.requirements))
}

fn plain(selector: &Selector) -> String {
    requirements(&selector.requirements)
}

fn requirements(requirements: &[Requirement]) -> String {
    let show = |requirement: &Requirement| match requirement {
        Requirement::In(key, values) => format!("{key} In {values:?}"),
        Requirement::NotIn(key, values) => format!("{key} NotIn {values:?}"),
        Requirement::Exists(key) => format!("{key} Exists"),
        Requirement::DoesNotExist(key) => format!("{key} DoesNotExist"),
    };
    format!("{{{}}}", requirements.iter().map(show).collect::<Vec<_>>().join(", "))
}
