//! The network between the nodes: a routed namespace that stands for a cloud's virtual network.
//!
//! It carries a packet only if such a network would. Each node has a link of its own; what comes in by it must come
//! from the node's own addresses or, in native routing, from the pod prefixes that `Node.spec.podCIDRs` gives to that
//! very node, or that the cloud assigned to its interface. Pod addresses reach the outside only where they are of a
//! subnet for pods. Both families are filtered by the same kind of routing rules.
//!
//! Addresses of load balancers are taken to the nodes that the options name, which may answer with them. With IP
//! forwarding, as a cloud calls it, a node may send whatever source it likes, but still no pod's to the outside.

pub mod vnet;

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use weft_lab_config::options::{Config, FABRIC_V4, FABRIC_V6, OUTSIDE_V4, OUTSIDE_V6, Routing};
use weft_lab_config::paths::node_name;
use weft_sys::netlink::{Netlink, Rule, RuleAction, VethEnd, features};
use weft_sys::netns;

/// Of every link, as in most clouds.
pub const MTU: u32 = 1500;
/// Name of a node's link inside the node.
pub const NODE_LINK: &str = "eth0";
/// Name of the fabric's link to the outside.
const OUTSIDE_LINK: &str = "outside";

/// Priorities of the rules, in the order in which they are asked.
mod priority {
    pub const TO_OUTSIDE: u32 = 100;
    pub const NEVER_OUTSIDE: u32 = 110;
    pub const FORWARDED: u32 = 115;
    pub const OWN_SOURCE: u32 = 120;
    pub const ANY_SOURCE: u32 = 200;
}

/// Pod prefixes by node.
pub type PodCidrs = BTreeMap<String, Vec<IpNet>>;

/// Builds all namespaces and links; what exists already stays.
///
/// # Errors
/// Which step failed.
pub fn create(config: &Config) -> io::Result<()> {
    let paths = config.paths();
    let fabric = paths.fabric_netns();
    netns::create(&fabric)?;
    netns::create(&paths.outside_netns())?;
    netns::within(&netns::path(&fabric), || {
        forwarding();
        // Where several nodes serve an address: by connection, as load balancers do it.
        sysctl("ipv4/fib_multipath_hash_policy", "1");
        sysctl("ipv6/fib_multipath_hash_policy", "1");
        let mut netlink = Netlink::open()?;
        netlink.set_up("lo")?;
        for gateway in config.gateways() {
            netlink.add_address("lo", IpNet::from(gateway))?;
        }
        Ok(())
    })
    .map_err(during("the fabric"))?;
    for number in 1..=config.nodes {
        let name = node_name(number);
        netns::create(&paths.node_netns(&name))?;
        let addresses = config.node_addresses(number);
        link(&fabric, &name, &paths.node_netns(&name), &addresses, &config.gateways())
            .map_err(during(&format!("the link of {name}")))?;
    }
    if config.accelerates() {
        netns::within(&netns::path(&fabric), || config.node_names().iter().try_for_each(|name| for_drivers(name)))
            .map_err(during("links for acceleration (XDP)"))?;
    }
    link(&fabric, OUTSIDE_LINK, &paths.outside_netns(), &config.outside_addresses(), &config.gateways())
        .map_err(during("the link to the outside"))?;
    netns::within(&netns::path(&fabric), || routes(config)).map_err(during("the fabric's routes"))?;
    // Whoever watches the nodes corrects this; until then a fabric that already works goes on working.
    let carried = carried(config)?;
    apply(config, &carried)
}

/// Makes the fabric's end of a node's link a network card's peer: it takes what the driver of the other end sends before
/// the kernel makes a packet of it, and leaves no checksum for others to fill in.
fn for_drivers(link: &str) -> io::Result<()> {
    features::set(link, &[("rx-gro", true), ("tx-checksum-ip-generic", false)])
}

/// Routes that do not change: to the whole outside by its only host, and to the nodes that serve other addresses.
fn routes(config: &Config) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    for address in config.outside_addresses() {
        netlink.add_route(outside(address.is_ipv6()), OUTSIDE_LINK, Some(address), None)?;
    }
    for route in &config.fabric_routes {
        let names: Vec<String> = route.nodes.iter().map(|n| node_name(*n)).collect();
        let hops: Vec<(&str, IpAddr)> = names
            .iter()
            .zip(&route.nodes)
            .flat_map(|(name, number)| config.node_addresses(*number).into_iter().map(|a| (name.as_str(), a)))
            .filter(|(_, address)| address.is_ipv6() == route.to.addr().is_ipv6())
            .collect();
        netlink.add_shared_route(route.to, &hops)?;
    }
    Ok(())
}

