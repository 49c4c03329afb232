//! Which addresses are asked for, when, and how long an answer is believed.

use super::client::Ask;
use super::message::Pod;
use crate::core::thread::Handle;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_abi::{DropReason, Event, identity};
use weft_model::intent::{Change, EndpointSlice, IdentityLabels, Written};

/// What an answer is called among the sources of endpoints: nothing in the API has such a name.
const SOURCE: &str = "direct:";

/// Whether a source of endpoints is an answer of another agent.
#[must_use]
pub fn is_answer(source: &str) -> bool {
    source.starts_with(SOURCE)
}
/// Addresses that wait to be looked at; of more the next packet tells again.
const WAITING_MAX: usize = 1024;
/// Questions on their way at once.
const QUESTIONS_MAX: usize = 64;
/// Addresses that are remembered to have been asked for.
const ASKED_MAX: usize = 8192;
/// An address is not asked for again before this.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at whether slices say by now what was answered.
const LOOK: Duration = Duration::from_secs(1);
/// An answer is asked for again after this, as long as no slice says the same.
const RENEW: Duration = Duration::from_secs(30);
/// How long an answer is believed of a node that answers no more.
const BELIEVED_MAX: Duration = Duration::from_secs(150);

/// The addresses of pods elsewhere that the kernel may not have known when it judged a packet: without an identity, or,
/// out of a tunnel, which carries one, with an identity whose labels may be news, too.
pub fn unknown_addresses(event: &Event) -> impl Iterator<Item = IpAddr> {
    const JUDGED: [u8; 2] = [DropReason::UnknownSender as u8, DropReason::PolicyDenied as u8];
    let judged = JUDGED.contains(&event.reason);
    let may_be_news = |number: u32, endpoint: u16| {
        let allocated = (identity::ALLOCATED_MIN..=identity::ALLOCATED_MAX).contains(&number);
        judged && endpoint == 0 && (number == identity::UNKNOWN || allocated)
    };
    let source = may_be_news(event.source_identity, event.source_endpoint).then_some(event.source);
    let destination = may_be_news(event.destination_identity, event.destination_endpoint).then_some(event.destination);
    source.into_iter().chain(destination).map(IpAddr::from)
}

/// Tells a [`Resolver`] of addresses. Never waits.
#[derive(Clone, Debug)]
pub struct Unknown(mpsc::Sender<IpAddr>);

impl Unknown {
    /// Hears of what the kernel judged.
    pub fn hear(&self, events: &[Event]) {
        for address in events.iter().flat_map(unknown_addresses) {
            let _ = self.0.try_send(address);
        }
    }

    /// An address is not known.
    pub fn tell(&self, address: IpAddr) {
        let _ = self.0.try_send(address);
    }
}

/// An answer that is believed.
struct Word {
    uid: String,
    node: String,
    addresses: Vec<IpAddr>,
    answered: Instant,
    renew_at: Instant,
}

/// A question to a node.
struct Question {
    node: String,
    at: IpAddr,
    addresses: Vec<IpAddr>,
    begun: Instant,
}

type Answer = (Question, anyhow::Result<Vec<Pod>>);

/// See the module.
pub struct Resolver<A> {
    core: Handle,
    ask: Arc<A>,
    unknown: mpsc::Receiver<IpAddr>,
    asked: BTreeMap<IpAddr, Instant>,
    questions: JoinSet<Answer>,
    words: BTreeMap<String, Word>,
}

impl<A: Ask> Resolver<A> {
    /// Puts answers into `core`.
    #[must_use]
    pub fn new(core: Handle, ask: A) -> (Self, Unknown) {
        let (sender, unknown) = mpsc::channel(WAITING_MAX);
        let resolver = Self {
            core,
            ask: Arc::new(ask),
            unknown,
            asked: BTreeMap::new(),
            questions: JoinSet::new(),
            words: BTreeMap::new(),
        };
        (resolver, Unknown(sender))
    }

