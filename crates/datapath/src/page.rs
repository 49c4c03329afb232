//! `CONFIG` and `GENERATIONS`: memory that the programs and user space share, so that one word changes at once and
//! in the order in which it is written.

use crate::sys::map::SharedWords;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use weft_abi::{ENDPOINT_ID_MAX, NodeConfig, config_flags};
use weft_model::desired::Host;
use weft_model::id::PolicyId;

/// Words of a [`NodeConfig`].
const CONFIG_WORDS: usize = size_of::<NodeConfig>() / size_of::<u32>();
const _: () = assert!(size_of::<NodeConfig>().is_multiple_of(size_of::<u32>()));
const _: () = assert!(std::mem::offset_of!(NodeConfig, revision) == 0);
const _: () = assert!(std::mem::offset_of!(NodeConfig, flags) == 4);
const _: () = assert!(std::mem::offset_of!(NodeConfig, host_ingress) == 8);
const _: () = assert!(std::mem::offset_of!(NodeConfig, host_egress) == 12);
/// Words that are not settings of the node: the revision, the flags (which are both), the node's policies.
const OTHER_WORDS: usize = 4;
/// Flags that are not settings of the node.
const OTHER_FLAGS: u32 = config_flags::OBSERVE | HOST_FLAGS;
const HOST_FLAGS: u32 = config_flags::HOST_POLICY | config_flags::HOST_AUDIT;
/// The kernel rounds an array's values up to 8 bytes.
const GENERATION_STRIDE: usize = 2;

/// The shared memory.
pub(crate) struct ConfigPage {
    config: SharedWords,
    generations: SharedWords,
    /// Held while the word of flags is written.
    flags: Mutex<()>,
}

impl ConfigPage {
    /// Maps both arrays.
    pub(crate) fn map(config: &OwnedFd, generations: &OwnedFd) -> io::Result<Self> {
        let generations = SharedWords::map(generations, (usize::from(ENDPOINT_ID_MAX) + 1) * GENERATION_STRIDE)?;
        Ok(Self { config: SharedWords::map(config, CONFIG_WORDS)?, generations, flags: Mutex::new(()) })
    }

    /// Writes everything but the revision, the observe flag and the policies of the node itself.
    pub(crate) fn configure(&self, config: &NodeConfig) {
        let words = to_words(config);
        for (to, from) in self.config.iter().zip(words).skip(OTHER_WORDS) {
            to.store(from, Ordering::Relaxed);
        }
        self.change_flags(|old| (config.flags & !OTHER_FLAGS) | (old & OTHER_FLAGS));
    }

    /// Turns host policies on or off; `true` if that is a change.
    pub(crate) fn set_host(&self, host: Option<&Host>) -> bool {
        let before = self.config[1].load(Ordering::Relaxed) & config_flags::HOST_POLICY;
        let Some(host) = host else {
            self.change_flags(|flags| flags & !HOST_FLAGS);
            return before != 0;
        };
        self.config[2].store(host.ingress.0, Ordering::SeqCst);
        self.config[3].store(host.egress.0, Ordering::SeqCst);
        let audit = if host.audit { config_flags::HOST_AUDIT } else { 0 };
        self.change_flags(|flags| (flags & !HOST_FLAGS) | config_flags::HOST_POLICY | audit);
        before == 0
    }

    /// The node's policies.
    pub(crate) fn host(&self) -> Option<Host> {
        let config = self.config();
        (config.flags & config_flags::HOST_POLICY != 0).then_some(Host {
            ingress: PolicyId(config.host_ingress),
            egress: PolicyId(config.host_egress),
            audit: config.flags & config_flags::HOST_AUDIT != 0,
        })
    }

    /// What the programs read.
    pub(crate) fn config(&self) -> NodeConfig {
        let mut words = [0; CONFIG_WORDS];
        for (to, from) in words.iter_mut().zip(self.config.iter()) {
            *to = from.load(Ordering::Relaxed);
        }
        from_words(words)
    }

    /// The current revision.
    pub(crate) fn revision(&self) -> u32 {
        self.config[0].load(Ordering::Relaxed)
    }

    /// Outdates the decisions of these slots: their flows are decided again, by what the maps hold now.
    ///
    /// The new revision is published first: a program that finds a flow outdated stamps the new decision with a revision
    /// that satisfies the generation. A program reads the revision before it reads a map, so a decision made from what a map
    /// held before never carries the new revision.
    pub(crate) fn bump(&self, slots: impl IntoIterator<Item = usize>) {
        let revision = self.revision().wrapping_add(1);
        self.config[0].store(revision, Ordering::SeqCst);
        for slot in slots {
            if let Some(word) = self.generations.get(slot * GENERATION_STRIDE) {
                word.store(revision, Ordering::SeqCst);
            }
        }
    }

    /// Outdates every decision up to `revision`, and up to the newest generation.
    pub(crate) fn invalidate_up_to(&self, revision: u32) {
        let newest = self.generations.iter().map(|word| word.load(Ordering::Relaxed)).max().unwrap_or(0);
        self.config[0].store(self.revision().max(revision).max(newest), Ordering::SeqCst);
        self.bump([0]);
    }

    /// The revision at which a slot was last touched.
    #[cfg(test)]
    pub(crate) fn generation(&self, slot: usize) -> u32 {
        self.generations[slot * GENERATION_STRIDE].load(Ordering::Relaxed)
    }

    fn change_flags(&self, change: impl FnOnce(u32) -> u32) {
        let _guard = self.flags.lock().expect("a panic ends the process");
        let flags: &AtomicU32 = &self.config[1];
        flags.store(change(flags.load(Ordering::Relaxed)), Ordering::SeqCst);
    }
}

/// Turns events of allowed flows on while flows are observed.
#[derive(Clone)]
pub struct ObserveSwitch {
    page: Arc<ConfigPage>,
}

impl ObserveSwitch {
    pub(crate) fn new(page: Arc<ConfigPage>) -> Self {
        Self { page }
    }

    /// On or off, from the next packet on.
    pub fn set(&self, on: bool) {
        let bit = if on { config_flags::OBSERVE } else { 0 };
        self.page.change_flags(|flags| (flags & !config_flags::OBSERVE) | bit);
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.page.config().flags & config_flags::OBSERVE != 0
    }
}

fn to_words(config: &NodeConfig) -> [u32; CONFIG_WORDS] {
    // SAFETY: `NodeConfig` is `repr(C)` without implicit padding, and its size is that of the words (asserted above).
    unsafe { std::mem::transmute::<NodeConfig, [u32; CONFIG_WORDS]>(*config) }
}

fn from_words(words: [u32; CONFIG_WORDS]) -> NodeConfig {
    // SAFETY: as above; any bit pattern is a valid `NodeConfig`.
    unsafe { std::mem::transmute::<[u32; CONFIG_WORDS], NodeConfig>(words) }
}
