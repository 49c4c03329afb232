//! One reconciler for each kind of thing that is outside of the agent: each makes the kernel match the tables, retries
//! what failed, row by row, and says up to which revision everything is in force.
//!
//! A reconciler is a folder (or file) here and one line in the list at the end of this file: passes, retries, status,
//! problems and metrics follow from the list.

pub mod endpoints;
pub mod ipcache;
pub mod metrics;
pub mod policy;
pub mod routes;
pub mod services;

use crate::ports::Kernel;
use crate::tables::Tables;
use crate::writer::Settings;
use std::collections::BTreeSet;
use std::time::Duration;
use weft_model::desired::DataplaneError;
use weft_model::id::{EndpointId, Revision};
use weft_model::intent::Change;
use weft_model::reconcile::Progress;

/// Flows whose decision rests on something that has changed: they decide again once everything of a pass is written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stale {
    /// All of the node.
    pub node: bool,
    /// Those of these endpoints.
    pub endpoints: BTreeSet<EndpointId>,
}

/// What a pass has at hand.
pub struct Context<'a> {
    /// The agent's settings.
    pub settings: &'a Settings,
    /// What shall be.
    pub tables: &'a mut Tables,
    /// What is.
    pub kernel: &'a mut dyn Kernel,
    /// What has to decide again at the end of the pass.
    pub stale: &'a mut Stale,
    /// Monotonic time.
    pub now: Duration,
    /// The leftovers of a former agent were removed. Until then a row that nobody wants may be one that was not
    /// announced yet, and stays.
    pub pruned: bool,
    /// The policies of this pass are written: endpoints may be switched to them.
    pub policies_written: bool,
    /// Every endpoint of this pass is switched: what none uses any more may be removed.
    pub endpoints_switched: bool,
}

/// Makes one kind of thing match the tables.
pub trait Reconciler {
    /// For status, metrics and logs.
    fn name(&self) -> &'static str;

    /// A change that a watcher delivered. Those of other kinds are to be ignored.
    fn observe(&mut self, _: &Change) {}

    /// Takes over what a former agent left in the kernel, before the first pass.
    ///
    /// # Errors
    /// The kernel cannot be read.
    fn adopt(&mut self, _: &mut Context<'_>) -> Result<(), DataplaneError> {
        Ok(())
    }

    /// Writes what differs, but removes nothing that something may still refer to. Failures are kept by row.
    fn reconcile(&mut self, cx: &mut Context<'_>);

    /// After all of the first group were written: makes it take hold and removes what nothing refers to any more.
    fn finish(&mut self, _: &mut Context<'_>) {}

    /// After the first complete pass: removes what a former agent left and nobody wants.
    fn prune(&mut self, _: &mut Context<'_>) {}

    /// Those after it in the list must wait until this one has no failure.
    fn gates_others(&self) -> bool {
        false
    }

    /// The pass made room for something that did not fit before: another one may get further.
    fn wants_another_pass(&mut self) -> bool {
        false
    }

    /// When something that failed is to be tried again.
    fn next_try(&self) -> Option<Duration>;

    /// A pass over this revision of the tables has ended.
    fn end_pass(&mut self, revision: Revision);

    /// How far it is.
    fn progress(&self) -> Progress;

    /// Why the first of the rows that failed did.
    fn failure(&self) -> Option<String>;
}

/// The failures of a queue as one line of status.
fn failure<K: Ord + Clone + std::fmt::Display>(queue: &weft_model::reconcile::Queue<K>) -> Option<String> {
    let mut failures = queue.failures();
    let (_, why) = failures.next()?;
    Some(match failures.count() {
        0 => why.to_owned(),
        more => format!("{why} (and {more} more)"),
    })
}

/// Logs a row that could not be written, and keeps it for its next try.
fn failed<K: Ord + Clone>(
    queue: &mut weft_model::reconcile::Queue<K>,
    (name, key): (&'static str, K),
    now: Duration,
    error: &DataplaneError,
) {
    let why = crate::writer::describe(error);
    tracing::warn!(reconciler = name, error = %why, "cannot write to the kernel; will be tried again");
    queue.failed(key, now, why);
}

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
                    let progress = reconciler.progress();
                    (progress.pending, progress.failed) == (0, 0)
                })
            }

            /// When something that failed is to be tried again.
            #[must_use]
            pub fn next_try(&self) -> Option<Duration> {
                self.all().iter().filter_map(|reconciler| reconciler.next_try()).min()
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
