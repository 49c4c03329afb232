//! `kubectl port-forward`: one websocket with SPDY inside, and in it two streams per connection, one for its bytes and
//! one for what went wrong. Each connection is one to the node's runner, which makes it inside the pod.

use super::spdy::{self, Decoder, Encoder, Frame, Refused};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use std::collections::HashMap;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// What the websocket is asked for by kubectl.
pub(super) const PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
/// Connections of one client at the same time.
const CONNECTIONS_MAX: usize = 256;
/// Messages that wait for a pod, or for the client. SPDY as it is used here has no windows: what does not fit holds
/// the client back as a whole.
const QUEUE: usize = 32;
/// Bytes that are read from a pod at once.
const READ: usize = 32 << 10;

/// What a client sends on a stream of bytes.
enum Inward {
    Data(Bytes),
    Fin,
}

/// The streams of a connection.
#[derive(Clone, Copy)]
struct Pair {
    errors: u32,
    data: u32,
}

/// Serves a client until its websocket or its SPDY ends. `connect` makes a connection to a port of the pod, or tells
/// why there is none.
pub(super) async fn serve<C, P, F>(client: WebSocketStream<C>, connect: impl Fn(u16) -> F)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Future<Output = Result<P, String>> + Send + 'static,
{
    let (mut to_client, mut from_client) = client.split();
    let (sender, mut outgoing) = mpsc::channel::<Vec<u8>>(QUEUE);
    let writing = tokio::spawn(async move {
        while let Some(frame) = outgoing.recv().await {
            if to_client.send(Message::Binary(frame.into())).await.is_err() {
                return;
            }
        }
        let _ = to_client.close().await;
    });
    let mut session = Session {
        sender,
        encoder: Encoder::default(),
        waiting: HashMap::new(),
        inward: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let mut decoder = Decoder::new();
    'client: loop {
        let message = tokio::select! {
            message = from_client.next() => message,
            Some(ended) = session.tasks.join_next() => {
                if let Ok(stream) = ended {
                    session.inward.remove(&stream);
                }
                continue;
            }
        };
        match message {
            Some(Ok(Message::Binary(bytes))) => decoder.push(&bytes),
            Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            Some(Ok(_)) => continue,
        }
        loop {
            match decoder.next() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    if session.handle(frame, &connect).await.is_none() {
                        break 'client;
                    }
                }
                Err(error) => {
                    tracing::info!(%error, "a port-forward ends");
                    break 'client;
                }
            }
        }
    }
    // Its connections end with it.
    drop(session);
    let _ = writing.await;
}

struct Session {
    sender: mpsc::Sender<Vec<u8>>,
    encoder: Encoder,
    /// By request: streams of errors whose other half is yet to come.
    waiting: HashMap<String, u32>,
    /// By stream of bytes.
    inward: HashMap<u32, mpsc::Sender<Inward>>,
    /// Each ends with its stream of bytes.
    tasks: JoinSet<u32>,
}

impl Session {
    /// `None`: the client is gone.
    async fn handle<P, F>(&mut self, frame: Frame, connect: &impl Fn(u16) -> F) -> Option<()>
    where
        P: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        F: Future<Output = Result<P, String>> + Send + 'static,
    {
        match frame {
            Frame::Open { stream, headers, fin } => self.open(stream, &headers, fin, connect).await,
            Frame::Data { stream, bytes, fin } => {
                // What comes for a connection that is over is nobody's.
                if let Some(inward) = self.inward.get(&stream) {
                    let _ = inward.send(Inward::Data(bytes)).await;
                    if fin {
                        let _ = inward.send(Inward::Fin).await;
                    }
                }
                Some(())
            }
            Frame::Reset { stream } => {
                self.inward.remove(&stream);
                self.waiting.retain(|_, errors| *errors != stream);
                Some(())
            }
            Frame::Ping { number } => self.sender.send(spdy::pong(number)).await.ok(),
            Frame::Ignored => Some(()),
        }
    }

