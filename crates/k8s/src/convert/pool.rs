//! Pools of pod addresses, and which of them pods ask for.

use super::address::prefix;
use super::field::{self, Path, Read, each, get, list, number, required};
use super::problem::Problems;
use super::selector::plain;
use crate::wire::WirePool;
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use weft_model::intent::PoolRequest;
use weft_model::selector::Selector;

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Pool {
    pub name: String,
    pub cidrs: Vec<IpNet>,
    /// Length of what nodes get of it.
    pub mask_v4: Option<u8>,
    /// Length of what nodes get of it.
    pub mask_v6: Option<u8>,
    /// Which pods it is for, unless they say otherwise; `None`: those that ask for it.
    pub pods: Option<Selector>,
    pub namespaces: Option<Selector>,
}

/// Annotation of pods and namespaces: the pool of both families.
const POOL: &str = "ipam.cilium.io/ip-pool";
/// The pool of IPv4 addresses.
const POOL_V4: &str = "ipam.cilium.io/ipv4-pool";
/// The pool of IPv6 addresses.
const POOL_V6: &str = "ipam.cilium.io/ipv6-pool";
/// Annotation of pods and namespaces: no address rather than one of the default pool.
const REQUIRE: &str = "ipam.cilium.io/require-pool-match";

/// What the annotations of a pod or namespace ask for. The one of a family beats the one of both.
pub(super) fn wish(annotations: &BTreeMap<String, String>) -> PoolRequest {
    let named = |key: &str| annotations.get(key).or_else(|| annotations.get(POOL)).filter(|name| !name.is_empty());
    PoolRequest {
        v4: named(POOL_V4).cloned(),
        v6: named(POOL_V6).cloned(),
        required: annotations.get(REQUIRE).is_some_and(|text| text == "true"),
    }
}

pub fn pool(object: WirePool) -> Result<Pool, Problems> {
    let path = Path::Root("spec");
    let spec = field::object(path, &object.spec, &["ipv4", "ipv6", "podSelector", "namespaceSelector"])?;
    let (mut cidrs, mask_v4) = family(path, spec, "ipv4", true)?;
    let (more, mask_v6) = family(path, spec, "ipv6", false)?;
    cidrs.extend(more);
    if cidrs.is_empty() {
        return path.fail("expected ipv4 or ipv6 with at least one prefix");
    }
    let selector = |name: &'static str| get(spec, name).map(|value| plain(Path::Field(&path, name), value)).transpose();
    let (pods, namespaces) = (selector("podSelector")?, selector("namespaceSelector")?);
    Ok(Pool { name: object.metadata.name, cidrs, mask_v4, mask_v6, pods, namespaces })
}

fn family(path: Path<'_>, spec: &Map<String, Value>, name: &str, v4: bool) -> Read<(Vec<IpNet>, Option<u8>)> {
    let Some(value) = get(spec, name) else { return Ok((Vec::new(), None)) };
    let at = Path::Field(&path, name);
    let map = field::object(at, value, &["cidrs", "maskSize"])?;
    let bits = if v4 { 32 } else { 128 };
    let mask = number(Path::Field(&at, "maskSize"), required(at, map, "maskSize", "a prefix length")?, 1..=bits)?;
    let mask = u8::try_from(mask).expect("the range was checked");
    let items = list(at, map, "cidrs")?.unwrap_or_default();
    let cidrs = each(Path::Field(&at, "cidrs"), items, |path, value| {
        let net = prefix(path, value)?;
        if net.addr().is_ipv4() != v4 {
            return path.fail(format!("{net} is of the other family"));
        }
        if net.prefix_len() > mask {
            return path.fail(format!("{net} is smaller than maskSize, /{mask}"));
        }
        Ok(net)
    })?;
    Ok((cidrs, Some(mask)))
}
