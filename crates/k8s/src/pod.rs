//! Single reads, for a CNI ADD that is ahead of the watch.

use crate::client::{Client, segment};
use crate::convert;
use crate::error::Error;
use crate::wire::{self, WireNamespace, WirePod};
use weft_model::intent::{Namespace, ObjectName, Pod};

/// A pod, as the API server has it now. The caller compares the UID: the name may have a new owner.
///
/// # Errors
/// Anything but "there is none".
pub async fn get(client: &Client, name: &ObjectName) -> Result<Option<Pod>, Error> {
    let namespace = segment("namespace", &name.namespace)?;
    let path = format!("{}/{namespace}/pods/{}", wire::path::NAMESPACES, segment("pod", &name.name)?);
    Ok(client.find::<WirePod>(&path).await?.map(convert::pod))
}

/// A namespace, as the API server has it now.
///
/// # Errors
/// Anything but "there is none".
pub async fn namespace(client: &Client, name: &str) -> Result<Option<Namespace>, Error> {
    let path = format!("{}/{}", wire::path::NAMESPACES, segment("namespace", name)?);
    Ok(client.find::<WireNamespace>(&path).await?.map(convert::namespace))
}
