//! Baselines: namespaces joined by veths with plain kernel routing, no firewall, no connection tracking.

use crate::netns::{Owned, inside, ip};
use anyhow::Result;
use std::net::IpAddr;

/// Two ends and the routers between them.
pub struct Chain {
    spaces: Vec<Owned>,
    /// Addresses of the serving end.
    pub server: [IpAddr; 2],
}

impl Chain {
    /// Client, `routers` routing namespaces, server. Every link has a /24 and a /64 of its own.
    pub fn new(name: &str, routers: usize) -> Result<Self> {
        let count = routers + 2;
        let mut spaces = Vec::with_capacity(count);
        for n in 0..count {
            spaces.push(Owned::new(&format!("{name}{n}"))?);
        }
        for left in 0..count - 1 {
            let (a, b) = (spaces[left].name(), spaces[left + 1].name());
            ip(&format!("link add r{left} netns {a} type veth peer name l{left} netns {b}"))?;
            for (space, device, host) in [(a, 'r', 1), (b, 'l', 2)] {
                ip(&format!("-n {space} addr add 10.99.{left}.{host}/24 dev {device}{left}"))?;
                ip(&format!("-n {space} addr add fd99:{left}::{host}/64 dev {device}{left} nodad"))?;
                ip(&format!("-n {space} link set {device}{left} up"))?;
            }
        }
        for (n, space) in spaces.iter().enumerate() {
            if n + 1 < count {
                for to in n + 1..count - 1 {
                    ip(&format!("-n {} route add 10.99.{to}.0/24 via 10.99.{n}.2", space.name()))?;
                    ip(&format!("-n {} -6 route add fd99:{to}::/64 via fd99:{n}::2", space.name()))?;
                }
            }
            for to in 0..n.saturating_sub(1) {
                let link = n - 1;
                ip(&format!("-n {} route add 10.99.{to}.0/24 via 10.99.{link}.1", space.name()))?;
                ip(&format!("-n {} -6 route add fd99:{to}::/64 via fd99:{link}::1", space.name()))?;
            }
            if n > 0 && n + 1 < count {
                inside(&space.path(), || {
                    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
                    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
                    Ok(())
                })?;
            }
        }
        let last = count - 2;
        let server = [format!("10.99.{last}.2").parse()?, format!("fd99:{last}::2").parse()?];
        Ok(Self { spaces, server })
    }

    /// Where the client runs.
    pub fn client_ns(&self) -> std::path::PathBuf {
        self.spaces[0].path()
    }

    /// Name of the client's namespace.
    pub fn client_name(&self) -> &str {
        self.spaces[0].name()
    }

    /// The first router.
    pub fn router_ns(&self) -> std::path::PathBuf {
        self.spaces[1].path()
    }

    /// Where the server runs.
    pub fn server_ns(&self) -> std::path::PathBuf {
        self.spaces[self.spaces.len() - 1].path()
    }
}
