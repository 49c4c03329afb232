//! Routes, step by step, against what all nodes together say.

use crate::fakes::{World, node};
use crate::writer::tests::synced_writer;
use ipnet::IpNet;
use proptest::prelude::*;
use std::collections::BTreeMap;
use weft_model::desired::Route;
use weft_model::intent::{Change, Node};
use weft_model::reconcile::RETRY_MAX;

/// Nodes are few and prefixes fewer, so that several say something of the same one.
#[derive(Clone, Debug)]
enum Step {
    Put { name: u8, prefixes: Vec<u8>, address: u8 },
    Remove { name: u8 },
    Share { name: u8, prefixes: Vec<u8> },
    Flush,
    Refuse,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let prefixes = || prop::collection::vec(1_u8..6, 0..3);
    let put = (1_u8..6, prefixes(), 1_u8..4);
    let step = prop_oneof![
        4 => put.prop_map(|(name, prefixes, address)| Step::Put { name, prefixes, address }),
        2 => (2_u8..6).prop_map(|name| Step::Remove { name }),
        1 => (2_u8..6, prefixes()).prop_map(|(name, prefixes)| Step::Share { name, prefixes }),
        3 => Just(Step::Flush),
        1 => Just(Step::Refuse),
    ];
    prop::collection::vec(step, 1..40)
}

fn nets(prefixes: &[u8]) -> Vec<IpNet> {
    prefixes.iter().flat_map(|n| node("any", *n).pod_cidrs).collect()
}

/// Of several nodes with one prefix the last by name has it.
fn expected(nodes: &BTreeMap<String, Node>, shares: &BTreeMap<String, Vec<IpNet>>) -> BTreeMap<IpNet, Route> {
    let mut routes = BTreeMap::new();
    for (name, node) in nodes {
        for cidr in node.pod_cidrs.iter().chain(shares.get(name).into_iter().flatten()) {
            let peer = node.addresses.iter().find(|address| address.is_ipv4() == cidr.addr().is_ipv4());
            let route = if name == "n1" { Route::LocalPool } else { Route::RemotePool(*peer.expect("both families")) };
            routes.insert(*cidr, route);
        }
    }
    routes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn routes_are_what_all_nodes_say(steps in steps()) {
        let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
        let mut writer = synced_writer(&world, dir.path());
        let mut nodes: BTreeMap<String, Node> = [node("n1", 1), node("n2", 2)].map(|node| (node.name.clone(), node)).into();
        let mut shares: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Flush]) {
            match step {
                Step::Put { name, prefixes, address } => {
                    let mut put = Node { pod_cidrs: nets(&prefixes), ..node(&format!("n{name}"), address) };
                    // This node's own prefixes are its IPAM's to say.
                    if name == 1 {
                        put.pod_cidrs = nodes["n1"].pod_cidrs.clone();
                    }
                    nodes.insert(put.name.clone(), put.clone());
                    writer.apply(vec![Change::Node(put)]);
                }
                Step::Remove { name } => {
                    let name = format!("n{name}");
                    nodes.remove(&name);
                    writer.apply(vec![Change::NodeGone(name)]);
                }
                Step::Share { name, prefixes } => {
                    let (name, nets) = (format!("n{name}"), nets(&prefixes));
                    writer.set_share(&name, nets.clone());
                    shares.insert(name, nets);
                }
                Step::Refuse => {
                    world.fail("set_route");
                    writer.flush();
                    world.heal();
                }
                Step::Flush => {
                    writer.flush();
                    // What was refused is tried again.
                    writer.set_time(writer.now + RETRY_MAX);
                    writer.flush();
                    prop_assert_eq!(&world.held().routes, &expected(&nodes, &shares));
                }
            }
        }
    }
}
