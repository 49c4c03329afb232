//! Destroys sockets that were redirected to a backend that is gone. A UDP sender gets no error from an address that no longer
//! exists; so the socket is aborted, and its owner connects to the Service again.
//!
//! Runs on a thread of its own: it dumps the sockets of network namespaces, which takes time.

use crate::map::TypedMap;
use crate::netlink::diag::{Diagnosis, FAMILIES, Found};
use crate::netns::NetNs;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use weft_abi::{Addr, BackendInfo, SocketKey, SocketValue, socket_kind};
use weft_model::desired::{BackendEntry, BackendId, DataplaneError};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// States of sockets that are connected, or are about to be: for UDP there is one.
const UDP_CONNECTED: u32 = 1 << 1;
/// TCP: established, SYN sent, FIN wait 1 and 2, close wait, last ACK, closing.
const TCP_CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Whose sockets are ended.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Protocols {
    /// TCP, whose connections time out by themselves otherwise.
    pub tcp: bool,
    /// UDP, where it is connected. Other sockets choose another backend with the next datagram.
    pub udp: bool,
}

/// Ends sockets.
#[derive(Debug)]
pub struct Destroyer {
    sockets: TypedMap<SocketKey, SocketValue>,
    backends: TypedMap<u32, BackendInfo>,
    /// The node's own.
    node: NetNs,
}

impl Destroyer {
    pub(crate) fn new(
        sockets: TypedMap<SocketKey, SocketValue>,
        backends: TypedMap<u32, BackendInfo>,
    ) -> io::Result<Self> {
        Ok(Self { sockets, backends, node: NetNs::current()? })
    }

    /// Destroys the sockets that were redirected to these backends, which are removed: the node's, and those in the
    /// given namespaces, of which some may be gone. Returns how many.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn destroy(
        &self,
        gone: &[(BackendId, BackendEntry)],
        protocols: Protocols,
        namespaces: &[PathBuf],
    ) -> Result<usize, DataplaneError> {
        let mut wanted = BTreeSet::new();
        let mut kinds = BTreeSet::new();
        let gone = self.really(gone)?;
        self.sockets.for_each(|key, value| {
            let asked = (value.protocol == TCP && protocols.tcp) || (value.protocol == UDP && protocols.udp);
            let led = gone.get(&value.backend) == Some(&(key.addr, key.port_be));
            if asked && key.kind == socket_kind::REVERSE && led {
                wanted.insert(key.cookie);
                kinds.insert(value.protocol);
            }
            true
        })?;
        let mut ended = 0;
        let opened = namespaces.iter().filter_map(|path| NetNs::open(path).ok());
        let (first, others) = (std::iter::once(None), opened.map(Some));
        for netns in first.chain(others) {
            if wanted.is_empty() {
                break;
            }
            let netns = netns.as_ref().unwrap_or(&self.node);
            match netns.run(|| end(&mut wanted, &kinds)).and_then(|result| result) {
                Ok(count) => ended += count,
                Err(error) => {
                    tracing::warn!(%error, "dump of the sockets of a network namespace failed: sockets to removed backends stay there")
                }
            }
        }
        Ok(ended)
    }

    /// Where they were, but for those that are there again under the same number.
    fn really(&self, gone: &[(BackendId, BackendEntry)]) -> Result<BTreeMap<u32, (Addr, u16)>, DataplaneError> {
        let mut places = BTreeMap::new();
        for (id, backend) in gone {
            let place = (Addr::from(backend.address), backend.port.to_be());
            if self.backends.get(&id.0)?.is_none_or(|now| (now.addr, now.port_be) != place) {
                places.insert(id.0, place);
            }
        }
        Ok(places)
    }
}

/// Ends the wanted sockets of the calling thread's namespace, and no longer wants them.
fn end(wanted: &mut BTreeSet<u64>, protocols: &BTreeSet<u8>) -> io::Result<usize> {
    let mut diagnosis = Diagnosis::open()?;
    let mut found: Vec<Found> = Vec::new();
    for protocol in protocols {
        let states = if *protocol == TCP { TCP_CONNECTED } else { UDP_CONNECTED };
        for family in FAMILIES {
            diagnosis.for_each(family, *protocol, states, |socket| {
                if wanted.contains(&socket.cookie()) {
                    found.push(socket);
                }
            })?;
        }
    }
    let mut ended = 0;
    for socket in found {
        wanted.remove(&socket.cookie());
        ended += usize::from(diagnosis.destroy(&socket)?);
    }
    Ok(ended)
}
