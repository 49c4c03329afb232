//! Between messages ([`weft_api::peer`]) and intents. What another node sends is checked field by field.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use weft_api::peer as wire;
use weft_model::id::Identity;
use weft_model::intent::{NamedPort, ObjectName, Protocol, RemoteEndpoint};
use weft_model::label::LabelSet;

/// Addresses in one request, at most.
pub const ADDRESSES_MAX: usize = 64;

/// Labels of an identity.
pub type Labels = BTreeMap<String, String>;

/// A pod, as its node describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// As slices have it.
    pub endpoint: RemoteEndpoint,
    /// Labels of its identity.
    pub labels: LabelSet,
}

/// A field of a message is not what it should be.
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

pub(crate) fn request(addresses: &[IpAddr]) -> wire::ResolveRequest {
    wire::ResolveRequest { addresses: addresses.iter().map(|address| bytes(*address)).collect() }
}

pub(crate) fn read_request(request: &wire::ResolveRequest) -> Result<Vec<IpAddr>, Malformed> {
    if request.addresses.len() > ADDRESSES_MAX {
        return Err(Malformed { field: "addresses", expected: "at most 64" });
    }
    request.addresses.iter().map(|bytes| address(bytes)).collect()
}

pub(crate) fn response(pods: Vec<Pod>) -> wire::ResolveResponse {
    wire::ResolveResponse { pods: pods.into_iter().map(wire_pod).collect() }
}

/// The response of the node with the address `node`.
pub(crate) fn read_response(response: wire::ResolveResponse, node: IpAddr) -> Result<Vec<Pod>, Malformed> {
    if response.pods.len() > ADDRESSES_MAX {
        return Err(Malformed { field: "pods", expected: "at most 64" });
    }
    response.pods.into_iter().map(|pod| read_pod(pod, node)).collect()
}

fn wire_pod(Pod { endpoint, labels }: Pod) -> wire::Pod {
    let port = |port: NamedPort| wire::NamedPort {
        name: port.name,
        port: u32::from(port.port),
        protocol: u32::from(port.protocol.number()),
    };
    wire::Pod {
        namespace: endpoint.name.namespace,
        name: endpoint.name.name,
        uid: endpoint.pod_uid,
        identity: endpoint.identity.raw(),
        labels: labels.0.into_iter().collect(),
        addresses: endpoint.addresses.into_iter().map(bytes).collect(),
        named_ports: endpoint.named_ports.into_iter().map(port).collect(),
    }
}

fn read_pod(pod: wire::Pod, node: IpAddr) -> Result<Pod, Malformed> {
    let text = |field, text: String| match text.is_empty() {
        true => Err(Malformed { field, expected: "a name" }),
        false => Ok(text),
    };
    let identity = Identity::allocated(pod.identity)
        .ok_or(Malformed { field: "pods[].identity", expected: "a number of a label set" })?;
    let mut named_ports = Vec::new();
    for port in pod.named_ports {
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
        name: ObjectName { namespace: text("pods[].namespace", pod.namespace)?, name: text("pods[].name", pod.name)? },
        pod_uid: text("pods[].uid", pod.uid)?,
        identity,
        addresses: pod.addresses.iter().map(|bytes| address(bytes)).collect::<Result<_, _>>()?,
        node,
        named_ports,
    };
    if pod.labels.is_empty() {
        return Err(Malformed { field: "pods[].labels", expected: "the labels of the identity" });
    }
    Ok(Pod { endpoint, labels: LabelSet(pod.labels.into_iter().collect()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

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
        let sent = response(vec![pod()]).encode_to_vec();
        let received = wire::ResolveResponse::decode(sent.as_slice()).expect("protobuf");
        assert_eq!(read_response(received, pod().endpoint.node), Ok(vec![pod()]));
        let addresses = pod().endpoint.addresses;
        assert_eq!(read_request(&request(&addresses)), Ok(addresses));
    }

    #[test]
    fn what_is_not_valid_is_refused_and_names_the_field() {
        let damaged = |damage: fn(&mut wire::Pod)| {
            let mut response = response(vec![pod()]);
            damage(&mut response.pods[0]);
            read_response(response, pod().endpoint.node).expect_err("refused").to_string()
        };
        for (field, damage) in [
            ("pods[].identity", (|pod| pod.identity = 2) as fn(&mut wire::Pod)),
            ("pods[].uid", |pod| pod.uid.clear()),
            ("pods[].labels", |pod| pod.labels.clear()),
            ("addresses", |pod| pod.addresses.push(vec![1, 2, 3])),
            ("pods[].named_ports[].port", |pod| pod.named_ports[0].port = 70_000),
            ("pods[].named_ports[].protocol", |pod| pod.named_ports[0].protocol = 300),
        ] {
            assert!(damaged(damage).starts_with(field), "{field}: {}", damaged(damage));
        }
        let many = wire::ResolveRequest { addresses: vec![vec![0; 4]; 65] };
        assert!(read_request(&many).is_err());
    }
}
