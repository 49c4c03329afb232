//! Which addresses other nodes are asked for, when, and how long an answer is believed.

use crate::writer::Writer;
use crate::writer::thread::Handle;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_abi::{DropReason, Event, identity};
use weft_daemon::tasks::Tasks;
use weft_model::intent::{Change, EndpointSlice, Written};
use weft_peer::{Ask, Client, Pod};

/// Starts to answer other agents, and to ask them.
///
/// # Errors
/// The certificates cannot be read, or the port cannot be bound.
pub async fn start(settings: &weft_peer::Settings, writer: &Handle, tasks: &Tasks) -> anyhow::Result<Unknown> {
    let (credentials, listener) = settings.open().await?;
    let own = writer.clone();
    let find = move |addresses: &[IpAddr]| own.snapshot().own_pods(addresses);
    tasks.spawn("peer-server", weft_peer::serve(listener, credentials.clone(), find, tasks.stop().clone()));
    let (resolver, unknown) = Resolver::new(writer.clone(), Client::new(credentials, settings.port));
    tasks.spawn("peer-resolver", resolver.run(tasks.stop().clone()));
    Ok(unknown)
}

/// Prefix of the names under which answers are applied as slices: nothing in the API has such a name.
const SOURCE: &str = "direct:";

/// Whether a slice of that name is an answer of another agent.
#[must_use]
pub fn is_answer(source: &str) -> bool {
    source.starts_with(SOURCE)
}
/// Length of the queue of unknown addresses; the next packet reports again what does not fit.
const QUEUE_MAX: usize = 1024;
/// Requests in progress.
const REQUESTS_MAX: usize = 64;
/// Addresses that are rate limited at a time.
const ASKED_MAX: usize = 8192;
/// Pause between two requests for the same address.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// How often answers are checked against slices.
const REVIEW_INTERVAL: Duration = Duration::from_secs(1);
/// An answer is renewed after this, as long as no slice says the same.
const RENEW_INTERVAL: Duration = Duration::from_secs(30);
/// How long an answer is believed if its node does not renew it.
const BELIEVED_MAX: Duration = Duration::from_secs(150);

/// Addresses of other nodes' pods that the kernel may not have known when it judged a packet: without an identity or, out
/// of a tunnel, which carries one, with an identity whose labels may not be known yet.
pub fn unknown_addresses(event: &Event) -> impl Iterator<Item = IpAddr> {
    const JUDGED: [u8; 2] = [DropReason::UnknownSender as u8, DropReason::PolicyDenied as u8];
    let judged = JUDGED.contains(&event.reason);
    let may_be_unknown = |number: u32, endpoint: u16| {
        let allocated = (identity::ALLOCATED_MIN..=identity::ALLOCATED_MAX).contains(&number);
        judged && endpoint == 0 && (number == identity::UNKNOWN || allocated)
    };
    let source = may_be_unknown(event.source_identity, event.source_endpoint).then_some(event.source);
    let destination =
        may_be_unknown(event.destination_identity, event.destination_endpoint).then_some(event.destination);
    source.into_iter().chain(destination).map(IpAddr::from)
}

/// Sends unknown addresses to a [`Resolver`]. Never waits.
#[derive(Clone, Debug)]
pub struct Unknown(mpsc::Sender<IpAddr>);

impl Unknown {
    /// Reports the unknown addresses among what the kernel judged.
    pub fn report(&self, events: &[Event]) {
        for address in events.iter().flat_map(unknown_addresses) {
            let _ = self.0.try_send(address);
        }
    }

    /// Reports one unknown address.
    pub fn send(&self, address: IpAddr) {
        let _ = self.0.try_send(address);
    }
}

/// An answer that is believed.
struct Believed {
    uid: String,
    node: String,
    addresses: Vec<IpAddr>,
    answered: Instant,
    renew_at: Instant,
}

/// A request to a node.
struct Request {
    node: String,
    at: IpAddr,
    addresses: Vec<IpAddr>,
    begun: Instant,
}

type Answer = (Request, anyhow::Result<Vec<Pod>>);

/// Resolves unknown addresses by asking their nodes.
pub struct Resolver<A> {
    control: Handle,
    ask: Arc<A>,
    unknown: mpsc::Receiver<IpAddr>,
    asked: BTreeMap<IpAddr, Instant>,
    requests: JoinSet<Answer>,
    /// By the name of the slice that stands for them.
    believed: BTreeMap<String, Believed>,
}

impl<A: Ask> Resolver<A> {
    /// Applies answers by `control`.
    #[must_use]
    pub fn new(control: Handle, ask: A) -> (Self, Unknown) {
        let (sender, unknown) = mpsc::channel(QUEUE_MAX);
        let resolver = Self {
            control,
            ask: Arc::new(ask),
            unknown,
            asked: BTreeMap::new(),
            requests: JoinSet::new(),
            believed: BTreeMap::new(),
        };
        (resolver, Unknown(sender))
    }

