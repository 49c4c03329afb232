//! Addresses against models of what pools mean, in worlds that change at random.

mod lbipam;
mod modes;
mod pools;
