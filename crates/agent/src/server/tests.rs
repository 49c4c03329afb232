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
