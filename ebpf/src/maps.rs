//! The maps, by the names of `weft_abi::map_name`. User space may lower or raise the sizes before loading.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use weft_abi::{
    Addr, AffinityKey, AffinityValue, BackendInfo, CidrValue, ENDPOINT_ID_MAX, EndpointInfo, FlowEntry, FlowKey,
    FragmentKey, FragmentValue, FrontendInfo, FrontendKey, IpcacheInfo, MaglevKey, MaglevPart, MetricKey, MetricValue,
    NodeConfig, PolicyClassKey, PolicyEntryKey, PolicyEntryValue, PolicyInfo, RouteInfo, SlotKey, SocketKey,
    SocketValue, map_size,
};

use crate::scratch::Scratch;

/// Events that this CPU may still send.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Bucket {
    pub filled_ns: u64,
    pub tokens: u32,
    pub suppressed: u32,
}

/// The node's configuration, once user space has written it. Not a `Result`: one of its two registers would be undefined,
/// and the verifier refuses to save an undefined register.
#[inline(always)]
pub fn config() -> Option<&'static NodeConfig> {
    CONFIG.get(0).filter(|config| config.revision != 0)
}

#[map]
pub static ENDPOINTS: HashMap<Addr, EndpointInfo> = HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);

#[map]
pub static IPCACHE: HashMap<Addr, IpcacheInfo> = HashMap::with_max_entries(map_size::IPCACHE, BPF_F_NO_PREALLOC);

#[map]
pub static PREFIXES: LpmTrie<Addr, CidrValue> = LpmTrie::with_max_entries(map_size::PREFIXES, BPF_F_NO_PREALLOC);

#[map]
pub static ROUTES: LpmTrie<Addr, RouteInfo> = LpmTrie::with_max_entries(map_size::ROUTES, BPF_F_NO_PREALLOC);

#[map]
pub static PEERS: HashMap<u32, u32> = HashMap::with_max_entries(map_size::PEERS, BPF_F_NO_PREALLOC);

#[map]
pub static POLICY_CLASSES: HashMap<PolicyClassKey, u32> =
    HashMap::with_max_entries(map_size::POLICY_CLASSES, BPF_F_NO_PREALLOC);

#[map]
pub static POLICY_ENTRIES: HashMap<PolicyEntryKey, PolicyEntryValue> =
    HashMap::with_max_entries(map_size::POLICY_ENTRIES, BPF_F_NO_PREALLOC);

#[map]
pub static POLICY_INFO: HashMap<u32, PolicyInfo> = HashMap::with_max_entries(16_384, BPF_F_NO_PREALLOC);

#[map]
pub static FRONTENDS: HashMap<FrontendKey, FrontendInfo> =
    HashMap::with_max_entries(map_size::FRONTENDS, BPF_F_NO_PREALLOC);

#[map]
pub static SLOTS: HashMap<SlotKey, BackendInfo> = HashMap::with_max_entries(map_size::SLOTS, BPF_F_NO_PREALLOC);

#[map]
pub static BACKENDS: HashMap<u32, BackendInfo> = HashMap::with_max_entries(map_size::BACKENDS, BPF_F_NO_PREALLOC);

#[map]
pub static MAGLEV: HashMap<MaglevKey, MaglevPart> = HashMap::with_max_entries(map_size::MAGLEV, BPF_F_NO_PREALLOC);

#[map]
pub static RANGES: LpmTrie<RangeData, u32> = LpmTrie::with_max_entries(map_size::RANGES, BPF_F_NO_PREALLOC);

#[map]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityValue> = LruHashMap::with_max_entries(map_size::AFFINITY, 0);

#[map]
pub static SOCKETS: LruHashMap<SocketKey, SocketValue> = LruHashMap::with_max_entries(map_size::SOCKETS, 0);

#[map]
pub static FLOWS: HashMap<FlowKey, FlowEntry> = HashMap::with_max_entries(map_size::FLOWS, BPF_F_NO_PREALLOC);

#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue> = LruHashMap::with_max_entries(map_size::FRAGMENTS, 0);

#[map]
pub static GENERATIONS: Array<u32> = Array::with_max_entries(ENDPOINT_ID_MAX as u32 + 1, 0);

#[map]
pub static CONFIG: Array<NodeConfig> = Array::with_max_entries(1, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

#[map]
pub static METRICS: PerCpuArray<MetricValue> = PerCpuArray::with_max_entries(MetricKey::MAX, 0);

#[map]
pub static EVENT_LIMIT: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// What follows the prefix length in a key of [`RANGES`] (`RangeKey`).
#[repr(C)]
pub struct RangeData {
    /// Network order.
    pub service_be: u32,
    pub addr: Addr,
}
