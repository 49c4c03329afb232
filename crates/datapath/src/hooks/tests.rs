//! All but the first run as root: a BPF file system and network namespaces of their own.

use super::*;
use crate::link::{PodLinkSpec, create_pod, delete};
use crate::netns::NetNs;
use crate::testing::{BpfDir, describe, in_netns};
use crate::{Adopted, Datapath};

mod checksum;
mod sockets;
mod swap;

#[test]
fn pins_tell_device_role_and_side() {
    for role in Role::ALL {
        for side in SIDES {
            let pin = role.pin("eth-0.5", side);
            assert!(!pin.contains('.'), "{pin}");
            assert_eq!(Role::parse(&pin), Some(("eth-0.5".to_owned(), role, side)), "{pin}");
        }
    }
    assert_eq!(Role::parse("lxc0"), None);
}

fn pod<'a>(netns: &'a NetNs, name: &str) -> PodLinkSpec<'a> {
    PodLinkSpec {
        host_name: name.to_owned(),
        owner: name.to_owned(),
        netns,
        pod_name: "eth0".to_owned(),
        host_mac: None,
        pod_mac: None,
        mtu: 1500,
        addresses: vec!["10.244.1.7".parse().unwrap()],
    }
}

fn make(hooks: &Hooks, netns: &NetNs, name: &str) -> u32 {
    let attach = |link: &crate::link::PodLink| hooks.attach_endpoint(&link.host_name, link.host_ifindex);
    create_pod(&pod(netns, name), attach).map_err(|error| describe(&error)).expect("is made").host_ifindex
}

fn open(dir: &BpfDir) -> (Datapath, Adopted) {
    Datapath::open(&dir.all()).map_err(|error| describe(&error)).expect("opens")
}

fn link_of(dir: &BpfDir, pin: &str) -> sys::TcxLink {
    let link = sys::object_get(&dir.inside("links").join(pin)).expect("is pinned");
    sys::tcx_info(link.as_fd()).expect("readable").expect("a tcx link")
}

#[test]
fn links_outlive_the_agent_and_are_taken_over() {
    in_netns(|| {
        let dir = BpfDir::new();
        let netns = NetNs::create().unwrap();
        let (datapath, _) = open(&dir);
        let index = make(&datapath.hooks(), &netns, "weft1");
        drop(datapath);
        let before = link_of(&dir, "weft1-ingress");
        assert_eq!(before.ifindex, index);
        // As a new build of the programs would do: they are other ones.
        std::fs::remove_dir_all(dir.inside("programs")).unwrap();

        let (datapath, adopted) = open(&dir);
        let mut links = adopted.links;
        links.sort();
        assert_eq!((links, adopted.pruned), (vec!["weft1-egress".to_owned(), "weft1-ingress".to_owned()], vec![]));
        let after = link_of(&dir, "weft1-ingress");
        assert_eq!(after.ifindex, index);
        assert_ne!(after.program, before.program, "replaced");
        // Attaching again changes nothing.
        datapath.hooks().attach_endpoint("weft1", index).unwrap();
        assert_eq!(link_of(&dir, "weft1-ingress"), after);
        assert_eq!(datapath.hooks().attached().unwrap(), BTreeSet::from(["weft1".to_owned()]));
    });
}

#[test]
fn a_former_versions_links_and_maps_become_ours() {
    use weft_model::desired::Dataplane;
    in_netns(|| {
        let dir = BpfDir::new();
        let netns = NetNs::create().unwrap();
        let (mut datapath, _) = open(&dir);
        let index = make(&datapath.hooks(), &netns, "weft1");
        let entry =
            weft_model::desired::IpcacheEntry { identity: weft_model::id::Identity::HOST, node: None, is_node: true };
        datapath.set_ipcache("192.0.2.1".parse().unwrap(), Some(&entry)).unwrap();
        datapath.bump(&weft_model::desired::Touched::Node).unwrap();
        let revision = datapath.revision();
        drop(datapath);
        // An agent of a version before this one would have left the same, but for a map of another layout.
        let (ours, former) = (dir.inside(""), dir.path.join("v0"));
        fs::rename(&ours, &former).unwrap();
        fs::remove_file(former.join("maps/POLICY_INFO")).unwrap();
        let other = sys::map::Layout { kind: 1, key_size: 4, value_size: 4, entries_max: 10, flags: 0 };
        let other = sys::map::create("POLICY_INFO", &other).unwrap();
        sys::object_pin(other.as_fd(), &former.join("maps/POLICY_INFO")).unwrap();

        let (mut datapath, adopted) = open(&dir);
        assert_eq!((adopted.links.len(), adopted.pruned.len(), adopted.fresh), (2, 0, false));
        assert_eq!(link_of(&dir, "weft1-ingress").ifindex, index);
        assert_eq!(datapath.ipcache().unwrap().len(), 1);
        assert_eq!(datapath.policies().unwrap().len(), 0);
        assert_eq!(datapath.revision(), revision);
        assert!(!former.exists());
    });
}

