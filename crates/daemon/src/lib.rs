//! What every long-running program needs beside its own work: a log, supervised tasks, and an HTTP server for health
//! checks and metrics. Knows nothing of networks, Kubernetes or the kernel.
#![forbid(unsafe_code)]

pub mod http;
pub mod log;
pub mod tasks;