    async fn open<P, F>(
        &mut self,
        stream: u32,
        headers: &[(String, String)],
        fin: bool,
        connect: &impl Fn(u16) -> F,
    ) -> Option<()>
    where
        P: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        F: Future<Output = Result<P, String>> + Send + 'static,
    {
        let header = |name: &str| headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value.as_str());
        let port = header("port").parse::<u16>().ok().filter(|port| *port != 0);
        let request = header("requestid").to_owned();
        let (Some(port), false) = (port, self.inward.contains_key(&stream)) else {
            return self.sender.send(spdy::refuse(stream, Refused::Protocol)).await.ok();
        };
        // Clients open the stream of errors first.
        let pair = match header("streamtype") {
            "error" if self.waiting.len() >= CONNECTIONS_MAX => {
                return self.sender.send(spdy::refuse(stream, Refused::TooMany)).await.ok();
            }
            "error" => {
                self.waiting.insert(request, stream);
                return self.sender.send(self.encoder.accept(stream)).await.ok();
            }
            "data" => self.waiting.remove(&request).map(|errors| Pair { errors, data: stream }),
            _ => None,
        };
        let refused = match pair {
            None => Some(Refused::Protocol),
            Some(_) if self.inward.len() >= CONNECTIONS_MAX => Some(Refused::TooMany),
            Some(_) => None,
        };
        if let Some(why) = refused {
            return self.sender.send(spdy::refuse(stream, why)).await.ok();
        }
        let pair = pair?;
        self.sender.send(self.encoder.accept(stream)).await.ok()?;
        let (inward, receiver) = mpsc::channel(QUEUE);
        if fin {
            inward.send(Inward::Fin).await.ok()?;
        }
        self.inward.insert(stream, inward);
        let (connecting, sender) = (connect(port), self.sender.clone());
        self.tasks.spawn(async move {
            carry(pair, connecting, receiver, sender).await;
            pair.data
        });
        Some(())
    }
}

/// Carries one connection's bytes until either side ends it; then ends both streams, the one of errors with what went
/// wrong, if anything did.
async fn carry<P: AsyncRead + AsyncWrite + Unpin>(
    pair: Pair,
    connecting: impl Future<Output = Result<P, String>>,
    mut inward: mpsc::Receiver<Inward>,
    sender: mpsc::Sender<Vec<u8>>,
) {
    let failed = match connecting.await {
        Ok(pod) => exchange(pair.data, pod, &mut inward, &sender).await.err().map(|error| error.to_string()),
        Err(why) => Some(why),
    };
    let text = failed.unwrap_or_default();
    let _ = sender.send(spdy::data(pair.errors, text.as_bytes(), true)).await;
    let _ = sender.send(spdy::data(pair.data, b"", true)).await;
}