#[test]
fn pins_of_devices_that_are_gone_are_pruned() {
    in_netns(|| {
        let dir = BpfDir::new();
        let (first, second) = (NetNs::create().unwrap(), NetNs::create().unwrap());
        let (datapath, _) = open(&dir);
        let hooks = datapath.hooks();
        make(&hooks, &first, "weft1");
        make(&hooks, &second, "weft2");
        assert!(delete("weft1").unwrap());
        drop((hooks, datapath));
        let (datapath, adopted) = open(&dir);
        assert_eq!((adopted.links.len(), adopted.pruned.len()), (2, 2), "{adopted:?}");
        let hooks = datapath.hooks();
        assert_eq!(hooks.attached().unwrap(), BTreeSet::from(["weft2".to_owned()]));
        assert_eq!(hooks.prune(&BTreeSet::new()).unwrap(), Vec::<String>::new(), "it has a device");
        assert!(delete("weft2").unwrap());
        assert_eq!(hooks.prune(&BTreeSet::from(["weft2".to_owned()])).unwrap(), Vec::<String>::new());
        assert_eq!(hooks.prune(&BTreeSet::new()).unwrap(), ["weft2"]);
        assert_eq!(hooks.attached().unwrap(), BTreeSet::new());
        assert!(!hooks.detach("weft2").unwrap());
    });
}

#[test]
fn a_new_device_of_an_old_name_gets_its_own_links() {
    in_netns(|| {
        let dir = BpfDir::new();
        let (datapath, _) = open(&dir);
        let hooks = datapath.hooks();
        let old = make(&hooks, &NetNs::create().unwrap(), "weft1");
        assert!(delete("weft1").unwrap());
        let netns = NetNs::create().unwrap();
        let new = make(&hooks, &netns, "weft1");
        assert_ne!(old, new);
        for pin in ["weft1-ingress", "weft1-egress"] {
            assert_eq!(link_of(&dir, pin).ifindex, new);
        }
    });
}

#[test]
fn detaching_detaches() {
    in_netns(|| {
        let dir = BpfDir::new();
        let netns = NetNs::create().unwrap();
        let (datapath, _) = open(&dir);
        let hooks = datapath.hooks();
        make(&hooks, &netns, "weft1");
        let held = sys::object_get(&dir.inside("links/weft1-ingress")).unwrap();
        assert!(hooks.detach("weft1").unwrap());
        assert_eq!(sys::tcx_info(held.as_fd()).unwrap().unwrap().ifindex, 0, "whoever holds the link");
    });
}

#[test]
fn a_failed_attachment_leaves_no_pin() {
    in_netns(|| {
        let dir = BpfDir::new();
        let (datapath, _) = open(&dir);
        let hooks = datapath.hooks();
        assert!(hooks.attach_endpoint("weft1", 4242).is_err(), "there is no such device");
        // One side fails: something that is no link sits at its pin.
        let netns = NetNs::create().unwrap();
        let index = crate::link::create_pod(&pod(&netns, "weft1"), |_| Ok(())).unwrap().host_ifindex;
        let blocked = dir.inside("links/weft1-egress");
        sys::object_pin(hooks.programs.get(COLLECT), &blocked).unwrap();
        assert!(hooks.attach_endpoint("weft1", index).is_err());
        assert!(!dir.inside("links/weft1-ingress").exists());
        fs::remove_file(blocked).unwrap();
        hooks.attach_endpoint("weft1", index).unwrap();
    });
}

#[test]
fn a_tunnel_and_a_device_have_their_own_programs() {
    in_netns(|| {
        let dir = BpfDir::new();
        let (datapath, _) = open(&dir);
        let hooks = datapath.hooks();
        let netns = NetNs::create().unwrap();
        let index = create_pod(&pod(&netns, "up.0"), |_| Ok(())).unwrap().host_ifindex;
        hooks.attach_device("up.0", index).unwrap();
        hooks.attach_tunnel("up.0", index).unwrap();
        let programs: BTreeSet<u32> =
            ["up:0-device-ingress", "up:0-device-egress", "up:0-tunnel-ingress", "up:0-tunnel-egress"]
                .map(|pin| link_of(&dir, pin).program)
                .into();
        assert_eq!(programs.len(), 4);
        assert_eq!(hooks.attached().unwrap(), BTreeSet::from(["up.0".to_owned()]));
        drop((hooks, datapath));
        let (datapath, adopted) = open(&dir);
        assert_eq!(adopted.links.len(), 4);
        assert!(datapath.hooks().detach("up.0").unwrap());
        assert_eq!(datapath.hooks().attached().unwrap(), BTreeSet::new());
    });
}
