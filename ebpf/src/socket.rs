//! Services at the socket: connect(2) and sendmsg(2) to a frontend are redirected to a backend before there is a packet.
//! Later packets cost nothing, and policies see the backend's address alone.
//!
//! | program | where | what it does |
//! |---|---|---|
//! | `weft_connect4`, `weft_connect6` | connect(2) | chooses a backend and stores it with the socket |
//! | `weft_sendmsg4`, `weft_sendmsg6` | sendmsg(2) of UDP with an address | the same; a socket keeps its backend of a frontend |
//! | `weft_recvmsg4`, `weft_recvmsg6` | recvmsg(2) of UDP | replaces the backend by the frontend as the sender |
//! | `weft_peername4`, `weft_peername6` | getpeername(2) | replaces the backend by the frontend as the peer |
//! | `weft_bind4`, `weft_bind6` | bind(2) | refuses ports of frontends to the node's own sockets |
//! | `weft_sock_release` | close(2) | forgets a connected socket's frontend |
//!
//! Names of the programs differ from those of their ELF sections (`cgroup/connect4`), which are symbols too.
//!
//! A frontend with `SKIP_FROM_BACKEND` is left to the programs at devices: a socket has no address yet that could be
//! compared with the backends'. Calls that match no frontend go on unchanged.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_getsockopt, bpf_set_retval,
};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use weft_abi::{
    Addr, AffinityKey, BackendInfo, FrontendInfo, FrontendKey, LISTENER_MARK, MaglevKey, MaglevPart, NodeConfig,
    SlotKey, SocketKey, SocketValue, backend_flags, client_hash, config_flags, service_flags, socket_kind,
};

use crate::endpoint::lookup::{NodeAddress, node_address};
use crate::lb::backend::{Binding, affinity, bind_client, is_expired, touch};
use crate::maps::{BACKENDS, FRONTENDS, MAGLEV, SLOTS, SOCKETS, config};
use crate::packet::{TCP, UDP};

/// What the programs return: the call goes on.
const GO_ON: i32 = 1;

/// The call fails with the error that was set.
const FAIL: i32 = 0;

const ECONNREFUSED: i32 = 111;

const EADDRINUSE: i32 = 98;

const AF_INET: u32 = 2;

const AF_INET6: u32 = 10;

/// What a socket of multipath TCP calls its protocol.
const MPTCP: u32 = 262;

/// How often a choice is made anew because the set was replaced meanwhile.
const ATTEMPTS: u32 = 3;

type Call = *mut bpf_sock_addr;

/// Where the context has the address of the call.
trait Family {
    fn address(call: Call) -> Addr;
    /// `false`: the family cannot hold it.
    fn set_address(call: Call, address: &Addr) -> bool;
}

struct V4;

struct V6;

impl Family for V4 {
    #[inline(always)]
    fn address(call: Call) -> Addr {
        // SAFETY: the kernel's own context, valid for the length of the program.
        Addr::v4(unsafe { core::ptr::read_volatile(&raw const (*call).user_ip4) })
    }

    #[inline(always)]
    fn set_address(call: Call, address: &Addr) -> bool {
        if !address.is_v4() {
            return false;
        }
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*call).user_ip4, address.0[3]) };
        true
    }
}

/// Its sockets reach IPv4 too, by v4-mapped addresses: which is how [`Addr`] writes them.
impl Family for V6 {
    #[inline(always)]
    fn address(call: Call) -> Addr {
        // SAFETY: as above. Word by word: that is what the verifier understands.
        unsafe {
            Addr([
                core::ptr::read_volatile(&raw const (*call).user_ip6[0]),
                core::ptr::read_volatile(&raw const (*call).user_ip6[1]),
                core::ptr::read_volatile(&raw const (*call).user_ip6[2]),
                core::ptr::read_volatile(&raw const (*call).user_ip6[3]),
            ])
        }
    }

