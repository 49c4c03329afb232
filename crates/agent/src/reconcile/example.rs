//! A kind with its own table and its own reconciler, as small as it gets: prefixes of Services, each of which the kernel
//! shall know as reached without masquerade. Compiled and run by the tests only; "How to add" in ARCHITECTURE.md refers
//! to it. Its kind would be one line in `model::intent`'s list; here one that is there stands in for it.

use super::reconciler::{Context, Reconciler, Rows};
use crate::settings::Settings;
use crate::tables::Tables;
use ipnet::IpNet;
use std::time::Duration;
use weft_model::desired::{DataplaneError, Route};
use weft_model::id::Revision;
use weft_model::intent::{Change, CidrGroup};
use weft_model::reconcile::Queue;
use weft_model::table::{Consumer, Table};

/// See the module.
pub struct Prefixes {
    table: Table<String, CidrGroup>,
    changes: Consumer,
    /// Rows that are not in force: all that retries, status and the revision in force need.
    queue: Queue<IpNet>,
    in_kernel: std::collections::BTreeSet<IpNet>,
}

impl Prefixes {
    pub(super) fn new(_: &Settings, _: &mut Tables) -> Self {
        let mut table = Table::default();
        let changes = table.subscribe();
        Self { table, changes, queue: Queue::default(), in_kernel: std::collections::BTreeSet::new() }
    }

    fn write(&mut self, cidr: IpNet, cx: &mut Context<'_>) -> Result<(), DataplaneError> {
        let wanted = self.table.values().any(|group| group.cidrs.contains(&cidr));
        if wanted == self.in_kernel.contains(&cidr) {
            return Ok(());
        }
        cx.kernel.set_route(cidr, wanted.then_some(Route::NoMasquerade))?;
        if wanted {
            self.in_kernel.insert(cidr)
        } else {
            self.in_kernel.remove(&cidr)
        };
        Ok(())
    }
}

impl Reconciler for Prefixes {
    fn name(&self) -> &'static str {
        "prefixes"
    }

    fn observe(&mut self, change: &Change) {
        match change {
            Change::CidrGroup(group) => drop(self.table.insert(group.name.clone(), group.clone())),
            Change::CidrGroupGone(name) => drop(self.table.remove(name)),
            _ => {}
        }
    }

    fn reconcile(&mut self, cx: &mut Context<'_>) {
        if !self.table.drain(&self.changes).is_empty() {
            // Few rows: all of them may differ.
            let all = self.table.values().flat_map(|group| group.cidrs.clone()).chain(self.in_kernel.iter().copied());
            all.for_each(|cidr| self.queue.enqueue(cidr));
        }
        for cidr in self.queue.take_due(cx.now) {
            match self.write(cidr, cx) {
                Ok(()) => self.queue.done(&cidr),
                Err(error) => super::reconciler::failed(&mut self.queue, ("prefixes", cidr), cx.now, &error),
            }
        }
    }

    fn rows(&self) -> &dyn Rows {
        &self.queue
    }

    fn rows_mut(&mut self) -> &mut dyn Rows {
        &mut self.queue
    }
}

/// The list with one line more.
#[allow(dead_code, reason = "the test needs only some of what the list gives")]
mod list {
    use super::super::*;

    reconcilers! {
        first {
            routes: routes::Routes,
        }
        then {
            prefixes: super::Prefixes,
        }
    }
}

#[test]
fn one_line_in_the_list_gives_passes_retries_and_progress() {
    use crate::fakes::{World, settings};
    let (mut world, settings) = (World::default(), settings());
    let mut tables = Tables::new(&settings.node_name);
    let mut reconcilers = list::Reconcilers::new(&settings, &mut tables);
    let cidr: IpNet = "10.96.0.0/12".parse().expect("prefix");
    let group = CidrGroup { name: "services".into(), labels: [].into(), cidrs: vec![cidr] };
    let mut stale = super::reconciler::Stale::default();
    let mut pass = |reconcilers: &mut list::Reconcilers, world: &mut World, now_s: u64| {
        let mut cx = Context {
            settings: &settings,
            tables: &mut tables,
            kernel: world,
            stale: &mut stale,
            now: Duration::from_secs(now_s),
            pruned: true,
            policies_written: true,
            endpoints_switched: true,
        };
        reconcilers.pass(&mut cx);
        reconcilers.all_mut().into_iter().for_each(|reconciler| reconciler.rows_mut().end_pass(Revision(now_s)));
    };
    reconcilers.observe(&Change::CidrGroup(group));
    world.fail("set_route");
    pass(&mut reconcilers, &mut world, 1);
    let of_prefixes = |reconcilers: &list::Reconcilers| {
        let [_, prefixes] = reconcilers.all();
        (prefixes.rows().progress(), prefixes.rows().failure())
    };
    let (progress, failure) = of_prefixes(&reconcilers);
    assert_eq!((progress.failed, progress.in_force), (1, Revision(0)));
    assert!(failure.is_some_and(|why| why.contains("set_route")), "says why");
    assert!(!reconcilers.are_settled() && reconcilers.next_try().is_some());
    world.heal();
    pass(&mut reconcilers, &mut world, 2);
    assert!(reconcilers.are_settled());
    assert_eq!(of_prefixes(&reconcilers).0.in_force, Revision(2));
    assert_eq!(world.held().routes.get(&cidr), Some(&Route::NoMasquerade));
    reconcilers.observe(&Change::CidrGroupGone("services".into()));
    pass(&mut reconcilers, &mut world, 3);
    assert!(world.held().routes.is_empty());
}
