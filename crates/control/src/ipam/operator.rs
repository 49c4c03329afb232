//! What the operator does about a node whose addresses a cloud assigns. Three lists tell the story: what the node asks
//! for, what it was told to have (both in its object), and what the cloud has assigned to it.
//!
//! The cloud comes first when addresses are given and last when they are taken: what stands in the node's object the
//! cloud carries, and what the node let go of is taken from the cloud before anybody else can get it.

use super::Family;
use ipnet::IpNet;
use std::collections::BTreeSet;

/// A node's needs of one pool and family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// Addresses that the node asks for.
    pub needed: u128,
    /// Blocks that it was told to have.
    pub told: BTreeSet<IpNet>,
    /// Blocks that the cloud has assigned to it.
    pub assigned: BTreeSet<IpNet>,
    /// Length of the prefix of a block.
    pub length: u8,
}

/// What to do, in this order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The node has these, and the cloud does not carry them (any more): assign these very ones again.
    pub repair: Vec<IpNet>,
    /// Assigned, and the node was not told (a predecessor died in between): tell it, they are needed.
    pub tell: Vec<IpNet>,
    /// Assigned, not told and not needed: the node let go of them. Take them from the cloud.
    pub unassign: Vec<IpNet>,
    /// So many new blocks to assign.
    pub assign: u32,
}

fn size(family: Family, length: u8) -> u128 {
    1_u128.checked_shl(u32::from(family.bits().saturating_sub(length))).unwrap_or(u128::MAX)
}

/// What to do for one node, pool and family.
#[must_use]
pub fn plan(family: Family, needs: &Needs) -> Plan {
    let mut plan = Plan { repair: needs.told.difference(&needs.assigned).copied().collect(), ..Plan::default() };
    let mut have = needs.told.iter().fold(0_u128, |sum, net| sum.saturating_add(size(family, net.prefix_len())));
    for net in needs.assigned.difference(&needs.told) {
        if have < needs.needed {
            have = have.saturating_add(size(family, net.prefix_len()));
            plan.tell.push(*net);
        } else {
            plan.unassign.push(*net);
        }
    }
    let missing = needs.needed.saturating_sub(have).div_ceil(size(family, needs.length));
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
    fn what_is_assigned_and_not_told_is_used_before_new_ones_are_asked_for() {
        let needs = Needs {
            needed: 4,
            told: nets(&["10.0.0.1/32"]),
            assigned: nets(&["10.0.0.1/32", "10.0.0.2/32"]),
            length: 32,
        };
        let plan = plan(Family::V4, &needs);
        assert_eq!(plan.tell, nets(&["10.0.0.2/32"]).into_iter().collect::<Vec<_>>());
        assert_eq!((plan.assign, plan.unassign.len(), plan.repair.len()), (2, 0, 0));
    }

    #[test]
    fn what_the_node_let_go_of_is_taken_and_what_it_lost_is_repaired() {
        let needs = Needs { needed: 1, told: nets(&["10.0.0.1/32"]), assigned: nets(&["10.0.0.9/32"]), length: 32 };
        let plan = plan(Family::V4, &needs);
        assert_eq!(plan.repair, ["10.0.0.1/32".parse::<IpNet>().unwrap()]);
        assert_eq!(plan.unassign, ["10.0.0.9/32".parse::<IpNet>().unwrap()]);
        assert_eq!((plan.assign, plan.tell.len()), (0, 0));
    }

    #[test]
    fn blocks_are_counted_whole() {
        let needs = Needs { needed: 31, length: 28, ..Needs::default() };
        assert_eq!(plan(Family::V4, &needs).assign, 2);
        let needs = Needs { needed: 1, length: 64, ..Needs::default() };
        assert_eq!(plan(Family::V6, &needs).assign, 1);
        let all = Needs { needed: u128::MAX, length: 128, ..Needs::default() };
        assert_eq!(plan(Family::V6, &all).assign, u32::MAX);
    }
}