    #[inline(always)]
    fn set_address(call: Call, address: &Addr) -> bool {
        // SAFETY: as above.
        unsafe {
            core::ptr::write_volatile(&raw mut (*call).user_ip6[0], address.0[0]);
            core::ptr::write_volatile(&raw mut (*call).user_ip6[1], address.0[1]);
            core::ptr::write_volatile(&raw mut (*call).user_ip6[2], address.0[2]);
            core::ptr::write_volatile(&raw mut (*call).user_ip6[3], address.0[3]);
        }
        true
    }
}

#[cgroup_sock_addr(connect4)]
pub fn weft_connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4>(ctx.sock_addr)
}

#[cgroup_sock_addr(connect6)]
pub fn weft_connect6(ctx: SockAddrContext) -> i32 {
    connect::<V6>(ctx.sock_addr)
}

#[inline(always)]
fn connect<F: Family>(call: Call) -> i32 {
    let Some(target) = target_of::<F>(call) else { return GO_ON };
    let Some(config) = config() else { return GO_ON };
    let netns = netns(call);
    let Some(info) = frontend_of(&target, netns, config) else { return GO_ON };
    let Some(backend) = choose_for_socket(&target, info, netns, config, call) else { return refuse_call() };
    store(call, socket_kind::REVERSE, (&backend.addr, backend.port_be), (&target.addr, target.port_be), &backend);
    redirect::<F>(call, &backend)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn weft_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg::<V4>(ctx.sock_addr)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn weft_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg::<V6>(ctx.sock_addr)
}

#[inline(always)]
fn sendmsg<F: Family>(call: Call) -> i32 {
    let Some(target) = target_of::<F>(call) else { return GO_ON };
    let Some(config) = config() else { return GO_ON };
    let netns = netns(call);
    let Some(info) = frontend_of(&target, netns, config) else { return GO_ON };
    let backend = match stored_choice(call, &target, &info) {
        Some(backend) => backend,
        None => {
            let Some(backend) = choose_for_socket(&target, info, netns, config, call) else { return refuse_call() };
            let (from, to) = ((&target.addr, target.port_be), (&backend.addr, backend.port_be));
            store(call, socket_kind::CHOICE, from, to, &backend);
            backend
        }
    };
    // Looked up for every datagram, so that the LRU map does not evict it while the socket is in use.
    let key = socket_key(call, socket_kind::REVERSE, &backend.addr, backend.port_be);
    // SAFETY: read at once.
    let known =
        unsafe { SOCKETS.get(&key) }.is_some_and(|was| was.addr == target.addr && was.port_be == target.port_be);
    if !known {
        store(call, socket_kind::REVERSE, (&backend.addr, backend.port_be), (&target.addr, target.port_be), &backend);
    }
    redirect::<F>(call, &backend)
}

