//! A watched kind: how its objects are listed and read, and which changes they become.

use crate::wire::{Metadata, Named, WireEndpointSlice, WireService};
use serde::Deserialize;
use std::hash::Hash;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_model::intent::{Change, ObjectName, Source, SourceProblem};

/// What it means when the server does not give a kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Absence {
    /// The cluster must serve the kind: without a complete list there is no `Synced`.
    Never,
    /// The cluster may not serve the kind, and then there are no objects. While it is forbidden, nobody knows which
    /// objects there are: there is no `Synced`.
    Confirmed,
    /// The same, but while it is forbidden only a feature is missing: it counts as empty, with a lasting problem.
    Tolerated,
}

/// How long a watch waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The server ends a watch after this time; the next one goes on from the version reached.
    pub watch: Duration,
    /// How much later a silent connection counts as dead.
    pub silence: Duration,
    /// Longest pause between two attempts to list or watch.
    pub retry_max: Duration,
    /// Longest pause between two attempts to list a kind that the server does not serve.
    pub not_served_retry_max: Duration,
    /// How long discovery must not have a kind, at every attempt, before objects that were listed count as gone.
    /// Deleting a CRD deletes its objects one by one first, which the watch reports; this is for deletions that it missed.
    pub not_served_confirm: Duration,
    /// How long requests must fail before that is reported as a problem. Refusals are reported at once.
    pub failing_report: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            watch: Duration::from_secs(290),
            silence: Duration::from_secs(15),
            retry_max: Duration::from_secs(20),
            not_served_retry_max: Duration::from_secs(60),
            not_served_confirm: Duration::from_secs(60),
            failing_report: Duration::from_secs(10),
        }
    }
}

/// A kind of objects and what shall be told about them.
pub trait Kind: Send + Sync + 'static {
    type Key: Eq + Hash + Clone + Send + Sync;
    type Event: Hash + Send + 'static;

    /// Objects per page of a list: large objects, small pages.
    const PAGE: u32;

    /// Path of the collection, such as `/apis/cilium.io/v2/ciliumnodes`.
    fn path(&self) -> &'static str;
    /// `name=value` of a field selector.
    fn field_selector(&self) -> Option<String> {
        None
    }
    /// Whether the server may not serve the kind.
    fn absence(&self) -> Absence {
        Absence::Never
    }
    /// Reads one object.
    ///
    /// # Errors
    /// In words, when not even its name can be read; such an object is logged and skipped.
    fn read(&self, json: &str) -> Result<Seen<Self::Key, Self::Event>, String>;
    /// What to tell when an object is gone.
    fn gone(&self, key: &Self::Key, uid: &str) -> Self::Event;
    /// What to tell after the first complete list.
    fn synced(&self) -> Self::Event;
    /// What to tell when the kind cannot be read any more, or can again (`None`). The log has it in any case.
    fn problem(&self, _problem: Option<SourceProblem>) -> Option<Self::Event> {
        None
    }
}

#[derive(Debug)]
pub struct Seen<K, N> {
    pub key: K,
    /// Its UID; empty where a successor of the same name is as good.
    pub uid: String,
    pub version: String,
    /// What to tell; `None`: it exists, but cannot be used, and what was told before stands.
    pub event: Option<N>,
}

#[derive(Clone, Copy, Debug)]
pub struct EndpointsWatch<'a> {
    /// Until when; it must end with everything else at the latest.
    pub until: &'a CancellationToken,
    /// The cluster must know the kind: as long as it does not, the source is not complete.
    pub required: bool,
}

/// A kind of which the agent hears as [`Change`]s: what a file below `kinds/` says.
pub trait AgentKind: Send + Sync + 'static {
    type Key: Eq + Hash + Clone + Send + Sync;

    /// See [`Kind`].
    const PAGE: u32;

    fn source(&self) -> Source;
    fn path(&self) -> &'static str;
    fn field_selector(&self) -> Option<String> {
        None
    }
    fn absence(&self) -> Absence {
        Absence::Never
    }
    fn read(&self, json: &str) -> Result<Seen<Self::Key, Change>, String>;
    fn gone(&self, key: &Self::Key, uid: &str) -> Change;
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// An object of which the metadata are enough: whatever else is wrong with it, it exists.
pub(crate) fn judged<T: Object>(json: &str) -> Result<(Metadata, Result<T, String>), String> {
    let (metadata, object) = match serde_json::from_str::<T>(json) {
        Ok(object) => (object.metadata().clone(), Ok(object)),
        Err(error) => (parse::<Named>(json)?.metadata, Err(error.to_string())),
    };
    named(&metadata)?;
    Ok((metadata, object))
}

/// What [`judged`] needs of an object.
pub(crate) trait Object: serde::de::DeserializeOwned {
    fn metadata(&self) -> &Metadata;
}

impl Object for WireService {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

impl Object for WireEndpointSlice {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

pub(crate) fn named(metadata: &Metadata) -> Result<(), String> {
    if metadata.name.is_empty() { Err("metadata.name: required".to_owned()) } else { Ok(()) }
}

pub(crate) fn object_name(metadata: &Metadata) -> ObjectName {
    ObjectName { namespace: metadata.namespace.clone(), name: metadata.name.clone() }
}
