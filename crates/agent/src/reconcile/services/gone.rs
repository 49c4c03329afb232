//! Backends that are gone.

use weft_model::desired::{BackendEntry, BackendId};

/// Backends that are gone.
pub type Gone = Vec<(BackendId, BackendEntry)>;
