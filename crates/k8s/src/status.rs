//! Conditions of policies: whether they can be enforced as they are written. One writer in a cluster, its operator.
//!
//! What stands in the objects is compared with what should, and only differences are written; conditions of others stay.

use crate::client::{Client, PatchKind, segment};
use crate::convert::{self, Problems, Settings};
use crate::error::Error;
use crate::retry::Backoff;
use crate::watch::{Absence, Kind, Seen, follow};
use crate::wire::{Metadata, WirePolicy, path};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_model::intent::{ObjectName, PolicyKind};

pub const KINDS: [PolicyKind; 3] =
    [PolicyKind::CiliumNetworkPolicy, PolicyKind::CiliumClusterwideNetworkPolicy, PolicyKind::ClusterNetworkPolicy];
const BATCHES_MAX: usize = 8;
const MESSAGE_BYTES_MAX: usize = 1000;

type Key = (PolicyKind, ObjectName);

/// What shall be written to an object.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Patch {
    version: String,
    conditions: Value,
}

/// What a look at an object came to; `None`: nothing is to be written.
type Event = (Key, Option<Patch>);

struct Policies {
    kind: PolicyKind,
    settings: Settings,
}

/// What the converters have no use for.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Rest {
    metadata: Generation,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Generation {
    generation: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Option<Vec<Value>>,
}

impl Kind for Policies {
    type Key = ObjectName;
    type Event = Event;
    const PAGE: u32 = 250;

    fn path(&self) -> &'static str {
        path::policies(self.kind)
    }

    fn absence(&self) -> Absence {
        Absence::Confirmed
    }

    fn read(&self, json: &str) -> Result<Seen<ObjectName, Event>, String> {
        let object: WirePolicy = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let rest: Rest = serde_json::from_str(json).unwrap_or_default();
        let key = convert::policy_name(self.kind, &object).object;
        let problems = convert::policy(self.kind, &object, self.settings).err();
        let held = rest.status.and_then(|status| status.conditions).unwrap_or_default();
        let conditions = conditions(self.kind, held, problems, rest.metadata.generation);
        let Metadata { uid, resource_version: version, .. } = object.metadata;
        let patch = conditions.map(|conditions| Patch { version: version.clone(), conditions });
        Ok(Seen { key: key.clone(), uid, version, event: Some(((self.kind, key), patch)) })
    }

    fn gone(&self, key: &ObjectName, _uid: &str) -> Event {
        ((self.kind, key.clone()), None)
    }

    fn synced(&self) -> Event {
        // Nothing waits for it.
        ((self.kind, ObjectName { namespace: String::new(), name: String::new() }), None)
    }
}

/// The conditions as they should stand; `None`: they do.
fn conditions(kind: PolicyKind, mut held: Vec<Value>, problems: Option<Problems>, generation: i64) -> Option<Value> {
    let name = if kind == PolicyKind::ClusterNetworkPolicy { "Accepted" } else { "Valid" };
    let (status, reason, message) = match problems {
        None => ("True", "Valid", "the policy can be enforced as it is written".to_owned()),
        Some(problems) => ("False", "Invalid", message(problems)),
    };
    let position = held.iter().position(|condition| condition["type"] == name);
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut wanted =
        json!({"type": name, "status": status, "reason": reason, "message": message, "lastTransitionTime": now});
    if kind == PolicyKind::ClusterNetworkPolicy {
        // The others' definitions, as others install them, do not have it.
        wanted["observedGeneration"] = json!(generation);
    }
    match position.map(|n| &mut held[n]) {
        Some(known) => {
            let since = &known["lastTransitionTime"];
            if known["status"] == status && since.is_string() {
                wanted["lastTransitionTime"] = since.clone();
            }
            if *known == wanted {
                return None;
            }
            *known = wanted;
        }
        None => held.push(wanted),
    }
    Some(Value::Array(held))
}

/// All problems, as far as there is room.
fn message(problems: Problems) -> String {
    let mut text = String::new();
    for problem in problems {
        let problem = problem.to_string();
        if text.len() + problem.len() > MESSAGE_BYTES_MAX && !text.is_empty() {
            text.push_str("; ...");
            break;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&problem);
    }
    if text.len() > MESSAGE_BYTES_MAX + 10 {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// Writes conditions until `stop`.
pub async fn run(client: &Client, settings: Settings, stop: CancellationToken) {
    let (sender, mut receiver) = mpsc::channel(BATCHES_MAX);
    for kind in KINDS {
        follow(client.clone(), Policies { kind, settings }, sender.clone(), stop.clone());
    }
    drop(sender);
    let mut waiting: BTreeMap<Key, Patch> = BTreeMap::new();
    let mut retry = Backoff::default();
    loop {
        let batch = if waiting.is_empty() {
            receiver.recv().await
        } else {
            // What could not be written is tried again, unless something newer is heard.
            match tokio::time::timeout(retry.next(), receiver.recv()).await {
                Ok(batch) => batch,
                Err(_) => Some(Vec::new()),
            }
        };
        let Some(batch) = batch else { return };
        for (key, patch) in batch {
            match patch {
                Some(patch) => drop(waiting.insert(key, patch)),
                None => drop(waiting.remove(&key)),
            }
        }
        for (key, patch) in std::mem::take(&mut waiting) {
            match write(client, &key, &patch).await {
                Ok(()) => retry.reset(),
                // Changed or gone: the watch tells, if it has not yet.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => {
                    let (kind, name) = &key;
                    tracing::warn!(%kind, %name, %error, "cannot write the status of a policy, trying again");
                    waiting.insert(key, patch);
                }
            }
        }
    }
}

async fn write(client: &Client, (kind, name): &Key, patch: &Patch) -> Result<(), Error> {
    let collection = path::policies(*kind);
    let object = segment("policy", &name.name)?;
    let path = if kind.is_namespaced() {
        let (group, plural) = collection.rsplit_once('/').unwrap_or_default();
        format!("{group}/namespaces/{}/{plural}/{object}/status", segment("namespace", &name.namespace)?)
    } else {
        format!("{collection}/{object}/status")
    };
    let body = json!({"metadata": {"resourceVersion": patch.version}, "status": {"conditions": patch.conditions}});
    client.patch::<serde::de::IgnoredAny>(&path, PatchKind::Merge, &body).await?;
    Ok(())
}
