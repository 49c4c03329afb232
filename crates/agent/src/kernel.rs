//! [`Links`] over the kernel.

use crate::machine::TUNNEL_DEVICE;
use crate::ports::{LinkError, LinkSpec, Links};
use crate::writer::endpoints::DEVICE_PREFIX;
use std::collections::BTreeSet;
use std::io;
use weft_datapath::Hooks;
use weft_datapath::link::{self, PodLinkSpec};
use weft_datapath::netns::NetNs;

/// Pod links with their programs.
pub struct PodLinks {
    hooks: Hooks,
}

impl PodLinks {
    /// Over the programs of this node.
    #[must_use]
    pub fn new(hooks: Hooks) -> Self {
        Self { hooks }
    }
}

fn failed<E: std::error::Error + Send + Sync + 'static>(what: String) -> impl FnOnce(E) -> LinkError {
    move |source| LinkError { what, netns_gone: false, source: Some(Box::new(source)) }
}

fn open(spec: &LinkSpec) -> Result<NetNs, LinkError> {
    NetNs::open(&spec.netns).map_err(|source| LinkError {
        what: format!("open network namespace {}", spec.netns.display()),
        netns_gone: source.kind() == io::ErrorKind::NotFound,
        source: Some(Box::new(source)),
    })
}

fn pod_link<'a>(spec: &LinkSpec, netns: &'a NetNs) -> PodLinkSpec<'a> {
    PodLinkSpec {
        host_name: spec.device.clone(),
        owner: spec.id.to_string(),
        netns,
        pod_name: spec.ifname.clone(),
        host_mac: Some(spec.host_mac),
        pod_mac: Some(spec.pod_mac),
        mtu: spec.mtu,
        addresses: spec.addresses.clone(),
    }
}

impl Links for PodLinks {
    fn create(&self, spec: &LinkSpec) -> Result<u32, LinkError> {
        let netns = open(spec)?;
        let attach = |link: &link::PodLink| self.hooks.attach_endpoint(&link.host_name, link.host_ifindex);
        let made = link::create_pod(&pod_link(spec, &netns), attach);
        let made = made.map_err(failed(format!("make {} in {}", spec.ifname, spec.netns.display())))?;
        Ok(made.host_ifindex)
    }

    fn remove(&self, device: &str) -> Result<(), LinkError> {
        link::delete(device).map_err(failed(format!("remove {device}")))?;
        // The programs are gone with the device; their pins are left.
        self.hooks.detach(device).map_err(failed(format!("detach from {device}")))?;
        Ok(())
    }

    fn list(&self) -> Result<Vec<(String, u32)>, LinkError> {
        let links = link::list().map_err(failed("list links".into()))?;
        Ok(links.into_iter().map(|link| (link.name, link.ifindex)).collect())
    }

    fn adopt(&self, device: &str, ifindex: u32) -> Result<(), LinkError> {
        self.hooks.attach_endpoint(device, ifindex).map_err(failed(format!("attach to {device}")))
    }

    fn prune(&self, keep: &BTreeSet<String>) {
        // The node's own devices are not pod links.
        let ours = |device: &String| device.starts_with(DEVICE_PREFIX) && device != TUNNEL_DEVICE;
        let pruned = self.hooks.attached().and_then(|attached| {
            let others = attached.into_iter().filter(|device| !ours(device));
            self.hooks.prune(&others.chain(keep.iter().cloned()).collect())
        });
        match pruned {
            Ok(gone) => {
                gone.iter().for_each(|device| tracing::info!(device, "removed the pins of a link that is gone"))
            }
            Err(error) => tracing::warn!(%error, "cannot list the pinned links"),
        }
    }

    fn check(&self, spec: &LinkSpec) -> Result<(), LinkError> {
        let netns = open(spec)?;
        link::check_pod(&pod_link(spec, &netns)).map_err(|what| LinkError { what, netns_gone: false, source: None })
    }
}
