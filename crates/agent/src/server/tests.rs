#![allow(clippy::disallowed_methods, reason = "tasks of a test end with its runtime")]

use super::{Handler, listen, serve};
use futures::future::{BoxFuture, FutureExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_api::agent::{Request, Response};

#[derive(Default)]
struct Echo {
    dropped: Arc<AtomicUsize>,
}

struct OnDrop(Arc<AtomicUsize>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Handler for Echo {
    fn handle(self: Arc<Self>, request: Request, answers: mpsc::Sender<Response>) -> BoxFuture<'static, ()> {
        async move {
            let guard = OnDrop(self.dropped.clone());
            match request {
                Request::Observe { .. } => {
                    let _ = answers.send(Response::Identities(Vec::new())).await;
                    std::future::pending::<()>().await;
                }
                _ => {
                    let _ = answers.send(Response::Done).await;
                }
            }
            drop(guard);
        }
        .boxed()
    }
}

async fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).await.expect("read");
    line
}

async fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Arc<Echo>, std::path::PathBuf) -> F) {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("agent.sock");
    let echo = Arc::new(Echo::default());
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listen(&path).expect("listen"), echo.clone(), stop.clone()));
    test(echo, path).await;
    stop.cancel();
    server.await.expect("server");
}

async fn connect(path: &Path) -> BufReader<UnixStream> {
    BufReader::new(UnixStream::connect(path).await.expect("connect"))
}

#[tokio::test]
async fn answers_line_by_line_and_survives_nonsense() {
    with_server(|_, path| async move {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
        let mut stream = connect(&path).await;
        stream
            .write_all(b"{\"method\":\"status\"}\n{\"method\":\"nope\"}\n\xff\n{\"method\":\"status\",\"x\":1}\n")
            .await
            .expect("write");
        assert_eq!(line(&mut stream).await, "{\"type\":\"done\"}\n");
        assert!(line(&mut stream).await.contains("unknown variant `nope`"));
        assert!(line(&mut stream).await.contains("malformed request"));
        let _ = line(&mut stream).await;
        // Too long: one answer, then the end.
        let mut stream = connect(&path).await;
        let _ = stream.write_all(&vec![b'x'; (super::LINE_MAX + 10) as usize]).await;
        assert!(line(&mut stream).await.contains("too long"));
    })
    .await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_ends_its_stream() {
    with_server(|echo, path| async move {
        let mut stream = connect(&path).await;
        let request = Request::Observe { filter: weft_api::flow::FlowFilter::default(), last: 0, follow: true };
        let mut text = serde_json::to_vec(&request).expect("JSON");
        text.push(b'\n');
        stream.write_all(&text).await.expect("write");
        assert!(line(&mut stream).await.contains("identities"));
        drop(stream);
        tokio::time::timeout(std::time::Duration::from_secs(10), async {
            while echo.dropped.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the handler ends");
    })
    .await;
}

async fn send(stream: &mut BufReader<UnixStream>, request: &Request) {
    let mut text = serde_json::to_vec(request).expect("JSON");
    text.push(b'\n');
    stream.write_all(&text).await.expect("write");
}

#[tokio::test]
async fn observers_do_not_keep_cni_out() {
    with_server(|_, path| async move {
        let observe = Request::Observe { filter: weft_api::flow::FlowFilter::default(), last: 0, follow: true };
        let (mut observers, mut served, mut refused) = (Vec::new(), 0, 0);
        for _ in 0..300 {
            let mut stream = connect(&path).await;
            send(&mut stream, &observe).await;
            let first = line(&mut stream).await;
            served += usize::from(first.contains("identities"));
            refused += usize::from(first.contains("too many observers"));
            observers.push(stream);
        }
        assert_eq!((served, refused), (super::STREAMS_MAX, 300 - super::STREAMS_MAX));
        // As many connections again that say nothing at all.
        let mut silent = Vec::new();
        for _ in 0..super::CONNECTIONS_MAX {
            silent.push(connect(&path).await);
        }
        let attachment = weft_api::cni::Attachment { container_id: "c".into(), ifname: "eth0".into() };
        let del = weft_api::cni::DelRequest { attachment, netns: None };
        for request in [Request::CniStatus, Request::CniDel(del)] {
            let mut cni = connect(&path).await;
            send(&mut cni, &request).await;
            let answer = tokio::time::timeout(std::time::Duration::from_secs(10), line(&mut cni)).await;
            assert_eq!(answer.expect("answered in time"), "{\"type\":\"done\"}\n");
        }
        // One observer less: the next one is served.
        observers.clear();
        let served = tokio::time::timeout(std::time::Duration::from_secs(10), async {
            loop {
                let mut stream = connect(&path).await;
                send(&mut stream, &observe).await;
                if line(&mut stream).await.contains("identities") {
                    return;
                }
            }
        });
        served.await.expect("its place is free");
    })
    .await;
}

#[tokio::test]
async fn the_socket_never_exists_with_wider_rights() {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    const SOCKETS: usize = 200;
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("agent.sock");
    let stop = CancellationToken::new();
    let watching = {
        let (path, stop) = (path.clone(), stop.clone());
        std::thread::spawn(move || {
            let (mut seen, mut wide) = (0_usize, Vec::new());
            while !stop.is_cancelled() {
                let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
                seen += 1;
                assert!(metadata.file_type().is_socket());
                let mode = metadata.permissions().mode() & 0o777;
                if mode != 0o600 {
                    wide.push(mode);
                }
                let _ = std::fs::remove_file(&path);
            }
            (seen, wide)
        })
    };
    for _ in 0..SOCKETS {
        drop(listen(&path).expect("listen"));
        // Its first appearance is seen by the thread, which removes it.
        while path.exists() {
            std::thread::yield_now();
        }
    }
    stop.cancel();
    let (seen, wide) = watching.join().expect("no panic");
    assert!(seen >= SOCKETS / 2, "{seen} of {SOCKETS} were seen");
    assert!(wide.is_empty(), "{wide:?}");
    let left: Vec<_> =
        std::fs::read_dir(dir.path()).expect("listed").map(|entry| entry.expect("entry").path()).collect();
    assert!(left.is_empty(), "{left:?}");
}