fn outside(v6: bool) -> IpNet {
    if v6 { IpNet::V6(OUTSIDE_V6) } else { IpNet::V4(OUTSIDE_V4) }
}

/// The pod prefixes that the fabric carries now.
fn carried(config: &Config) -> io::Result<PodCidrs> {
    netns::within(&netns::path(&config.paths().fabric_netns()), || {
        let mut netlink = Netlink::open()?;
        let mut carried = PodCidrs::new();
        for v6 in [false, true] {
            for rule in netlink.rules(v6)? {
                if let (priority::OWN_SOURCE, Some(from)) = (rule.priority, rule.from)
                    && rule.iif != OUTSIDE_LINK
                    && !is_node(config, from)
                {
                    carried.entry(rule.iif).or_default().push(from);
                }
            }
        }
        Ok(carried)
    })
}

fn during(what: &str) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

/// A sysctl of the calling thread's namespace. A kernel without one family lacks its settings, and needs none.
fn sysctl(name: &str, value: &str) {
    let _ = fs::write(format!("/proc/sys/net/{name}"), value);
}

fn forwarding() {
    sysctl("ipv4/ip_forward", "1");
    sysctl("ipv6/conf/all/forwarding", "1");
    sysctl("ipv6/conf/default/forwarding", "1");
    sysctl("ipv6/conf/all/accept_ra", "0");
    sysctl("ipv6/conf/default/accept_ra", "0");
    sysctl("ipv6/conf/default/accept_dad", "0");
}

/// One veth pair between the fabric (end `name`) and `netns` (end [`NODE_LINK`]), with addresses and routes.
fn link(fabric: &str, name: &str, other: &str, addresses: &[IpAddr], gateways: &[IpAddr]) -> io::Result<()> {
    let near_file = fs::File::open(netns::path(fabric))?;
    let far_file = fs::File::open(netns::path(other))?;
    let exists = netns::within(&netns::path(fabric), || Ok(Netlink::open()?.index(name).is_ok()))?;
    if !exists {
        // A half-made pair from an interrupted attempt is not possible: the kernel makes both ends or none.
        netns::within(&netns::path(fabric), || {
            Netlink::open()?.add_veth(
                &VethEnd { name, netns: near_file.as_fd() },
                &VethEnd { name: NODE_LINK, netns: far_file.as_fd() },
                MTU,
            )
        })?;
    }
    netns::within(&netns::path(other), || {
        forwarding();
        let mut netlink = Netlink::open()?;
        netlink.set_up("lo")?;
        for address in addresses {
            netlink.add_address(NODE_LINK, IpNet::from(*address))?;
        }
        netlink.set_up(NODE_LINK)
    })?;
    netns::within(&netns::path(fabric), || {
        // The routing rules say who may send from which link, for both families: a second look at IPv4's sources would
        // only be slower.
        for part in ["all", "default", name] {
            sysctl(&format!("ipv4/conf/{part}/rp_filter"), "0");
        }
        let mut netlink = Netlink::open()?;
        for gateway in gateways {
            netlink.add_address(name, IpNet::from(*gateway))?;
        }
        netlink.set_up(name)?;
        for address in addresses {
            netlink.add_route(IpNet::from(*address), name, None, None)?;
        }
        Ok(())
    })?;
    netns::within(&netns::path(other), || {
        let mut netlink = Netlink::open()?;
        for gateway in gateways {
            let source = addresses.iter().find(|a| a.is_ipv4() == gateway.is_ipv4()).copied();
            let everything = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            let everything = everything.parse().expect("a prefix");
            netlink.add_route(everything, NODE_LINK, Some(*gateway), source)?;
        }
        Ok(())
    })
}

