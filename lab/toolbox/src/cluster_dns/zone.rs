//! From a question to its answer, by the tables alone: the names that Kubernetes' DNS specification gives to services
//! and pods, and the addresses' names.

use super::tables::{Service, Tables, undashed};
use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;
use std::net::IpAddr;

/// How long an answer, or that there is none, may be remembered, in seconds. Endpoints come and go.
pub(crate) const TTL_S: u32 = 5;
/// The most names that lead to another.
const CHASE_MAX: usize = 8;

/// An answer to a question.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Answer {
    /// Records.
    Records {
        /// That answer it.
        answers: Vec<Record>,
        /// That will be asked for next.
        additionals: Vec<Record>,
        /// The answers lead to this name, which is not ours.
        elsewhere: Option<Name>,
    },
    /// The name is there, but has no such record.
    NoData,
    /// There is no such name.
    NoName,
    /// We know nothing of such names.
    NotOurs,
}

/// The names of one cluster.
#[derive(Debug)]
pub(crate) struct Zone {
    pub tables: Tables,
    domain: Name,
    /// The name of the server itself.
    server: Name,
    /// Ranges whose addresses belong to the cluster: nobody else knows their names.
    ranges: Vec<IpNet>,
}

/// What is at a name.
enum Found {
    Nothing,
    /// Only names below it.
    Between,
    Addresses(Vec<IpAddr>),
    Alias(Name),
    Services(Vec<(SRV, Vec<IpAddr>)>),
    Apex,
}

impl Zone {
    /// An empty zone of this domain.
    ///
    /// # Errors
    /// That the domain is none.
    pub(crate) fn new(domain: &str, ranges: Vec<IpNet>) -> Result<Self, String> {
        let wrong = |e: hickory_proto::ProtoError| format!("domain {domain:?}: {e}");
        let mut domain = Name::from_ascii(domain).map_err(wrong)?.to_lowercase();
        domain.set_fqdn(true);
        let server = Name::from_ascii("ns.dns").and_then(|n| n.append_domain(&domain)).map_err(wrong)?;
        Ok(Self { tables: Tables::default(), domain, server, ranges })
    }

    /// The record that says for how long the absence of something may be remembered, of the zone that a name is in.
    pub(crate) fn authority(&self, name: &Name) -> Record {
        let zone = if self.domain.zone_of(name) {
            self.domain.clone()
        } else {
            // A name of an address: the family's own zone, of which we serve a part.
            name.trim_to(2)
        };
        let mail = Name::from_ascii("hostmaster").and_then(|n| n.append_domain(&self.domain));
        let mail = mail.unwrap_or_else(|_| self.domain.clone());
        let soa = SOA::new(self.server.clone(), mail, self.tables.serial, 7200, 1800, 86_400, TTL_S);
        Record::from_rdata(zone, TTL_S, RData::SOA(soa))
    }

