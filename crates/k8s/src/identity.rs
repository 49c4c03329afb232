//! CiliumIdentity objects: one per number, made once, never changed.

use crate::client::{Client, PatchKind, Preconditions};
use crate::convert;
use crate::error::Error;
use crate::wire::{CiliumIdentity, Metadata, UNUSED_SINCE, path};
use serde::Deserialize;
use serde_json::json;
use weft_model::id::Identity;
use weft_model::intent::IdentityLabels;
use weft_model::label::LabelSet;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The number now stands for these labels.
    Created,
    /// The number was taken before, by these labels. Equal ones: another node was faster, which is as good.
    Exists(LabelSet),
}

/// Creates the object of `row`'s number with `row`'s labels, or takes up the one that is there: if it is marked as unused,
/// the mark is taken off.
pub async fn create(client: &Client, row: &IdentityLabels) -> Result<Outcome, Error> {
    let object = convert::identity_object(row);
    match client.create::<serde::de::IgnoredAny>(path::IDENTITIES, &object).await {
        Ok(_) => Ok(Outcome::Created),
        Err(error) if error.is_already_exists() => {
            match client.find::<CiliumIdentity>(&object_path(row.identity)).await? {
                Some(mut found) => {
                    let unused_since = found.metadata.annotations.remove(UNUSED_SINCE);
                    let labels = LabelSet(found.security_labels);
                    if unused_since.is_some() && labels == row.labels {
                        // Its removal rests on the version that was marked: from now on it fails.
                        let resource_version = found.metadata.resource_version;
                        mark(client, &Held { identity: row.identity, resource_version, unused_since }, None).await?;
                    }
                    Ok(Outcome::Exists(labels))
                }
                // Deleted in between: the caller's next try creates it.
                None => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// An identity object as the operator's garbage collection sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    pub identity: Identity,
    pub resource_version: String,
    pub unused_since: Option<String>,
}

#[derive(Deserialize)]
struct HeldObject {
    #[serde(default)]
    metadata: Metadata,
}

pub async fn list(client: &Client) -> Result<Vec<Held>, Error> {
    let mut all = Vec::new();
    crate::list::each(client, path::IDENTITIES, 500, &[], |object: HeldObject| {
        let mut metadata = object.metadata;
        let number = metadata.name.parse().ok().and_then(Identity::allocated);
        all.extend(number.map(|identity| Held {
            identity,
            unused_since: metadata.annotations.remove(UNUSED_SINCE),
            resource_version: metadata.resource_version,
        }));
    })
    .await?;
    Ok(all)
}

/// Marks an identity as unused since `since`, or (`None`) as in use.
pub async fn mark(client: &Client, held: &Held, since: Option<&str>) -> Result<(), Error> {
    let patch = json!({"metadata": {
        "resourceVersion": held.resource_version,
        "annotations": {UNUSED_SINCE: since},
    }});
    client.patch::<serde::de::IgnoredAny>(&object_path(held.identity), PatchKind::Merge, &patch).await?;
    Ok(())
}

/// Deletes an identity, if it is still as it was read.
pub async fn delete(client: &Client, held: &Held) -> Result<(), Error> {
    let unchanged = Preconditions { uid: None, resource_version: Some(held.resource_version.clone()) };
    client.delete(&object_path(held.identity), &unchanged).await
}

fn object_path(identity: Identity) -> String {
    format!("{}/{identity}", path::IDENTITIES)
}
