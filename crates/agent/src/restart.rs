//! First thing in an agent's life: what did the one before leave?

use crate::ports::Links;
use crate::writer::{Part, Writer};
use anyhow::Context as _;
use std::collections::BTreeSet;
use weft_sys::error::describe;

/// Endpoints that are whole go on, with the programs of this agent; what was half made or half removed is swept.
///
/// # Errors
/// The kernel or the file system cannot be read. A leftover that cannot be removed is no error: it stays remembered,
/// unreachable, and the next start tries again.
pub fn take_over(writer: &mut Writer, links: &dyn Links) -> anyhow::Result<()> {
    let (records, unusable) = writer.read_records().context("endpoint files")?;
    for file in unusable {
        tracing::error!(path = %file.path.display(), problem = %file.problem, "the endpoint's file cannot be used; it was set aside and its link is removed");
    }
    let present = links.list().context("pod links")?;
    let leftovers = writer.restore(records, &present).context("maps")?;
    for (id, device, ifindex) in writer.restored() {
        if let Err(error) = links.adopt(&device, ifindex) {
            // It goes on with the programs that it has.
            writer.set_problem(Part::Endpoint(id), Some(describe(&error)));
        }
    }
    for record in leftovers.records {
        tracing::info!(endpoint = %record.id, pod = %record.pod, phase = ?record.phase, "removing an endpoint that is not whole");
        let swept = links.remove(&record.device).map_err(|error| describe(&error));
        let swept = swept.and_then(|()| writer.sweep(&record).map_err(|error| error.to_string()));
        if let Err(problem) = swept {
            tracing::warn!(endpoint = %record.id, problem, "cannot remove it");
            writer.keep_for_later(record);
        }
    }
    for device in leftovers.devices {
        tracing::info!(device, "removing a link that belongs to no endpoint");
        if let Err(error) = links.remove(&device) {
            tracing::warn!(device, problem = describe(&error), "cannot remove it");
        }
    }
    let kept: BTreeSet<String> = writer.restored().into_iter().map(|(_, device, _)| device).collect();
    links.prune(&kept);
    Ok(())
}
