//! The few rtnetlink requests that the fabric needs, written by hand: veth pairs, addresses, routes, rules.
//!
//! Blocking, one socket per use. A socket belongs to the namespace of the thread that opened it.

pub mod features;

use ipnet::IpNet;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

const NLM_REQUEST: u16 = 1;
const NLM_ACK: u16 = 4;
const NLM_EXCL: u16 = 0x200;
const NLM_CREATE: u16 = 0x400;
const NLM_REPLACE: u16 = 0x100;
const NLM_DUMP: u16 = 0x300;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

/// What to do with packets that match a [`Rule`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RuleAction {
    /// Route them by the main table.
    Main,
    /// Drop them.
    Blackhole,
}

/// A routing rule on an input interface.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rule {
    /// Order.
    pub priority: u32,
    /// Interface the packet came in by.
    pub iif: String,
    /// For IPv6.
    pub v6: bool,
    /// Source prefix.
    pub from: Option<IpNet>,
    /// Destination prefix.
    pub to: Option<IpNet>,
    /// What to do.
    pub action: RuleAction,
}

/// One end of a veth pair.
#[derive(Debug)]
pub struct VethEnd<'a> {
    /// Name.
    pub name: &'a str,
    /// Namespace it is born into.
    pub netns: BorrowedFd<'a>,
}

/// A socket in the namespace of the thread that made it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_REQUEST).to_ne_bytes());
        Self(bytes)
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn name(self, kind: u16, name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    fn address(self, kind: u16, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => self.attr(kind, &a.octets()),
            IpAddr::V6(a) => self.attr(kind, &a.octets()),
        }
    }

    fn nest(mut self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        let mut done = inner(self);
        let length = u16::try_from(done.0.len() - start).unwrap_or(u16::MAX);
        done.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        done
    }
}

fn family(v6: bool) -> u8 {
    // AF_INET6, AF_INET
    if v6 { 10 } else { 2 }
}

fn link_header(index: u32, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        // IFF_UP in flags and in the mask of changed flags.
        header[8] = 1;
        header[12] = 1;
    }
    header
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        Self::of(NETLINK_ROUTE)
    }

    fn of(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn send(&mut self, message: Message) -> io::Result<u32> {
        let mut bytes = message.0;
        self.sequence += 1;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        self.socket.send(&bytes, 0)?;
        Ok(self.sequence)
    }

    /// Sends one request and collects answers until its acknowledgement, error or end of dump.
    fn request(&mut self, message: Message) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let sequence = self.send(message)?;
        let mut answers = Vec::new();
        loop {
            let (packet, _) = self.socket.recv_from_full()?;
            let mut rest = packet.as_slice();
            while let Some((kind, seq, body, next)) = split(rest) {
                rest = next;
                if seq != sequence {
                    continue;
                }
                match kind {
                    2 => {
                        let code = body.get(..4).map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
                        return if code == 0 { Ok(answers) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    3 => return Ok(answers),
                    _ => answers.push((kind, body.to_vec())),
                }
            }
        }
    }

    /// Number of a link.
    ///
    /// # Errors
    /// That there is none.
    pub fn index(&mut self, name: &str) -> io::Result<u32> {
        // By name for the namespace of this very thread; a Netlink lives where it was made.
        nix::net::if_::if_nametoindex(name)
            .map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("link {name}: {e}")))
    }

    /// Makes a veth pair, each end in its namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_veth(&mut self, near: &VethEnd<'_>, far: &VethEnd<'_>, mtu: u32) -> io::Result<()> {
        let fd = |end: &VethEnd<'_>| end.netns.as_raw_fd().to_ne_bytes();
        let message = Message::new(RTM_NEWLINK, NLM_ACK | NLM_CREATE | NLM_EXCL)
            .put(&link_header(0, false))
            .name(3, near.name)
            .attr(4, &mtu.to_ne_bytes())
            .attr(28, &fd(near))
            .nest(18, |m| {
                m.attr(1, b"veth").nest(2, |m| {
                    m.nest(1, |m| {
                        m.put(&link_header(0, false)).name(3, far.name).attr(4, &mtu.to_ne_bytes()).attr(28, &fd(far))
                    })
                })
            });
        self.request(message).map(drop)
    }

    /// Sets a link up.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_up(&mut self, name: &str) -> io::Result<()> {
        let index = self.index(name)?;
        self.request(Message::new(RTM_NEWLINK, NLM_ACK).put(&link_header(index, true))).map(drop)
    }

    /// Removes a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_link(&mut self, name: &str) -> io::Result<()> {
        let index = self.index(name)?;
        self.request(Message::new(RTM_DELLINK, NLM_ACK).put(&link_header(index, false))).map(drop)
    }

    /// Gives a link an address, without duplicate address detection.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_address(&mut self, link: &str, address: IpNet) -> io::Result<()> {
        let index = self.index(link)?;
        // IFA_F_NODAD
        let flags = if address.addr().is_ipv6() { 2 } else { 0 };
        let mut header = vec![family(address.addr().is_ipv6()), address.prefix_len(), flags, 0];
        header.extend_from_slice(&index.to_ne_bytes());
        let message = Message::new(RTM_NEWADDR, NLM_ACK | NLM_CREATE | NLM_REPLACE)
            .put(&header)
            .address(1, address.addr())
            .address(2, address.addr());
        self.request(message).map(drop)
    }

    /// Adds or replaces a route. With a gateway, the gateway counts as on the link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_route(&mut self, to: IpNet, link: &str, via: Option<IpAddr>, source: Option<IpAddr>) -> io::Result<()> {
        let index = self.index(link)?;
        let mut message = Message::new(RTM_NEWROUTE, NLM_ACK | NLM_CREATE | NLM_REPLACE)
            .put(&route_header(to, via.is_some()))
            .address(1, to.network())
            .attr(4, &index.to_ne_bytes());
        if let Some(gateway) = via {
            message = message.address(5, gateway);
        }
        if let Some(source) = source {
            message = message.address(7, source);
        }
        self.request(message).map(drop)
    }

    /// Adds or replaces a route by several gateways, each of which counts as on its link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_shared_route(&mut self, to: IpNet, hops: &[(&str, IpAddr)]) -> io::Result<()> {
        let mut parts = Message(Vec::new());
        for (link, gateway) in hops {
            let index = self.index(link)?;
            let start = parts.0.len();
            // Length, RTNH_F_ONLINK, weight less one, link.
            parts = parts.put(&[0, 0, 4, 0]).put(&index.to_ne_bytes()).address(5, *gateway);
            let length = u16::try_from(parts.0.len() - start).unwrap_or(u16::MAX);
            parts.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        }
        let mut header = route_header(to, true);
        header[8..12].fill(0);
        let message = Message::new(RTM_NEWROUTE, NLM_ACK | NLM_CREATE | NLM_REPLACE)
            .put(&header)
            .address(1, to.network())
            .attr(9, &parts.0);
        self.request(message).map(drop)
    }

    /// Removes a route of a link; absent is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_route(&mut self, to: IpNet, link: &str) -> io::Result<()> {
        let index = self.index(link)?;
        let mut header = route_header(to, false);
        // Any protocol, any scope (RT_SCOPE_NOWHERE), any type.
        header[5..8].copy_from_slice(&[0, 255, 0]);
        let message =
            Message::new(RTM_DELROUTE, NLM_ACK).put(&header).address(1, to.network()).attr(4, &index.to_ne_bytes());
        absent_is_fine(self.request(message))
    }

    /// Adds a rule; one that exists is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_rule(&mut self, rule: &Rule) -> io::Result<()> {
        match self.request(rule_message(RTM_NEWRULE, NLM_ACK | NLM_CREATE | NLM_EXCL, rule)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map(drop),
        }
    }

    /// Removes a rule; absent is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_rule(&mut self, rule: &Rule) -> io::Result<()> {
        absent_is_fine(self.request(rule_message(RTM_DELRULE, NLM_ACK, rule)))
    }

    /// All rules that have an input interface.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn rules(&mut self, v6: bool) -> io::Result<Vec<Rule>> {
        let mut header = [0; 12];
        header[0] = family(v6);
        let answers = self.request(Message::new(RTM_GETRULE, NLM_DUMP).put(&header))?;
        Ok(answers.iter().filter(|(kind, _)| *kind == RTM_NEWRULE).filter_map(|(_, b)| parse_rule(b, v6)).collect())
    }
}

