//! Exchanges pod prefixes with the operator through this node's CiliumNode: demand goes in, assigned prefixes come out.
//! The watch only wakes; every turn reads the object anew, since it must not decide by an old version.

use super::settings::PoolRule;
use crate::config::{Config, IpamMode};
use crate::writer::thread::Handle;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_ipam::{Family, Outcome, Record};
use weft_k8s::ipam::{AddressPools, PoolEvent, Share, ShareEvent, Shares};
use weft_k8s::watch::follow;
use weft_k8s::{Client, Error};
use weft_sys::error::describe;

/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Pause between two turns without a change.
const AUDIT: Duration = Duration::from_secs(60);
/// Changes within this time make one turn.
const GATHER: Duration = Duration::from_millis(10);

/// Takes turns until `stop`; for modes in which the operator gives blocks ([`Writer::exchanges_blocks`](crate::writer::Writer::exchanges_blocks)).
pub async fn run(control: Handle, client: Client, config: Arc<Config>, stop: CancellationToken) {
    let Ok(signals) = control.call(|control| control.signals()).await else { return };
    let shared = config.ipam == IpamMode::MultiPool;
    let (sender, mut shares) = mpsc::channel(8);
    follow(client.clone(), Shares { only: (!shared).then(|| config.node_name.clone()) }, sender, stop.clone());
    let (sender, mut pools) = mpsc::channel(8);
    // Without shared pools the sender only keeps the channel open.
    let _idle = if shared {
        follow(client.clone(), AddressPools, sender, stop.clone());
        None
    } else {
        Some(sender)
    };
    let term = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
    let mut accepted = false;
    let mut rules = BTreeMap::new();
    loop {
        let pause = match turn(&control, &client, &config.node_name, (!accepted).then_some(&term)).await {
            Ok(Turn::Quiet) => AUDIT,
            Ok(Turn::Written) => {
                accepted = true;
                AUDIT
            }
            Ok(Turn::Again) => GATHER,
            Err(problem) => {
                tracing::debug!(problem, "cannot exchange pod prefixes with the operator, trying again");
                RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = signals.addresses.notified() => tokio::time::sleep(GATHER).await,
            batch = shares.recv() => match batch {
                Some(batch) => take_shares(&control, &config.node_name, batch).await,
                None => return,
            },
            batch = pools.recv() => match batch {
                Some(batch) => take_pools(&control, &mut rules, batch).await,
                None => return,
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

enum Turn {
    Quiet,
    Written,
    Again,
}

async fn turn(control: &Handle, client: &Client, node: &str, term: Option<&String>) -> Result<Turn, String> {
    let read = weft_k8s::ipam::read(client, node).await;
    // The agent creates it once its Node is known.
    let Some(now) = read.map_err(|error| describe(&error))? else { return Err("no CiliumNode yet".to_owned()) };
    let (record, version, problem) = (record(&now.pools), now.version, now.problem);
    let write =
        control.call(move |control| control.begin_turn(&record, &problem)).await.map_err(|error| error.to_string())?;
    let Some(write) = write else { return Ok(Turn::Quiet) };
    let written = weft_k8s::ipam::write(client, node, &version, &shares(&write), term.map(String::as_str)).await;
    let outcome = match &written {
        Ok(()) => Outcome::Written,
        Err(Error::Status { code, .. }) if (400..500).contains(code) => Outcome::Refused,
        Err(_) => Outcome::Unknown,
    };
    control.call(move |control| control.end_turn(write, outcome)).await.map_err(|error| error.to_string())?;
    match written {
        Ok(()) => Ok(Turn::Written),
        Err(error) if error.is_conflict() => Ok(Turn::Again),
        Err(error) => Err(describe(&error)),
    }
}

fn record(pools: &BTreeMap<String, Share>) -> Record {
    let mut record = Record::default();
    for (name, share) in pools {
        for (family, needed) in [(Family::V4, share.needed_v4), (Family::V6, share.needed_v6)] {
            if needed > 0 {
                record.requested.insert((name.clone(), family), needed);
            }
        }
        if !share.cidrs.is_empty() {
            record.allocated.insert(name.clone(), share.cidrs.clone());
        }
    }
    record
}

fn shares(record: &Record) -> BTreeMap<String, Share> {
    let mut shares: BTreeMap<String, Share> = BTreeMap::new();
    for ((name, family), needed) in &record.requested {
        let share = shares.entry(name.clone()).or_default();
        match family {
            Family::V4 => share.needed_v4 = *needed,
            Family::V6 => share.needed_v6 = *needed,
        }
    }
    for (name, nets) in &record.allocated {
        shares.entry(name.clone()).or_default().cidrs.clone_from(nets);
    }
    shares
}

async fn take_shares(control: &Handle, own: &str, batch: Vec<ShareEvent>) {
    for event in batch {
        let (name, nets) = match event {
            ShareEvent::Applied(node) if node.name != own => {
                let nets = node.pools.into_values().flat_map(|share| share.cidrs).collect();
                (node.name, nets)
            }
            ShareEvent::Deleted(name) if name != own => (name, Vec::new()),
            _ => continue,
        };
        let _ = control.call(move |control| control.set_share(&name, nets)).await;
    }
}

async fn take_pools(control: &Handle, rules: &mut BTreeMap<String, PoolRule>, batch: Vec<PoolEvent>) {
    for event in batch {
        match event {
            PoolEvent::Applied(pool) => {
                let families = pool.cidrs.iter().map(|net| Family::of(net.addr())).collect();
                rules.insert(pool.name, PoolRule { pods: pool.pods, namespaces: pool.namespaces, families });
            }
            PoolEvent::Deleted(name) => drop(rules.remove(&name)),
            PoolEvent::Synced => {}
        }
    }
    let rules = rules.clone();
    let _ = control.call(move |control| control.set_pool_rules(rules)).await;
}
