//! Prefixes and ports, as several kinds write them.

use super::field::{Path, Read, each, list, string};
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::net::IpAddr;

pub(super) fn prefix(path: Path<'_>, value: &Value) -> Read<IpNet> {
    parse_prefix(path, string(path, value)?)
}

pub(super) fn parse_prefix(path: Path<'_>, text: &str) -> Read<IpNet> {
    match text.parse::<IpNet>() {
        Ok(net) => checked(path, text, net),
        Err(_) => path.fail(format!("{text:?}, expected a prefix such as 192.0.2.0/24 or 2001:db8::/32")),
    }
}

/// A prefix, or an address, which is a prefix of one.
pub(super) fn prefix_or_address(path: Path<'_>, value: &Value) -> Read<IpNet> {
    let text = string(path, value)?;
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    match net {
        Some(net) => checked(path, text, net),
        None => path.fail(format!("{text:?}, expected a prefix such as 192.0.2.0/24 or 2001:db8::/32, or an address")),
    }
}

fn checked(path: Path<'_>, text: &str, net: IpNet) -> Read<IpNet> {
    // Bits behind the prefix do not count, as in the API server.
    let net = net.trunc();
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return path.fail(format!("{text:?} is made of IPv4 addresses in IPv6 form, expected an IPv4 prefix"));
    }
    Ok(net)
}

/// The prefixes in `except`, each inside `cidr`.
pub(super) fn except(path: Path<'_>, map: &Map<String, Value>, cidr: IpNet) -> Read<Vec<IpNet>> {
    let items = list(path, map, "except")?.unwrap_or_default();
    each(Path::Field(&path, "except"), items, |at, item| {
        let inner = prefix(at, item)?;
        if !cidr.contains(&inner) {
            return at.fail(format!("{inner} is not inside {cidr}"));
        }
        Ok(inner)
    })
}

/// Whether a text is a port's name (RFC 6335): at most 15 letters, digits and single `-`, with a letter, no `-` at an
/// end.
pub(super) fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && name.bytes().any(|byte| byte.is_ascii_alphabetic())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}
