//! Objects into intents. The only place where foreign content is judged: everything is checked here, whole, and a
//! problem names the field and what was expected. Nothing here panics, whatever the JSON.

mod field;
mod objects;
mod policy;

#[cfg(test)]
mod tests;

pub(crate) use objects::identity_object;
pub use objects::{identity, namespace, node, pod, slice, slice_endpoint};
pub use policy::policy;

/// Why an object cannot be used: `spec.egress[0].ports[1].port: ...`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Problem {
    /// Path of the field.
    pub field: String,
    /// What is wrong with it, and what was expected.
    pub problem: String,
}

impl Problem {
    /// At `field`.
    pub(crate) fn new(field: impl std::fmt::Display, problem: impl Into<String>) -> Self {
        Self { field: field.to_string(), problem: problem.into() }
    }
}
