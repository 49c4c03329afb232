//! What the fabric knows beside nodes and pods: prefixes that it takes to nodes, and zones.

use super::{Config, FABRIC_V4, FABRIC_V6, OUTSIDE_V4, OUTSIDE_V6, OptionError, overlap, wrong};
use crate::paths::node_name;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A prefix that the fabric takes to nodes: addresses of load balancers, `externalIPs`. These nodes, and no others, may
/// answer with its addresses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FabricRoute {
    /// Where to.
    pub to: IpNet,
    /// Numbers of the nodes; connections are spread over several.
    pub nodes: Vec<u8>,
}

impl std::fmt::Display for FabricRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes: Vec<String> = self.nodes.iter().map(|n| node_name(*n)).collect();
        write!(f, "{}={}", self.to, nodes.join(","))
    }
}

const ROUTE: &str = "fabric-route";

/// Reads `CIDR=NODE[,NODE...]`; the same prefix again adds nodes.
pub(super) fn parse_routes(given: &[String], config: &Config) -> Result<Vec<FabricRoute>, OptionError> {
    let mut routes: Vec<FabricRoute> = Vec::new();
    for text in given {
        let expected = || wrong(ROUTE, text, "expected CIDR=NODE, such as 203.0.113.0/24=node-1");
        let (prefix, nodes) = text.split_once('=').ok_or_else(expected)?;
        let to: IpNet = prefix.parse().map_err(|_| expected())?;
        if to != to.trunc() {
            return Err(wrong(ROUTE, text, format!("has bits behind its length; expected {}", to.trunc())));
        }
        let on = if to.addr().is_ipv4() { config.ipv4 } else { config.ipv6 };
        if !on {
            return Err(wrong(ROUTE, text, "is of a family that --ip-families leaves out"));
        }
        let fixed = [IpNet::V4(FABRIC_V4), IpNet::V6(FABRIC_V6), IpNet::V4(OUTSIDE_V4), IpNet::V6(OUTSIDE_V6)];
        let others = fixed.iter().chain(&config.pod_cidrs).chain(&config.service_cidrs);
        if let Some(other) = others.into_iter().find(|o| overlap(o, &to)) {
            return Err(wrong(ROUTE, text, format!("overlaps with {other}, which has its place already")));
        }
        let known = config.node_names();
        let at = match routes.iter().position(|r| r.to == to) {
            Some(at) => at,
            None => {
                routes.push(FabricRoute { to, nodes: Vec::new() });
                routes.len() - 1
            }
        };
        for node in nodes.split(',') {
            let number = known.iter().position(|n| n == node).and_then(|n| u8::try_from(n + 1).ok());
            let number = number.ok_or_else(|| {
                wrong(ROUTE, text, format!("expected nodes from node-1 to {}", node_name(config.nodes)))
            })?;
            if !routes[at].nodes.contains(&number) {
                routes[at].nodes.push(number);
            }
        }
    }
    Ok(routes)
}

/// Reads names of zones.
pub(super) fn parse_zones(given: &[String]) -> Result<Vec<String>, OptionError> {
    let mut zones = Vec::new();
    for zone in given.iter().flat_map(|g| g.split(',')).map(str::trim) {
        if zone.is_empty() || crate::names::label_value(zone).is_err() {
            return Err(wrong("zones", zone, "expected names that a label can hold, separated by commas"));
        }
        zones.push(zone.to_owned());
    }
    Ok(zones)
}

impl Config {
    /// The zone of the nth node, counting from 1: the zones are given to the nodes in turn.
    #[must_use]
    pub fn zone(&self, number: u8) -> Option<&str> {
        let index = usize::from(number.checked_sub(1)?).checked_rem(self.zones.len())?;
        self.zones.get(index).map(String::as_str)
    }
}
