//! Services: addresses for load balancers out of the cluster's pools, and a word on objects that cannot be used.
//!
//! Nothing is given before all that was given is known. What a Service has is in its status and nowhere else.

use crate::ipam::COMPONENT;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_k8s::event::{About, warn};
use weft_k8s::services::{Content, News, Part, Row, watch};
use weft_k8s::{Client, Error};
use weft_model::intent::ObjectName;

mod addresses;

use addresses::Addresses;

/// First pause after a write that failed; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(20);

/// An object of whatever kind.
type Key = (Part, ObjectName);

/// Works until `stop`.
pub(crate) async fn run(client: &Client, stop: CancellationToken) {
    let mut news = watch(client, &stop);
    let mut state = State {
        client,
        synced: BTreeSet::new(),
        addresses: Addresses::default(),
        problems: BTreeMap::new(),
        told: BTreeMap::new(),
    };
    let mut pause = None;
    loop {
        let batch = match pause {
            None => news.recv().await,
            Some(pause) => tokio::time::timeout(pause, news.recv()).await.unwrap_or_else(|_| Some(Vec::new())),
        };
        let Some(batch) = batch else { return };
        for event in batch {
            state.hear(event);
        }
        // Many come at once: one plan for all that are there.
        while let Ok(batch) = news.try_recv() {
            batch.into_iter().for_each(|event| state.hear(event));
        }
        let failed = state.tell().await | state.addresses_written().await;
        pause = failed.then(|| pause.map_or(RETRY_MIN, |pause: Duration| (pause * 2).min(RETRY_MAX)));
    }
}

struct State<'a> {
    client: &'a Client,
    synced: BTreeSet<Part>,
    addresses: Addresses,
    /// What is wrong with an object: its UID, a word for programs, a text for people.
    problems: BTreeMap<Key, (String, &'static str, String)>,
    /// What was said of it last.
    told: BTreeMap<Key, String>,
}

impl State<'_> {
    fn hear(&mut self, event: News) {
        match event {
            News::Here(part, row) => {
                let key = (part, row.name.clone());
                match &row.content {
                    Ok(_) => drop(self.problems.remove(&key)),
                    Err(problem) => self.note(key, &row.uid, problem.clone()),
                }
                self.take(part, *row);
            }
            News::Unreadable(part, name, uid, problem) => {
                if part == Part::IpPool {
                    self.addresses.pool_unusable(&name.name);
                }
                self.note((part, name), &uid, problem);
            }
            News::Gone(part, name) => {
                match part {
                    Part::Service => self.addresses.service_gone(&name),
                    Part::IpPool => self.addresses.pool_gone(&name.name),
                    Part::EndpointSlice | Part::LocalRedirect => {}
                }
                let key = (part, name);
                self.problems.remove(&key);
                self.told.remove(&key);
            }
            News::Synced(part) => drop(self.synced.insert(part)),
        }
    }

    fn take(&mut self, part: Part, row: Row) {
        match part {
            Part::Service => self.addresses.service(row),
            Part::IpPool => match &row.content {
                Ok(Content::IpPool(pool)) => self.addresses.pool(pool.clone(), row),
                _ => self.addresses.pool_unusable(&row.name.name),
            },
            Part::EndpointSlice | Part::LocalRedirect => {}
        }
    }

    fn note(&mut self, key: Key, uid: &str, problem: String) {
        let reason = match key.0 {
            Part::Service => "InvalidService",
            Part::EndpointSlice => "InvalidEndpointSlice",
            Part::LocalRedirect => "InvalidLocalRedirectPolicy",
            Part::IpPool => "InvalidIPPool",
        };
        self.problems
            .insert(key, (uid.to_owned(), reason, format!("{problem}; what was in force before stays in force")));
    }

    /// Writes an Event for each problem that was not said yet. True: something is to be tried again.
    async fn tell(&mut self) -> bool {
        self.told.retain(|key, _| self.problems.contains_key(key));
        let mut failed = false;
        for (key, (uid, reason, text)) in &self.problems {
            if self.told.get(key) == Some(text) {
                continue;
            }
            let (part, name) = key;
            let (kind, api_version) = part.kind();
            tracing::warn!(kind, %name, problem = text, "{reason}");
            let (namespace, name) = (name.namespace.clone(), name.name.clone());
            let about = About { kind, api_version, namespace, name, uid: uid.clone() };
            match warn(self.client, &about, reason, text, COMPONENT).await {
                Ok(()) => drop(self.told.insert(key.clone(), text.clone())),
                // Its namespace is about to go, or it is no name: nobody would look for it.
                Err(error)
                    if error.is_not_found() || matches!(error, Error::Name { .. }) || error.code() == Some(403) =>
                {
                    self.told.insert(key.clone(), text.clone());
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot write an event, trying again");
                    failed = true;
                }
            }
        }
        failed
    }

    /// Gives and takes addresses. True: something is to be tried again.
    async fn addresses_written(&mut self) -> bool {
        // Half the pools are other pools.
        let known = [Part::Service, Part::IpPool].iter().all(|part| self.synced.contains(part));
        known && self.addresses.write(self.client).await
    }
}
