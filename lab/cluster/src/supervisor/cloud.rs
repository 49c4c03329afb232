//! The cloud of a cluster on one machine: answers the operator at a socket, keeps who has what in a file, and makes the
//! fabric carry exactly that before it answers.

use crate::fabric::vnet::{self, Assigned, Vnet};
use crate::fabric::{self, PodCidrs};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use weft_cloud::CloudError;
use weft_cloud::fabric::{LINE_MAX, Question, Reply};
use weft_lab_config::options::Config;
use weft_sys::files::{PRIVATE, write_atomically};

/// A question must have come by then.
const PATIENCE: Duration = Duration::from_secs(10);

struct Cloud {
    config: Config,
    vnet: Mutex<Vnet>,
}

/// Serves for ever.
pub(super) async fn serve(config: Config) {
    let assigned = match load(&config) {
        Ok(assigned) => assigned,
        Err(error) => {
            // Nobody gets anything rather than somebody else's.
            tracing::error!(%error, file = %config.paths().cloud().display(), "the record of who has which addresses");
            return std::future::pending().await;
        }
    };
    let nodes = config.node_names().into_iter().collect();
    let vnet = Mutex::new(Vnet::new(vnet::subnets(&config), nodes, assigned));
    let cloud = Arc::new(Cloud { config, vnet });
    while let Err(error) = cloud.carry(&*cloud.vnet.lock().await) {
        tracing::error!(%error, "the fabric's routes");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    loop {
        if let Err(error) = cloud.clone().accept().await {
            tracing::error!(%error, "the cloud's socket");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn load(config: &Config) -> io::Result<Assigned> {
    match std::fs::read(config.paths().cloud()) {
        Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Assigned::default()),
        Err(error) => Err(error),
    }
}

impl Cloud {
    async fn accept(self: Arc<Self>) -> io::Result<()> {
        let socket = self.config.paths().cloud_socket();
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        loop {
            let (stream, _) = listener.accept().await?;
            let cloud = self.clone();
            tokio::spawn(async move {
                match tokio::time::timeout(PATIENCE, cloud.talk(stream)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "a question to the cloud"),
                    Err(_) => tracing::debug!("a question to the cloud that did not come"),
                }
            });
        }
    }

    async fn talk(&self, stream: UnixStream) -> io::Result<()> {
        let (reading, mut writing) = stream.into_split();
        let mut line = Vec::new();
        BufReader::new(reading.take(LINE_MAX)).read_until(b'\n', &mut line).await?;
        let reply = match serde_json::from_slice::<Question>(&line) {
            Ok(question) => self.answer(question).await,
            Err(error) => Err(CloudError::Refused { code: "BadRequest".to_owned(), message: error.to_string() }),
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        writing.write_all(&text).await
    }

    async fn answer(&self, question: Question) -> Reply {
        let mut vnet = self.vnet.lock().await;
        let mut next = vnet.clone();
        let reply = next.answer(question.clone())?;
        if next.assigned() != vnet.assigned() {
            let failed = |error: &io::Error| CloudError::Unavailable { message: error.to_string() };
            let text = serde_json::to_vec(next.assigned()).map_err(|error| failed(&error.into()))?;
            write_atomically(&self.config.paths().cloud(), &text, PRIVATE).map_err(|error| failed(&error))?;
            *vnet = next;
            self.carry(&vnet).map_err(|error| failed(&error))?;
            tracing::info!(?question, "assigned");
        }
        Ok(reply)
    }

    fn carry(&self, vnet: &Vnet) -> io::Result<()> {
        let carried: PodCidrs = vnet.carried();
        fabric::apply(&self.config, &carried)
    }
}
