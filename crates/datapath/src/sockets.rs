//! The end of sockets that were led to a backend which is gone. Who sends by UDP to a peer that no longer exists is
//! never told so by anybody; so the socket is aborted, and its owner looks for the Service anew.
//!
//! A job of its own thread: it looks through network namespaces, which takes time.

use crate::map::TypedMap;
use crate::netlink::diag::{Diagnosis, FAMILIES, Found};
use crate::netns::NetNs;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use weft_abi::{BackendInfo, SocketKey, SocketValue, socket_kind};
use weft_model::desired::DataplaneError;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// States of sockets that are connected, or are about to be: for UDP there is one.
const UDP_CONNECTED: u32 = 1 << 1;
/// TCP: established, SYN sent, FIN wait 1 and 2, close wait, last ACK, closing.
const TCP_CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// Whose sockets are ended.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Protocols {
    /// TCP. Its peers notice by themselves sooner or later.
    pub tcp: bool,
    /// UDP, where it is connected. Other sockets choose another backend with the next datagram.
    pub udp: bool,
}

/// Backends that were removed and whose sockets nobody has looked for yet.
#[derive(Clone, Default, Debug)]
pub(crate) struct Removed(Arc<(Mutex<BTreeMap<u32, BackendInfo>>, Condvar)>);

impl Removed {
    /// Wakes the [`Destroyer`].
    pub(crate) fn add(&self, backends: impl IntoIterator<Item = (u32, BackendInfo)>) {
        let mut removed = self.lock();
        removed.extend(backends);
        if !removed.is_empty() {
            self.0.1.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, BackendInfo>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Backends that were removed.
#[derive(Debug)]
pub struct Gone(BTreeMap<u32, BackendInfo>);

/// Ends sockets.
#[derive(Debug)]
pub struct Destroyer {
    removed: Removed,
    sockets: TypedMap<SocketKey, SocketValue>,
    backends: TypedMap<u32, BackendInfo>,
    /// The node's own.
    node: NetNs,
}

impl Destroyer {
    pub(crate) fn new(
        removed: Removed,
        sockets: TypedMap<SocketKey, SocketValue>,
        backends: TypedMap<u32, BackendInfo>,
    ) -> io::Result<Self> {
        Ok(Self { removed, sockets, backends, node: NetNs::current()? })
    }

    /// Waits for backends to be removed.
    #[must_use]
    pub fn wait(&self, longest: Duration) -> Option<Gone> {
        let nothing = |removed: &mut BTreeMap<_, _>| removed.is_empty();
        let lock = self.removed.0.1.wait_timeout_while(self.removed.lock(), longest, nothing);
        let (mut removed, _) = lock.unwrap_or_else(PoisonError::into_inner);
        (!removed.is_empty()).then(|| Gone(std::mem::take(&mut *removed)))
    }

    /// Ends the sockets that were led to these backends: the node's, and those in the given namespaces, of which some may
    /// be gone. Returns how many.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn destroy(&self, gone: &Gone, protocols: Protocols, namespaces: &[PathBuf]) -> Result<usize, DataplaneError> {
        let mut wanted = BTreeSet::new();
        let mut kinds = BTreeSet::new();
        let gone = self.really(gone)?;
        self.sockets.for_each(|key, value| {
            let asked = (value.protocol == TCP && protocols.tcp) || (value.protocol == UDP && protocols.udp);
            let led = |backend: &BackendInfo| (backend.addr, backend.port_be) == (key.addr, key.port_be);
            if asked && key.kind == socket_kind::PEER && gone.get(&value.backend).is_some_and(led) {
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
                Err(error) => tracing::warn!(%error, "cannot look through the sockets of a network namespace"),
            }
        }
        Ok(ended)
    }

    /// Those of which there is not another one by now under the same number.
    fn really(&self, gone: &Gone) -> Result<BTreeMap<u32, BackendInfo>, DataplaneError> {
        let mut really = gone.0.clone();
        for (id, backend) in &gone.0 {
            if self.backends.get(id)?.is_some_and(|now| (now.addr, now.port_be) == (backend.addr, backend.port_be)) {
                really.remove(id);
            }
        }
        Ok(really)
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
