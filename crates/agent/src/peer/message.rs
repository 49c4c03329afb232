//! Messages (`crates/api/proto/peer.proto`), and what they are here. Another node's words are checked, all of them.

use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_model::id::Identity;
use weft_model::intent::{NamedPort, ObjectName, Protocol, RemoteEndpoint};
use weft_model::label::LabelSet;

/// Labels of an identity.
pub type Labels = BTreeMap<String, String>;

/// A pod as its node tells of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// What others need to know.
    pub endpoint: RemoteEndpoint,
    /// Labels of its identity.
    pub labels: LabelSet,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ResolveRequest {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(super) addresses: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ResolveResponse {
    #[prost(message, repeated, tag = "1")]
    pods: Vec<WirePod>,
}

#[derive(Clone, PartialEq, Message)]
struct WirePod {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    uid: String,
    #[prost(uint32, tag = "4")]
    identity: u32,
    #[prost(map = "string, string", tag = "5")]
    labels: HashMap<String, String>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    addresses: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "7")]
    named_ports: Vec<WirePort>,
}

#[derive(Clone, PartialEq, Message)]
struct WirePort {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    port: u32,
    #[prost(uint32, tag = "3")]
    protocol: u32,
}

/// A message that is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: expected {expected}")]
pub struct Malformed {
    field: &'static str,
    expected: &'static str,
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, Malformed> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(bytes).map_err(|_| Malformed { field: "addresses", expected: "4 or 16 bytes" })?;
    Ok(Ipv6Addr::from(v6).into())
}

impl ResolveRequest {
    pub(super) fn of(addresses: &[IpAddr]) -> Self {
        Self { addresses: addresses.iter().map(|address| bytes(*address)).collect() }
    }

    pub(super) fn read(&self) -> Result<Vec<IpAddr>, Malformed> {
        if self.addresses.len() > super::ADDRESSES_MAX {
            return Err(Malformed { field: "addresses", expected: "at most 64" });
        }
        self.addresses.iter().map(|bytes| address(bytes)).collect()
    }
}

impl ResolveResponse {
    pub(super) fn of(pods: Vec<Pod>) -> Self {
        Self { pods: pods.into_iter().map(WirePod::of).collect() }
    }

    /// As the node with the address `node` tells it.
    pub(super) fn read(self, node: IpAddr) -> Result<Vec<Pod>, Malformed> {
        if self.pods.len() > super::ADDRESSES_MAX {
            return Err(Malformed { field: "pods", expected: "at most 64" });
        }
        self.pods.into_iter().map(|pod| pod.read(node)).collect()
    }
}

impl WirePod {
    fn of(Pod { endpoint, labels }: Pod) -> Self {
        let port = |port: NamedPort| WirePort {
            name: port.name,
            port: u32::from(port.port),
            protocol: u32::from(port.protocol.number()),
        };
        Self {
            namespace: endpoint.name.namespace,
            name: endpoint.name.name,
            uid: endpoint.pod_uid,
            identity: endpoint.identity.raw(),
            labels: labels.0.into_iter().collect(),
            addresses: endpoint.addresses.into_iter().map(bytes).collect(),
            named_ports: endpoint.named_ports.into_iter().map(port).collect(),
        }
    }