    /// Works until `stop`, or until nobody tells of addresses any more.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut look_at = Instant::now() + LOOK;
        loop {
            let may_ask = self.questions.len() < QUESTIONS_MAX;
            tokio::select! {
                () = stop.cancelled() => return,
                address = self.unknown.recv(), if may_ask => match address {
                    Some(address) => self.hear(address),
                    None => return,
                },
                Some(answered) = self.questions.join_next() => {
                    if let Ok(answer) = answered && !self.take(answer).await {
                        return;
                    }
                }
                () = tokio::time::sleep_until(look_at), if !self.words.is_empty() => {
                    look_at = Instant::now() + LOOK;
                    if !self.look().await {
                        return;
                    }
                }
            }
        }
    }

    fn hear(&mut self, first: IpAddr) {
        let mut addresses = BTreeSet::from([first]);
        while let Ok(address) = self.unknown.try_recv() {
            addresses.insert(address);
        }
        let now = Instant::now();
        if self.asked.len() + addresses.len() > ASKED_MAX {
            self.asked.retain(|_, at| *at + AGAIN > now);
        }
        addresses.retain(|address| self.asked.get(address).is_none_or(|at| *at + AGAIN <= now));
        let mut by_node: BTreeMap<(String, IpAddr), Vec<IpAddr>> = BTreeMap::new();
        for address in addresses {
            if self.asked.len() >= ASKED_MAX {
                break;
            }
            // Not looked at again at once either way: whoever is denied may try all the time.
            self.asked.insert(address, now);
            // Another node's, and not told of meanwhile.
            let Some(owner) = self.core.look(|core| core.owner_of_unknown(address)) else { continue };
            by_node.entry(owner).or_default().push(address);
        }
        for ((node, at), addresses) in by_node {
            for addresses in addresses.chunks(super::ADDRESSES_MAX) {
                self.question(&node, at, addresses.to_vec());
            }
        }
    }

    fn question(&mut self, node: &str, at: IpAddr, addresses: Vec<IpAddr>) {
        let (ask, question) =
            (self.ask.clone(), Question { node: node.to_owned(), at, addresses, begun: Instant::now() });
        self.questions.spawn(async move {
            let answer =
                tokio::time::timeout(PATIENCE, ask.ask(&question.node, question.at, &question.addresses)).await;
            let answer = answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {PATIENCE:?}")));
            (question, answer)
        });
    }

    /// False: the tables are gone.
    async fn take(&mut self, (question, answer): Answer) -> bool {
        let Question { node, at, addresses, begun } = question;
        let pods = match answer {
            Ok(pods) => pods,
            Err(error) => {
                tracing::debug!(node, %at, ?addresses, error = format!("{error:#}"), "a node does not say who has an address");
                return true;
            }
        };
        let mut changes = Vec::new();
        let now = Instant::now();
        let told: BTreeSet<&str> = pods.iter().map(|pod| pod.endpoint.pod_uid.as_str()).collect();
        // Asked again, and no longer there.
        let about = |word: &Word| word.node == node && word.addresses.iter().any(|address| addresses.contains(address));
        let gone: Vec<String> = self
            .words
            .iter()
            .filter(|(_, word)| about(word) && !told.contains(word.uid.as_str()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            self.words.remove(&name);
            changes.push(Change::SliceGone(name));
        }
        for Pod { mut endpoint, labels } in pods {
            endpoint.node = at;
            let (owned, known) = self.core.look(|core| {
                let owned = endpoint.addresses.iter().all(|address| core.is_of_node(&node, *address));
                (owned, core.identity_labels(endpoint.identity))
            });
            let agrees = known.as_ref().is_none_or(|known| *known == labels);
            if !owned || !agrees {
                tracing::warn!(node, pod = %endpoint.name, owned, agrees, "a node's answer contradicts what is known of it");
                continue;
            }
            if known.is_none() {
                changes.push(Change::Identity(IdentityLabels { identity: endpoint.identity, labels, unused: false }));
            }
            let name = format!("{SOURCE}{}", endpoint.pod_uid);
            let word = Word {
                uid: endpoint.pod_uid.clone(),
                node: node.clone(),
                addresses: endpoint.addresses.clone(),
                answered: now,
                renew_at: now + RENEW,
            };
            self.words.insert(name.clone(), word);
            let slice = EndpointSlice { name, endpoints: vec![endpoint], written: Written::default() };
            changes.push(Change::Slice(slice));
        }
        if changes.is_empty() {
            return true;
        }
        let applied = self.core.call(move |core| core.apply(changes)).await.is_ok();
        tracing::debug!(
            node,
            ?addresses,
            took_us = begun.elapsed().as_micros() as u64,
            "asked a node who has an address"
        );
        applied
    }

    /// What slices say needs no answer any more; what none says is asked for again.
    async fn look(&mut self) -> bool {
        let (now, core) = (Instant::now(), self.core.clone());
        let is_over = |word: &Word| {
            word.answered + BELIEVED_MAX <= now || core.look(|core| core.is_told_but(&word.uid, is_answer))
        };
        let over: Vec<String> =
            self.words.iter().filter(|(_, word)| is_over(word)).map(|(name, _)| name.clone()).collect();
        for name in &over {
            self.words.remove(name);
        }
        let due: Vec<(String, Vec<IpAddr>)> = self
            .words
            .values_mut()
            .filter(|word| word.renew_at <= now)
            .map(|word| {
                word.renew_at = now + RENEW;
                (word.node.clone(), word.addresses.clone())
            })
            .collect();
        for (node, addresses) in due {
            if let Some(at) = self.core.look(|core| core.address_of_node(&node)) {
                self.question(&node, at, addresses);
            }
        }
        let changes: Vec<Change> = over.into_iter().map(Change::SliceGone).collect();
        changes.is_empty() || self.core.call(move |core| core.apply(changes)).await.is_ok()
    }
}
