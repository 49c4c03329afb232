//! Packets through the real kernel programs (`BPF_PROG_TEST_RUN`): what becomes of each, byte by byte, and what the maps
//! hold afterwards.

mod direct;
mod edge;
mod forged;
mod fragments;
mod host;
mod hostile;
mod oracle;
mod own;
mod paths;
mod policy;
mod refused;
mod reuse;
mod service;
mod verdicts;
mod xdp;
