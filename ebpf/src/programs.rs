//! The programs at devices. They parse a packet and start the pipeline.

pub mod device;
pub mod pod;
pub mod run;
pub mod tunnel;
