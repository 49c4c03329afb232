//! The listing of Services in force for `weft service list`.

use super::engine::Engine;
use super::interface::{ListedBackend, ListedPort};
use std::collections::BTreeSet;
use std::net::IpAddr;
use weft_model::desired::{BackendId, Frontend, FrontendEntry, SetId};
use weft_model::intent::{Algorithm, Protocol};

/// `10.96.0.1:80/TCP`.
pub(super) fn frontend(frontend: &Frontend) -> String {
    let protocol = match frontend.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        _ => "SCTP",
    };
    match frontend.address {
        address if address.is_unspecified() => {
            let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
            format!("node port {}/{protocol} ({family})", frontend.port)
        }
        IpAddr::V4(address) => format!("{address}:{}/{protocol}", frontend.port),
        IpAddr::V6(address) => format!("[{address}]:{}/{protocol}", frontend.port),
    }
}

impl Engine {
    /// All ports in force, ordered by object.
    #[must_use]
    pub fn list(&self) -> Vec<ListedPort> {
        let tables = self.held.tables();
        let members = |set: Option<SetId>| set.and_then(|set| tables.sets.get(&set)).map(|set| &set.backends);
        let mut list = Vec::new();
        for (object, own) in &self.objects {
            for ((port, protocol), id) in &own.ports {
                let Some(rows) = self.held.of_service(*id) else { continue };
                let frontends: Vec<(Frontend, FrontendEntry)> =
                    rows.frontends.iter().filter_map(|key| Some((*key, *tables.frontends.get(key)?))).collect();
                let (mut internal, mut external) = (BTreeSet::<BackendId>::new(), BTreeSet::<BackendId>::new());
                for (_, entry) in &frontends {
                    internal.extend(members(entry.internal).into_iter().flatten());
                    external.extend(members(entry.external).into_iter().flatten());
                }
                let backends = rows.backends.iter().filter_map(|id| {
                    let entry = *tables.backends.get(id)?;
                    Some(ListedBackend { entry, internal: internal.contains(id), external: external.contains(id) })
                });
                let mut backends: Vec<ListedBackend> = backends.collect();
                backends.sort_by_key(|backend| (backend.entry.address, backend.entry.port));
                let hashed = rows.sets.iter().any(|set| tables.sets.get(set).is_some_and(|set| !set.table.is_empty()));
                let algorithm = if hashed { Algorithm::Maglev } else { Algorithm::Random };
                list.push(ListedPort {
                    object: (**object).clone(),
                    port: *port,
                    protocol: *protocol,
                    frontends,
                    backends,
                    algorithm,
                });
            }
        }
        list
    }
}
