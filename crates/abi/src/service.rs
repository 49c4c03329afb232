//! Services: frontends, sets of backends, clients' affinity, translated sockets.

use crate::Addr;

/// Key of a frontend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct FrontendKey {
    /// Address; [`FrontendKey::ANY_V4`] or [`FrontendKey::ANY_V6`]: every address of the node's own.
    pub addr: Addr,
    /// Port, network order.
    pub port_be: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

impl FrontendKey {
    /// Every IPv4 address of the node's own.
    pub const ANY_V4: Addr = Addr::v4(0);
    /// Every IPv6 address of the node's own.
    pub const ANY_V6: Addr = Addr::NONE;

    /// The row of an address that has frontends, for packets without ports: no protocol, no port, and
    /// nothing in it. The unspecified addresses have none.
    #[inline(always)]
    #[must_use]
    pub const fn of_address(addr: Addr) -> Self {
        Self { addr, port_be: 0, protocol: 0, pad: 0 }
    }
}

/// A frontend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FrontendInfo {
    /// Number of the service port.
    pub service: u32,
    /// [`service_flags`].
    pub flags: u32,
    /// Set for clients of this node.
    pub internal_set: u32,
    /// How many backends it has; 0: refuse.
    pub internal_count: u32,
    /// Set for clients outside.
    pub external_set: u32,
    /// How many backends it has; 0: refuse, or drop with [`service_flags::EXTERNAL_LOCAL`].
    pub external_count: u32,
    /// Seconds that a client stays with its backend; 0: it does not.
    pub affinity_s: u32,
    /// Entries of Maglev's table of the internal set; 0: choose at random.
    pub internal_table: u32,
    /// The same of the external set.
    pub external_table: u32,
}

/// Flags of [`FrontendInfo`].
pub mod service_flags {
    /// An address inside the cluster: dropped when it comes from outside.
    pub const CLUSTER_IP: u32 = 1;
    /// A port of the node (NodePort).
    pub const NODE_PORT: u32 = 2;
    /// A port of the node for one pod (hostPort).
    pub const HOST_PORT: u32 = 4;
    /// An address of a load balancer.
    pub const LOAD_BALANCER: u32 = 8;
    /// One of `spec.externalIPs`.
    pub const EXTERNAL_IP: u32 = 16;
    /// An address that a local redirect policy takes over.
    pub const REDIRECT: u32 = 32;
    /// What kind it is: one of the above.
    pub const KIND: u32 = 63;
    /// Clients outside must be in a source range.
    pub const SOURCE_RANGES: u32 = 64;
    /// Clients outside are for local backends only, with their own address.
    pub const EXTERNAL_LOCAL: u32 = 128;
    /// The same for clients of this node.
    pub const INTERNAL_LOCAL: u32 = 256;
    /// Clients outside reach backends of other nodes with their own address.
    pub const DSR: u32 = 512;
    /// Clients that are backends themselves pass untranslated.
    pub const SKIP_FROM_BACKEND: u32 = 1024;
}

/// Key of a place in a set.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct SlotKey {
    /// Number of the set.
    pub set: u32,
    /// 0..count.
    pub slot: u32,
}

/// A backend: the value of a place in a set, so that one lookup finds it, and of [`crate::map_name::BACKENDS`] by its
/// number, which shows whether it still exists.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BackendInfo {
    /// Its address.
    pub addr: Addr,
    /// Its number.
    pub id: u32,
    /// Its service port.
    pub service: u32,
    /// Port, network order.
    pub port_be: u16,
    /// [`backend_flags`].
    pub flags: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Flags of [`BackendInfo`].
pub mod backend_flags {
    /// On this node.
    pub const LOCAL: u16 = 1;
    /// Terminating: keeps its connections, gets no new ones.
    pub const TERMINATING: u16 = 2;
}

/// Key of a part of Maglev's table: entry `n` is in part `n / MaglevPart::ENTRIES`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct MaglevKey {
    /// Number of the set.
    pub set: u32,
    /// Which part.
    pub part: u32,
}

/// Part of Maglev's table: slots of the set.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MaglevPart(pub [u16; MaglevPart::ENTRIES]);

impl MaglevPart {
    /// Entries of a part.
    pub const ENTRIES: usize = 64;
}

/// Key of a client's affinity.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct AffinityKey {
    /// The client's address; for a process of the node or a pod at its socket: the cookie of its network namespace in
    /// the last two words, the others as [`AffinityKey::of_netns`] has them.
    pub client: Addr,
    /// Number of the service port.
    pub service: u32,
}

