//! Azure Resource Manager: secondary IP configurations of a node's primary interface, of a virtual machine or of an
//! instance of a scale set.
//!
//! Every change reads the resource, adds or takes configurations of ours (by their names), and writes it whole under its
//! ETag; a conflict begins anew. Long-running operations are followed to their end.

mod arm;
mod interface;
mod settings;
mod token;

pub use crate::azure::settings::Settings;
use crate::{Answer, Cloud, CloudError, NodeRef, Wanted};
use arm::Arm;
use futures::FutureExt as _;
use interface::Interface;
use ipnet::IpNet;
use std::collections::BTreeSet;

/// Attempts at a write that somebody else's comes before.
const CONFLICTS_MAX: usize = 6;

/// See the module.
pub struct Azure {
    arm: Arm,
    subnet: Option<String>,
}

impl Azure {
    /// A client.
    ///
    /// # Errors
    /// The machine has no certificates to trust, or an address is invalid.
    pub fn new(settings: &Settings) -> Result<Self, CloudError> {
        if let Some(subnet) = &settings.pod_subnet {
            arm::check_id(subnet, "subnets")?;
        }
        Ok(Self { arm: Arm::new(settings)?, subnet: settings.pod_subnet.clone() })
    }

    /// Reads the interface, changes it and writes it, until nobody else's write comes before.
    async fn change(
        &self,
        node: &NodeRef,
        mut change: impl FnMut(&mut Interface) -> Result<bool, CloudError>,
    ) -> Result<BTreeSet<IpNet>, CloudError> {
        let mut tries = 0;
        loop {
            let mut interface = Interface::read(&self.arm, node).await?;
            if !change(&mut interface)? {
                return interface.ours();
            }
            match interface.write(&self.arm).await {
                // What a cut connection or a timeout leaves open, the next reading settles.
                Ok(()) => return Interface::read(&self.arm, node).await?.ours(),
                Err(CloudError::Conflict { .. }) if tries < CONFLICTS_MAX => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn assign_one(&self, node: &NodeRef, wanted: Wanted) -> Result<BTreeSet<IpNet>, CloudError> {
        let mut count = wanted.count;
        loop {
            let part = Wanted { count, ..wanted };
            let subnet = self.subnet.as_deref();
            match self.change(node, |interface| interface.add(part, subnet).map(|()| count > 0)).await {
                // All or nothing is the platform's way; less may still fit.
                Err(CloudError::SubnetFull { .. }) if count > 1 => count /= 2,
                other => return other,
            }
        }
    }
}

impl Cloud for Azure {
    fn assigned<'a>(&'a self, node: &'a NodeRef) -> Answer<'a, BTreeSet<IpNet>> {
        async move { Interface::read(&self.arm, node).await?.ours() }.boxed()
    }

    fn assign<'a>(&'a self, node: &'a NodeRef, wanted: &'a [Wanted]) -> Answer<'a, BTreeSet<IpNet>> {
        async move {
            let mut all = BTreeSet::new();
            for wanted in wanted {
                all = self.assign_one(node, *wanted).await?;
            }
            Ok(all)
        }
        .boxed()
    }

    fn restore<'a>(&'a self, node: &'a NodeRef, blocks: &'a [IpNet]) -> Answer<'a, ()> {
        let subnet = self.subnet.as_deref();
        let change = self.change(node, move |interface| interface.restore(blocks, subnet));
        change.map(|done| done.map(drop)).boxed()
    }

    fn unassign<'a>(&'a self, node: &'a NodeRef, blocks: &'a [IpNet]) -> Answer<'a, ()> {
        self.change(node, move |interface| interface.remove(blocks)).map(|done| done.map(drop)).boxed()
    }

    /// The interface goes with the machine, and its configurations with the interface.
    fn retain<'a>(&'a self, _nodes: &'a [String]) -> Answer<'a, ()> {
        std::future::ready(Ok(())).boxed()
    }
}