/// The backend that this socket's datagrams to the frontend went to before, while it exists.
#[inline(always)]
fn stored_choice(call: Call, target: &FrontendKey, info: &FrontendInfo) -> Option<BackendInfo> {
    let key = socket_key(call, socket_kind::CHOICE, &target.addr, target.port_be);
    // SAFETY: copied at once.
    let number = unsafe { SOCKETS.get(&key) }?.backend;
    // SAFETY: as above.
    let backend = *unsafe { BACKENDS.get(&number) }?;
    (backend.service == info.service && backend.id == number).then_some(backend)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn weft_recvmsg4(ctx: SockAddrContext) -> i32 {
    show_frontend::<V4>(ctx.sock_addr)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn weft_recvmsg6(ctx: SockAddrContext) -> i32 {
    show_frontend::<V6>(ctx.sock_addr)
}

#[cgroup_sock_addr(getpeername4)]
pub fn weft_peername4(ctx: SockAddrContext) -> i32 {
    show_frontend::<V4>(ctx.sock_addr)
}

#[cgroup_sock_addr(getpeername6)]
pub fn weft_peername6(ctx: SockAddrContext) -> i32 {
    show_frontend::<V6>(ctx.sock_addr)
}

/// Replaces a backend's address by the frontend that the socket sent to.
#[inline(always)]
fn show_frontend<F: Family>(call: Call) -> i32 {
    let key = socket_key(call, socket_kind::REVERSE, &F::address(call), port_be(call));
    // SAFETY: copied at once.
    if let Some(frontend) = unsafe { SOCKETS.get(&key) }.copied()
        && F::set_address(call, &frontend.addr)
    {
        set_port(call, frontend.port_be);
    }
    GO_ON
}

#[cgroup_sock_addr(bind4)]
pub fn weft_bind4(ctx: SockAddrContext) -> i32 {
    bind::<V4>(ctx.sock_addr)
}

#[cgroup_sock_addr(bind6)]
pub fn weft_bind6(ctx: SockAddrContext) -> i32 {
    bind::<V6>(ctx.sock_addr)
}

#[inline(always)]
fn bind<F: Family>(call: Call) -> i32 {
    let Some(target) = target_of::<F>(call) else { return GO_ON };
    let Some(config) = config() else { return GO_ON };
    if target.port_be == 0 || config.flags & config_flags::PORTS_FREE != 0 || !is_host_netns(netns(call), config) {
        return GO_ON;
    }
    let port = u16::from_be(target.port_be);
    let is_kept = config.kept_port_min <= port && port <= config.kept_port_max;
    // A socket of every IPv6 address may be one of every IPv4 address too.
    let v4 = target.addr.is_v4() || target.addr.is_none();
    let v6 = !target.addr.is_v4();
    let has = is_kept
        || v4 && has_frontend(&target, FrontendKey::ANY_V4, service_flags::NODE_PORT)
        || v6 && has_frontend(&target, FrontendKey::ANY_V6, service_flags::NODE_PORT)
        || has_frontend(&target, target.addr, service_flags::LOAD_BALANCER | service_flags::EXTERNAL_IP);
    if has && !is_agent_socket(call) { fail_call(EADDRINUSE) } else { GO_ON }
}

/// Whether a Service has the port at this address, as one of these kinds.
#[inline(always)]
fn has_frontend(target: &FrontendKey, addr: Addr, kinds: u32) -> bool {
    let key = FrontendKey { addr, ..*target };
    // SAFETY: read at once.
    unsafe { FRONTENDS.get(&key) }.is_some_and(|info| info.flags & kinds != 0)
}

/// Whether it is the agent's own socket, by its mark: health checks of Services have ports of the same range.
#[inline(always)]
fn is_agent_socket(call: Call) -> bool {
    const SOL_SOCKET: i32 = 1;
    const SO_MARK: i32 = 36;
    let mut mark = 0_u32;
    // SAFETY: four bytes of the stack.
    let got = unsafe { bpf_getsockopt(call.cast(), SOL_SOCKET, SO_MARK, (&raw mut mark).cast(), 4) };
    got == 0 && mark == LISTENER_MARK
}

#[cgroup_sock(sock_release)]
pub fn weft_sock_release(ctx: SockContext) -> i32 {
    let sock = ctx.sock;
    // SAFETY: the kernel's own context, valid for the length of the program. Word by word and all of them: the
    // verifier refuses it if the compiler merges two fields into one load.
    let (family, port_be, v4, v6) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*sock).family),
            core::ptr::read_volatile(&raw const (*sock).dst_port),
            core::ptr::read_volatile(&raw const (*sock).dst_ip4),
            [
                core::ptr::read_volatile(&raw const (*sock).dst_ip6[0]),
                core::ptr::read_volatile(&raw const (*sock).dst_ip6[1]),
                core::ptr::read_volatile(&raw const (*sock).dst_ip6[2]),
                core::ptr::read_volatile(&raw const (*sock).dst_ip6[3]),
            ],
        )
    };
    if port_be == 0 || !matches!(family, AF_INET | AF_INET6) {
        return GO_ON;
    }
    let addr = if family == AF_INET { Addr::v4(v4) } else { Addr(v6) };
    // SAFETY: no pointers but the context.
    let cookie = unsafe { bpf_get_socket_cookie(sock.cast()) };
    let key = SocketKey { cookie, addr, port_be, kind: socket_kind::REVERSE, pad: [0; 5] };
    let _ = SOCKETS.remove(&key);
    GO_ON
}

