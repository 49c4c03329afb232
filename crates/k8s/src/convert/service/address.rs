//! Addresses that a Service may be reached at, and that may stand behind it.

use super::super::address::parse_prefix;
use super::super::field::{Path, Read};
use super::super::objects::address;
use ipnet::IpNet;
use std::net::IpAddr;

pub(super) fn inner_address(path: Path<'_>, text: &str) -> Read<IpAddr> {
    let address = address(&path.to_string(), text)?;
    match nobody(address) {
        Some(what) => path.fail(format!("{text}, expected an address that hosts can have, not {what}")),
        None => Ok(address),
    }
}

/// One that packets from outside may come to, or that a backend may have. An address of a single link or of every
/// machine itself must not be taken over for a whole cluster.
pub(super) fn external_address(path: Path<'_>, text: &str) -> Read<IpAddr> {
    let address = inner_address(path, text)?;
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local {
        return path.fail(format!("{text}, expected an address that is routed, not a link-local one"));
    }
    Ok(address)
}

/// What kind of address it is, if no host can be meant by it.
pub(in crate::convert) fn nobody(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("the unspecified one"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        _ => None,
    }
}

pub(super) fn source_range(path: Path<'_>, text: &str) -> Read<IpNet> {
    parse_prefix(path, text.trim())
}

/// Each once, in their order.
pub(super) fn distinct<T: Copy + PartialEq>(values: Vec<T>) -> Vec<T> {
    let mut distinct: Vec<T> = Vec::new();
    for value in values {
        if !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}
