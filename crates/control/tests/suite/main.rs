//! The control plane's functions against models of what they mean, in worlds that change at random.

mod ipam;
mod ipam_modes;
mod lbipam;
mod limits;
mod services;
