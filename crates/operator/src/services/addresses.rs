//! Addresses for Services of type LoadBalancer: the plan, and what of it is written where.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use weft_ipam::lbipam::{Outcome, PoolState, plan};
use weft_k8s::services::{
    Condition, POOL_CONFLICT, REQUEST_SATISFIED, Row, with_conditions, write_pool, write_service,
};
use weft_k8s::{Client, Error};
use weft_model::intent::{IpPool, LoadBalancerRequest, ObjectName};

/// What was written into a Service's status.
struct Written {
    uid: String,
    version: String,
    addresses: Vec<IpAddr>,
}

/// Services and pools as the API server has them.
#[derive(Default)]
pub(super) struct Addresses {
    services: BTreeMap<ObjectName, Row>,
    /// What we wrote, for as long as the watch may lag behind it.
    written: BTreeMap<ObjectName, Written>,
    pools: BTreeMap<String, (IpPool, Row)>,
    /// Pools that exist and say nothing that can be used: the last usable word, if there was one, stands in `pools`.
    unusable: BTreeSet<String>,
    changed: bool,
}

impl Addresses {
    pub(super) fn service(&mut self, mut row: Row) {
        let is_ours = row.request.is_some() || is_marked(&row);
        if !is_ours {
            return self.service_gone(&row.name);
        }
        // An older word than ours: what we gave is not in it yet.
        if let Some(written) = self.written.get(&row.name)
            && written.uid == row.uid
            && number(&row.version) < number(&written.version)
        {
            if let Some(request) = &mut row.request {
                request.held.clone_from(&written.addresses);
            }
        } else {
            self.written.remove(&row.name);
        }
        self.services.insert(row.name.clone(), row);
        self.changed = true;
    }

    pub(super) fn service_gone(&mut self, name: &ObjectName) {
        self.changed |= self.services.remove(name).is_some();
        self.written.remove(name);
    }

    pub(super) fn pool(&mut self, pool: IpPool, row: Row) {
        self.unusable.remove(&pool.name);
        self.pools.insert(pool.name.clone(), (pool, row));
        self.changed = true;
    }

    pub(super) fn pool_unusable(&mut self, name: &str) {
        self.changed |= !self.pools.contains_key(name);
        self.unusable.insert(name.to_owned());
    }

    pub(super) fn pool_gone(&mut self, name: &str) {
        self.changed |= self.pools.remove(name).is_some() | self.unusable.remove(name);
    }

    /// Whether a Service is ours to serve: not one that somebody else gave addresses that no pool has.
    fn is_ours(&self, row: &Row) -> bool {
        if is_marked(row) {
            return true;
        }
        // Without pools nobody asked us to do anything.
        if self.pools.is_empty() {
            return false;
        }
        let held = row.request.as_ref().map_or(&[][..], |request| &request.held);
        let inside = |address: &IpAddr| {
            self.pools.values().flat_map(|(pool, _)| &pool.ranges).any(|range| {
                range.first.is_ipv4() == address.is_ipv4() && range.first <= *address && *address <= range.last
            })
        };
        row.ingress.is_empty() || held.iter().any(inside)
    }

    /// Writes what differs. True: something is to be tried again.
    pub(super) async fn write(&mut self, client: &Client) -> bool {
        if !std::mem::take(&mut self.changed) {
            return false;
        }
        let requests: BTreeMap<ObjectName, LoadBalancerRequest> = self
            .services
            .values()
            .filter(|row| self.is_ours(row))
            .filter_map(|row| Some((row.name.clone(), row.request.clone()?)))
            .collect();
        let pools = self.pools.iter().map(|(name, (pool, _))| (name.clone(), pool.clone())).collect();
        let incomplete = self.unusable.iter().any(|name| !self.pools.contains_key(name));
        let plan = plan(&pools, &requests, incomplete);
        let mut failed = false;
        let done = Outcome::default();
        for name in self.services.keys().cloned().collect::<Vec<_>>() {
            let outcome = plan.services.get(&name);
            if outcome.is_some() || self.services.get(&name).is_some_and(|row| row.request.is_none()) {
                failed |= self.write_service(client, &name, outcome.unwrap_or(&done)).await;
            }
        }
        for (name, state) in &plan.pools {
            failed |= self.write_pool(client, name, state).await;
        }
        self.changed |= failed;
        failed
    }

