//! Addresses for Services of type LoadBalancer, out of the cluster's pools.
//!
//! A plan is made anew from all pools and all Services, whose status says what they have: so another operator that takes
//! over, or the same one after a restart, comes to the same plan. Whoever has an address that it may have keeps it;
//! only then are others served, the older first, from the older pools first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use weft_model::intent::{AddressRange, IpPool, LoadBalancerRequest, ObjectName};

mod pools;
mod share;

use pools::Pools;
use share::Shares;

/// What every Service and every pool comes to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The Services.
    pub services: BTreeMap<ObjectName, Outcome>,
    /// The pools.
    pub pools: BTreeMap<String, PoolState>,
}

/// What a Service gets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What it lacks; `None`: nothing.
    pub refusal: Option<Refusal>,
}

/// Why a Service does not have all that it asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// One word for a program.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// Kinds of refusals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// What it asks for cannot be understood.
    InvalidRequest,
    /// No pool is for it, or none that has the address.
    NoPool,
    /// Its pools have no free address.
    OutOfAddresses,
    /// Another has the address that it asks for.
    AlreadyAllocated,
}

impl Reason {
    /// As it is written into conditions.
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

/// How a pool stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PoolState {
    /// What it overlaps, if it does: then nobody gets a new address of it.
    pub conflict: Option<String>,
    /// How many addresses it has.
    pub total: u128,
    /// How many of them Services have.
    pub used: u128,
}

/// Who gets which addresses. With `incomplete` there are pools that cannot be read: then nobody loses an address because
/// no pool has it.
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
    // Only now is it known who has what: whoever reads the same statuses later finds the same reasons.
    for request in order {
        let outcome = services.entry(request.name.clone()).or_default();
        outcome.refusal = lack(&pools, &shares, request, &outcome.addresses);
    }
    let pools = pools.states(&shares);
    Plan { services, pools }
}

/// The addresses that it has and may keep.
fn keep<'a>(pools: &Pools<'_>, shares: &mut Shares<'a>, request: &'a LoadBalancerRequest) -> Vec<IpAddr> {
    let mut kept: Vec<IpAddr> = Vec::new();
    for &address in &request.held {
        let is_asked_for = if request.wanted.is_empty() || request.problem.is_some() {
            // Of any addresses one of each family is enough.
            asks_for(request, address) && !kept.iter().any(|other| other.is_ipv4() == address.is_ipv4())
        } else {
            request.wanted.contains(&address) && asks_for(request, address) && !kept.contains(&address)
        };
        if is_asked_for && pools.hold(request, address) && shares.take(address, request) {
            kept.push(address);
        }
    }
    kept
}

fn asks_for(request: &LoadBalancerRequest, address: IpAddr) -> bool {
    if address.is_ipv4() { request.ipv4 } else { request.ipv6 }
}

/// It asks for an address of a family and has none.
fn lacks(request: &LoadBalancerRequest, addresses: &[IpAddr], v4: bool) -> bool {
    let asked = if v4 { request.ipv4 } else { request.ipv6 };
    asked && !addresses.iter().any(|address| address.is_ipv4() == v4)
}

/// Gives it what it lacks, as far as that is possible.
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
        let may_have = asks_for(request, address) && pools.may_give(request, address).is_ok();
        if may_have && !addresses.contains(&address) && shares.take(address, request) {
            addresses.push(address);
        }
    }
    // In the order in which they were asked for.
    addresses.sort_by_key(|address| request.wanted.iter().position(|wanted| wanted == address));
}

/// Any address of a family: one that it can share, or else the first free one.
fn find<'a>(
    pools: &mut Pools<'_>,
    shares: &mut Shares<'a>,
    request: &'a LoadBalancerRequest,
    v4: bool,
) -> Option<IpAddr> {
    let shared =
        shares.of_key(request).find(|address| address.is_ipv4() == v4 && pools.may_give(request, *address).is_ok());
    let found = shared.or_else(|| pools.first_free(request, v4, |address| shares.is_taken(address)));
    found.filter(|address| shares.take(*address, request))
}

/// What it still lacks when all are served, and why.
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
            (Reason::InvalidRequest, "the Service is not of its family".to_owned())
        } else if let Err(why) = pools.may_give(request, address) {
            (Reason::NoPool, why)
        } else {
            let holder = shares.hindrance(address, request);
            (Reason::AlreadyAllocated, holder.unwrap_or_else(|| "another Service has it".to_owned()))
        };
        return Some(Refusal { reason, message: format!("{address}: {why}") });
    }
    let v4 = [true, false].into_iter().find(|&v4| lacks(request, addresses, v4))?;
    if request.either && !addresses.is_empty() {
        // The other family does.
        return None;
    }
    let family = if v4 { "IPv4" } else { "IPv6" };
    Some(if pools.has_any(request, v4) {
        let message = format!("no free {family} address is left in the pools for this Service");
        Refusal { reason: Reason::OutOfAddresses, message }
    } else {
        let message = format!("no enabled pool with {family} addresses is for this Service");
        Refusal { reason: Reason::NoPool, message }
    })
}

/// Whether a range holds an address.
fn holds(range: &AddressRange, address: IpAddr) -> bool {
    range.first.is_ipv4() == address.is_ipv4() && range.first <= address && address <= range.last
}
