//! What names are made of: services and their endpoints, read from the API's objects and kept ready for questions.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Namespace and name.
pub(crate) type ObjectName = (String, String);

/// A port of a service or of its endpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Port {
    /// May be empty.
    pub name: String,
    /// In lower case.
    pub protocol: String,
    /// Number.
    pub number: u16,
}

/// How a service is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Service {
    /// At addresses of its own.
    Cluster { addresses: Vec<IpAddr>, ports: Vec<Port> },
    /// At those of its endpoints.
    Headless,
    /// It is another name for something.
    Alias(String),
}

/// One endpoint of a headless service that answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint {
    /// Where.
    pub address: IpAddr,
    /// Its name below the service's: its host name, or its address with dashes.
    pub host: String,
}

/// An EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Slice {
    pub service: ObjectName,
    pub ports: Vec<Port>,
    pub endpoints: Vec<Endpoint>,
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn object_name(object: &Value) -> ObjectName {
    (text(&object["metadata"], "namespace").to_owned(), text(&object["metadata"], "name").to_owned())
}

/// Ports that are none are left out: the rest of the object is good.
fn ports(object: &Value) -> Vec<Port> {
    let port = |port: &Value| {
        Some(Port {
            name: text(port, "name").to_ascii_lowercase(),
            protocol: port["protocol"].as_str().unwrap_or("TCP").to_ascii_lowercase(),
            number: port["port"].as_u64().and_then(|n| u16::try_from(n).ok())?,
        })
    };
    list(object).iter().filter_map(port).collect()
}

impl Service {
    /// Of a Service object; `None`: it has no address and will not get one of this kind.
    pub(crate) fn read(object: &Value) -> Option<Self> {
        let spec = &object["spec"];
        if spec["type"] == "ExternalName" {
            return Some(Self::Alias(text(spec, "externalName").trim_end_matches('.').to_owned()));
        }
        let mut texts: Vec<&str> = list(&spec["clusterIPs"]).iter().filter_map(Value::as_str).collect();
        if texts.is_empty() {
            texts.extend(spec["clusterIP"].as_str());
        }
        if texts.contains(&"None") {
            return Some(Self::Headless);
        }
        let addresses: Vec<IpAddr> = texts.iter().filter_map(|t| t.parse().ok()).collect();
        (!addresses.is_empty()).then(|| Self::Cluster { addresses, ports: ports(&spec["ports"]) })
    }
}

impl Slice {
    /// Of an EndpointSlice object; `None`: it belongs to no service.
    pub(crate) fn read(object: &Value) -> Option<Self> {
        let (namespace, _) = object_name(object);
        let service = object["metadata"]["labels"]["kubernetes.io/service-name"].as_str()?.to_owned();
        let endpoint = |endpoint: &Value| {
            if endpoint["conditions"]["ready"] == false {
                return None;
            }
            let address: IpAddr = list(&endpoint["addresses"]).first()?.as_str()?.parse().ok()?;
            let host = text(endpoint, "hostname").to_ascii_lowercase();
            let host = if host.is_empty() { dashed(address) } else { host };
            Some(Endpoint { address, host })
        };
        let endpoints = list(&object["endpoints"]).iter().filter_map(endpoint).collect();
        Some(Self { service: (namespace, service), ports: ports(&object["ports"]), endpoints })
    }
}

/// An address as a label.
pub(crate) fn dashed(address: IpAddr) -> String {
    let text = address.to_string().replace(['.', ':'], "-");
    // A label begins and ends with a letter or a digit.
    let start = if text.starts_with('-') { "0" } else { "" };
    let end = if text.ends_with('-') { "0" } else { "" };
    format!("{start}{text}{end}")
}

/// The address that a label stands for.
pub(crate) fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse().ok().map(IpAddr::V4);
    v4.or_else(|| label.replace('-', ":").parse().ok().map(IpAddr::V6))
}

/// All services and slices, and what is found by them.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, Slice>,
    slices_of: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    /// Services by their own addresses, and slices by those of their endpoints.
    by_address: BTreeMap<IpAddr, BTreeSet<(bool, ObjectName)>>,
    /// Counts changes.
    pub serial: u32,
}

impl Tables {
    /// A service is so, or is gone.
    pub(crate) fn put_service(&mut self, name: ObjectName, service: Option<Service>) {
        self.serial = self.serial.wrapping_add(1);
        if let Some(Service::Cluster { addresses, .. }) = self.services.get(&name) {
            for address in addresses.clone() {
                self.unlink(address, false, &name);
            }
        }
        match service {
            None => drop(self.services.remove(&name)),
            Some(service) => {
                if let Service::Cluster { addresses, .. } = &service {
                    for address in addresses {
                        self.by_address.entry(*address).or_default().insert((false, name.clone()));
                    }
                }
                self.services.insert(name, service);
            }
        }
    }

    /// A slice is so, or is gone.
    pub(crate) fn put_slice(&mut self, name: ObjectName, slice: Option<Slice>) {
        self.serial = self.serial.wrapping_add(1);
        if let Some(old) = self.slices.remove(&name) {
            for endpoint in &old.endpoints {
                self.unlink(endpoint.address, true, &name);
            }
            if let Some(own) = self.slices_of.get_mut(&old.service) {
                own.remove(&name);
                if own.is_empty() {
                    self.slices_of.remove(&old.service);
                }
            }
        }
        if let Some(slice) = slice {
            for endpoint in &slice.endpoints {
                self.by_address.entry(endpoint.address).or_default().insert((true, name.clone()));
            }
            self.slices_of.entry(slice.service.clone()).or_default().insert(name.clone());
            self.slices.insert(name, slice);
        }
    }

    fn unlink(&mut self, address: IpAddr, slice: bool, name: &ObjectName) {
        if let Some(users) = self.by_address.get_mut(&address) {
            users.remove(&(slice, name.clone()));
            if users.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }

    /// Names of the services, to forget those that are gone.
    pub(crate) fn service_names(&self) -> Vec<ObjectName> {
        self.services.keys().cloned().collect()
    }

    /// Names of the slices, to forget those that are gone.
    pub(crate) fn slice_names(&self) -> Vec<ObjectName> {
        self.slices.keys().cloned().collect()
    }

    pub(crate) fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.services.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// Some service is in the namespace.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        let first = (namespace.to_owned(), String::new());
        self.services.range(first..).next().is_some_and(|((found, _), _)| found == namespace)
    }

    /// The slices of a service.
    pub(crate) fn slices(&self, namespace: &str, name: &str) -> impl Iterator<Item = &Slice> {
        let own = self.slices_of.get(&(namespace.to_owned(), name.to_owned()));
        own.into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// What has an address: namespace and name of the service, and the host below it if it is an endpoint.
    pub(crate) fn owners(&self, address: IpAddr) -> Vec<(&ObjectName, Option<&str>)> {
        let mut owners = Vec::new();
        for (is_slice, name) in self.by_address.get(&address).into_iter().flatten() {
            if !is_slice {
                owners.push((name, None));
            } else if let Some(slice) = self.slices.get(name)
                && self.services.get(&slice.service) == Some(&Service::Headless)
            {
                let own = slice.endpoints.iter().filter(|e| e.address == address);
                owners.extend(own.map(|e| (&slice.service, Some(e.host.as_str()))));
            }
        }
        owners
    }
}
