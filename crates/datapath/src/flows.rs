//! Tracked connections.

use crate::map::TypedMap;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use weft_abi::{Addr, FlowEntry, FlowKey, FragmentKey, FragmentValue, flow_flags, flow_kind};
use weft_model::desired::DataplaneError;

/// No count has been taken yet.
const NOT_COUNTED: u64 = u64::MAX;

/// The table of connections. Cheap to clone, usable by any thread.
#[derive(Clone, Debug)]
pub struct Flows {
    map: TypedMap<FlowKey, FlowEntry>,
    fragments: TypedMap<FragmentKey, FragmentValue>,
    /// As the collector last counted.
    counted: Arc<AtomicU64>,
}

/// One end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Address.
    pub address: IpAddr,
    /// Port; the id of an ICMP echo; 0 without ports.
    pub port: u16,
    /// Identity.
    pub identity: u32,
    /// Number of the local endpoint, 0: not local.
    pub endpoint: u16,
    /// Packets that it sent.
    pub packets: u64,
    /// Bytes of IP that it sent.
    pub bytes: u64,
}

/// A connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connection {
    /// IP protocol.
    pub protocol: u8,
    /// The originator.
    pub source: End,
    /// The responder.
    pub destination: End,
    /// Rule that let it out of the originator, 0: not isolated.
    pub egress_rule: u32,
    /// Rule that let it into the responder, 0: not isolated.
    pub ingress_rule: u32,
    /// Bits of [`flow_flags`].
    pub flags: u16,
    /// Monotonic seconds of the last packet.
    pub last_seen_s: u32,
    /// Revision of the decision.
    pub revision: u32,
    /// Address and port towards the outside, if masqueraded.
    pub masquerade: Option<(IpAddr, u16)>,
    /// The service's address and port that the originator sends to, if that is not the responder's.
    pub frontend: Option<(IpAddr, u16)>,
}

impl Flows {
    pub(crate) fn new(map: TypedMap<FlowKey, FlowEntry>, fragments: TypedMap<FragmentKey, FragmentValue>) -> Self {
        Self { map, fragments, counted: Arc::new(AtomicU64::new(NOT_COUNTED)) }
    }

    /// Connections, at most `max` of them.
    ///
    /// # Errors
    /// A system call failed.
    pub fn list(&self, max: usize) -> Result<Vec<Connection>, DataplaneError> {
        let mut connections = Vec::new();
        if max == 0 {
            return Ok(connections);
        }
        self.map.for_each(|key, entry| {
            let service = entry.flags & flow_flags::SERVICE != 0;
            if key.kind == flow_kind::FLOW && !service && entry.last_seen_s != FlowEntry::DELETING {
                connections.push(connection(key, entry));
            }
            connections.len() < max
        })?;
        Ok(connections)
    }

    /// Forgets everything of these addresses. Returns how many entries that were.
    ///
    /// # Errors
    /// A system call failed.
    pub fn remove_of(&self, addresses: &[IpAddr]) -> Result<usize, DataplaneError> {
        let addresses: HashSet<Addr> = addresses.iter().copied().map(Addr::from).collect();
        let mut stale = Vec::new();
        self.map.for_each(|key, entry| {
            // The inside of a masqueraded connection, the backend behind a frontend.
            let other_end = key.kind == flow_kind::NAT || entry.flags & flow_flags::SERVICE != 0;
            let inside = other_end && addresses.contains(&entry.nat_addr);
            // What the collector has claimed is its to remove.
            let claimed = entry.last_seen_s == FlowEntry::DELETING;
            if !claimed && (inside || addresses.contains(&key.low) || addresses.contains(&key.high)) {
                stale.push(*key);
            }
            true
        })?;
        let mut removed = 0;
        for key in &stale {
            removed += usize::from(self.map.remove(key)?);
        }
        let mut fragments = Vec::new();
        self.fragments.for_each(|key, _| {
            if addresses.contains(&key.source) || addresses.contains(&key.destination) {
                fragments.push(*key);
            }
            true
        })?;
        for key in &fragments {
            removed += usize::from(self.fragments.remove(key)?);
        }
        Ok(removed)
    }

    /// Entries in the table: as the collector last counted them, or counted now.
    ///
    /// # Errors
    /// A system call failed.
    pub fn len(&self) -> Result<u64, DataplaneError> {
        let counted = self.counted.load(Ordering::Relaxed);
        if counted != NOT_COUNTED {
            return Ok(counted);
        }
        let mut entries = 0;
        self.map.for_each(|_, _| {
            entries += 1;
            true
        })?;
        Ok(entries)
    }

    /// Whether there is none.
    ///
    /// # Errors
    /// A system call failed.
    pub fn is_empty(&self) -> Result<bool, DataplaneError> {
        Ok(self.len()? == 0)
    }

    pub(crate) fn entries_max(&self) -> u64 {
        u64::from(self.map.entries_max())
    }

    pub(crate) fn set_counted(&self, entries: u64) {
        self.counted.store(entries, Ordering::Relaxed);
    }
}

fn connection(key: &FlowKey, entry: &FlowEntry) -> Connection {
    let (low, high) = ((key.low, key.low_port_be), (key.high, key.high_port_be));
    let (source, destination) = if entry.flags & flow_flags::ORIGIN_LOW != 0 { (low, high) } else { (high, low) };
    let end = |(address, port_be): (Addr, u16), identity, endpoint, (packets, bytes)| End {
        address: address.into(),
        port: u16::from_be(port_be),
        identity,
        endpoint,
        packets,
        bytes,
    };
    Connection {
        protocol: key.protocol,
        source: end(source, entry.source_identity, entry.source_endpoint, (entry.forward_packets, entry.forward_bytes)),
        destination: end(
            destination,
            entry.destination_identity,
            entry.destination_endpoint,
            (entry.reply_packets, entry.reply_bytes),
        ),
        egress_rule: entry.egress_rule,
        ingress_rule: entry.ingress_rule,
        flags: entry.flags,
        last_seen_s: entry.last_seen_s,
        revision: entry.revision,
        masquerade: (entry.flags & flow_flags::MASQUERADED != 0)
            .then(|| (entry.nat_addr.into(), u16::from_be(entry.nat_port_be))),
        frontend: (entry.flags & flow_flags::TRANSLATED != 0)
            .then(|| (entry.frontend.into(), u16::from_be(entry.frontend_port_be))),
    }
}
