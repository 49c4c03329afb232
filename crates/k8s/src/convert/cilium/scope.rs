//! Where in which policy a field is.

use crate::convert::problem::Settings;

/// What a field that needs a proxy is answered with.
pub(crate) const NOT_YET: &str = "not supported yet";

#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    /// The policy's namespace; `None`: it is the cluster's.
    pub(super) namespace: Option<&'a str>,
    pub(super) settings: Settings,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}
