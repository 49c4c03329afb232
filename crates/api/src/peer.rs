//! gRPC between agents: `proto/peer.proto`, written out for prost and tonic. With one method that is shorter than what a
//! generator makes of it, and the build needs no generator; a test compares the two.

use http::uri::PathAndQuery;
use prost::Message;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// Path of the one method.
const RESOLVE: &str = "/weft.peer.v1.Peer/Resolve";
/// Bytes of a message, at most.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// `weft.peer.v1.ResolveRequest`
#[derive(Clone, PartialEq, Message)]
pub struct ResolveRequest {
    /// 4 or 16 bytes each.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub addresses: Vec<Vec<u8>>,
}

/// `weft.peer.v1.ResolveResponse`
#[derive(Clone, PartialEq, Message)]
pub struct ResolveResponse {
    /// The node's own endpoints that have these addresses.
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<Pod>,
}

/// `weft.peer.v1.Pod`
#[derive(Clone, PartialEq, Message)]
pub struct Pod {
    /// The pod's namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// The pod's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The pod's UID.
    #[prost(string, tag = "3")]
    pub uid: String,
    /// Number of its identity.
    #[prost(uint32, tag = "4")]
    pub identity: u32,
    /// Labels of the identity, as CiliumIdentity has them.
    #[prost(map = "string, string", tag = "5")]
    pub labels: HashMap<String, String>,
    /// All addresses of the pod, 4 or 16 bytes each.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub addresses: Vec<Vec<u8>>,
    /// Ports that policies may name.
    #[prost(message, repeated, tag = "7")]
    pub named_ports: Vec<NamedPort>,
}

/// `weft.peer.v1.NamedPort`
#[derive(Clone, PartialEq, Message)]
pub struct NamedPort {
    /// The port's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The port.
    #[prost(uint32, tag = "2")]
    pub port: u32,
    /// IP protocol number.
    #[prost(uint32, tag = "3")]
    pub protocol: u32,
}

/// Asks the agent at the other end of `channel`.
///
/// # Errors
/// It cannot be reached, refuses, or its answer is no message.
pub async fn resolve(channel: Channel, request: ResolveRequest) -> Result<ResolveResponse, Status> {
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
    let path = PathAndQuery::from_static(RESOLVE);
    let codec = ProstCodec::<ResolveRequest, ResolveResponse>::default();
    Ok(grpc.unary(Request::new(request), path, codec).await?.into_inner())
}

/// The service as a tower service: `resolve` answers requests.
pub struct PeerService<F> {
    resolve: Arc<F>,
}

impl<F> PeerService<F>
where
    F: Fn(ResolveRequest) -> Result<ResolveResponse, Status> + Send + Sync + 'static,
{
    /// Answers by `resolve`.
    #[must_use]
    pub fn new(resolve: F) -> Self {
        Self { resolve: Arc::new(resolve) }
    }
}

impl<F> Clone for PeerService<F> {
    fn clone(&self) -> Self {
        Self { resolve: self.resolve.clone() }
    }
}

impl<F> tower::Service<http::Request<Body>> for PeerService<F>
where
    F: Fn(ResolveRequest) -> Result<ResolveResponse, Status> + Send + Sync + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let resolve = self.resolve.clone();
        Box::pin(async move {
            if request.uri().path() != RESOLVE {
                return Ok(Status::unimplemented(format!("no method {}", request.uri().path())).into_http());
            }
            let codec = ProstCodec::<ResolveResponse, ResolveRequest>::default();
            let mut grpc = tonic::server::Grpc::new(codec).max_decoding_message_size(MESSAGE_BYTES_MAX);
            let answer = tower::service_fn(|request: Request<ResolveRequest>| {
                ready(resolve(request.into_inner()).map(Response::new))
            });
            Ok(grpc.unary(answer, request).await)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{NamedPort, Pod, RESOLVE, ResolveRequest, ResolveResponse};
    use prost::Message;
    use prost::encoding::decode_key;
    use std::collections::{BTreeMap, BTreeSet};

    /// Numbers of the fields, by message.
    fn declared(proto: &str) -> BTreeMap<String, BTreeSet<u32>> {
        let mut messages: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
        let mut current = String::new();
        for line in proto.lines().map(str::trim) {
            if let Some(name) = line.strip_prefix("message ") {
                current = name.trim_end_matches(" {").to_owned();
            } else if let Some((_, number)) = line.strip_suffix(';').and_then(|line| line.rsplit_once(" = "))
                && let Ok(number) = number.parse()
            {
                messages.entry(current.clone()).or_default().insert(number);
            }
        }
        messages
    }

    /// Numbers of the fields of a message in which all are set once.
    fn encoded(message: &impl Message) -> BTreeSet<u32> {
        let bytes = message.encode_to_vec();
        let (mut rest, mut numbers) = (bytes.as_slice(), BTreeSet::new());
        while !rest.is_empty() {
            let (number, kind) = decode_key(&mut rest).expect("a key");
            prost::encoding::skip_field(kind, number, &mut rest, Default::default()).expect("a field");
            numbers.insert(number);
        }
        numbers
    }

    #[test]
    fn messages_are_those_of_the_proto_file() {
        let proto = include_str!("../proto/peer.proto");
        let port = NamedPort { name: "http".into(), port: 80, protocol: 6 };
        let pod = Pod {
            namespace: "n".into(),
            name: "p".into(),
            uid: "u".into(),
            identity: 300,
            labels: [("k8s:app".to_owned(), "web".to_owned())].into(),
            addresses: vec![vec![10, 0, 0, 1]],
            named_ports: vec![port.clone()],
        };
        let ours = BTreeMap::from([
            ("ResolveRequest".to_owned(), encoded(&ResolveRequest { addresses: vec![vec![10, 0, 0, 1]] })),
            ("ResolveResponse".to_owned(), encoded(&ResolveResponse { pods: vec![pod.clone()] })),
            ("Pod".to_owned(), encoded(&pod)),
            ("NamedPort".to_owned(), encoded(&port)),
        ]);
        assert_eq!(declared(proto), ours);
        let (service, method) = RESOLVE.trim_start_matches('/').split_once('/').expect("a path");
        let (package, service) = service.rsplit_once('.').expect("a package");
        assert!(proto.contains(&format!("package {package};")) && proto.contains(&format!("service {service} {{")));
        assert!(proto.contains(&format!("rpc {method}(ResolveRequest) returns (ResolveResponse);")));
    }
}
