//! The kernel programs under test: the real object, loaded with maps of its own, run by `BPF_PROG_TEST_RUN`.

use super::contents::Contents;
use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, RingBuf};
use aya::programs::{Program, SchedClassifier, TcAttachType, TestRun, TestRunOptions, Xdp};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use weft_abi::{
    Addr, AffinityKey, AffinityValue, BackendInfo, CidrValue, DropReason, EndpointInfo, Event, FlowEntry, FlowKey,
    FragmentKey, FragmentValue, FrontendInfo, FrontendKey, IpcacheInfo, LpmKey, MaglevKey, MaglevPart, MetricKey,
    MetricValue, NodeConfig, PolicyClassKey, PolicyEntryKey, PolicyEntryValue, PolicyInfo, RouteInfo, SlotKey,
    map_name,
};

#[path = "../../../xtask/src/stamp.rs"]
mod stamp;

/// Programs that tests of this process left ([`Kernel::leave`]).
static LEFT: Mutex<Vec<Kernel>> = Mutex::new(Vec::new());

fn lock(left: &Mutex<Vec<Kernel>>) -> MutexGuard<'_, Vec<Kernel>> {
    // What is in it was put back before; a test that panicked holds none of them.
    left.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `TC_ACT_OK`: to the stack.
pub const PASS: u32 = 0;
/// `TC_ACT_SHOT`.
pub const DROP: u32 = 2;
/// `TC_ACT_REDIRECT`.
pub const REDIRECT: u32 = 7;
/// `XDP_PASS`.
pub const XDP_PASS: u32 = 2;
/// `XDP_REDIRECT`.
pub const XDP_REDIRECT: u32 = 4;

/// Size of `struct __sk_buff` and the offsets of the fields that a test sets.
const SKB: usize = 192;
const SKB_MARK: usize = 8;
const SKB_INGRESS_IFINDEX: usize = 36;
const SKB_IFINDEX: usize = 40;

/// What a program did with a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Its return value.
    pub action: u32,
    /// The frame after it.
    pub frame: Vec<u8>,
    /// Nanoseconds per run.
    pub ns: u64,
    /// The packet's mark after it.
    pub mark: u32,
}

/// The programs and their maps. Nothing is pinned or attached: all of it goes with the value.
pub struct Kernel {
    ebpf: aya::Ebpf,
    /// All maps, to be put back between tests.
    contents: Contents,
    /// A program is attached somewhere: that ends with this value only.
    attached: bool,
    pub endpoints: HashMap<MapData, Addr, EndpointInfo>,
    pub ipcache: HashMap<MapData, Addr, IpcacheInfo>,
    pub cidrs: LpmTrie<MapData, Addr, CidrValue>,
    pub routes: LpmTrie<MapData, Addr, RouteInfo>,
    pub peers: HashMap<MapData, u32, u32>,
    pub classes: HashMap<MapData, PolicyClassKey, u32>,
    pub entries: HashMap<MapData, PolicyEntryKey, PolicyEntryValue>,
    pub info: HashMap<MapData, u32, PolicyInfo>,
    pub flows: HashMap<MapData, FlowKey, FlowEntry>,
    pub fragments: HashMap<MapData, FragmentKey, FragmentValue>,
    pub generations: Array<MapData, u32>,
    pub config: Array<MapData, NodeConfig>,
    pub events: RingBuf<MapData>,
    pub metrics: PerCpuArray<MapData, MetricValue>,
    pub frontends: HashMap<MapData, FrontendKey, FrontendInfo>,
    pub slots: HashMap<MapData, SlotKey, BackendInfo>,
    pub backends: HashMap<MapData, u32, BackendInfo>,
    pub maglev: HashMap<MapData, MaglevKey, MaglevPart>,
    pub ranges: LpmTrie<MapData, RangeData, u32>,
    pub affinity: HashMap<MapData, AffinityKey, AffinityValue>,
}

/// What follows the prefix length in a key of the source ranges ([`weft_abi::RangeKey`]).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RangeData {
    /// Network order.
    pub service_be: u32,
    /// The address.
    pub addr: Addr,
}

// SAFETY: `#[repr(C)]`, only integers, no padding, any bit pattern is valid.
unsafe impl aya::Pod for RangeData {}

/// The object, if it is there and made from the sources as they are.
///
/// # Errors
/// If it is missing or stale.
pub fn object() -> Result<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has a root")?;
    let wanted = stamp::fingerprint(root).context("read the sources of the kernel programs")?;
    let found = std::fs::read_to_string(root.join(stamp::STAMP)).context("run `cargo xtask build-ebpf`")?;
    if wanted != found && std::env::var_os("WEFT_ALLOW_STALE_BPF").is_none() {
        bail!("target/bpf/weft.o is older than its sources: run `cargo xtask build-ebpf`");
    }
    std::fs::read(root.join(stamp::OBJECT)).context("run `cargo xtask build-ebpf`")
}

