//! Single reads, for a CNI ADD that is ahead of the watch.

use crate::client::{Client, segment};
use crate::convert;
use crate::error::Error;
use crate::wire::{self, WireNamespace, WirePod};
use std::collections::BTreeMap;
use weft_model::intent::{Namespace, ObjectName, Pod};

/// A pod, as the API server has it now. The caller compares the UID: the name may have a new owner.
pub async fn get(client: &Client, name: &ObjectName) -> Result<Option<Pod>, Error> {
    let namespace = segment("namespace", &name.namespace)?;
    let path = format!("{}/{namespace}/pods/{}", wire::path::NAMESPACES, segment("pod", &name.name)?);
    Ok(client.find::<WirePod>(&path).await?.map(convert::pod))
}

/// UIDs of all pods of the cluster, by name.
pub async fn uids(client: &Client) -> Result<BTreeMap<ObjectName, String>, Error> {
    let mut all = BTreeMap::new();
    crate::list::each(client, wire::path::PODS, 500, &[], |pod: wire::Named| {
        let name = ObjectName { namespace: pod.metadata.namespace, name: pod.metadata.name };
        all.insert(name, pod.metadata.uid);
    })
    .await?;
    Ok(all)
}

/// A namespace, as the API server has it now.
pub async fn namespace(client: &Client, name: &str) -> Result<Option<Namespace>, Error> {
    let path = format!("{}/{}", wire::path::NAMESPACES, segment("namespace", name)?);
    Ok(client.find::<WireNamespace>(&path).await?.map(convert::namespace))
}
