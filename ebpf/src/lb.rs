//! Services (load balancing): frontends, backends, and the translation between them.

pub mod backend;
pub mod choice;
pub mod dsr;
pub mod frontend;
pub mod hairpin;
pub mod node;
pub mod rewrite;
pub mod translate;
