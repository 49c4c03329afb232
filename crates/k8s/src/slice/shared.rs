//! Slices that belong to no node: the operator makes them of CiliumEndpoints. One by one; what goes where is decided
//! elsewhere. Every write is conditional on the version that it was planned from.

use super::{NODE_LABEL, slice_path};
use crate::client::{Client, Preconditions};
use crate::convert;
use crate::error::Error;
use crate::wire::{CILIUM_V2ALPHA1, CiliumEndpointSlice, Metadata, Named, path};
use std::collections::BTreeMap;
use weft_model::intent::RemoteEndpoint;

/// Label of a slice that our operator made. Those of other operators are taken over, but not removed when this one
/// gives up making slices.
pub const WRITER_LABEL: &str = "weft.dev/writer";
pub const WRITER: &str = "weft-operator";

/// A slice as it is in the API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    pub name: String,
    pub version: String,
    pub ours: bool,
    pub namespace: String,
    /// Its endpoints; `None`: some cannot be read.
    pub endpoints: Option<Vec<RemoteEndpoint>>,
}

fn stored(slice: CiliumEndpointSlice) -> Stored {
    let (name, version) = (slice.metadata.name.clone(), slice.metadata.resource_version.clone());
    let ours = slice.metadata.labels.get(WRITER_LABEL).is_some_and(|writer| writer == WRITER);
    let namespace = slice.namespace.clone();
    let endpoints = match convert::slice(slice) {
        Ok(slice) => Some(slice.endpoints),
        Err(problem) => {
            tracing::warn!(slice = name, %problem, "a slice that cannot be read will be written again");
            None
        }
    };
    Stored { name, version, ours, namespace, endpoints }
}

/// All slices that belong to no node.
pub async fn list(client: &Client) -> Result<Vec<Stored>, Error> {
    let mut all = Vec::new();
    crate::list::each(client, path::SLICES, 100, &[], |slice: CiliumEndpointSlice| {
        if !slice.metadata.labels.contains_key(NODE_LABEL) {
            all.push(stored(slice));
        }
    })
    .await?;
    Ok(all)
}

/// One of them, as it is now; `None`: there is none, or it belongs to a node.
pub async fn read(client: &Client, name: &str) -> Result<Option<Stored>, Error> {
    let found: Option<CiliumEndpointSlice> = client.find(&slice_path(name)?).await?;
    Ok(found.filter(|slice| !slice.metadata.labels.contains_key(NODE_LABEL)).map(stored))
}

/// Writes a slice: anew (`version` is `None`), or in place of the one of that version. Answers the new version.
pub async fn write(
    client: &Client,
    name: &str,
    version: Option<&str>,
    namespace: &str,
    endpoints: &[&RemoteEndpoint],
) -> Result<String, Error> {
    let object = CiliumEndpointSlice {
        api_version: CILIUM_V2ALPHA1.to_owned(),
        kind: "CiliumEndpointSlice".to_owned(),
        metadata: Metadata {
            name: name.to_owned(),
            resource_version: version.unwrap_or_default().to_owned(),
            labels: BTreeMap::from([(WRITER_LABEL.to_owned(), WRITER.to_owned())]),
            ..Metadata::default()
        },
        namespace: namespace.to_owned(),
        endpoints: endpoints.iter().map(|endpoint| convert::slice_endpoint(endpoint)).collect(),
    };
    let made: Named = match version {
        None => client.create(path::SLICES, &object).await?,
        Some(_) => client.replace(&slice_path(name)?, &object).await?,
    };
    Ok(made.metadata.resource_version)
}

/// Deletes a slice, if it is still of that version.
pub async fn delete(client: &Client, name: &str, version: &str) -> Result<(), Error> {
    let unchanged = Preconditions { uid: None, resource_version: Some(version.to_owned()) };
    client.delete(&slice_path(name)?, &unchanged).await
}
