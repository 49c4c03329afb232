//! Reconciles a node whose addresses a cloud assigns, from three inputs: what the CiliumNode requests, what it lists as
//! allocated, and what the cloud has assigned.
//!
//! Blocks are assigned in the cloud before the CiliumNode lists them, and unassigned after the node removed them. So the
//! cloud routes everything that is listed, and no released block is assigned to another node while this one has it.

use super::Family;
use ipnet::IpNet;
use std::collections::BTreeSet;

/// The state of a node for one pool and family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// Addresses that the CiliumNode requests.
    pub requested: u128,
    /// Blocks that the CiliumNode lists.
    pub allocated: BTreeSet<IpNet>,
    /// Blocks that the cloud has assigned to the node.
    pub assigned: BTreeSet<IpNet>,
    /// Prefix length of a block.
    pub length: u8,
}

/// The actions, in this order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Listed but not assigned: the cloud lost them. Assign exactly these again.
    pub reassign: Vec<IpNet>,
    /// Assigned, not listed, and requested: the previous operator stopped in between. Add them to the CiliumNode.
    pub allocate: Vec<IpNet>,
    /// Assigned, not listed, and not requested: the node released them. Unassign them in the cloud.
    pub unassign: Vec<IpNet>,
    /// Number of new blocks to assign.
    pub assign: u32,
}

fn size(family: Family, length: u8) -> u128 {
    1_u128.checked_shl(u32::from(family.bits().saturating_sub(length))).unwrap_or(u128::MAX)
}

#[must_use]
pub fn plan(family: Family, needs: &Needs) -> Plan {
    let mut plan = Plan { reassign: needs.allocated.difference(&needs.assigned).copied().collect(), ..Plan::default() };
    let mut have = needs.allocated.iter().fold(0_u128, |sum, net| sum.saturating_add(size(family, net.prefix_len())));
    for net in needs.assigned.difference(&needs.allocated) {
        if have < needs.requested {
            have = have.saturating_add(size(family, net.prefix_len()));
            plan.allocate.push(*net);
        } else {
            plan.unassign.push(*net);
        }
    }
    let missing = needs.requested.saturating_sub(have).div_ceil(size(family, needs.length));
    plan.assign = u32::try_from(missing).unwrap_or(u32::MAX);
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn assigned_blocks_are_listed_before_new_ones_are_assigned() {
        let needs = Needs {
            requested: 4,
            allocated: nets(&["10.0.0.1/32"]),
            assigned: nets(&["10.0.0.1/32", "10.0.0.2/32"]),
            length: 32,
        };
        let plan = plan(Family::V4, &needs);
        assert_eq!(plan.allocate, nets(&["10.0.0.2/32"]).into_iter().collect::<Vec<_>>());
        assert_eq!((plan.assign, plan.unassign.len(), plan.reassign.len()), (2, 0, 0));
    }

    #[test]
    fn released_blocks_are_unassigned_and_lost_ones_assigned_again() {
        let needs =
            Needs { requested: 1, allocated: nets(&["10.0.0.1/32"]), assigned: nets(&["10.0.0.9/32"]), length: 32 };
        let plan = plan(Family::V4, &needs);
        assert_eq!(plan.reassign, ["10.0.0.1/32".parse::<IpNet>().unwrap()]);
        assert_eq!(plan.unassign, ["10.0.0.9/32".parse::<IpNet>().unwrap()]);
        assert_eq!((plan.assign, plan.allocate.len()), (0, 0));
    }

    #[test]
    fn blocks_are_counted_whole() {
        let needs = Needs { requested: 31, length: 28, ..Needs::default() };
        assert_eq!(plan(Family::V4, &needs).assign, 2);
        let needs = Needs { requested: 1, length: 64, ..Needs::default() };
        assert_eq!(plan(Family::V6, &needs).assign, 1);
        let all = Needs { requested: u128::MAX, length: 128, ..Needs::default() };
        assert_eq!(plan(Family::V6, &all).assign, u32::MAX);
    }
}
