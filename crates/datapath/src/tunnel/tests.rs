//! These run as root, each in a network namespace of its own.

use super::*;
use crate::netlink::device::Device;
use crate::testing::in_netns;

fn spec() -> TunnelSpec {
    TunnelSpec { name: "weft_vxlan".into(), port: 8472, mtu: 1450 }
}

fn device() -> Device {
    Socket::open().unwrap().device("weft_vxlan").unwrap().expect("is there")
}

#[test]
fn the_device_is_as_asked_and_made_once() {
    in_netns(|| {
        let index = ensure(&spec()).unwrap();
        let made = device();
        assert_eq!((made.index, made.mtu, made.mac, made.up, made.noarp), (index, 1450, Some(TUNNEL_MAC), true, true));
        let vxlan = made.vxlan.expect("VXLAN");
        assert_eq!((vxlan.port, vxlan.collect_metadata, vxlan.learning), (8472, true, false));
        assert_eq!(ensure(&spec()).unwrap(), index);
        assert_eq!(ensure(&TunnelSpec { mtu: 1400, ..spec() }).unwrap(), index);
        assert_eq!(device().mtu, 1400);
        // Another port needs another device.
        assert_ne!(ensure(&TunnelSpec { port: 4789, ..spec() }).unwrap(), index);
        assert!(remove("weft_vxlan").unwrap());
        assert!(!remove("weft_vxlan").unwrap());
    });
}

#[test]
fn other_peoples_devices_are_left_alone() {
    in_netns(|| {
        let error = ensure(&TunnelSpec { name: "lo".into(), ..spec() }).unwrap_err();
        assert!(error.to_string().contains("lo exists and is no VXLAN device"), "{error}");
        assert!(!remove("lo").unwrap());
        // The port is taken by somebody else's device.
        Socket::open().unwrap().create_vxlan("other", 8472, 1450, [2, 0, 0, 0, 0, 1]).unwrap();
        Socket::open().unwrap().set_up(Socket::open().unwrap().device("other").unwrap().unwrap().index, true).unwrap();
        assert!(ensure(&spec()).is_err());
        assert!(Socket::open().unwrap().device("other").unwrap().is_some());
    });
}
