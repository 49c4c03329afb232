//! What a reconciler does, and what it has at hand.

use crate::ports::Kernel;
use crate::settings::Settings;
use crate::tables::Tables;
use std::collections::BTreeSet;
use std::time::Duration;
use weft_model::desired::DataplaneError;
use weft_model::id::{EndpointId, Revision};
use weft_model::intent::Change;
use weft_model::reconcile::{Progress, Queue};

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

    /// Its rows that are not in force.
    fn rows(&self) -> &dyn Rows;

    /// The same, to note how a pass has ended.
    fn rows_mut(&mut self) -> &mut dyn Rows;
}

/// The [`Queue`] of a reconciler, whatever its rows are called by.
pub trait Rows {
    /// When something that failed is to be tried again.
    fn next_try(&self) -> Option<Duration>;

    /// A pass over this revision of the tables has ended.
    fn end_pass(&mut self, revision: Revision);

    /// How far the rows are.
    fn progress(&self) -> Progress;

    /// Why the first of the rows that failed did, as one line of status.
    fn failure(&self) -> Option<String>;
}

impl<K: Ord + Clone> Rows for Queue<K> {
    fn next_try(&self) -> Option<Duration> {
        Self::next_try(self)
    }

    fn end_pass(&mut self, revision: Revision) {
        Self::end_pass(self, revision);
    }

    fn progress(&self) -> Progress {
        Self::progress(self)
    }

    fn failure(&self) -> Option<String> {
        let mut failures = self.failures();
        let (_, why) = failures.next()?;
        Some(match failures.count() {
            0 => why.to_owned(),
            more => format!("{why} (and {more} more)"),
        })
    }
}

/// Logs a row that could not be written, and keeps it for its next try.
pub(crate) fn failed<K: Ord + Clone>(
    queue: &mut Queue<K>,
    (name, key): (&'static str, K),
    now: Duration,
    error: &DataplaneError,
) {
    let why = weft_sys::error::describe(error);
    tracing::warn!(reconciler = name, error = %why, "cannot write to the kernel; will be tried again");
    queue.failed(key, now, why);
}