async fn exchange<P: AsyncRead + AsyncWrite + Unpin>(
    stream: u32,
    pod: P,
    inward: &mut mpsc::Receiver<Inward>,
    sender: &mpsc::Sender<Vec<u8>>,
) -> std::io::Result<()> {
    let (mut from_pod, mut to_pod) = tokio::io::split(pod);
    let outward = async {
        let mut buffer = vec![0; READ];
        loop {
            let read = from_pod.read(&mut buffer).await?;
            if read == 0 || sender.send(spdy::data(stream, &buffer[..read], false)).await.is_err() {
                return std::io::Result::Ok(());
            }
        }
    };
    // Ends only when the client resets the stream, or is gone: after its last bytes the pod may still answer.
    let inward = async {
        while let Some(message) = inward.recv().await {
            match message {
                Inward::Data(bytes) => to_pod.write_all(&bytes).await?,
                Inward::Fin => to_pod.shutdown().await?,
            }
        }
        std::io::Result::Ok(())
    };
    tokio::select! {
        ended = outward => ended,
        ended = inward => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::super::spdy::tests::Client;
    use super::*;
    use std::time::Duration;
    use tokio::io::DuplexStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    type Socket = WebSocketStream<DuplexStream>;

    /// A server whose pods answer in capitals at port 80 and refuse at all others, and the client's websocket to it.
    async fn served() -> (Socket, tokio::task::JoinHandle<()>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let server = WebSocketStream::from_raw_socket(far, Role::Server, None).await;
        let serving = tokio::spawn(serve(server, |port| async move {
            if port != 80 {
                return Err(format!("port {port}: refused"));
            }
            let (pod, mut program) = tokio::io::duplex(1 << 10);
            tokio::spawn(async move {
                let mut buffer = vec![0; 100];
                while let Ok(read @ 1..) = program.read(&mut buffer).await {
                    if program.write_all(buffer[..read].to_ascii_uppercase().as_slice()).await.is_err() {
                        return;
                    }
                }
            });
            Ok(pod)
        }));
        (WebSocketStream::from_raw_socket(near, Role::Client, None).await, serving)
    }

    async fn send(socket: &mut Socket, bytes: Vec<u8>) {
        socket.send(Message::Binary(bytes.into())).await.expect("is open");
    }

    fn pair(client: &mut Client, first: u32, port: &str) -> Vec<u8> {
        let id = first.to_string();
        let mut bytes = client.open(first, &[("streamtype", "error"), ("port", port), ("requestid", &id)]);
        bytes.extend(data_frame(first));
        bytes.extend(client.open(first + 2, &[("streamtype", "data"), ("port", port), ("requestid", &id)]));
        bytes
    }

    /// The client never writes to a stream of errors.
    fn data_frame(stream: u32) -> Vec<u8> {
        spdy::data(stream, b"", true)
    }

    /// Reads until `done` holds: bytes and end of each stream.
    async fn read(
        socket: &mut Socket,
        done: impl Fn(&HashMap<u32, (Vec<u8>, bool)>) -> bool,
    ) -> HashMap<u32, (Vec<u8>, bool)> {
        let (mut decoder, mut streams) = (Decoder::new(), HashMap::<u32, (Vec<u8>, bool)>::new());
        while !done(&streams) {
            let next = tokio::time::timeout(Duration::from_secs(10), socket.next()).await;
            match next.expect("in time") {
                Some(Ok(Message::Binary(bytes))) => decoder.push(&bytes),
                other => panic!("{other:?} after {streams:?}"),
            }
            while let Some(frame) = decoder.next().expect("is SPDY") {
                match frame {
                    Frame::Data { stream, bytes, fin } => {
                        let entry = streams.entry(stream).or_default();
                        entry.0.extend_from_slice(&bytes);
                        entry.1 |= fin;
                    }
                    Frame::Reset { stream } => {
                        streams.insert(stream, (b"reset".to_vec(), true));
                    }
                    _ => {}
                }
            }
        }
        streams
    }

    #[tokio::test]
    async fn two_connections_and_a_closed_port() {
        let (mut socket, serving) = served().await;
        let mut client = Client::new();
        for (first, port) in [(1, "80"), (5, "80"), (9, "81")] {
            send(&mut socket, pair(&mut client, first, port)).await;
        }
        send(&mut socket, spdy::data(3, b"one", true)).await;
        send(&mut socket, spdy::data(7, b"two", true)).await;
        let all = [1, 3, 5, 7, 9, 11];
        let streams = read(&mut socket, |s| all.iter().all(|id| s.get(id).is_some_and(|(_, fin)| *fin))).await;
        let text = |id: u32| String::from_utf8_lossy(&streams[&id].0).into_owned();
        assert_eq!((text(1), text(3)), (String::new(), "ONE".to_owned()));
        assert_eq!((text(5), text(7)), (String::new(), "TWO".to_owned()));
        assert_eq!((text(9), text(11)), ("port 81: refused".to_owned(), String::new()));
        drop(socket);
        tokio::time::timeout(Duration::from_secs(10), serving).await.expect("in time").expect("ends well");
    }

    #[tokio::test]
    async fn a_reset_ends_a_connection_and_a_stream_of_nobody_is_refused() {
        let (mut socket, _serving) = served().await;
        let mut client = Client::new();
        send(&mut socket, pair(&mut client, 1, "80")).await;
        send(&mut socket, spdy::data(3, b"x", false)).await;
        read(&mut socket, |s| s.get(&3).is_some_and(|(bytes, _)| bytes == b"X")).await;
        send(&mut socket, spdy::refuse(3, Refused::Protocol)).await;
        // Without this the client would wait for the end of its errors for ever.
        read(&mut socket, |s| s.get(&1).is_some_and(|(_, fin)| *fin)).await;
        for (stream, headers) in [
            (5, vec![("streamtype", "data"), ("port", "80"), ("requestid", "9")]),
            (7, vec![("streamtype", "error"), ("port", "0"), ("requestid", "9")]),
            (9, vec![("streamtype", "other"), ("port", "80"), ("requestid", "9")]),
        ] {
            send(&mut socket, client.open(stream, &headers)).await;
            let streams = read(&mut socket, |s| s.contains_key(&stream)).await;
            assert_eq!(streams[&stream].0, b"reset", "{headers:?}");
        }
    }
}
