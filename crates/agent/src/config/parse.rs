//! Kinds of values that only the agent has.

use weft_datapath::sockets::Protocols;
use weft_k8s::endpoint::Propagation;
use weft_model::intent::{Covers, Forwarding};
use weft_settings::value::{Expected, Parsed};

/// How packets reach pods on other nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Routing {
    /// The network between the nodes routes pod addresses.
    Native,
    /// Encapsulated in VXLAN.
    Vxlan,
}

impl Routing {
    pub(super) const ALL: &[(&str, Self)] = &[("native", Self::Native), ("vxlan", Self::Vxlan)];

    /// The setting's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Vxlan => "vxlan",
        }
    }
}

/// Whether established connections from outside are forwarded in XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Acceleration {
    /// No.
    Disabled,
    /// Yes; an error if the driver does not support it.
    Native,
    /// Where the driver supports it.
    BestEffort,
}

impl Acceleration {
    pub(super) const ALL: &[(&str, Self)] =
        &[("disabled", Self::Disabled), ("native", Self::Native), ("best-effort", Self::BestEffort)];
}

/// Which ports the node's own sockets cannot bind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BindProtection {
    /// Those of Services.
    Services,
    /// The whole range of node ports as well.
    Range,
    /// None.
    None,
}

impl BindProtection {
    pub(super) const ALL: &[(&str, Self)] =
        &[("services", Self::Services), ("range", Self::Range), ("none", Self::None)];
}

/// Names of `--node-port-mode`.
pub(super) const FORWARDING: &[(&str, Forwarding)] = &[("snat", Forwarding::Snat), ("dsr", Forwarding::Dsr)];

/// Sizes that Maglev works with: primes next to powers of two.
const TABLE_SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071];

pub(super) fn maglev_table_size(text: &str) -> Parsed<u32> {
    let size = text.parse().ok().filter(|size| TABLE_SIZES.contains(size));
    size.ok_or(Expected::new("251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521 or 131071"))
}

/// A label value.
pub(super) fn cluster_name(name: &str) -> Parsed<String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.len() <= 63 && name.chars().all(inner) && outer(name.chars().next()) && outer(name.chars().next_back()) {
        Ok(name.to_owned())
    } else {
        Err(Expected::new("at most 63 letters, digits, '-', '_' and '.'"))
    }
}

/// Configuration of a CNI plugin.
pub(super) fn plugin(text: &str) -> Parsed<serde_json::Value> {
    let parsed = serde_json::from_str::<serde_json::Value>(text).ok();
    let named = parsed.filter(|plugin| plugin["type"].as_str().is_some_and(|name| !name.is_empty()));
    named.ok_or(Expected::new("a JSON object with `type`, the name of a CNI plugin"))
}

pub(super) fn propagation(text: &str) -> Parsed<Propagation> {
    Propagation::read(text).ok_or(Expected::new("`cep`, `ces-operator` or `ces-node`"))
}

pub(super) fn protocols(text: &str) -> Parsed<Protocols> {
    let mut protocols = Protocols::default();
    for part in text.split(',').map(str::trim) {
        match part {
            "tcp" => protocols.tcp = true,
            "udp" => protocols.udp = true,
            "none" if text == "none" => {}
            _ => return Err(Expected::new("`udp`, `tcp`, `tcp,udp` or `none`")),
        }
    }
    Ok(protocols)
}

pub(super) fn covers(text: &str) -> Parsed<Covers> {
    let mut covers = Covers::WORLD;
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part {
            "nodes" => covers.nodes = true,
            "pods" => covers.pods = true,
            _ => return Err(Expected::new("`nodes`, `pods` or both")),
        }
    }
    Ok(covers)
}