impl Kernel {
    /// Loads the object: the maps small, but of the real kinds and flags.
    ///
    /// # Errors
    /// If the kernel refuses a map or a program.
    pub fn load() -> Result<Self> {
        Self::load_with(&[])
    }

    /// As [`Kernel::load`], with other sizes for some maps.
    ///
    /// # Errors
    /// If the kernel refuses a map or a program.
    pub fn load_with(sizes: &[(&str, u32)]) -> Result<Self> {
        let mut loader = aya::EbpfLoader::new();
        for name in [
            map_name::IPCACHE,
            map_name::PREFIXES,
            map_name::ROUTES,
            map_name::PEERS,
            map_name::POLICY_CLASSES,
            map_name::POLICY_ENTRIES,
            map_name::FLOWS,
        ] {
            loader.map_max_entries(name, 4096);
        }
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        let mut ebpf = loader.load(&object()?)?;
        for (name, program) in ebpf.programs_mut() {
            let loaded = match program {
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                // Those at sockets cannot be run like this.
                _ => continue,
            };
            loaded.with_context(|| format!("load {name}"))?;
        }
        let contents = Contents::of(&ebpf)?;
        let mut take = |name: &str| ebpf.take_map(name).with_context(|| format!("the object has no map {name}"));
        let (endpoints, ipcache) = (take(map_name::ENDPOINTS)?, take(map_name::IPCACHE)?);
        let (cidrs, routes) = (take(map_name::PREFIXES)?, take(map_name::ROUTES)?);
        let (peers, classes, entries) =
            (take(map_name::PEERS)?, take(map_name::POLICY_CLASSES)?, take(map_name::POLICY_ENTRIES)?);
        let (info, flows) = (take(map_name::POLICY_INFO)?, take(map_name::FLOWS)?);
        let (fragments, generations) = (take(map_name::FRAGMENTS)?, take(map_name::GENERATIONS)?);
        let (config, events) = (take(map_name::CONFIG)?, take(map_name::EVENTS)?);
        let metrics = take(map_name::METRICS)?;
        let (frontends, slots, backends) =
            (take(map_name::FRONTENDS)?, take(map_name::SLOTS)?, take(map_name::BACKENDS)?);
        let (maglev, ranges, affinity) = (take(map_name::MAGLEV)?, take(map_name::RANGES)?, take(map_name::AFFINITY)?);
        Ok(Self {
            ebpf,
            contents,
            attached: false,
            endpoints: endpoints.try_into()?,
            ipcache: ipcache.try_into()?,
            cidrs: cidrs.try_into()?,
            routes: routes.try_into()?,
            peers: peers.try_into()?,
            classes: classes.try_into()?,
            entries: entries.try_into()?,
            info: info.try_into()?,
            flows: flows.try_into()?,
            fragments: fragments.try_into()?,
            generations: generations.try_into()?,
            config: config.try_into()?,
            events: events.try_into()?,
            metrics: metrics.try_into()?,
            frontends: frontends.try_into()?,
            slots: slots.try_into()?,
            backends: backends.try_into()?,
            maglev: maglev.try_into()?,
            ranges: ranges.try_into()?,
            affinity: affinity.try_into()?,
        })
    }

    /// One that a former test of this process has left, as good as new, or else one that is loaded now.
    ///
    /// # Errors
    /// If the kernel refuses a map or a program.
    pub fn take() -> Result<Self> {
        let left = lock(&LEFT).pop();
        match left {
            Some(kernel) => Ok(kernel),
            None => Self::load(),
        }
    }

    /// Leaves the programs to a later test of this process, with all maps as they were when they were loaded.
    ///
    /// # Errors
    /// If a map cannot be put back; then the programs go.
    pub fn leave(mut self) -> Result<()> {
        if !self.attached {
            self.forget_everything()?;
            lock(&LEFT).push(self);
        }
        Ok(())
    }

    /// Puts all maps back as they were when the programs were loaded, and takes all events that wait.
    ///
    /// # Errors
    /// If a map refuses.
    pub fn forget_everything(&mut self) -> Result<()> {
        self.contents.put_back()?;
        while self.events.next().is_some() {}
        Ok(())
    }

    /// All maps, whatever they are for.
    #[must_use]
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Runs a program once on a frame that came by device `ifindex`.
    ///
    /// # Errors
    /// If the kernel will not run it.
    pub fn run(&self, program: &str, ifindex: u32, frame: &[u8]) -> Result<Outcome> {
        self.repeat(program, ifindex, frame, 1, 0)
    }

    /// Runs a program `repeat` times on one frame, which is as it left it from the second time on.
    ///
    /// # Errors
    /// If the kernel will not run it.
    pub fn repeat(&self, program: &str, ifindex: u32, frame: &[u8], repeat: u32, mark: u32) -> Result<Outcome> {
        self.on(program, (0, ifindex), frame, repeat, mark)
    }

