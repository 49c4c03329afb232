//! Kinds of values: parsers for `value_parser`, which say what they expect.

use clap::builder::{PossibleValue, TypedValueParser};
use clap::{Arg, Command};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A list in one value. clap takes `Vec` for a flag that is given several times.
pub type List<T> = Vec<T>;
/// A value that may be empty. clap takes `Option` for a flag that may be left out.
pub type Maybe<T> = Option<T>;
/// `true` or `false`. clap takes `bool` for a flag without a value.
pub type Switch = bool;

/// What a setting takes, as an error and the documentation say it: after "expected".
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected {0}")]
pub struct Expected(Cow<'static, str>);

impl Expected {
    /// Such as `prefixes such as 10.0.0.0/8`.
    pub fn new(what: impl Into<Cow<'static, str>>) -> Self {
        Self(what.into())
    }

    /// Without "expected".
    #[must_use]
    pub fn what(&self) -> &str {
        &self.0
    }
}

/// What a parser gives.
pub type Parsed<T> = Result<T, Expected>;

/// `true` or `false`.
pub fn switch(text: &str) -> Parsed<bool> {
    text.parse().map_err(|_| Expected::new("`true` or `false`"))
}

/// A whole number.
pub fn within<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Parsed<T> + Clone
where
    T: FromStr + PartialOrd + Display + Clone,
{
    move |text: &str| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| Expected::new(format!("{} to {}", range.start(), range.end())))
    }
}

/// One of some names, which `--help` lists.
#[must_use]
pub fn one_of<T: Clone + Send + Sync>(values: &'static [(&'static str, T)]) -> OneOf<T> {
    OneOf(values)
}

/// See [`one_of`].
#[derive(Clone, Copy, Debug)]
pub struct OneOf<T: 'static>(&'static [(&'static str, T)]);

impl<T: Clone + Send + Sync + 'static> TypedValueParser for OneOf<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        let values = self.0;
        TypedValueParser::parse_ref(&move |text: &str| select(values, text), command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(|(name, _)| PossibleValue::new(*name))))
    }
}

fn select<T: Clone>(values: &[(&str, T)], text: &str) -> Parsed<T> {
    let found = values.iter().find(|(name, _)| *name == text).map(|(_, value)| value.clone());
    found.ok_or_else(|| {
        let names: Vec<String> = values.iter().map(|(name, _)| format!("`{name}`")).collect();
        Expected::new(match names.split_last() {
            Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
            _ => names.concat(),
        })
    })
}

/// Nothing if the text is empty.
pub fn optional<T>(parse: impl Fn(&str) -> Parsed<T> + Clone) -> impl Fn(&str) -> Parsed<Option<T>> + Clone {
    move |text: &str| if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
}

/// Any text.
pub fn text(text: &str) -> Parsed<String> {
    Ok(text.to_owned())
}

/// A file or directory.
pub fn absolute_path(text: &str) -> Parsed<PathBuf> {
    Some(PathBuf::from(text)).filter(|path| path.is_absolute()).ok_or_else(|| Expected::new("an absolute path"))
}

/// A file, relative to the working directory.
pub fn path(text: &str) -> Parsed<PathBuf> {
    Ok(PathBuf::from(text))
}

/// Comma separated; none at all is fine.
pub fn prefixes(text: &str) -> Parsed<Vec<IpNet>> {
    let parse = |part: &str| part.parse::<IpNet>().map(|net| net.trunc());
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(parse).collect::<Result<_, _>>().map_err(|_| Expected::new("prefixes such as 10.0.0.0/8 or fd00::/64"))
}

/// First and last port.
pub fn port_range(text: &str) -> Parsed<RangeInclusive<u16>> {
    let range = text.split_once('-').and_then(|(first, last)| Some(first.parse().ok()?..=last.parse().ok()?));
    let range = range.filter(|range: &RangeInclusive<u16>| !range.is_empty() && *range.start() > 0);
    range.ok_or_else(|| Expected::new("first and last port such as 30000-32767"))
}

