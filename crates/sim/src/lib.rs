//! The control plane at scale, in one process: the real agents but for the kernel, the real operator, the embedded API
//! server or another one, under scripted churn. Seeded and repeatable.
//!
//! [`node`] is an agent over a [`recorder`]; [`wire`] its connection, which counts; [`script`] what happens to the
//! cluster; [`tracker`] how long it takes until everybody knows; [`report`] what comes out; [`scale`] several runs
//! beside each other.
#![forbid(unsafe_code)]

pub mod node;
pub mod options;
pub mod plot;
pub mod recorder;
pub mod report;
pub mod run;
pub mod scale;
pub mod script;
pub mod tracker;
pub mod wire;
