//! Watches and writers against an API server in memory that shows the faults of real ones.

#[path = "api/absence.rs"]
mod absence;
#[path = "support/fake.rs"]
#[allow(dead_code, reason = "shared with the tests of the operator")]
mod fake;
#[path = "api/kinds.rs"]
mod kinds;
#[path = "api/watching.rs"]
mod watching;
#[path = "api/writing.rs"]
mod writing;
