//! A directory that caches lookups for the events of one batch, whose times do not tell changes apart.

use crate::enrich::{Directory, Party};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Mutex;
use weft_api::flow::{Direction, PolicyRef};
use weft_model::id::{EndpointId, Identity, RuleId};

/// Entries before the cache is cleared: a flood from forged addresses must not grow it.
const ANSWERS_MAX: usize = 256;

/// Cached answers of one kind.
type Answers<Q, A> = Mutex<HashMap<Q, A>>;

/// A caching [`Directory`].
pub(crate) struct Remembered<'a> {
    directory: &'a dyn Directory,
    parties: Answers<IpAddr, Option<Party>>,
    services: Answers<(IpAddr, u16, u8), Option<String>>,
    labels: Answers<Identity, Option<Vec<String>>>,
    rules: Answers<RuleId, Option<PolicyRef>>,
    isolating: Answers<(EndpointId, bool), Vec<PolicyRef>>,
}

impl<'a> Remembered<'a> {
    pub(crate) fn new(directory: &'a dyn Directory) -> Self {
        Self {
            directory,
            parties: Mutex::default(),
            services: Mutex::default(),
            labels: Mutex::default(),
            rules: Mutex::default(),
            isolating: Mutex::default(),
        }
    }
}

fn once<Q: Hash + Eq, A: Clone>(answers: &Answers<Q, A>, question: Q, ask: impl FnOnce() -> A) -> A {
    let mut answers = answers.lock().expect("a panic ends the process");
    if answers.len() >= ANSWERS_MAX {
        answers.clear();
    }
    answers.entry(question).or_insert_with(ask).clone()
}

impl Directory for Remembered<'_> {
    fn party(&self, address: IpAddr) -> Option<Party> {
        once(&self.parties, address, || self.directory.party(address))
    }

    fn service(&self, address: IpAddr, port: u16, protocol: u8) -> Option<String> {
        once(&self.services, (address, port, protocol), || self.directory.service(address, port, protocol))
    }

    fn labels(&self, identity: Identity) -> Option<Vec<String>> {
        once(&self.labels, identity, || self.directory.labels(identity))
    }

    fn rule(&self, rule: RuleId) -> Option<PolicyRef> {
        once(&self.rules, rule, || self.directory.rule(rule))
    }

    fn isolating(&self, endpoint: EndpointId, direction: Direction) -> Vec<PolicyRef> {
        let question = (endpoint, direction == Direction::Ingress);
        once(&self.isolating, question, || self.directory.isolating(endpoint, direction))
    }
}
