//! One reconciler for each kind of thing that is outside of the agent: each makes the kernel match the tables, retries
//! what failed, row by row, and says up to which revision everything is in force.
//!
//! A reconciler is a folder (or file) here and one line in the list at the end of this file: passes, retries, status,
//! problems and metrics follow from the list.

pub mod endpoints;
pub mod ipcache;
pub mod metrics;
pub mod policy;
mod reconciler;
pub mod routes;
pub mod services;

use super::settings::Settings;
pub use crate::reconcile::reconciler::{Context, Reconciler, Stale};
use crate::tables::Tables;
use std::time::Duration;
use weft_model::intent::Change;

/// Declares the reconcilers, in the order in which a pass runs them.
macro_rules! reconcilers {
    (first { $($first:ident: $First:ty),+ $(,)? } then { $($then:ident: $Then:ty),+ $(,)? }) => {
        /// All of them.
        pub struct Reconcilers {
            $(#[allow(missing_docs, reason = "named after its module")] pub $first: $First,)+
            $(#[allow(missing_docs, reason = "named after its module")] pub $then: $Then,)+
        }

        impl Reconcilers {
            /// How many there are.
            pub const COUNT: usize = [$(stringify!($first),)+ $(stringify!($then),)+].len();

            /// None has done anything yet.
            #[must_use]
            pub fn new(settings: &Settings, tables: &mut Tables) -> Self {
                Self {
                    $($first: <$First>::new(settings, tables),)+
                    $($then: <$Then>::new(settings, tables),)+
                }
            }

            /// Those that are written before anything takes hold, in order.
            fn first(&mut self) -> impl Iterator<Item = &mut dyn Reconciler> {
                [$(&mut self.$first as &mut dyn Reconciler),+].into_iter()
            }

            /// Those that rest on the others being in force, in order.
            fn then(&mut self) -> impl Iterator<Item = &mut dyn Reconciler> {
                [$(&mut self.$then as &mut dyn Reconciler),+].into_iter()
            }

            /// Writes everything that differs, in order: write what is new, make it take hold, remove what is old.
            pub fn pass(&mut self, cx: &mut Context<'_>) {
                (cx.policies_written, cx.endpoints_switched) = (true, true);
                for reconciler in self.first() {
                    reconciler.reconcile(cx);
                    if reconciler.gates_others() {
                        return;
                    }
                }
                self.first().for_each(|reconciler| reconciler.finish(cx));
                self.then().for_each(|reconciler| reconciler.reconcile(cx));
            }

            /// Passes a change of a watcher on.
            pub fn observe(&mut self, change: &Change) {
                self.all_mut().into_iter().for_each(|reconciler| reconciler.observe(change));
            }

            /// A pass made room for something that did not fit before.
            pub fn want_another_pass(&mut self) -> bool {
                self.all_mut().into_iter().fold(false, |wants, reconciler| reconciler.wants_another_pass() || wants)
            }

            /// Removes what a former agent left and nobody wants; flows that knew it decide again.
            pub fn prune(&mut self, cx: &mut Context<'_>) {
                self.all_mut().into_iter().for_each(|reconciler| reconciler.prune(cx));
                self.first().for_each(|reconciler| reconciler.finish(cx));
            }

            /// Everything that was to be written is.
            #[must_use]
            pub fn are_settled(&self) -> bool {
                self.all().iter().all(|reconciler| {
                    let progress = reconciler.rows().progress();
                    (progress.pending, progress.failed) == (0, 0)
                })
            }

            /// When something that failed is to be tried again.
            #[must_use]
            pub fn next_try(&self) -> Option<Duration> {
                self.all().iter().filter_map(|reconciler| reconciler.rows().next_try()).min()
            }

            /// All, in order.
            pub fn all(&self) -> [&dyn Reconciler; Self::COUNT] {
                [$(&self.$first as &dyn Reconciler,)+ $(&self.$then as &dyn Reconciler,)+]
            }

            /// All, in order.
            pub fn all_mut(&mut self) -> [&mut dyn Reconciler; Self::COUNT] {
                [$(&mut self.$first as &mut dyn Reconciler,)+ $(&mut self.$then as &mut dyn Reconciler,)+]
            }
        }
    };
}

reconcilers! {
    first {
        // What an address's prefix is decides what an unknown address in it is taken for.
        routes: routes::Routes,
        // Policies before the endpoints that use them and the addresses that have the identities they know.
        policy: policy::Policy,
        endpoints: endpoints::EndpointLinks,
        ipcache: ipcache::Ipcache,
    }
    then {
        // A backend's address and policy are in force before a frontend leads there.
        services: services::Services,
    }
}

// Behind the macro that it uses.
#[cfg(test)]
mod example;