/// The target of the call as a frontend's key, if its protocol can have frontends.
#[inline(always)]
fn target_of<F: Family>(call: Call) -> Option<FrontendKey> {
    // SAFETY: the kernel's own context.
    let protocol = match unsafe { core::ptr::read_volatile(&raw const (*call).protocol) } {
        MPTCP => TCP,
        protocol if protocol == u32::from(TCP) => TCP,
        protocol if protocol == u32::from(UDP) => UDP,
        _ => return None,
    };
    Some(FrontendKey { addr: F::address(call), port_be: port_be(call), protocol, pad: 0 })
}

/// The frontend that fits: its own address first, then ports of nodes.
#[inline(always)]
fn frontend_of(target: &FrontendKey, netns: u64, config: &NodeConfig) -> Option<FrontendInfo> {
    let within = is_loopback(&target.addr);
    if within && !is_host_netns(netns, config) {
        // Loopback of a pod is the pod itself.
        return None;
    }
    // SAFETY: copied at once.
    let found = match unsafe { FRONTENDS.get(target) } {
        Some(info) => *info,
        None => {
            let addr = if target.addr.is_v4() { FrontendKey::ANY_V4 } else { FrontendKey::ANY_V6 };
            // SAFETY: as above.
            let info = *unsafe { FRONTENDS.get(&FrontendKey { addr, ..*target }) }?;
            let meant = within
                || match node_address(&target.addr, config) {
                    NodeAddress::Own => true,
                    // A Service's port leads to the same backends at every node; a host port to that node's pod.
                    NodeAddress::Other => info.flags & service_flags::NODE_PORT != 0,
                    NodeAddress::None => false,
                };
            if !meant {
                return None;
            }
            info
        }
    };
    (found.flags & service_flags::SKIP_FROM_BACKEND == 0).then_some(found)
}

/// Chooses one of the backends for clients of this node.
#[inline(always)]
fn choose_for_socket(
    target: &FrontendKey,
    first: FrontendInfo,
    netns: u64,
    config: &NodeConfig,
    call: Call,
) -> Option<BackendInfo> {
    let mut info = first;
    let client = AffinityKey::of_netns(netns, target.addr.is_v4());
    for attempt in 1..=ATTEMPTS {
        let mut observed = 0;
        if info.affinity_s != 0
            && let Some(backend) = affinity_backend(&info, &client, &mut observed)
        {
            return Some(backend);
        }
        if info.internal_count == 0 {
            return None;
        }
        if let Some(backend) = select_for_socket(&info, target.protocol, &client, call) {
            // Of concurrent first connections one binds the client, and the others use its backend.
            if attempt == ATTEMPTS
                || info.affinity_s == 0
                || bind_client(&affinity_key(&info, &client), observed, backend.id) != Binding::Raced
            {
                return Some(backend);
            }
        } else {
            // The set was replaced after the frontend was read: read it again.
            info = frontend_of(target, netns, config)?;
        }
    }
    None
}

/// The backend that this client's network namespace is bound to. What it is bound to, if to anything, is left in
/// `observed`.
#[inline(always)]
fn affinity_backend(info: &FrontendInfo, client: &Addr, observed: &mut u64) -> Option<BackendInfo> {
    let (value, found) = affinity(&affinity_key(info, client));
    *observed = found;
    if value.is_null() || is_expired(found, info.affinity_s) {
        return None;
    }
    let number = found as u32;
    // SAFETY: copied at once.
    let backend = *unsafe { BACKENDS.get(&number) }?;
    let elsewhere = info.flags & service_flags::INTERNAL_LOCAL != 0 && backend.flags & backend_flags::LOCAL == 0;
    if backend.service != info.service || backend.flags & backend_flags::TERMINATING != 0 || elsewhere {
        return None;
    }
    touch(value, found);
    Some(backend)
}

