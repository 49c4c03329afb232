//! The one thread that owns the tables and the maps. Everybody else hands it closures; what it does within one of
//! them nobody sees half done.

use super::Core;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// Closures that may wait. Callers beyond that are told so.
const QUEUE_MAX: usize = 4096;
/// Closures that run before what they changed is worked out and written together.
const BATCH_MAX: usize = 256;
/// Closures that nobody waits for, on their way at one time.
const NEWS_MAX: usize = 64;
/// Longest sleep.
const IDLE: Duration = Duration::from_secs(3600);

type Job = Box<dyn FnOnce(&mut Core) + Send>;

/// Hands closures to the thread.
#[derive(Clone)]
pub struct Handle {
    jobs: SyncSender<Job>,
    core: Arc<Mutex<Core>>,
    news: Arc<Semaphore>,
}

/// The thread has ended, or cannot keep up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the control thread does not answer")]
pub struct Unavailable;

impl Handle {
    /// Runs `work` on the thread and answers what it returns.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let (sender, receiver) = oneshot::channel();
        self.put(Box::new(move |core| {
            let _ = sender.send(work(core));
        }))
        .await?;
        receiver.await.map_err(|_| Unavailable)
    }

    /// Lets the thread run `work` in its turn, without waiting for that: what comes while the thread is busy is worked out
    /// and written together. Waits while much is on its way already.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn tell(&self, work: impl FnOnce(&mut Core) + Send + 'static) -> Result<(), Unavailable> {
        let permit = self.news.clone().acquire_owned().await.map_err(|_| Unavailable)?;
        let job: Job = Box::new(move |core| {
            drop(permit);
            work(core);
        });
        self.put(job).await
    }

    async fn put(&self, mut job: Job) -> Result<(), Unavailable> {
        loop {
            match self.jobs.try_send(job) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(back)) => {
                    job = back;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(TrySendError::Disconnected(_)) => return Err(Unavailable),
            }
        }
    }

    /// Looks at the tables between two batches, without a turn in the queue.
    pub fn look<R>(&self, at: impl FnOnce(&Core) -> R) -> R {
        at(&lock(&self.core))
    }
}

/// Starts the thread. It ends when the last [`Handle`] is gone.
///
/// # Errors
/// The system has no thread left.
pub fn spawn(core: Core) -> std::io::Result<(Handle, JoinHandle<()>)> {
    let (jobs, queue) = sync_channel::<Job>(QUEUE_MAX);
    let shared = Arc::new(Mutex::new(core));
    let core = shared.clone();
    let thread = std::thread::Builder::new().name("weft-control".into()).spawn(move || {
        let start = Instant::now();
        let mut wake: Option<Duration> = None;
        loop {
            let sleep = wake.map_or(IDLE, |at| at.saturating_sub(start.elapsed()));
            let first = match queue.recv_timeout(sleep) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut core = lock(&core);
            core.set_time(start.elapsed());
            for job in first.into_iter().chain(queue.try_iter().take(BATCH_MAX)) {
                job(&mut core);
            }
            wake = core.flush();
        }
    })?;
    Ok((Handle { jobs, core: shared, news: Arc::new(Semaphore::new(NEWS_MAX)) }, thread))
}

/// A closure that panicked was one question; the tables are still what they are.
fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}
