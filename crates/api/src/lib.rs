//! The node-local interface of the agent: JSON lines over a unix socket, one request a line, one answer a line
//! (`observe` answers with many). Plain enough for the CNI executable to speak it without a runtime.

pub mod agent;
pub mod cni;
pub mod flow;
