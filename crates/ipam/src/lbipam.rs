//! LB IPAM: addresses for Services of type LoadBalancer from CiliumLoadBalancerIPPools.
//!
//! The plan is a pure function of all pools and all Services, whose status holds what was allocated. So a new leader, or
//! an operator after a restart, computes the same plan. First every Service keeps the addresses that it holds and may
//! hold; then the others are served, older Services first, from older pools first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_model::intent::{IpPool, LoadBalancerRequest, ObjectName};

mod pools;
mod share;

pub use pools::PoolState;
use pools::Pools;
use share::Shares;

/// The outcome for every Service and every pool.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    pub services: BTreeMap<ObjectName, Outcome>,
    pub pools: BTreeMap<String, PoolState>,
}

/// What a Service gets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    pub addresses: Vec<IpAddr>,
    /// Why it does not have all that it requests; `None`: it does.
    pub refusal: Option<Refusal>,
}

/// Why a Service does not have all that it requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub reason: Reason,
    /// Which address is refused, why, and which object to change.
    pub message: String,
}

/// The reason of a Service's condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The request itself is invalid.
    InvalidRequest,
    /// No pool selects it, or none that has the address.
    NoPool,
    /// Its pools have no free address.
    OutOfAddresses,
    /// Another Service holds the requested address.
    AlreadyAllocated,
}

impl Reason {
    /// The spelling of Cilium, which tools match on.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::NoPool => "no_pool",
            Self::OutOfAddresses => "out_of_ips",
            Self::AlreadyAllocated => "already_allocated",
        }
    }
}

/// Computes which Service gets which addresses. `incomplete`: some pools could not be parsed. Then no Service loses an
/// address for the reason that no pool contains it.
#[must_use]
pub fn plan(
    pools: &BTreeMap<String, IpPool>,
    requests: &BTreeMap<ObjectName, LoadBalancerRequest>,
    incomplete: bool,
) -> Plan {
    let mut pools = Pools::new(pools, incomplete);
    let mut shares = Shares::default();
    let mut order: Vec<&LoadBalancerRequest> = requests.values().collect();
    order.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
    let mut services: BTreeMap<ObjectName, Outcome> = BTreeMap::new();
    for request in &order {
        let addresses = keep(&pools, &mut shares, request);
        services.insert(request.name.clone(), Outcome { addresses, refusal: None });
    }
    for &request in &order {
        let outcome = services.entry(request.name.clone()).or_default();
        serve(&mut pools, &mut shares, request, &mut outcome.addresses);
    }
    // Only now is every holder known. Refusals computed earlier would depend on the order and change with each run.
    for request in order {
        let outcome = services.entry(request.name.clone()).or_default();
        outcome.refusal = lack(&pools, &shares, request, &outcome.addresses);
    }
    let pools = pools.states(&shares);
    Plan { services, pools }
}

/// The addresses that the Service holds and may keep.
fn keep<'a>(pools: &Pools<'_>, shares: &mut Shares<'a>, request: &'a LoadBalancerRequest) -> Vec<IpAddr> {
    let mut kept: Vec<IpAddr> = Vec::new();
    for &address in &request.held {
        let is_asked_for = if request.wanted.is_empty() || request.problem.is_some() {
            // No particular address is requested: one of each family is enough.
            asks_for(request, address) && !kept.iter().any(|other| other.is_ipv4() == address.is_ipv4())
        } else {
            request.wanted.contains(&address) && asks_for(request, address) && !kept.contains(&address)
        };
        if is_asked_for && pools.may_keep(request, address) && shares.take(address, request) {
            kept.push(address);
        }
    }
    kept
}

fn asks_for(request: &LoadBalancerRequest, address: IpAddr) -> bool {
    if address.is_ipv4() { request.ipv4 } else { request.ipv6 }
}

/// Whether it requests an address of a family and has none.
fn lacks(request: &LoadBalancerRequest, addresses: &[IpAddr], v4: bool) -> bool {
    let asked = if v4 { request.ipv4 } else { request.ipv6 };
    asked && !addresses.iter().any(|address| address.is_ipv4() == v4)
}

/// Allocates what the Service still lacks, as far as possible.
fn serve<'a>(
    pools: &mut Pools<'_>,
    shares: &mut Shares<'a>,
    request: &'a LoadBalancerRequest,
    addresses: &mut Vec<IpAddr>,
) {
    if request.problem.is_some() {
        return;
    }
    if request.wanted.is_empty() {
        for v4 in [true, false] {
            if lacks(request, addresses, v4) {
                addresses.extend(find(pools, shares, request, v4));
            }
        }
        return;
    }
    for &address in &request.wanted {
        let may_have = asks_for(request, address) && pools.may_allocate(request, address).is_ok();
        if may_have && !addresses.contains(&address) && shares.take(address, request) {
            addresses.push(address);
        }
    }
    // In the order of the request.
    addresses.sort_by_key(|address| request.wanted.iter().position(|wanted| wanted == address));
}

/// Any address of a family: one that it can share, else the first free one.
fn find<'a>(
    pools: &mut Pools<'_>,
    shares: &mut Shares<'a>,
    request: &'a LoadBalancerRequest,
    v4: bool,
) -> Option<IpAddr> {
    let shared =
        shares.of_key(request).find(|address| address.is_ipv4() == v4 && pools.may_allocate(request, *address).is_ok());
    let found = shared.or_else(|| pools.first_free(request, v4, |address| shares.is_taken(address)));
    found.filter(|address| shares.take(*address, request))
}

/// What the Service still lacks after all are served, and why.
fn lack(
    pools: &Pools<'_>,
    shares: &Shares<'_>,
    request: &LoadBalancerRequest,
    addresses: &[IpAddr],
) -> Option<Refusal> {
    if let Some(problem) = &request.problem {
        return Some(Refusal { reason: Reason::InvalidRequest, message: problem.clone() });
    }
    if !request.wanted.is_empty() {
        let &address = request.wanted.iter().find(|wanted| !addresses.contains(wanted))?;
        let (reason, why) = if !asks_for(request, address) {
            (Reason::InvalidRequest, "the Service has no such family in spec.ipFamilies".to_owned())
        } else if let Err(denial) = pools.may_allocate(request, address) {
            (Reason::NoPool, denial.to_string())
        } else {
            let conflict = shares.conflict(address, request);
            (Reason::AlreadyAllocated, conflict.unwrap_or_else(|| "in use by another Service".to_owned()))
        };
        return Some(Refusal { reason, message: format!("{address}: {why}") });
    }
    let v4 = [true, false].into_iter().find(|&v4| lacks(request, addresses, v4))?;
    if request.either && !addresses.is_empty() {
        // Either family satisfies it.
        return None;
    }
    let family = if v4 { "IPv4" } else { "IPv6" };
    Some(if pools.has_any(request, v4) {
        let message = format!("no free {family} address in the pools that select this Service");
        Refusal { reason: Reason::OutOfAddresses, message }
    } else {
        let message = format!("no enabled pool with {family} addresses selects this Service");
        Refusal { reason: Reason::NoPool, message }
    })
}
