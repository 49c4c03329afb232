//! The thread that owns the tables and the maps. Other tasks hand it closures; what it does within one of them nobody
//! sees half done. Work that is brief may be done by the task that brings it while the thread is idle
//! ([`Handle::apply_brief`]): most of what changes in a large cluster is a few addresses of some other node, and to wake
//! a thread for that costs as much as the work itself.
//!
//! Nothing here makes an async task wait for the writer's lock: it is either free at once or the work goes to the
//! thread. Readers take the published snapshot.

use super::flush::Writer;
use crate::snapshot::Snapshot;
use arc_swap::ArcSwap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};
use weft_daemon::tasks::lock;

/// Closures that may wait in the queue; callers beyond that wait outside.
const QUEUE_MAX: usize = 4096;
/// Closures that run before what they changed is worked out and written together.
const BATCH_MAX: usize = 256;
/// Closures without an answer that are on their way at one time.
const UNANSWERED_MAX: usize = 64;
/// Longest sleep.
const IDLE: Duration = Duration::from_secs(3600);

/// Sends a closure's answer, once what it did is published.
type Answer = Box<dyn FnOnce() + Send>;

/// Works on the tables; its answer, if somebody waits for one.
type Work = Box<dyn FnOnce(&mut Writer) -> Option<Answer> + Send>;

/// A closure in the queue. It counts as waiting until it has run, or is dropped.
struct Job {
    work: Work,
    _turn: Turn,
}

struct Turn(Arc<Shared>);

impl Turn {
    fn take(shared: &Arc<Shared>) -> Self {
        shared.waiting.fetch_add(1, Ordering::AcqRel);
        Self(shared.clone())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Shared {
    writer: Mutex<Writer>,
    published: Arc<ArcSwap<Snapshot>>,
    /// Closures that were handed over and did not run yet: they come first.
    waiting: AtomicUsize,
    /// When the writer wants to be called again at the latest, in nanoseconds since `start`. Changed under its lock.
    wake_at: AtomicU64,
    start: Instant,
}

impl Shared {
    /// Works out and writes what was changed. True: the writer wants to be called earlier than was known.
    fn flush(&self, writer: &mut Writer) -> bool {
        let wake_at = writer.flush().map_or(u64::MAX, |at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
        self.wake_at.swap(wake_at, Ordering::AcqRel) > wake_at
    }

    fn sleep(&self) -> Duration {
        Duration::from_nanos(self.wake_at.load(Ordering::Acquire)).saturating_sub(self.start.elapsed()).min(IDLE)
    }
}

/// Hands closures to the thread, and has the published snapshot.
#[derive(Clone)]
pub struct Handle {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
    unanswered: Arc<Semaphore>,
}

/// The thread has ended, or cannot keep up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the control thread does not answer")]
pub struct Unavailable;

impl Handle {
    /// What the writer published last. Never waits.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.published.load_full()
    }

    /// Runs `work` on the thread and answers what it returns, once a snapshot with it is published.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> R + Send + 'static,
    ) -> Result<R, Unavailable> {
        let (sender, receiver) = oneshot::channel();
        self.enqueue(Box::new(move |writer| {
            let result = work(writer);
            let answer: Answer = Box::new(move || drop(sender.send(result)));
            Some(answer)
        }))
        .await?;
        receiver.await.map_err(|_| Unavailable)
    }

    /// Lets the thread run `work` in its turn, without waiting for that: what comes while the thread is busy is worked out
    /// and written together. Waits while much is on its way already.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn apply(&self, work: impl FnOnce(&mut Writer) + Send + 'static) -> Result<(), Unavailable> {
        let permit = self.unanswered.clone().acquire_owned().await.map_err(|_| Unavailable)?;
        self.enqueue(Box::new(move |writer| {
            drop(permit);
            work(writer);
            None
        }))
        .await
    }

    /// The same for work that is brief: if the writer is idle and nothing waits, it is done and written when this returns.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn apply_brief(&self, work: impl FnOnce(&mut Writer) + Send + 'static) -> Result<(), Unavailable> {
        match self.try_now(work) {
            Ok(()) => Ok(()),
            Err(work) => self.apply(work).await,
        }
    }

    fn try_now<W: FnOnce(&mut Writer)>(&self, work: W) -> Result<(), W> {
        let shared = &self.shared;
        let is_idle = || shared.waiting.load(Ordering::Acquire) == 0;
        if !is_idle() {
            return Err(work);
        }
        let mut writer = match shared.writer.try_lock() {
            Ok(writer) => writer,
            // Held; or poisoned, and the process is about to end.
            Err(_) => return Err(work),
        };
        // Closures that were handed over before this one run before it.
        if !is_idle() {
            return Err(work);
        }
        writer.set_time(shared.start.elapsed());
        // A retry may be all policies of the node: that is the thread's.
        if writer.has_due_retry() {
            return Err(work);
        }
        work(&mut writer);
        let earlier = shared.flush(&mut writer);
        drop(writer);
        if earlier {
            // A full queue wakes the thread as well; a thread that has ended sleeps no more.
            let _ = self.jobs.try_send(Job { work: Box::new(|_| None), _turn: Turn::take(shared) });
        }
        Ok(())
    }

    async fn enqueue(&self, work: Work) -> Result<(), Unavailable> {
        let mut job = Job { work, _turn: Turn::take(&self.shared) };
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
}

/// Starts the thread. It ends when the last [`Handle`] is gone.
///
/// # Errors
/// The system has no thread left.
pub fn spawn(writer: Writer) -> std::io::Result<(Handle, JoinHandle<()>)> {
    let (jobs, queue) = sync_channel::<Job>(QUEUE_MAX);
    let shared = Arc::new(Shared {
        published: writer.published(),
        writer: Mutex::new(writer),
        waiting: AtomicUsize::new(0),
        wake_at: AtomicU64::new(u64::MAX),
        start: Instant::now(),
    });
    let handle = Handle { jobs, shared: shared.clone(), unanswered: Arc::new(Semaphore::new(UNANSWERED_MAX)) };
    let thread = std::thread::Builder::new().name("weft-control".into()).spawn(move || {
        let mut answers: Vec<Answer> = Vec::new();
        loop {
            let first = match queue.recv_timeout(shared.sleep()) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut writer = lock(&shared.writer);
            writer.set_time(shared.start.elapsed());
            for job in first.into_iter().chain(queue.try_iter().take(BATCH_MAX)) {
                answers.extend((job.work)(&mut writer));
            }
            shared.flush(&mut writer);
            drop(writer);
            answers.drain(..).for_each(|answer| answer());
        }
    })?;
    Ok((handle, thread))
}

#[cfg(test)]
mod tests;
