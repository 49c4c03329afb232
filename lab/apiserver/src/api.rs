//! What the verbs do. The HTTP server and the controllers come in through the same methods, so that a controller
//! can do nothing that validation would refuse.

mod delete;
mod list;
mod write;

use super::error::ApiError;
use super::object::{at, text};
use super::resource::{Registry, Resource};
use super::store::{Key, Store, StoreError, Stored};
use ipnet::IpNet;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

pub use delete::{DeleteOptions, Deleted, FOREGROUND, ORPHAN, Propagation};
pub use list::{List, ListOptions};
pub use write::{FieldValidation, WriteOptions, Written};

/// What an installation chooses.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where cluster addresses of services come from: at most one range per family, the first family is the default.
    pub service_cidrs: Vec<IpNet>,
    /// Where pods and nodes reach this server, at most one address per family.
    pub endpoints: Vec<SocketAddr>,
}

impl Settings {
    /// The nth address of the range at `index`, counting from the one that names the range.
    #[must_use]
    pub fn service_address(&self, index: usize, nth: u32) -> Option<IpAddr> {
        weft_lab_config::options::nth_address(self.service_cidrs.get(index)?, nth)
    }
}

/// The API over a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    settings: Settings,
    registry: RwLock<Arc<Registry>>,
    pages: Mutex<list::Pages>,
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(error)
    }
}

impl Api {
    /// The API over this store.
    #[must_use]
    pub fn new(store: Store, settings: Settings) -> Self {
        let registry = RwLock::new(Arc::new(Registry::new(Vec::new())));
        let inner = Inner { store, settings, registry, pages: Mutex::new(list::Pages::default()) };
        let api = Self { inner: Arc::new(inner) };
        api.reload_definitions();
        api
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// What was chosen.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// What is served now.
    #[must_use]
    pub fn registry(&self) -> Arc<Registry> {
        self.inner.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A built-in resource, by its plural.
    ///
    /// # Panics
    /// When there is none: names are constants of this program.
    #[must_use]
    pub fn builtin(&self, group: &str, plural: &str) -> Arc<Resource> {
        self.registry().get(group, plural).cloned().expect("built-in resources are always served")
    }

    /// Reads the definitions of custom kinds anew.
    fn reload_definitions(&self) {
        // The lock is held over the reading, so that an older state cannot follow a newer one.
        let mut registry = self.inner.registry.write().unwrap_or_else(PoisonError::into_inner);
        let definitions = self.inner.store.list("customresourcedefinitions.apiextensions.k8s.io", "");
        let mut custom = Vec::new();
        for definition in &definitions.objects {
            match super::crd::resource(&definition.value) {
                Ok(resource) => custom.push(resource),
                Err(causes) => tracing::error!(
                    name = super::object::name(&definition.value),
                    ?causes,
                    "a stored definition is not understood: its objects are not served"
                ),
            }
        }
        *registry = Arc::new(Registry::new(custom));
    }

    /// One object.
    ///
    /// # Errors
    /// That there is none.
    pub fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Arc<Stored>, ApiError> {
        let group_resource = resource.group_resource();
        let key = Key::new(&group_resource, namespace, name);
        self.inner.store.get(&key).ok_or_else(|| ApiError::not_found(&group_resource, name))
    }
}

/// Refuses when the client took the object for another one.
fn check_preconditions(resource: &Resource, object: &Value, uid: &str, revision: &str) -> Result<(), ApiError> {
    let name = super::object::name(object);
    let present = super::object::uid(object);
    if !uid.is_empty() && uid != present {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {present}");
        return Err(ApiError::conflict(&resource.group_resource(), name, why));
    }
    let present = text(object, &["metadata", "resourceVersion"]);
    if !revision.is_empty() && revision != present {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(ApiError::conflict(&resource.group_resource(), name, why));
    }
    Ok(())
}

/// The object in the version asked for.
#[must_use]
pub fn in_version(resource: &Resource, version: &str, object: &Value) -> Option<Value> {
    let wanted = resource.api_version(version);
    if at(object, &["apiVersion"]).and_then(Value::as_str) == Some(wanted.as_str()) {
        return None;
    }
    let mut object = object.clone();
    object["apiVersion"] = wanted.into();
    Some(object)
}