    /// Runs until `stop`, or until every [`Unknown`] is dropped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut review_at = Instant::now() + REVIEW_INTERVAL;
        loop {
            let may_ask = self.requests.len() < REQUESTS_MAX;
            tokio::select! {
                () = stop.cancelled() => return,
                address = self.unknown.recv(), if may_ask => match address {
                    Some(address) => self.ask_for(address),
                    None => return,
                },
                Some(answered) = self.requests.join_next() => {
                    if let Ok(answer) = answered && !self.apply(answer).await {
                        return;
                    }
                }
                () = tokio::time::sleep_until(review_at), if !self.believed.is_empty() => {
                    review_at = Instant::now() + REVIEW_INTERVAL;
                    if !self.review().await {
                        return;
                    }
                }
            }
        }
    }

    /// Asks for an address and all others in the queue, one request per node.
    fn ask_for(&mut self, first: IpAddr) {
        let mut addresses = BTreeSet::from([first]);
        while let Ok(address) = self.unknown.try_recv() {
            addresses.insert(address);
        }
        let (now, snapshot) = (Instant::now(), self.control.snapshot());
        if self.asked.len() + addresses.len() > ASKED_MAX {
            self.asked.retain(|_, at| *at + ASK_INTERVAL > now);
        }
        addresses.retain(|address| self.asked.get(address).is_none_or(|at| *at + ASK_INTERVAL <= now));
        let mut by_node: BTreeMap<(String, IpAddr), Vec<IpAddr>> = BTreeMap::new();
        for address in addresses {
            if self.asked.len() >= ASKED_MAX {
                break;
            }
            // Rate limited whatever comes of it: a denied client may retry all the time.
            self.asked.insert(address, now);
            // Of another node, and still unknown.
            let Some(owner) = snapshot.owner_of_unknown(address) else { continue };
            by_node.entry(owner).or_default().push(address);
        }
        for ((node, at), addresses) in by_node {
            for addresses in addresses.chunks(weft_peer::ADDRESSES_MAX) {
                self.request(&node, at, addresses.to_vec());
            }
        }
    }

    fn request(&mut self, node: &str, at: IpAddr, addresses: Vec<IpAddr>) {
        let ask = self.ask.clone();
        let request = Request { node: node.to_owned(), at, addresses, begun: Instant::now() };
        self.requests.spawn(async move {
            let answer = ask.ask(&request.node, request.at, &request.addresses).await;
            (request, answer)
        });
    }

    /// Applies an answer to the tables; false: they are gone.
    async fn apply(&mut self, (request, answer): Answer) -> bool {
        let Request { node, at, addresses, begun } = request;
        let pods = match answer {
            Ok(pods) => pods,
            Err(error) => {
                tracing::debug!(node, %at, ?addresses, error = format!("{error:#}"), "cannot resolve addresses: the node does not answer");
                return true;
            }
        };
        let (mut changes, mut vouched) = (Vec::new(), Vec::new());
        let (now, snapshot) = (Instant::now(), self.control.snapshot());
        let answered: BTreeSet<&str> = pods.iter().map(|pod| pod.endpoint.pod_uid.as_str()).collect();
        // Renewed, and no longer there.
        let is_about =
            |old: &Believed| old.node == node && old.addresses.iter().any(|address| addresses.contains(address));
        let is_gone = |_: &String, old: &mut Believed| is_about(old) && !answered.contains(old.uid.as_str());
        changes.extend(self.believed.extract_if(.., is_gone).map(|(name, _)| Change::SliceGone(name)));
        for Pod { mut endpoint, labels } in pods {
            endpoint.node = at;
            let owned = endpoint.addresses.iter().all(|address| snapshot.is_of_node(&node, *address));
            let known = snapshot.identity_labels(endpoint.identity);
            let agrees = known.is_none_or(|known| *known == labels);
            if !owned || !agrees {
                tracing::warn!(node, pod = %endpoint.name, owned, agrees, "refused a node's answer: its addresses are not the node's, or the labels of the identity are others");
                continue;
            }
            if known.is_none() {
                vouched.push((endpoint.identity, labels));
            }
            let name = format!("{SOURCE}{}", endpoint.pod_uid);
            let believed = Believed {
                uid: endpoint.pod_uid.clone(),
                node: node.clone(),
                addresses: endpoint.addresses.clone(),
                answered: now,
                renew_at: now + RENEW_INTERVAL,
            };
            self.believed.insert(name.clone(), believed);
            let slice = EndpointSlice { name, endpoints: vec![endpoint], written: Written::default() };
            changes.push(Change::Slice(slice));
        }
        if changes.is_empty() {
            return true;
        }
        let apply = move |writer: &mut Writer| {
            // Labels before the addresses that have their number.
            for (identity, labels) in vouched {
                writer.vouch_for_identity(identity, &labels);
            }
            writer.apply(changes);
        };
        let applied = self.control.call(apply).await.is_ok();
        tracing::debug!(node, ?addresses, took_us = begun.elapsed().as_micros() as u64, "applied a node's answer");
        applied
    }

    /// Drops answers that slices confirm or that are too old, and renews the others.
    async fn review(&mut self) -> bool {
        let now = Instant::now();
        let uids: Vec<String> = self.believed.values().map(|believed| believed.uid.clone()).collect();
        let Ok(known) = self.control.call(move |writer| writer.known_from_others(&uids, is_answer)).await else {
            return false;
        };
        let is_over = |_: &String, believed: &mut Believed| {
            believed.answered + BELIEVED_MAX <= now || known.contains(&believed.uid)
        };
        let over = self.believed.extract_if(.., is_over).map(|(name, _)| Change::SliceGone(name));
        let changes: Vec<Change> = over.collect();
        let due: Vec<(String, Vec<IpAddr>)> = self
            .believed
            .values_mut()
            .filter(|believed| believed.renew_at <= now)
            .map(|believed| {
                believed.renew_at = now + RENEW_INTERVAL;
                (believed.node.clone(), believed.addresses.clone())
            })
            .collect();
        for (node, addresses) in due {
            if let Some(at) = self.control.snapshot().address_of_node(&node) {
                self.request(&node, at, addresses);
            }
        }
        changes.is_empty() || self.control.call(move |control| control.apply(changes)).await.is_ok()
    }
}