/// One of the set: by Maglev's table, so that the same client finds the same backend on every node, or at random.
#[inline(always)]
fn select_for_socket(info: &FrontendInfo, protocol: u8, client: &Addr, call: Call) -> Option<BackendInfo> {
    let slot = if info.internal_table == 0 {
        // SAFETY: no pointers.
        (unsafe { bpf_get_prandom_u32() }) % info.internal_count
    } else {
        // No source address and port yet: the namespace and the socket take their place.
        let socket = if info.affinity_s == 0 { cookie(call) as u16 } else { 0 };
        let entry = client_hash(client, socket, protocol) % info.internal_table;
        let key = MaglevKey { set: info.internal_set, part: entry / MaglevPart::ENTRIES as u32 };
        // SAFETY: read at once.
        let part = unsafe { MAGLEV.get(&key) }?;
        u32::from(*part.0.get(entry as usize % MaglevPart::ENTRIES)?)
    };
    // SAFETY: copied at once.
    let backend = *unsafe { SLOTS.get(&SlotKey { set: info.internal_set, slot }) }?;
    // The memory of a removed set may hold another one already.
    (backend.service == info.service).then_some(backend)
}

#[inline(always)]
fn affinity_key(info: &FrontendInfo, client: &Addr) -> AffinityKey {
    AffinityKey { client: *client, service: info.service }
}

/// Redirects the call to the backend.
#[inline(always)]
fn redirect<F: Family>(call: Call, backend: &BackendInfo) -> i32 {
    if !F::set_address(call, &backend.addr) {
        return refuse_call();
    }
    set_port(call, backend.port_be);
    GO_ON
}

/// The call fails with ECONNREFUSED, as a service without backends does by a reset.
#[inline(always)]
fn refuse_call() -> i32 {
    fail_call(ECONNREFUSED)
}

#[inline(always)]
fn fail_call(error: i32) -> i32 {
    // SAFETY: no pointers.
    unsafe { bpf_set_retval(-error) };
    FAIL
}

/// Writes `to` beside the socket and `from`. Without a place for it the connection works all the same.
#[inline(always)]
fn store(call: Call, kind: u8, from: (&Addr, u16), to: (&Addr, u16), backend: &BackendInfo) {
    let key = socket_key(call, kind, from.0, from.1);
    let value = SocketValue { addr: *to.0, port_be: to.1, protocol: backend.protocol, pad: 0, backend: backend.id };
    let _ = SOCKETS.insert(&key, &value, 0);
}

#[inline(always)]
fn socket_key(call: Call, kind: u8, addr: &Addr, port_be: u16) -> SocketKey {
    SocketKey { cookie: cookie(call), addr: *addr, port_be, kind, pad: [0; 5] }
}

#[inline(always)]
fn cookie(call: Call) -> u64 {
    // SAFETY: no pointers but the context.
    unsafe { bpf_get_socket_cookie(call.cast()) }
}

#[inline(always)]
fn netns(call: Call) -> u64 {
    // SAFETY: as above.
    unsafe { bpf_get_netns_cookie(call.cast()) }
}

/// Whether this is the node's own network namespace.
#[inline(always)]
fn is_host_netns(netns: u64, config: &NodeConfig) -> bool {
    netns == u64::from(config.netns_cookie[0]) | u64::from(config.netns_cookie[1]) << 32
}

/// Addresses of the own network namespace: loopback, and "this host" (RFC 1122 3.2.1.3), which connect(2) takes for it.
#[inline(always)]
fn is_loopback(address: &Addr) -> bool {
    if address.is_v4() {
        address.0[3] == 0 || address.0[3].to_ne_bytes()[0] == 127
    } else {
        address.0[0] | address.0[1] | address.0[2] == 0 && address.0[3] & !1_u32.to_be() == 0
    }
}

#[inline(always)]
fn port_be(call: Call) -> u16 {
    // SAFETY: the kernel's own context; the port is the word's first half.
    (unsafe { core::ptr::read_volatile(&raw const (*call).user_port) }) as u16
}

#[inline(always)]
fn set_port(call: Call, port_be: u16) {
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(&raw mut (*call).user_port, u32::from(port_be)) };
}
