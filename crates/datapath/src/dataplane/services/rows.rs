//! Frontends, backends and source ranges as rows of their maps, and back.

use crate::cidr;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr};
use weft_abi::{BackendInfo, FrontendInfo, FrontendKey, LpmKey, RangeKey, backend_flags, service_flags};
use weft_model::desired::{BackendEntry, BackendId, Frontend, FrontendEntry, FrontendKind, ServiceId, SetId};
use weft_model::intent::{Forwarding, Protocol};

/// Bits of a range's key before the address.
const SERVICE_BITS: u32 = 32;

/// How large a set is, which its frontends' rows say.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Shape {
    /// Backends.
    pub count: u32,
    /// Entries of Maglev's table.
    pub table: u32,
}

pub(super) fn frontend_key(frontend: &Frontend) -> FrontendKey {
    FrontendKey {
        addr: frontend.address.into(),
        port_be: frontend.port.to_be(),
        protocol: frontend.protocol.number(),
        pad: 0,
    }
}

/// `None`: no key that [`frontend_key`] makes.
pub(super) fn frontend(key: &FrontendKey) -> Option<Frontend> {
    let protocol = protocol(key.protocol)?;
    (key.pad == 0).then(|| Frontend { address: key.addr.into(), port: u16::from_be(key.port_be), protocol })
}

/// `shape` of the sets that the entry names.
pub(super) fn frontend_info(entry: &FrontendEntry, shape: impl Fn(SetId) -> Shape) -> FrontendInfo {
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    let kind = match entry.kind {
        FrontendKind::ClusterIp => service_flags::CLUSTER_IP,
        FrontendKind::NodePort => service_flags::NODE_PORT,
        FrontendKind::HostPort => service_flags::HOST_PORT,
        FrontendKind::LoadBalancer => service_flags::LOAD_BALANCER,
        FrontendKind::ExternalIp => service_flags::EXTERNAL_IP,
        FrontendKind::Redirect => service_flags::REDIRECT,
    };
    let internal = entry.internal.map(&shape).unwrap_or_default();
    let external = entry.external.map(&shape).unwrap_or_default();
    FrontendInfo {
        service: entry.service.0,
        flags: kind
            | flag(entry.source_ranges, service_flags::SOURCE_RANGES)
            | flag(entry.external_local, service_flags::EXTERNAL_LOCAL)
            | flag(entry.internal_local, service_flags::INTERNAL_LOCAL)
            | flag(entry.forwarding == Forwarding::Dsr, service_flags::DSR)
            | flag(entry.skip_from_backend, service_flags::SKIP_FROM_BACKEND),
        internal_set: entry.internal.map_or(0, |set| set.0),
        internal_count: internal.count,
        external_set: entry.external.map_or(0, |set| set.0),
        external_count: external.count,
        affinity_s: entry.affinity_s.unwrap_or(0),
        internal_table: internal.table,
        external_table: external.table,
    }
}

/// `None`: no row that [`frontend_info`] makes. Whether its sets are as large as it says is another question.
pub(super) fn frontend_entry(info: &FrontendInfo) -> Option<FrontendEntry> {
    let has = |bit: u32| info.flags & bit != 0;
    let kind = match info.flags & service_flags::KIND {
        service_flags::CLUSTER_IP => FrontendKind::ClusterIp,
        service_flags::NODE_PORT => FrontendKind::NodePort,
        service_flags::HOST_PORT => FrontendKind::HostPort,
        service_flags::LOAD_BALANCER => FrontendKind::LoadBalancer,
        service_flags::EXTERNAL_IP => FrontendKind::ExternalIp,
        service_flags::REDIRECT => FrontendKind::Redirect,
        _ => return None,
    };
    let entry = FrontendEntry {
        service: ServiceId(info.service),
        kind,
        internal: (info.internal_set != 0).then_some(SetId(info.internal_set)),
        external: (info.external_set != 0).then_some(SetId(info.external_set)),
        affinity_s: (info.affinity_s != 0).then_some(info.affinity_s),
        forwarding: if has(service_flags::DSR) { Forwarding::Dsr } else { Forwarding::Snat },
        source_ranges: has(service_flags::SOURCE_RANGES),
        external_local: has(service_flags::EXTERNAL_LOCAL),
        internal_local: has(service_flags::INTERNAL_LOCAL),
        skip_from_backend: has(service_flags::SKIP_FROM_BACKEND),
    };
    let shape = |set: SetId| {
        if set.0 == info.internal_set {
            Shape { count: info.internal_count, table: info.internal_table }
        } else {
            Shape { count: info.external_count, table: info.external_table }
        }
    };
    (frontend_info(&entry, shape) == *info).then_some(entry)
}

pub(super) fn backend_info(id: BackendId, entry: &BackendEntry) -> BackendInfo {
    BackendInfo {
        addr: entry.address.into(),
        id: id.0,
        service: entry.service.0,
        port_be: entry.port.to_be(),
        flags: if entry.local { backend_flags::LOCAL } else { 0 }
            | if entry.terminating { backend_flags::TERMINATING } else { 0 },
        protocol: entry.protocol.number(),
        pad: [0; 3],
    }
}

/// `None`: no row that [`backend_info`] makes.
pub(super) fn backend_entry(info: &BackendInfo) -> Option<BackendEntry> {
    let entry = BackendEntry {
        service: ServiceId(info.service),
        address: IpAddr::from(info.addr),
        port: u16::from_be(info.port_be),
        protocol: protocol(info.protocol)?,
        local: info.flags & backend_flags::LOCAL != 0,
        terminating: info.flags & backend_flags::TERMINATING != 0,
    };
    (backend_info(BackendId(info.id), &entry) == *info).then_some(entry)
}

pub(super) fn range_key(service: ServiceId, range: IpNet) -> RangeKey {
    let key = cidr::key(range);
    RangeKey { prefix_len: SERVICE_BITS + key.prefix_len, service_be: service.0.to_be(), addr: key.addr }
}

/// `None`: no key that [`range_key`] makes.
pub(super) fn range(key: &RangeKey) -> Option<(ServiceId, IpNet)> {
    let prefix = LpmKey { prefix_len: key.prefix_len.checked_sub(SERVICE_BITS)?, addr: key.addr };
    let range = (ServiceId(u32::from_be(key.service_be)), cidr::cidr(prefix)?);
    (range_key(range.0, range.1) == *key).then_some(range)
}

/// All of IPv4 in the ranges of a service.
pub(super) fn all_v4(service: ServiceId) -> RangeKey {
    let all = cidr::V4_ALL;
    RangeKey { prefix_len: SERVICE_BITS + all.prefix_len, service_be: service.0.to_be(), addr: all.addr }
}

/// Whether a prefix is IPv6 and so short that its key matches IPv4 addresses.
pub(super) fn reaches_v4(range: IpNet) -> bool {
    matches!(range, IpNet::V6(v6) if v6.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()))
}

fn protocol(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.number() == number)
}
