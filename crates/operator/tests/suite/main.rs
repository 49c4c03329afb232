//! The operator against an API server in memory.

mod cluster;
mod crds;
#[path = "../../../k8s/tests/support/fake.rs"]
#[allow(dead_code, reason = "shared with the tests of the Kubernetes crate")]
mod fake;
mod services;
mod slices;
