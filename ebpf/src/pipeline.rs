//! The order of the stages: a packet's connection is looked up, decided where it is new or changed, and sent.

pub mod decide;
pub mod host;
pub mod track;
