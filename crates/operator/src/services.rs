//! Services: addresses for load balancers out of the cluster's pools, and a word on objects that cannot be used.
//!
//! Nothing is given before all that was given is known. What a Service has is in its status and nowhere else.

use crate::config::Config;
use crate::ipam::COMPONENT;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_control::service::{Allowed, Engine, Object, Outcome, Settings};
use weft_k8s::event::{About, warn};
use weft_k8s::services::{Content, Event, Part, watch};
use weft_k8s::{Client, Error};
use weft_model::intent::{Change, Forwarding, ObjectName};

mod addresses;

use addresses::Addresses;

/// First pause after a write that failed; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(20);
/// Of tables that nobody fills, as there are no backends.
const TABLE_SIZE: u32 = 251;

/// An object of whatever kind.
type Key = (Part, ObjectName);

/// What is wrong with an object: a word for programs, a text for people.
type Wrong = (&'static str, String);

/// Works until `stop`.
pub(crate) async fn run(config: &Config, client: &Client, stop: CancellationToken) {
    let mut events = watch(client, &stop);
    let mut state = State::new(config, client);
    let mut pause = None;
    loop {
        let batch = match pause {
            None => events.recv().await,
            Some(pause) => tokio::time::timeout(pause, events.recv()).await.unwrap_or_else(|_| Some(Vec::new())),
        };
        let Some(batch) = batch else { return };
        batch.into_iter().for_each(|event| state.apply(event));
        // Many come at once: one plan for all that are there.
        while let Ok(batch) = events.try_recv() {
            batch.into_iter().for_each(|event| state.apply(event));
        }
        let failed = state.report().await | state.write_addresses().await;
        pause = failed.then(|| pause.map_or(RETRY_MIN, |pause: Duration| (pause * 2).min(RETRY_MAX)));
    }
}

struct State<'a> {
    client: &'a Client,
    synced: BTreeSet<Part>,
    addresses: Addresses,
    /// The agents' own engine, without nodes and backends: who has which frontend.
    engine: Engine,
    uids: BTreeMap<Key, String>,
    /// Objects that cannot be used at all.
    invalid: BTreeMap<Key, String>,
    /// What was said of an object last.
    reported: BTreeMap<Key, Wrong>,
}

impl<'a> State<'a> {
    fn new(config: &Config, client: &'a Client) -> Self {
        let settings = Settings {
            node_name: String::new(),
            ipv4: true,
            ipv6: true,
            node_ports: config.node_port_range.clone(),
            forwarding: Forwarding::default(),
            table_size: TABLE_SIZE,
            allowed: Allowed { external_ips: config.external_ips_allowed.clone(), ..Allowed::default() },
        };
        Self {
            client,
            synced: BTreeSet::new(),
            addresses: Addresses::default(),
            engine: Engine::new(settings, 0),
            uids: BTreeMap::new(),
            invalid: BTreeMap::new(),
            reported: BTreeMap::new(),
        }
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Applied(part, row) => {
                let key = (part, row.name.clone());
                self.uids.insert(key.clone(), row.uid.clone());
                match &row.content {
                    Ok(content) => {
                        self.invalid.remove(&key);
                        match content {
                            Content::Service(service) => self.engine.apply(&Change::Service(service.clone())),
                            Content::LocalRedirect(policy) => self.engine.apply(&Change::LocalRedirect(policy.clone())),
                            Content::EndpointSlice | Content::IpPool(_) => {}
                        }
                    }
                    Err(problem) => drop(self.invalid.insert(key, problem.clone())),
                }
                match (part, &row.content) {
                    (Part::Service, _) => self.addresses.service(*row),
                    (Part::IpPool, Ok(Content::IpPool(pool))) => self.addresses.pool(pool.clone(), *row),
                    (Part::IpPool, _) => self.addresses.pool_unusable(&row.name.name),
                    (Part::EndpointSlice | Part::LocalRedirect, _) => {}
                }
            }
            Event::Unreadable(part, name, uid, problem) => {
                if part == Part::IpPool {
                    self.addresses.pool_unusable(&name.name);
                }
                self.uids.insert((part, name.clone()), uid);
                self.invalid.insert((part, name), problem);
            }
            Event::Deleted(part, name) => {
                match part {
                    Part::Service => {
                        self.addresses.service_gone(&name);
                        self.engine.apply(&Change::ServiceGone(name.clone()));
                    }
                    Part::LocalRedirect => self.engine.apply(&Change::LocalRedirectGone(name.clone())),
                    Part::IpPool => self.addresses.pool_gone(&name.name),
                    Part::EndpointSlice => {}
                }
                let key = (part, name);
                self.uids.remove(&key);
                self.invalid.remove(&key);
                self.reported.remove(&key);
            }
            Event::Synced(part) => drop(self.synced.insert(part)),
        }
    }

    /// What is wrong with every object that something is wrong with.
    fn problems(&mut self) -> BTreeMap<Key, Wrong> {
        let mut wrong = BTreeMap::new();
        // Who comes first gets a frontend: all must be there.
        if [Part::Service, Part::LocalRedirect].iter().all(|part| self.synced.contains(part)) {
            while self.engine.plan().is_some() {
                self.engine.done(Outcome::Written);
            }
            for (object, problems) in self.engine.problems() {
                let part = match object {
                    Object::Service(_) => Part::Service,
                    Object::Redirect(_) => Part::LocalRedirect,
                    // Pods are each node's own.
                    Object::Pod(_) => continue,
                };
                let Some(reason) = problems.first().map(|problem| problem.reason.as_str()) else { continue };
                let texts: Vec<String> = problems.into_iter().map(|problem| problem.text).collect();
                wrong.insert((part, object.name().clone()), (reason, texts.join("; ")));
            }
        }
        for (key, problem) in &self.invalid {
            let reason = match key.0 {
                Part::Service => "InvalidService",
                Part::EndpointSlice => "InvalidEndpointSlice",
                Part::LocalRedirect => "InvalidLocalRedirectPolicy",
                Part::IpPool => "InvalidIPPool",
            };
            wrong.insert(key.clone(), (reason, format!("{problem}; what was in force before stays in force")));
        }
        wrong
    }

    /// Writes an Event for each problem that was not said yet. True: something is to be tried again.
    async fn report(&mut self) -> bool {
        let problems = self.problems();
        self.reported.retain(|key, _| problems.contains_key(key));
        let mut failed = false;
        for (key, wrong) in problems {
            if self.reported.get(&key) == Some(&wrong) {
                continue;
            }
            let ((part, name), (reason, text)) = (&key, &wrong);
            let (kind, api_version) = part.kind();
            tracing::warn!(kind, %name, problem = text, "{reason}");
            let (namespace, name) = (name.namespace.clone(), name.name.clone());
            let uid = self.uids.get(&key).cloned().unwrap_or_default();
            let about = About { kind, api_version, namespace, name, uid };
            match warn(self.client, &about, reason, text, COMPONENT).await {
                Ok(()) => drop(self.reported.insert(key, wrong)),
                // Its namespace is about to go, or it is no name: nobody would look for it.
                Err(error) if matches!(error, Error::Name { .. }) || matches!(error.code(), Some(403 | 404)) => {
                    self.reported.insert(key, wrong);
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
    async fn write_addresses(&mut self) -> bool {
        // Half the pools are other pools.
        let known = [Part::Service, Part::IpPool].iter().all(|part| self.synced.contains(part));
        known && self.addresses.write(self.client).await
    }
}
