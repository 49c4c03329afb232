//! Services in the maps of the programs under test.

use super::kernel::{Kernel, RangeData};
use super::site::addr;
use anyhow::{Context, Result};
use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use weft_abi::{
    Addr, BackendInfo, FrontendInfo, FrontendKey, MaglevKey, MaglevPart, SlotKey, backend_flags, service_flags,
};

/// A backend: number, address, port.
pub type Backend<'a> = (u32, &'a str, u16);

/// The key of a frontend; the unspecified address stands for the node's own.
#[must_use]
pub fn frontend(address: &str, port: u16, protocol: u8) -> FrontendKey {
    let any = matches!(address, "0.0.0.0" | "::");
    let any_addr = if address == "::" { FrontendKey::ANY_V6 } else { FrontendKey::ANY_V4 };
    let addr = if any { any_addr } else { addr(address) };
    FrontendKey { addr, port_be: port.to_be(), protocol, pad: 0 }
}

/// The value of a backend.
#[must_use]
pub fn backend(service: u32, protocol: u8, (id, address, port): Backend<'_>) -> BackendInfo {
    BackendInfo { addr: addr(address), id, service, port_be: port.to_be(), flags: 0, protocol, pad: [0; 3] }
}

/// Writes a set of backends and each of them by its number.
///
/// # Errors
/// If a map refuses.
pub fn put_set(kernel: &mut Kernel, set: u32, backends: &[BackendInfo]) -> Result<()> {
    for (slot, backend) in backends.iter().enumerate() {
        kernel.backends.insert(backend.id, *backend, 0)?;
        kernel.slots.insert(SlotKey { set, slot: u32::try_from(slot)? }, *backend, 0)?;
    }
    Ok(())
}

/// Removes a set. Its backends stay.
///
/// # Errors
/// If the map refuses.
pub fn remove_set(kernel: &mut Kernel, set: u32) -> Result<()> {
    for key in kernel.slots.keys().collect::<Result<Vec<_>, _>>()? {
        if key.set == set {
            kernel.slots.remove(&key)?;
        }
    }
    Ok(())
}

/// Writes Maglev's table of a set.
///
/// # Errors
/// If the map refuses.
pub fn put_table(kernel: &mut Kernel, set: u32, table: &[u16]) -> Result<()> {
    for (part, entries) in table.chunks(MaglevPart::ENTRIES).enumerate() {
        let mut value = MaglevPart([0; MaglevPart::ENTRIES]);
        value.0[..entries.len()].copy_from_slice(entries);
        kernel.maglev.insert(MaglevKey { set, part: u32::try_from(part)? }, value, 0)?;
    }
    Ok(())
}

/// Writes a service: one frontend, the same backends for clients inside and outside. The set has the service's number.
///
/// # Errors
/// If a map refuses.
pub fn put_service(
    kernel: &mut Kernel,
    service: u32,
    key: FrontendKey,
    flags: u32,
    backends: &[Backend<'_>],
) -> Result<FrontendInfo> {
    let backends: Vec<_> = backends.iter().map(|one| backend(service, key.protocol, *one)).collect();
    put_set(kernel, service, &backends)?;
    let count = u32::try_from(backends.len())?;
    let info = FrontendInfo {
        service,
        flags,
        internal_set: service,
        internal_count: count,
        external_set: service,
        external_count: count,
        affinity_s: 0,
        internal_table: 0,
        external_table: 0,
    };
    kernel.frontends.insert(key, info, 0)?;
    Ok(info)
}

/// A ClusterIP service.
///
/// # Errors
/// If a map refuses.
pub fn put_cluster_ip(
    kernel: &mut Kernel,
    service: u32,
    key: FrontendKey,
    backends: &[Backend<'_>],
) -> Result<FrontendInfo> {
    put_service(kernel, service, key, service_flags::CLUSTER_IP, backends)
}

/// Marks a backend as one that ends.
///
/// # Errors
/// If it is not there.
pub fn terminate(kernel: &mut Kernel, id: u32) -> Result<()> {
    let mut backend = kernel.backends.get(&id, 0).context("the backend")?;
    backend.flags |= backend_flags::TERMINATING;
    Ok(kernel.backends.insert(id, backend, 0)?)
}

/// Lets the clients of a prefix use a service.
///
/// # Errors
/// If the map refuses.
pub fn put_range(kernel: &mut Kernel, service: u32, text: &str) -> Result<()> {
    let net: IpNet = text.parse()?;
    let bits = u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
    let data = RangeData { service_be: service.to_be(), addr: Addr::from(net.network()) };
    Ok(kernel.ranges.insert(&Key::new(32 + bits, data), 1, 0)?)
}
