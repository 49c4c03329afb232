//! CiliumLocalRedirectPolicies: traffic to an address or a Service is redirected to pods of this node.

use super::backends::BackendAddr;
use super::interface::{Object, Reason, Settings};
use super::wanted::{Sources, Trait, Wanted, WantedFrontend, WantedPort};
use crate::explain::protocol_text;
use std::net::IpAddr;
use weft_model::desired::{Frontend, FrontendKind};
use weft_model::intent::{LocalRedirect, ObjectName, Protocol, RedirectFrontend, RedirectPort, Routing, ServicePort};

impl Sources {
    /// Desired state of a policy. One for a Service has no frontends of its own, only problems.
    pub(super) fn redirect(&self, name: &ObjectName, settings: &Settings) -> Wanted {
        let mut wanted = Wanted::default();
        let Some(redirect) = self.redirects.get(name) else { return wanted };
        let (address, ports) = match &redirect.frontend {
            RedirectFrontend::Address { address, ports } => (address, ports),
            RedirectFrontend::Service { name, .. } => {
                self.redirect_problems(redirect, name, &mut wanted);
                return wanted;
            }
        };
        let address = address.to_canonical();
        if let Some(why) = self.refused_redirect(address, &settings.allowed) {
            wanted.problem(Reason::FrontendRefused, why);
            return wanted;
        }
        for port in ports {
            let Some(target) = target(redirect, ports.len(), &port.name, port.protocol) else {
                let text = format!(
                    "redirectFrontend port {}: redirectBackend has no port with the name {:?} and the protocol {}",
                    port.port,
                    port.name,
                    protocol_text(port.protocol.number())
                );
                wanted.problem(Reason::RedirectNotApplicable, text);
                continue;
            };
            let places = self.local(redirect, target, address.is_ipv6());
            if places.is_empty() || !settings.has_family_of(address) {
                // Without a backend the address itself is used.
                continue;
            }
            let mut made = WantedPort { forwarding: settings.forwarding, ..WantedPort::default() };
            made.backends = places.iter().map(|place| (*place, Trait { local: true, terminating: false })).collect();
            let frontend = WantedFrontend {
                internal: made.set(places),
                skip_from_backend: redirect.skip_from_backend,
                ..WantedFrontend::of_kind(FrontendKind::Redirect)
            };
            let at = Frontend { address, port: port.port, protocol: port.protocol };
            made.frontends.insert(at, frontend);
            wanted.ports.insert((port.port, port.protocol), made);
        }
        wanted
    }

    /// The backends to which a policy redirects a port of a Service, and whether these pods themselves are exempt.
    pub(super) fn redirected(
        &self,
        service: &ObjectName,
        routing: &Routing,
        port: &ServicePort,
        v6: bool,
    ) -> Option<(Vec<BackendAddr>, bool)> {
        if !is_cluster_ip(routing) {
            return None;
        }
        let redirect = self.of_service(service).find(|redirect| selects(redirect, port))?;
        let places = self.local(redirect, target_of_service(redirect, port)?, v6);
        (!places.is_empty()).then_some((places, redirect.skip_from_backend))
    }

    /// Adds the pods from [`Sources::redirected`], which need not be backends of the Service.
    pub(super) fn redirect_backends(&self, made: &mut WantedPort) {
        for place in made.sets.iter().flatten() {
            made.backends.entry(*place).or_insert(Trait { local: true, terminating: false });
        }
    }

    /// Policies for a Service, by name; the first one wins.
    pub(super) fn of_service<'a>(&'a self, service: &'a ObjectName) -> impl Iterator<Item = &'a LocalRedirect> {
        self.redirects.values().filter(
            move |redirect| matches!(&redirect.frontend, RedirectFrontend::Service { name, .. } if name == service),
        )
    }

    /// Reports why a policy does not apply to its Service.
    fn redirect_problems(&self, redirect: &LocalRedirect, service: &ObjectName, wanted: &mut Wanted) {
        let Some(routing) = self.services.get(service) else { return };
        if !is_cluster_ip(routing) {
            let text = format!("Service {service}: only Services of type ClusterIP can be redirected");
            wanted.problem(Reason::RedirectNotApplicable, text);
            return;
        }
        for port in routing.ports.iter().filter(|port| selects(redirect, port)) {
            let first = self.of_service(service).find(|redirect| selects(redirect, port));
            if let Some(first) = first.filter(|first| first.name != redirect.name) {
                let other = Object::Redirect(first.name.clone());
                let text = format!("Service {service} port {}: already redirected by {other}", port.port);
                wanted.problem(Reason::RedirectNotApplicable, text);
            } else if target_of_service(redirect, port).is_none() {
                let text = format!(
                    "Service {service} port {}: redirectBackend has no port with its name and the protocol {}",
                    port.port,
                    protocol_text(port.protocol.number())
                );
                wanted.problem(Reason::RedirectNotApplicable, text);
            }
        }
    }

    /// Ready pods of this node that the policy selects, with the target port.
    fn local(&self, redirect: &LocalRedirect, target: &RedirectPort, v6: bool) -> Vec<BackendAddr> {
        let pods = self.pods.values().filter(|pod| {
            pod.ready && pod.name.namespace == redirect.name.namespace && redirect.selector.matches(&pod.labels)
        });
        let addresses = pods.flat_map(|pod| pod.addresses.iter().map(IpAddr::to_canonical));
        let mut places: Vec<BackendAddr> =
            addresses.filter(|address| address.is_ipv6() == v6).map(|address| (address, target.port)).collect();
        places.sort_unstable();
        places.dedup();
        places
    }
}

/// Whether it is of type ClusterIP; `externalIPs` are fine.
fn is_cluster_ip(routing: &Routing) -> bool {
    !routing.node_ports && routing.load_balancer_ips.is_empty()
}

/// Whether a policy redirects this port of its Service.
fn selects(redirect: &LocalRedirect, port: &ServicePort) -> bool {
    let RedirectFrontend::Service { ports, .. } = &redirect.frontend else { return false };
    ports.is_empty() || named(ports, port).is_some()
}

/// The entry of `toPorts` for a port of a Service.
fn named<'a>(ports: &'a [RedirectPort], port: &ServicePort) -> Option<&'a RedirectPort> {
    ports.iter().find(|own| own.port == port.port && own.protocol == port.protocol)
}

fn target_of_service<'a>(redirect: &'a LocalRedirect, port: &ServicePort) -> Option<&'a RedirectPort> {
    let RedirectFrontend::Service { ports, .. } = &redirect.frontend else { return None };
    let name = named(ports, port).map(|entry| entry.name.as_str()).filter(|name| !name.is_empty());
    target(redirect, ports.len(), name.unwrap_or(&port.name), port.protocol)
}

/// The backend port for a frontend port: the one with equal protocol and name. Names are optional if there is only one.
fn target<'a>(
    redirect: &'a LocalRedirect,
    frontends: usize,
    name: &str,
    protocol: Protocol,
) -> Option<&'a RedirectPort> {
    let unnamed = |only: &RedirectPort| frontends == 1 || name.is_empty() || only.name.is_empty();
    match redirect.ports.as_slice() {
        [only] if unnamed(only) => Some(only),
        several => several.iter().find(|port| port.name == name && port.protocol == protocol),
    }
    .filter(|port| port.protocol == protocol)
}
