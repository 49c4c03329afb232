//! Leadership by a Lease. The holder renews; others take over when they have seen no renewal for the lease's duration
//! by their own clock, so clocks need not agree.

use crate::client::{Client, segment};
use crate::error::Error;
use crate::wire::Metadata;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    Leader,
    Standby { leader: String },
}

/// One who wants to hold a lease.
pub struct Candidate {
    collection: String,
    name: String,
    identity: String,
    duration: Duration,
    seen: Option<(Record, Instant)>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LeaseObject {
    api_version: String,
    kind: String,
    metadata: Metadata,
    #[serde(deserialize_with = "crate::wire::or_default")]
    spec: Record,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    #[serde(deserialize_with = "crate::wire::or_default")]
    holder_identity: String,
    #[serde(deserialize_with = "crate::wire::or_default")]
    lease_duration_seconds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    acquire_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    renew_time: Option<String>,
    #[serde(deserialize_with = "crate::wire::or_default")]
    lease_transitions: u64,
}

impl Candidate {
    /// `identity` must differ between processes. The lease is not touched yet.
    ///
    /// # Errors
    /// When a name cannot be one.
    pub fn new(namespace: &str, name: &str, identity: String, duration: Duration) -> Result<Self, Error> {
        let collection = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", segment("namespace", namespace)?);
        let name = segment("lease", name)?.to_owned();
        Ok(Self { collection, name, identity, duration, seen: None })
    }

    /// Takes or renews the lease if that is possible `now`.
    pub async fn stand(&mut self, client: &Client, now: Instant) -> Result<Standing, Error> {
        let path = format!("{}/{}", self.collection, self.name);
        let date = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        let mine = Record {
            holder_identity: self.identity.clone(),
            lease_duration_seconds: self.duration.as_secs(),
            acquire_time: Some(date.clone()),
            renew_time: Some(date),
            lease_transitions: 0,
        };
        let Some(mut lease) = client.find::<LeaseObject>(&path).await? else {
            let lease = LeaseObject {
                api_version: "coordination.k8s.io/v1".to_owned(),
                kind: "Lease".to_owned(),
                metadata: Metadata { name: self.name.clone(), ..Metadata::default() },
                spec: mine,
            };
            let made = client.create::<serde::de::IgnoredAny>(&self.collection, &lease).await.map(|_| ());
            return raced(made, "another candidate");
        };
        let held = lease.spec.clone();
        let is_mine = held.holder_identity == self.identity;
        if !is_mine && !held.holder_identity.is_empty() && !self.has_expired(&held, now) {
            return Ok(Standing::Standby { leader: held.holder_identity });
        }
        lease.spec = mine;
        lease.spec.lease_transitions = held.lease_transitions + u64::from(!is_mine);
        if is_mine {
            lease.spec.acquire_time = held.acquire_time;
        }
        // Carries the version that was read: of two who take over, one is refused.
        raced(client.replace::<serde::de::IgnoredAny>(&path, &lease).await.map(|_| ()), &held.holder_identity)
    }

    /// Gives the lease back, if it is ours, so that the next need not wait.
    pub async fn resign(&mut self, client: &Client) -> Result<(), Error> {
        let path = format!("{}/{}", self.collection, self.name);
        let Some(mut lease) = client.find::<LeaseObject>(&path).await? else { return Ok(()) };
        if lease.spec.holder_identity != self.identity {
            return Ok(());
        }
        lease.spec.holder_identity.clear();
        lease.spec.lease_duration_seconds = 1;
        client.replace::<serde::de::IgnoredAny>(&path, &lease).await.map(|_| ())
    }

    /// No renewal seen for as long as the holder's lease lasts.
    fn has_expired(&mut self, held: &Record, now: Instant) -> bool {
        match &self.seen {
            Some((seen, since)) if seen == held => {
                now.duration_since(*since) >= Duration::from_secs(held.lease_duration_seconds)
            }
            _ => {
                self.seen = Some((held.clone(), now));
                false
            }
        }
    }
}

fn raced(written: Result<(), Error>, other: &str) -> Result<Standing, Error> {
    match written {
        Ok(()) => Ok(Standing::Leader),
        Err(error) if error.is_conflict() || error.is_already_exists() => {
            Ok(Standing::Standby { leader: other.to_owned() })
        }
        Err(error) => Err(error),
    }
}