    /// The same of a frame that came by one device (0: it was made here) and is at another.
    ///
    /// # Errors
    /// If the kernel will not run it.
    pub fn on(
        &self,
        program: &str,
        (from, ifindex): (u32, u32),
        frame: &[u8],
        repeat: u32,
        mark: u32,
    ) -> Result<Outcome> {
        let program: &SchedClassifier =
            self.ebpf.program(program).with_context(|| format!("the object has no program {program}"))?.try_into()?;
        let mut skb = [0_u8; SKB];
        skb[SKB_INGRESS_IFINDEX..SKB_INGRESS_IFINDEX + 4].copy_from_slice(&from.to_ne_bytes());
        skb[SKB_IFINDEX..SKB_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        skb[SKB_MARK..SKB_MARK + 4].copy_from_slice(&mark.to_ne_bytes());
        let (mut out, mut skb_out) = (vec![0_u8; frame.len() + 256], [0_u8; SKB]);
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&skb),
            ctx_out: Some(&mut skb_out),
            repeat,
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        let ns = u64::try_from(result.duration.as_nanos()).unwrap_or(u64::MAX);
        let mark = skb_out.get(SKB_MARK..SKB_MARK + 4).context("the mark")?;
        Ok(Outcome { action: result.return_value, frame: out, ns, mark: u32::from_ne_bytes(mark.try_into()?) })
    }

    /// Runs the program before the kernel on a frame that came by device `ifindex` of this thread's network namespace.
    ///
    /// # Errors
    /// If the kernel will not run it.
    pub fn before_kernel(&self, program: &str, ifindex: u32, frame: &[u8]) -> Result<Outcome> {
        let program: &Xdp =
            self.ebpf.program(program).with_context(|| format!("the object has no program {program}"))?.try_into()?;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let words = [0, u32::try_from(frame.len())?, 0, ifindex, 0, 0];
        let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut out = vec![0_u8; frame.len() + 256];
        let result = program.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        let ns = u64::try_from(result.duration.as_nanos()).unwrap_or(u64::MAX);
        Ok(Outcome { action: result.return_value, frame: out, mark: 0, ns })
    }

    /// Attaches a program to what comes by a device of this thread's network namespace, for as long as this lives.
    ///
    /// # Errors
    /// If the kernel will not attach it.
    pub fn attach(&mut self, program: &str, device: &str) -> Result<()> {
        let found = self.ebpf.program_mut(program).with_context(|| format!("the object has no program {program}"))?;
        let program: &mut SchedClassifier = found.try_into()?;
        program.attach(device, TcAttachType::Ingress)?;
        self.attached = true;
        Ok(())
    }

    /// Instructions that the verifier processed, by program.
    ///
    /// # Errors
    /// If the kernel has no such number.
    pub fn verified(&self) -> Result<Vec<(String, u32)>> {
        self.ebpf
            .programs()
            .filter_map(|(name, program)| match program {
                Program::SchedClassifier(program) => Some((name, program.info())),
                Program::Xdp(program) => Some((name, program.info())),
                _ => None,
            })
            .map(|(name, info)| Ok((name.to_owned(), info?.verified_instruction_count().context("the kernel counts")?)))
            .collect()
    }

    /// All events that wait.
    pub fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            assert_eq!(item.len(), size_of::<Event>(), "size of an event");
            // SAFETY: as many bytes as an `Event`, which is plain data.
            events.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
        }
        events
    }

    /// Packets counted for a reason, both directions and all CPUs.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counted(&self, reason: Option<DropReason>) -> Result<u64> {
        self.counted_as(reason.map_or(0, |reason| reason as u8))
    }

    /// The same by number.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counted_as(&self, reason: u8) -> Result<u64> {
        let mut packets = 0;
        for egress in [false, true] {
            let index = MetricKey::index(reason, egress);
            packets += self.metrics.get(&index, 0)?.iter().map(|value| value.packets).sum::<u64>();
        }
        Ok(packets)
    }

    /// Raises the revision, after the generations of these endpoints (0: the node) have become newer than all flows.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn bump(&mut self, touched: &[u16]) -> Result<()> {
        let mut config = self.config.get(&0, 0)?;
        config.revision += 1;
        self.config.set(0, config, 0)?;
        for slot in touched {
            self.generations.set(u32::from(*slot), config.revision, 0)?;
        }
        Ok(())
    }

    /// All entries of the connection table.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn connections(&self) -> Result<Vec<(FlowKey, FlowEntry)>> {
        Ok(self.flows.iter().collect::<Result<_, _>>()?)
    }

    /// The entry (of kind `kind`) between two ends.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn connection(&self, kind: u8, one: IpAddr, other: IpAddr) -> Result<Option<(FlowKey, FlowEntry)>> {
        let (one, other) = (Addr::from(one), Addr::from(other));
        Ok(self.connections()?.into_iter().find(|(key, _)| {
            key.kind == kind && (key.low == one && key.high == other || key.low == other && key.high == one)
        }))
    }
}

/// The key of a prefix, for aya.
#[must_use]
pub fn prefix(key: LpmKey) -> Key<Addr> {
    Key::new(key.prefix_len, key.addr)
}