/// Makes the fabric carry exactly these pod prefixes (none in VXLAN mode), and nobody's else.
///
/// # Errors
/// What the kernel says.
pub fn apply(config: &Config, pod_cidrs: &PodCidrs) -> io::Result<()> {
    let none = PodCidrs::new();
    let wanted = if config.routing == Routing::Native { pod_cidrs } else { &none };
    let file = netns::path(&config.paths().fabric_netns());
    netns::within(&file, || {
        let mut netlink = Netlink::open()?;
        let rules = rules(config, wanted);
        for v6 in [false, true] {
            let have: BTreeSet<Rule> = netlink.rules(v6)?.into_iter().collect();
            let want: BTreeSet<Rule> = rules.iter().filter(|r| r.v6 == v6).cloned().collect();
            // The dropping rules come first and go last, so that no moment is more open than it should be.
            for rule in want.difference(&have).filter(|r| r.action == RuleAction::Blackhole) {
                netlink.add_rule(rule)?;
            }
            for rule in want.difference(&have).filter(|r| r.action == RuleAction::Main) {
                netlink.add_rule(rule)?;
            }
            for rule in have.difference(&want) {
                netlink.delete_rule(rule)?;
                if let (Some(from), RuleAction::Main) = (rule.from, rule.action)
                    && rule.priority == priority::OWN_SOURCE
                    && rule.iif != OUTSIDE_LINK
                    && !is_node(config, from)
                {
                    netlink.delete_route(from, &rule.iif)?;
                }
            }
        }
        for number in 1..=config.nodes {
            let node = node_name(number);
            for net in wanted.get(&node).into_iter().flatten() {
                // By way of the node: nobody answers for a pod's address on the link itself.
                let addresses = config.node_addresses(number);
                let via = addresses.into_iter().find(|a| a.is_ipv6() == net.addr().is_ipv6());
                netlink.add_route(*net, &node, via, None)?;
            }
        }
        Ok(())
    })
}

/// A node's own address. Pods' may lie in the same network.
fn is_node(config: &Config, net: IpNet) -> bool {
    (1..=config.nodes).flat_map(|number| config.node_addresses(number)).any(|address| IpNet::from(address) == net)
}

/// All rules that should be there.
fn rules(config: &Config, pod_cidrs: &PodCidrs) -> Vec<Rule> {
    let mut rules = Vec::new();
    for number in 1..=config.nodes {
        let node = node_name(number);
        let no_prefixes = Vec::new();
        let pods = pod_cidrs.get(&node).unwrap_or(&no_prefixes);
        for address in config.node_addresses(number) {
            let v6 = address.is_ipv6();
            let own = Some(IpNet::from(address));
            let outside = Some(outside(v6));
            let rule = |priority, from, to, action| Rule { priority, iif: node.clone(), v6, from, to, action };
            rules.push(rule(priority::TO_OUTSIDE, own, outside, RuleAction::Main));
            for route in config.fabric_routes.iter().filter(|r| r.nodes.contains(&number)) {
                if route.to.addr().is_ipv6() == v6 {
                    rules.push(rule(priority::TO_OUTSIDE, Some(route.to), outside, RuleAction::Main));
                }
            }
            if config.ip_forwarding {
                for net in config.pod_cidrs.iter().filter(|n| n.addr().is_ipv6() == v6) {
                    rules.push(rule(priority::NEVER_OUTSIDE, Some(*net), outside, RuleAction::Blackhole));
                }
                rules.push(rule(priority::FORWARDED, None, None, RuleAction::Main));
            } else {
                rules.push(rule(priority::NEVER_OUTSIDE, None, outside, RuleAction::Blackhole));
            }
            rules.push(rule(priority::OWN_SOURCE, own, None, RuleAction::Main));
            for net in pods.iter().filter(|n| n.addr().is_ipv6() == v6) {
                if config.ipam.routable() {
                    // The world knows these addresses.
                    rules.push(rule(priority::TO_OUTSIDE, Some(*net), outside, RuleAction::Main));
                }
                rules.push(rule(priority::OWN_SOURCE, Some(*net), None, RuleAction::Main));
            }
            rules.push(rule(priority::ANY_SOURCE, None, None, RuleAction::Blackhole));
        }
    }
    for address in config.outside_addresses() {
        let v6 = address.is_ipv6();
        let fabric = if v6 { IpNet::V6(FABRIC_V6) } else { IpNet::V4(FABRIC_V4) };
        let rule = |priority, from, to, action| Rule { priority, iif: OUTSIDE_LINK.into(), v6, from, to, action };
        let served = config.fabric_routes.iter().map(|r| r.to).chain(config.pod_subnets.iter().copied());
        let served = served.filter(|n| n.addr().is_ipv6() == v6);
        for to in std::iter::once(fabric).chain(served) {
            rules.push(rule(priority::OWN_SOURCE, Some(outside(v6)), Some(to), RuleAction::Main));
        }
        rules.push(rule(priority::ANY_SOURCE, None, None, RuleAction::Blackhole));
    }
    rules
}

/// Removes all namespaces of the cluster, with the links in them. Absent is fine.
///
/// # Errors
/// What the kernel says.
pub fn remove(paths: &weft_lab_config::paths::Paths) -> io::Result<()> {
    for name in netns::list().iter().filter(|n| paths.owns_netns(n)) {
        netns::remove(name)?;
    }
    Ok(())
}
