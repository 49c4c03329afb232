//! Objects into intents. The only place where foreign content is judged: everything is checked here, whole, and a
//! problem names the field and what was expected. Nothing here panics, whatever the JSON.

mod address;
mod cilium;
mod cluster_policy;
mod field;
mod load_balancer;
mod local_redirect;
mod network_policy;
mod objects;
mod policy;
mod pool;
mod problem;
mod selector;
mod service;

#[cfg(test)]
mod tests;

pub use load_balancer::{ip_pool, load_balancer_request};
pub use local_redirect::local_redirect;
pub(crate) use objects::identity_object;
pub use objects::{
    endpoint, endpoint_of_slice, endpoint_slice_name, identity, namespace, node, pod, slice, slice_endpoint,
};
pub use policy::{CIDR_GROUP, api_version, object, policy, policy_name};
pub use pool::{Pool, pool};
pub use problem::{Problem, Problems, Settings};
pub use service::{backends, cidr_group, service};
