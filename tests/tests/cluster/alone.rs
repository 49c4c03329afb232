//! Tests that count lost packets and connections, or measure how soon something is refused: beside others they hold,
//! beside each other they would only measure the machine. `cargo xtask test` runs one of them at a time.

mod churn;
mod restart;
mod rollout;
mod service;
mod service_traits;