fn absent_is_fine(result: io::Result<Vec<(u16, Vec<u8>)>>) -> io::Result<()> {
    match result {
        // ESRCH: no such route; ENOENT: no such rule.
        Err(e) if matches!(e.raw_os_error(), Some(3 | 2)) => Ok(()),
        other => other.map(drop),
    }
}

fn route_header(to: IpNet, gateway: bool) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family(to.addr().is_ipv6());
    header[1] = to.prefix_len();
    // Table main, protocol static, scope link for IPv4 routes without a gateway, unicast.
    header[4] = 254;
    header[5] = 4;
    header[6] = if gateway || to.addr().is_ipv6() { 0 } else { 253 };
    header[7] = 1;
    if gateway {
        // RTNH_F_ONLINK
        header[8..12].copy_from_slice(&4_u32.to_ne_bytes());
    }
    header
}

fn rule_message(kind: u16, flags: u16, rule: &Rule) -> Message {
    let (table, action) = match rule.action {
        RuleAction::Main => (254, 1),
        RuleAction::Blackhole => (0, 6),
    };
    let mut header = [0; 12];
    header[0] = family(rule.v6);
    header[1] = rule.to.map_or(0, |n| n.prefix_len());
    header[2] = rule.from.map_or(0, |n| n.prefix_len());
    header[4] = table;
    header[7] = action;
    let mut message = Message::new(kind, flags).put(&header).attr(6, &rule.priority.to_ne_bytes()).name(3, &rule.iif);
    if let Some(to) = rule.to {
        message = message.address(1, to.network());
    }
    if let Some(from) = rule.from {
        message = message.address(2, from.network());
    }
    message
}

fn parse_rule(body: &[u8], v6: bool) -> Option<Rule> {
    let (to_length, from_length, action) = (*body.get(1)?, *body.get(2)?, *body.get(7)?);
    let mut rule = Rule {
        priority: 0,
        iif: String::new(),
        v6,
        from: None,
        to: None,
        action: match action {
            1 => RuleAction::Main,
            6 => RuleAction::Blackhole,
            _ => return None,
        },
    };
    let mut rest = body.get(12..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let kind = u16::from_ne_bytes([rest[2], rest[3]]);
        let value = rest.get(4..length)?;
        match kind {
            1 => rule.to = IpNet::new(address(value)?, to_length).ok(),
            2 => rule.from = IpNet::new(address(value)?, from_length).ok(),
            3 => rule.iif = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned(),
            6 => rule.priority = u32::from_ne_bytes(value.try_into().ok()?),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    (!rule.iif.is_empty()).then_some(rule)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Splits one message off: kind, sequence, body, rest.
fn split(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let header = bytes.get(..16)?;
    let length = u32::from_ne_bytes(header[0..4].try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(header[4..6].try_into().ok()?);
    let sequence = u32::from_ne_bytes(header[8..12].try_into().ok()?);
    let body = bytes.get(16..length)?;
    Some((kind, sequence, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}