    /// Answers.
    pub(crate) fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        if let Ok(net) = name.parse_arpa_name()
            && !self.domain.zone_of(name)
        {
            return self.reverse(name, net, kind);
        }
        let mut answers = Vec::new();
        let mut name = name.clone();
        for _ in 0..CHASE_MAX {
            if !self.domain.zone_of(&name) {
                return match answers.is_empty() {
                    true => Answer::NotOurs,
                    false => Answer::Records { answers, additionals: Vec::new(), elsewhere: Some(name) },
                };
            }
            let found = self.find(&name);
            if let Found::Alias(target) = found {
                answers.push(Record::from_rdata(name, TTL_S, RData::CNAME(CNAME(target.clone()))));
                if matches!(kind, RecordType::CNAME | RecordType::ANY) {
                    break;
                }
                name = target;
                continue;
            }
            let mut additionals = Vec::new();
            let known = !matches!(found, Found::Nothing);
            self.records(&name, kind, found, &mut answers, &mut additionals);
            if answers.is_empty() {
                return if known { Answer::NoData } else { Answer::NoName };
            }
            return Answer::Records { answers, additionals, elsewhere: None };
        }
        Answer::Records { answers, additionals: Vec::new(), elsewhere: None }
    }

    fn records(
        &self,
        name: &Name,
        kind: RecordType,
        found: Found,
        answers: &mut Vec<Record>,
        additionals: &mut Vec<Record>,
    ) {
        match found {
            Found::Nothing | Found::Between | Found::Alias(_) => {}
            Found::Addresses(addresses) => {
                answers.extend(addresses.iter().filter(|a| fits(kind, **a)).map(|a| address(name, *a)));
            }
            Found::Services(services) if matches!(kind, RecordType::SRV | RecordType::ANY) => {
                for (service, addresses) in services {
                    additionals.extend(addresses.iter().map(|a| address(&service.target, *a)));
                    answers.push(Record::from_rdata(name.clone(), TTL_S, RData::SRV(service)));
                }
            }
            Found::Services(_) => {}
            Found::Apex => {
                if matches!(kind, RecordType::SOA | RecordType::ANY) {
                    answers.push(self.authority(name));
                }
                if matches!(kind, RecordType::NS | RecordType::ANY) {
                    answers.push(Record::from_rdata(name.clone(), TTL_S, RData::NS(NS(self.server.clone()))));
                    additionals.extend(self.own_addresses().into_iter().map(|a| address(&self.server, a)));
                }
            }
        }
    }

    /// The name server's own Service, by the name that everybody gives it.
    fn own_addresses(&self) -> Vec<IpAddr> {
        match self.tables.service("kube-system", "kube-dns") {
            Some(Service::Cluster { addresses, .. }) => addresses.clone(),
            _ => Vec::new(),
        }
    }

    fn find(&self, name: &Name) -> Found {
        let own = name.iter().count().saturating_sub(self.domain.iter().count());
        let labels: Option<Vec<String>> =
            name.iter().take(own).map(|l| std::str::from_utf8(l).ok().map(str::to_ascii_lowercase)).collect();
        let Some(mut labels) = labels else { return Found::Nothing };
        labels.reverse();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] => Found::Apex,
            ["svc" | "pod" | "dns"] => Found::Between,
            ["dns", "ns"] => Found::Addresses(self.own_addresses()),
            // Any namespace: the address in the name says all.
            ["pod", _] => Found::Between,
            ["pod", _, label] => undashed(label).map_or(Found::Nothing, |a| Found::Addresses(vec![a])),
            ["svc", namespace] if self.tables.has_namespace(namespace) => Found::Between,
            ["svc", namespace, service] => self.service(namespace, service),
            ["svc", namespace, service, protocol] if protocol.starts_with('_') => {
                let any = self.ports(namespace, service).any(|(own, _)| protocol.strip_prefix('_') == Some(own));
                if any { Found::Between } else { Found::Nothing }
            }
            ["svc", namespace, service, host] => self.host(namespace, service, host),
            ["svc", namespace, service, protocol, port] => self.port(namespace, service, protocol, port),
            _ => Found::Nothing,
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Found {
        match self.tables.service(namespace, name) {
            None => Found::Nothing,
            Some(Service::Cluster { addresses, .. }) => Found::Addresses(addresses.clone()),
            Some(Service::Headless) => {
                let mut addresses: Vec<IpAddr> =
                    self.tables.slices(namespace, name).flat_map(|s| &s.endpoints).map(|e| e.address).collect();
                addresses.sort();
                addresses.dedup();
                Found::Addresses(addresses)
            }
            // A name that is none leads nowhere.
            Some(Service::Alias(target)) => match Name::from_ascii(target) {
                Ok(mut target) => {
                    target.set_fqdn(true);
                    Found::Alias(target)
                }
                Err(_) => Found::Between,
            },
        }
    }

    /// One endpoint of a headless service.
    fn host(&self, namespace: &str, service: &str, host: &str) -> Found {
        if self.tables.service(namespace, service) != Some(&Service::Headless) {
            return Found::Nothing;
        }
        let own = self.tables.slices(namespace, service).flat_map(|s| &s.endpoints).filter(|e| e.host == host);
        let mut addresses: Vec<IpAddr> = own.map(|e| e.address).collect();
        addresses.sort();
        addresses.dedup();
        if addresses.is_empty() { Found::Nothing } else { Found::Addresses(addresses) }
    }

    /// Protocols and names of the ports of a service.
    fn ports<'a>(&'a self, namespace: &str, service: &str) -> Box<dyn Iterator<Item = (&'a str, &'a str)> + 'a> {
        match self.tables.service(namespace, service) {
            Some(Service::Cluster { ports, .. }) => {
                Box::new(ports.iter().map(|p| (p.protocol.as_str(), p.name.as_str())))
            }
            Some(Service::Headless) => {
                let slices: Vec<_> = self.tables.slices(namespace, service).collect();
                let ports = slices.into_iter().flat_map(|s| &s.ports);
                Box::new(ports.map(|p| (p.protocol.as_str(), p.name.as_str())))
            }
            _ => Box::new(std::iter::empty()),
        }
    }

    /// A named port.
    fn port(&self, namespace: &str, service: &str, protocol: &str, port: &str) -> Found {
        let (Some(protocol), Some(port)) = (protocol.strip_prefix('_'), port.strip_prefix('_')) else {
            return Found::Nothing;
        };
        if port.is_empty() {
            return Found::Nothing;
        }
        let Ok(base) = Name::from_labels([service, namespace, "svc"]).and_then(|n| n.append_domain(&self.domain))
        else {
            return Found::Nothing;
        };
        let mut found: Vec<(SRV, Vec<IpAddr>)> = Vec::new();
        match self.tables.service(namespace, service) {
            Some(Service::Cluster { addresses, ports }) => {
                let own = ports.iter().filter(|p| p.protocol == protocol && p.name == port);
                found.extend(own.map(|p| (SRV::new(0, 100, p.number, base.clone()), addresses.clone())));
            }
            Some(Service::Headless) => {
                for slice in self.tables.slices(namespace, service) {
                    let Some(own) = slice.ports.iter().find(|p| p.protocol == protocol && p.name == port) else {
                        continue;
                    };
                    for endpoint in &slice.endpoints {
                        let Ok(target) = base.prepend_label(endpoint.host.as_str()) else { continue };
                        let same = |s: &SRV| s.port == own.number && s.target == target;
                        match found.iter_mut().find(|(s, _)| same(s)) {
                            // The other family of the same pod.
                            Some((_, addresses)) => addresses.push(endpoint.address),
                            None => found.push((SRV::new(0, 100, own.number, target), vec![endpoint.address])),
                        }
                    }
                }
            }
            _ => {}
        }
        if found.is_empty() { Found::Nothing } else { Found::Services(found) }
    }

    /// The names of an address.
    fn reverse(&self, name: &Name, net: IpNet, kind: RecordType) -> Answer {
        if !self.ranges.iter().any(|r| r.contains(&net)) {
            return Answer::NotOurs;
        }
        if net.prefix_len() != net.max_prefix_len() {
            return Answer::NoData;
        }
        let mut answers = Vec::new();
        for ((namespace, service), host) in self.tables.owners(net.addr()) {
            let labels = host.into_iter().chain([service.as_str(), namespace, "svc"]);
            let target = Name::from_labels(labels).and_then(|n| n.append_domain(&self.domain));
            answers.extend(target.ok().map(|t| Record::from_rdata(name.clone(), TTL_S, RData::PTR(PTR(t)))));
        }
        match (answers.is_empty(), matches!(kind, RecordType::PTR | RecordType::ANY)) {
            (true, _) => Answer::NoName,
            (false, false) => Answer::NoData,
            (false, true) => Answer::Records { answers, additionals: Vec::new(), elsewhere: None },
        }
    }
}

fn fits(kind: RecordType, address: IpAddr) -> bool {
    match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    }
}

fn address(name: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(a) => RData::A(a.into()),
        IpAddr::V6(a) => RData::AAAA(a.into()),
    };
    Record::from_rdata(name.clone(), TTL_S, data)
}

#[cfg(test)]
mod tests;