    fn read(self, node: IpAddr) -> Result<Pod, Malformed> {
        let text = |field, text: String| match text.is_empty() {
            true => Err(Malformed { field, expected: "a name" }),
            false => Ok(text),
        };
        let identity = Identity::allocated(self.identity)
            .ok_or(Malformed { field: "pods[].identity", expected: "a number of a label set" })?;
        let mut named_ports = Vec::new();
        for port in self.named_ports {
            named_ports.push(NamedPort {
                name: text("pods[].named_ports[].name", port.name)?,
                port: u16::try_from(port.port)
                    .map_err(|_| Malformed { field: "pods[].named_ports[].port", expected: "at most 65535" })?,
                protocol: [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
                    .into_iter()
                    .find(|protocol| u32::from(protocol.number()) == port.protocol)
                    .ok_or(Malformed { field: "pods[].named_ports[].protocol", expected: "6, 17 or 132" })?,
            });
        }
        let endpoint = RemoteEndpoint {
            name: ObjectName {
                namespace: text("pods[].namespace", self.namespace)?,
                name: text("pods[].name", self.name)?,
            },
            pod_uid: text("pods[].uid", self.uid)?,
            identity,
            addresses: self.addresses.iter().map(|bytes| address(bytes)).collect::<Result<_, _>>()?,
            node,
            named_ports,
        };
        if self.labels.is_empty() {
            return Err(Malformed { field: "pods[].labels", expected: "the labels of the identity" });
        }
        Ok(Pod { endpoint, labels: LabelSet(self.labels.into_iter().collect()) })
    }
}

/// A flag (compressed or not) and the length stand before every message of gRPC.
const HEADER_BYTES: usize = 5;

/// A message as the body of a request or an answer.
pub(super) fn framed(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut body = Vec::with_capacity(HEADER_BYTES + length);
    body.push(0);
    body.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    // Writing to a vector has no end of room.
    body.extend(message.encode_to_vec());
    body
}

/// The message in such a body.
pub(super) fn unframed<M: Message + Default>(body: &[u8]) -> Result<M, Malformed> {
    const WHOLE: Malformed = Malformed { field: "message", expected: "one, whole and not compressed" };
    let (header, message) = body.split_first_chunk::<HEADER_BYTES>().ok_or(WHOLE)?;
    let [flag, length @ ..] = *header;
    if flag != 0 || usize::try_from(u32::from_be_bytes(length)) != Ok(message.len()) {
        return Err(WHOLE);
    }
    M::decode(message).map_err(|_| Malformed { field: "message", expected: "protobuf" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        Pod {
            endpoint: RemoteEndpoint {
                name: ObjectName { namespace: "n".into(), name: "p".into() },
                pod_uid: "u".into(),
                identity: Identity::allocated(300).expect("valid"),
                addresses: vec![IpAddr::from([10, 1, 2, 3]), "fd44::7".parse().expect("valid")],
                node: IpAddr::from([172, 16, 0, 1]),
                named_ports: vec![NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
            },
            labels: LabelSet(Labels::from([("k8s:app".into(), "web".into())])),
        }
    }

    #[test]
    fn what_is_sent_is_what_is_read() {
        let body = framed(&ResolveResponse::of(vec![pod()]));
        let read: ResolveResponse = unframed(&body).expect("whole");
        assert_eq!(read.read(pod().endpoint.node), Ok(vec![pod()]));
        let addresses = pod().endpoint.addresses;
        let request: ResolveRequest = unframed(&framed(&ResolveRequest::of(&addresses))).expect("whole");
        assert_eq!(request.read(), Ok(addresses));
    }

    #[test]
    fn what_is_not_whole_or_not_valid_is_refused_and_names_the_field() {
        let body = framed(&ResolveResponse::of(vec![pod()]));
        for cut in 0..body.len() {
            assert!(unframed::<ResolveResponse>(&body[..cut]).is_err(), "{cut}");
        }
        let damaged = |damage: fn(&mut WirePod)| {
            let mut response = ResolveResponse::of(vec![pod()]);
            damage(&mut response.pods[0]);
            response.read(pod().endpoint.node).expect_err("refused").to_string()
        };
        for (field, damage) in [
            ("pods[].identity", (|pod| pod.identity = 2) as fn(&mut WirePod)),
            ("pods[].uid", |pod| pod.uid.clear()),
            ("pods[].labels", |pod| pod.labels.clear()),
            ("addresses", |pod| pod.addresses.push(vec![1, 2, 3])),
            ("pods[].named_ports[].port", |pod| pod.named_ports[0].port = 70_000),
            ("pods[].named_ports[].protocol", |pod| pod.named_ports[0].protocol = 300),
        ] {
            assert!(damaged(damage).starts_with(field), "{field}: {}", damaged(damage));
        }
        let many = ResolveRequest { addresses: vec![vec![0; 4]; 65] };
        assert!(many.read().is_err());
    }
}