/// Comma separated ports and ranges of ports; none at all is fine.
pub fn port_ranges(text: &str) -> Parsed<Vec<RangeInclusive<u16>>> {
    let range = |part: &str| match part.split_once('-') {
        Some(_) => port_range(part).ok(),
        None => part.parse().ok().filter(|port| *port > 0).map(|port| port..=port),
    };
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let ranges: Option<Vec<_>> = parts.map(range).collect();
    ranges.ok_or_else(|| Expected::new("ports and ranges of ports such as 22,10248-10260"))
}

/// Where to listen.
pub fn bind_address(text: &str) -> Parsed<SocketAddr> {
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() > 0);
    address.ok_or_else(|| Expected::new("an address and a port such as 0.0.0.0:10256 or [::]:10256"))
}

/// Seconds, from `least` on.
pub fn seconds(least: u64) -> impl Fn(&str) -> Parsed<Duration> + Clone {
    move |text: &str| {
        let seconds = text.parse().ok().filter(|seconds| *seconds >= least);
        seconds.map(Duration::from_secs).ok_or_else(|| Expected::new(format!("seconds, at least {least}")))
    }
}

/// Seconds; 0 turns it off.
pub fn seconds_or_off(text: &str) -> Parsed<Option<Duration>> {
    let seconds: u64 = text.parse().map_err(|_| Expected::new("seconds, or 0 for never"))?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

/// Address families of pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Families {
    /// Pods have IPv4 addresses.
    pub ipv4: bool,
    /// Pods have IPv6 addresses.
    pub ipv6: bool,
}

/// One family or both.
pub fn families(text: &str) -> Parsed<Families> {
    let mut families = Families { ipv4: false, ipv6: false };
    for family in text.split(',').map(str::trim) {
        match family {
            "ipv4" => families.ipv4 = true,
            "ipv6" => families.ipv6 = true,
            _ => return Err(Expected::new("`ipv4,ipv6`, `ipv4` or `ipv6`")),
        }
    }
    Ok(families)
}

/// How pods get their addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IpamMode {
    /// Pod CIDRs of the node, assigned by the operator.
    #[default]
    ClusterPool,
    /// Pod CIDRs of the node, assigned by Kubernetes.
    Kubernetes,
    /// Prefixes of CiliumPodIPPools, as pods need them.
    MultiPool,
    /// A prefix of the node, of a private network that the cloud routes.
    #[serde(rename = "azure-overlay")]
    Overlay,
    /// Addresses of a subnet for pods, in batches as pods need them.
    #[serde(rename = "azure-pod-subnet")]
    PodSubnet,
    /// Blocks of a subnet for pods, assigned when the node is created.
    #[serde(rename = "azure-pod-subnet-block")]
    PodSubnetBlock,
    /// Secondary addresses of the node's interface.
    #[serde(rename = "azure-node-subnet")]
    NodeSubnet,
    /// Another CNI plugin.
    Delegated,
}

impl IpamMode {
    /// All, by name.
    pub const ALL: &[(&str, Self)] = &[
        ("cluster-pool", Self::ClusterPool),
        ("kubernetes", Self::Kubernetes),
        ("multi-pool", Self::MultiPool),
        ("azure-overlay", Self::Overlay),
        ("azure-pod-subnet", Self::PodSubnet),
        ("azure-pod-subnet-block", Self::PodSubnetBlock),
        ("azure-node-subnet", Self::NodeSubnet),
        ("delegated", Self::Delegated),
    ];

    /// The setting's value.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }

    /// Pods have addresses of the network between the nodes, and keep them outside the cluster.
    #[must_use]
    pub fn routable(self) -> bool {
        matches!(self, Self::PodSubnet | Self::PodSubnetBlock)
    }

    /// The network between the nodes must route pods' addresses.
    #[must_use]
    pub fn native_only(self) -> bool {
        matches!(self, Self::Overlay | Self::PodSubnet | Self::PodSubnetBlock | Self::NodeSubnet)
    }

    /// Pods of a node for which addresses are assigned, unless told otherwise.
    #[must_use]
    pub const fn max_pods(self) -> u16 {
        if matches!(self, Self::NodeSubnet) { 30 } else { 250 }
    }
}
