//! The control plane's functions against models of what they mean, in worlds that change at random.

mod limits;
mod services;