impl AffinityKey {
    /// First two words of a client that is a network namespace: no address (documentation prefix, RFC 3849).
    pub const COOKIE: [u32; 2] = [0x2001_0db8_u32.to_be(), u32::MAX];

    /// The client that a network namespace is, by its cookie: one for each family, since a backend has one.
    #[inline(always)]
    #[must_use]
    pub const fn of_netns(cookie: u64, v4: bool) -> Addr {
        Addr([Self::COOKIE[0], Self::COOKIE[1] - v4 as u32, cookie as u32, (cookie >> 32) as u32])
    }
}

/// A client's backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AffinityValue {
    /// Number of the backend.
    pub backend: u32,
    /// Monotonic seconds of the last new connection.
    pub last_used_s: u32,
}

/// Key of a source range: the prefix length counts the bits of `service` and of the 16-byte address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RangeKey {
    /// Bits, 32..=160.
    pub prefix_len: u32,
    /// Number of the service port, network order.
    pub service_be: u32,
    /// The address.
    pub addr: Addr,
}

/// Key of a translated socket's address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct SocketKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The backend's address; with [`socket_kind::CHOICE`] the frontend's.
    pub addr: Addr,
    /// The port of the same, network order.
    pub port_be: u16,
    /// [`socket_kind`].
    pub kind: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// Kinds of entries of a socket.
pub mod socket_kind {
    /// Backend -> frontend: the source of the backend's replies as the socket sees it.
    pub const REVERSE: u8 = 0;
    /// Frontend -> backend: where the socket's datagrams to the frontend go, while that backend exists.
    pub const CHOICE: u8 = 1;
}

/// The frontend that the socket sent to; with [`socket_kind::CHOICE`] the backend that it got.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SocketValue {
    /// The frontend's address; with [`socket_kind::CHOICE`] the backend's.
    pub addr: Addr,
    /// The port of the same, network order.
    pub port_be: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// Number of the backend.
    pub backend: u32,
}

/// Most backends of a service with direct server return ([`service_flags::DSR`]); one with more is served without. The
/// backend's node searches all of them for its pod.
pub const DSR_BACKENDS_MAX: u32 = 1024;

/// Source of a pod's packets to itself by a service, so that its replies pass the programs: link-local (RFC 3927), but no
/// neighbour's. In the first octet's place as in the packet.
pub const HAIRPIN_V4: Addr = Addr::v4(u32::from_ne_bytes([169, 254, 42, 1]));
/// The same, IPv6: of the prefix that no network carries (RFC 6666), so that the pod sends to its gateway without resolving
/// a neighbour.
pub const HAIRPIN_V6: Addr = Addr([0x0100_0000_u32.to_be(), 0, 0, 0x002a_0001_u32.to_be()]);

impl Addr {
    /// [`HAIRPIN_V4`] or [`HAIRPIN_V6`].
    #[inline(always)]
    #[must_use]
    pub const fn hairpin(v4: bool) -> Self {
        if v4 { HAIRPIN_V4 } else { HAIRPIN_V6 }
    }
}

/// What chooses an entry of Maglev's table: MurmurHash3 (32 bits, seed 0) of the client's address (16 bytes, IPv4 mapped),
/// its port, the protocol and a zero byte. The port is 0 where a client stays with its backend. Nothing of the node is in
/// it, so all nodes choose the same.
#[inline(always)]
#[must_use]
pub const fn client_hash(client: &Addr, port_be: u16, protocol: u8) -> u32 {
    let mut hash = 0;
    hash = mix(hash, u32::from_le(client.0[0]));
    hash = mix(hash, u32::from_le(client.0[1]));
    hash = mix(hash, u32::from_le(client.0[2]));
    hash = mix(hash, u32::from_le(client.0[3]));
    hash = mix(hash, u16::from_le(port_be) as u32 | (protocol as u32) << 16);
    hash ^= 20;
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

const _: () = assert!(size_of::<FrontendKey>() == 20);
const _: () = assert!(size_of::<FrontendInfo>() == 36);
const _: () = assert!(size_of::<SlotKey>() == 8);
const _: () = assert!(size_of::<BackendInfo>() == 32);
const _: () = assert!(size_of::<MaglevPart>() == 128);
const _: () = assert!(size_of::<AffinityKey>() == 20);
const _: () = assert!(size_of::<RangeKey>() == 24);
const _: () = assert!(size_of::<SocketKey>() == 32);
const _: () = assert!(size_of::<SocketValue>() == 24);