    async fn write_service(&mut self, client: &Client, name: &ObjectName, outcome: &Outcome) -> bool {
        let Some(row) = self.services.get_mut(name) else { return false };
        let conditions = match (&row.request, &outcome.refusal) {
            // No load balancer any more.
            (None, _) => row.conditions.iter().filter(|held| held["type"] != REQUEST_SATISFIED).cloned().collect(),
            (Some(_), None) => with_conditions(&row.conditions, &[satisfied("True", "satisfied", "")]),
            (Some(_), Some(refusal)) => {
                let condition = satisfied("False", refusal.reason.as_str(), &refusal.message);
                with_conditions(&row.conditions, &[condition])
            }
        };
        let stands = row.ingress.iter().map(|row| row["ip"].as_str().and_then(|text| text.parse().ok()));
        let wanted = outcome.addresses.iter().map(|address| Some(*address));
        if stands.eq(wanted) && row.conditions == conditions {
            return false;
        }
        match write_service(client, name, &row.version, &outcome.addresses, &conditions).await {
            Ok(version) => {
                tracing::info!(service = %name, addresses = ?outcome.addresses, "load balancer addresses written");
                row.version.clone_from(&version);
                row.ingress = outcome.addresses.iter().map(|address| serde_json::json!({"ip": address})).collect();
                row.conditions = conditions;
                if let Some(request) = &mut row.request {
                    request.held.clone_from(&outcome.addresses);
                }
                let (uid, addresses) = (row.uid.clone(), outcome.addresses.clone());
                self.written.insert(name.clone(), Written { uid, version, addresses });
                false
            }
            Err(error) => complain(&error, "Service", &name.to_string()),
        }
    }

    async fn write_pool(&mut self, client: &Client, name: &str, state: &PoolState) -> bool {
        let Some((_, row)) = self.pools.get_mut(name) else { return false };
        let conditions = with_conditions(&row.conditions, &pool_conditions(state));
        if conditions == row.conditions {
            return false;
        }
        match write_pool(client, name, &row.version, &conditions).await {
            Ok(version) => {
                row.version = version;
                row.conditions = conditions;
                false
            }
            Err(error) => complain(&error, "CiliumLoadBalancerIPPool", name),
        }
    }
}

/// Whether to try again.
fn complain(error: &Error, kind: &str, name: &str) -> bool {
    // Changed: the watch tells, and then the write fits. Gone: the watch tells that as well.
    if error.is_conflict() || error.is_not_found() {
        return error.is_conflict();
    }
    tracing::warn!(kind, name, %error, "cannot write the status, trying again");
    true
}

fn is_marked(row: &Row) -> bool {
    row.conditions.iter().any(|condition: &Value| condition["type"] == REQUEST_SATISFIED)
}

fn satisfied(status: &'static str, reason: &'static str, message: &str) -> Condition {
    Condition { kind: REQUEST_SATISFIED, status, reason, message: message.to_owned() }
}

fn pool_conditions(state: &PoolState) -> [Condition; 4] {
    let (status, reason) = if state.conflict.is_some() { ("True", "cidr_overlap") } else { ("False", "resolved") };
    let message = state.conflict.clone().unwrap_or_default();
    let count =
        |kind, number: u128| Condition { kind, status: "Unknown", reason: "noreason", message: number.to_string() };
    [
        Condition { kind: POOL_CONFLICT, status, reason, message },
        count("cilium.io/IPsTotal", state.total),
        count("cilium.io/IPsAvailable", state.total.saturating_sub(state.used)),
        count("cilium.io/IPsUsed", state.used),
    ]
}

fn number(version: &str) -> u64 {
    version.parse().unwrap_or(0)
}
