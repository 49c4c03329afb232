//! The policy compiler, and what is explained and foretold of policies, against the oracle.

mod explain;
mod incremental;
mod oracle;
mod vectors;
