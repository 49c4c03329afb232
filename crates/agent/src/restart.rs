//! First thing in an agent's life: what did the one before leave?

use crate::core::{Core, describe};
use crate::ports::Links;
use anyhow::Context as _;
use std::collections::BTreeSet;

/// Endpoints that are whole go on, with the programs of this agent; what was half made or half removed is swept.
///
/// # Errors
/// The kernel or the file system cannot be read. A leftover that cannot be removed is no error: it stays remembered,
/// unreachable, and the next start tries again.
pub fn take_over(core: &mut Core, links: &dyn Links) -> anyhow::Result<()> {
    let (records, unusable) = core.read_records().context("endpoint files")?;
    for file in unusable {
        tracing::error!(path = %file.path.display(), problem = %file.problem, "the endpoint's file cannot be used; it was set aside and its link is removed");
    }
    let present = links.list().context("pod links")?;
    let leftovers = core.restore(records, &present).context("maps")?;
    for (id, device, ifindex) in core.restored() {
        if let Err(error) = links.adopt(&device, ifindex) {
            // It goes on with the programs that it has.
            core.set_problem(&format!("endpoint {id}"), Some(describe(&error)));
        }
    }
    for record in leftovers.records {
        tracing::info!(endpoint = %record.id, pod = %record.pod, phase = ?record.phase, "removing an endpoint that is not whole");
        let swept = links.remove(&record.device).map_err(|error| describe(&error));
        let swept = swept.and_then(|()| core.sweep(&record).map_err(|error| error.to_string()));
        if let Err(problem) = swept {
            tracing::warn!(endpoint = %record.id, problem, "cannot remove it");
            core.keep_for_later(record);
        }
    }
    for device in leftovers.devices {
        tracing::info!(device, "removing a link that belongs to no endpoint");
        if let Err(error) = links.remove(&device) {
            tracing::warn!(device, problem = describe(&error), "cannot remove it");
        }
    }
    let kept: BTreeSet<String> = core.restored().into_iter().map(|(_, device, _)| device).collect();
    links.prune(&kept);
    Ok(())
}
