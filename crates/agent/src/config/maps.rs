//! Sizes of the kernel's maps, by the names that Cilium gives them where it has them.

use std::collections::BTreeMap;
use weft_abi::{map_name, map_size};
use weft_datapath::Adopted;
use weft_settings::value::within;

/// As Cilium's limits of its tables.
const LEAST: u32 = 1 << 10;
const MOST: u32 = 1 << 24;

macro_rules! map_sizes {
    ($($(#[doc = $help:literal])+ $setting:ident = $map:ident,)+) => {
        #[derive(clap::Args, Clone, PartialEq, Eq, Debug)]
        #[allow(missing_docs, reason = "clap would take a doc comment for the program's own description")]
        pub struct MapSizes {
            $(
                $(#[doc = $help])+
                #[arg(long, value_name = "ENTRIES", default_value_t = map_size::$map, value_parser = within(LEAST..=MOST))]
                pub $setting: u32,
            )+
        }

        impl MapSizes {
            /// By the map's name.
            #[must_use]
            pub fn entries_max(&self) -> BTreeMap<&'static str, u32> {
                BTreeMap::from([$((map_name::$map, self.$setting)),+])
            }
        }
    };
}

map_sizes! {
    /// Map size: connections (conntrack entries of all protocols, with their NAT). When it fills up, idle connections
    /// expire sooner; a new connection that finds no room is dropped.
    bpf_ct_global_max = FLOWS,
    /// Map size: pods and nodes of the cluster, by address.
    bpf_ipcache_max = IPCACHE,
    /// Map size: policy entries of all endpoints. Endpoints with the same policies share theirs.
    bpf_policy_map_max = POLICY_ENTRIES,
    /// Map size: classes of peers by policy.
    bpf_policy_class_map_max = POLICY_CLASSES,
    /// Map size: identities and prefixes that policies select.
    bpf_policy_peer_map_max = PEERS,
    /// Map size: prefixes of CIDR rules.
    bpf_cidr_map_max = PREFIXES,
    /// Map size: pod CIDRs of nodes, and prefixes of `--no-masquerade`.
    bpf_route_map_max = ROUTES,
    /// Map size: frontends of Services, one per address and port.
    bpf_lb_service_map_max = FRONTENDS,
    /// Map size: backend slots, one per frontend set and backend.
    bpf_lb_slot_map_max = SLOTS,
    /// Map size: backends of Services.
    bpf_lb_service_backend_map_max = BACKENDS,
    /// Map size: parts of Maglev tables, of 64 entries each (see `--maglev-table-size`).
    bpf_lb_maglev_map_max = MAGLEV,
    /// Map size: prefixes of `loadBalancerSourceRanges`.
    bpf_lb_source_range_map_max = RANGES,
    /// Map size: clients with session affinity (LRU: when it is full, the client that was longest silent loses its
    /// affinity).
    bpf_lb_affinity_map_max = AFFINITY,
    /// Map size: sockets whose destination was translated (LRU: when it is full, the one longest unused receives UDP
    /// answers from the backend's address instead of the Service's).
    bpf_sock_rev_map_max = SOCKETS,
    /// Map size: datagrams of which later fragments are expected (LRU).
    bpf_fragments_map_max = FRAGMENTS,
}

/// Logs what came of sizes that the maps of the agent before did not have.
pub(crate) fn report(adopted: &Adopted) {
    for map in &adopted.resized {
        tracing::info!(map, "kernel map resized, entries moved");
    }
    for kept in &adopted.kept {
        tracing::warn!(
            map = kept.map,
            entries = kept.entries,
            entries_max = kept.entries_max,
            wanted = kept.wanted,
            "kernel map not resized: its entries would not fit with a quarter to spare; restart the agent when it is \
             emptier, or drain the node and remove the pin"
        );
    }
    if adopted.left_out > 0 {
        tracing::warn!(
            entries = adopted.left_out,
            "entries that were added while kernel maps were resized did not fit: their connections may break"
        );
    }
}
