//! Through real sockets.

use super::*;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn start(upstreams: Vec<SocketAddr>) -> SocketAddr {
    let mut zone = Zone::new("cluster.local", vec!["10.96.0.0/16".parse().expect("a range")]).expect("a domain");
    let put = |zone: &mut Zone, name: &str, spec: Value| {
        let object = json!({"metadata": {"namespace": "a", "name": name}, "spec": spec});
        zone.tables.put_service(object_name(&object), Service::read(&object));
    };
    put(&mut zone, "web", json!({"clusterIPs": ["10.96.0.11", "fd96::b"]}));
    put(&mut zone, "many", json!({"clusterIPs": ["None"]}));
    put(&mut zone, "far", json!({"type": "ExternalName", "externalName": "web.b.svc.other.local"}));
    put(&mut zone, "same", json!({"type": "ExternalName", "externalName": "web.a.svc.cluster.local"}));
    let endpoints: Vec<Value> = (0..100).map(|n| json!({"addresses": [format!("10.244.0.{n}")]})).collect();
    let slice = json!({"metadata": {"namespace": "a", "name": "many-1",
        "labels": {"kubernetes.io/service-name": "many"}}, "endpoints": endpoints});
    zone.tables.put_slice(object_name(&slice), Slice::read(&slice));
    let udp = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let address = udp.local_addr().expect("has one");
    let tcp = TcpListener::bind(address).await.expect("binds");
    let server = Arc::new(Server::new(Arc::new(RwLock::new(zone)), upstreams));
    tokio::spawn(server::serve(server, udp, tcp));
    address
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(format!("{name}.")).expect("a name"), kind));
    query
}

async fn by_udp(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    socket.send_to(query, server).await.expect("sends");
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer).await.expect("is answered");
    buffer.truncate(length);
    buffer
}

async fn ask(server: SocketAddr, query: &Message) -> Message {
    let answer = by_udp(server, &query.to_vec().expect("can be written")).await;
    Message::from_vec(&answer).expect("can be read")
}

fn addresses(answer: &Message) -> Vec<String> {
    let address = |data: &RData| match data {
        RData::A(a) => Some(a.0.to_string()),
        RData::AAAA(a) => Some(a.0.to_string()),
        _ => None,
    };
    answer.answers.iter().filter_map(|r| address(&r.data)).collect()
}

#[tokio::test]
async fn names_are_answered_by_udp_and_tcp() {
    let server = start(Vec::new()).await;
    let question = query("web.a.svc.cluster.local", RecordType::AAAA);
    let answer = ask(server, &question).await;
    assert_eq!(addresses(&answer), ["fd96::b"]);
    assert_eq!((answer.metadata.id, answer.metadata.authoritative), (4711, true));
    assert_eq!((&answer.queries, answer.answers[0].ttl), (&question.queries, zone::TTL_S));
    // Two questions on one connection.
    let mut stream = TcpStream::connect(server).await.expect("connects");
    for _ in 0..2 {
        let framed = server::framed(&question.to_vec().expect("bytes")).expect("is short");
        stream.write_all(&framed).await.expect("sends");
        let mut answer = vec![0; usize::from(stream.read_u16().await.expect("is answered"))];
        stream.read_exact(&mut answer).await.expect("is whole");
        assert_eq!(addresses(&Message::from_vec(&answer).expect("can be read")), ["fd96::b"]);
    }
    for (name, code) in
        [("no.a.svc.cluster.local", ResponseCode::NXDomain), ("a.svc.cluster.local", ResponseCode::NoError)]
    {
        let answer = ask(server, &query(name, RecordType::A)).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, 0), "{name}");
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA, "says for how long");
    }
    let reverse = ask(server, &query("99.0.96.10.in-addr.arpa", RecordType::PTR)).await;
    assert_eq!(reverse.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(reverse.authorities[0].name.to_ascii(), "in-addr.arpa.");
    let refused = ask(server, &query("example.org", RecordType::A)).await;
    assert_eq!((refused.metadata.response_code, refused.metadata.authoritative), (ResponseCode::Refused, false));
}

#[tokio::test]
async fn what_does_not_fit_is_said_to_be_cut_and_given_by_tcp() {
    let server = start(Vec::new()).await;
    let mut question = query("many.a.svc.cluster.local", RecordType::A);
    let cut = ask(server, &question).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    question.set_edns(edns);
    let bytes = by_udp(server, &question.to_vec().expect("bytes")).await;
    let cut = Message::from_vec(&bytes).expect("can be read");
    // 100 addresses need more than what passes everywhere.
    assert!(bytes.len() <= 1232 && cut.metadata.truncation && cut.edns.is_some());
    let mut stream = TcpStream::connect(server).await.expect("connects");
    let framed = server::framed(&question.to_vec().expect("bytes")).expect("is short");
    stream.write_all(&framed).await.expect("sends");
    let mut whole = vec![0; usize::from(stream.read_u16().await.expect("is answered"))];
    stream.read_exact(&mut whole).await.expect("is whole");
    assert_eq!(Message::from_vec(&whole).expect("can be read").answers.len(), 100);
}

#[tokio::test]
async fn bad_questions_are_told_so_and_answers_are_not_answered() {
    let server = start(Vec::new()).await;
    let good = query("web.a.svc.cluster.local", RecordType::A).to_vec().expect("bytes");
    let code = |bytes: Vec<u8>| async move {
        Message::from_vec(&by_udp(server, &bytes).await).expect("can be read").metadata.response_code
    };
    assert_eq!(code(good[..20].to_vec()).await, ResponseCode::FormErr);
    let mut notify = good.clone();
    notify[2] |= 4 << 3;
    assert_eq!(code(notify).await, ResponseCode::NotImp);
    let mut chaos = good.clone();
    *chaos.last_mut().expect("has bytes") = 3;
    assert_eq!(code(chaos).await, ResponseCode::Refused);
    let mut none = good.clone();
    none[5] = 0;
    none.truncate(12);
    assert_eq!(code(none).await, ResponseCode::FormErr);
    let mut newer = query("web.a.svc.cluster.local", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    // Two codes have that number.
    let number = u16::from(code(newer.to_vec().expect("bytes")).await);
    assert_eq!(number, u16::from(ResponseCode::BADVERS));
    // An answer, and half a header: the next question is the next to be answered.
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let mut answer = good.clone();
    answer[2] |= 0x80;
    let mut last = good;
    last[1] = 99;
    for bytes in [&answer[..], &last[..7], &last] {
        socket.send_to(bytes, server).await.expect("sends");
    }
    let mut buffer = [0; 512];
    socket.recv(&mut buffer).await.expect("is answered");
    assert_eq!(buffer[1], 99);
}

#[tokio::test]
async fn other_names_are_asked_of_others() {
    let other = start(Vec::new()).await;
    // Nobody is there.
    let nobody = UdpSocket::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("has one");
    let server = start(vec![nobody, other]).await;
    // The other one refuses what is not its own, and that is passed on.
    let answer = ask(server, &query("example.org", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    let lonely = start(vec![nobody]).await;
    let answer = ask(lonely, &query("example.org", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    // An alias that leads away is an answer even if nobody knows where to.
    let answer = ask(lonely, &query("far.a.svc.cluster.local", RecordType::A)).await;
    assert_eq!((answer.answers.len(), answer.metadata.response_code), (1, ResponseCode::NoError));
    let answer = ask(lonely, &query("same.a.svc.cluster.local", RecordType::A)).await;
    assert_eq!((answer.answers[0].record_type(), addresses(&answer)), (RecordType::CNAME, vec!["10.96.0.11".into()]));
}
