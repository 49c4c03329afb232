//! The one thread that owns the tables and the maps. Everybody else hands it closures; what it does within one of
//! them nobody sees half done. What is quickly done may be done by whoever brings it while the thread has nothing to
//! do ([`Handle::tell_brief`]): most of what changes in a large cluster is a few addresses of some other node, and to
//! wake a thread for that costs as much as the work itself.

use super::Core;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
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

/// A closure in the queue. It counts as waiting until it has run, or is dropped.
struct Job {
    work: Box<dyn FnOnce(&mut Core) + Send>,
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
    core: Mutex<Core>,
    /// Closures that were handed over and did not run yet: they come first.
    waiting: AtomicUsize,
    /// When the core wants to be called again at the latest, in nanoseconds since `start`. Changed under the core's lock.
    wake_at: AtomicU64,
    start: Instant,
}

impl Shared {
    /// Works out and writes what was changed. True: the core wants to be called earlier than was known.
    fn flush(&self, core: &mut Core) -> bool {
        let wake_at = core.flush().map_or(u64::MAX, |at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX));
        self.wake_at.swap(wake_at, Ordering::AcqRel) > wake_at
    }

    fn sleep(&self) -> Duration {
        Duration::from_nanos(self.wake_at.load(Ordering::Acquire)).saturating_sub(self.start.elapsed()).min(IDLE)
    }
}

/// Hands closures to the thread.
#[derive(Clone)]
pub struct Handle {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
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
        self.put(Box::new(move |core| {
            drop(permit);
            work(core);
        }))
        .await
    }

    /// The same for what is quickly done: if nobody else is at it and nothing waits, it is done and written when this
    /// returns.
    ///
    /// # Errors
    /// [`Unavailable`]
    pub async fn tell_brief(&self, work: impl FnOnce(&mut Core) + Send + 'static) -> Result<(), Unavailable> {
        match self.try_now(work) {
            Ok(()) => Ok(()),
            Err(work) => self.tell(work).await,
        }
    }

    fn try_now<W: FnOnce(&mut Core)>(&self, work: W) -> Result<(), W> {
        let shared = &self.shared;
        let is_idle = || shared.waiting.load(Ordering::Acquire) == 0;
        if !is_idle() {
            return Err(work);
        }
        let mut core = match shared.core.try_lock() {
            Ok(core) => core,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(work),
        };
        // Who handed something over before us goes before us.
        if !is_idle() {
            return Err(work);
        }
        core.set_time(shared.start.elapsed());
        work(&mut core);
        let earlier = shared.flush(&mut core);
        drop(core);
        if earlier {
            // A full queue wakes the thread as well; a thread that has ended sleeps no more.
            let _ = self.jobs.try_send(Job { work: Box::new(|_| {}), _turn: Turn::take(shared) });
        }
        Ok(())
    }

    async fn put(&self, work: Box<dyn FnOnce(&mut Core) + Send>) -> Result<(), Unavailable> {
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

    /// Looks at the tables between two batches, without a turn in the queue.
    pub fn look<R>(&self, at: impl FnOnce(&Core) -> R) -> R {
        at(&lock(&self.shared.core))
    }
}

/// Starts the thread. It ends when the last [`Handle`] is gone.
///
/// # Errors
/// The system has no thread left.
pub fn spawn(core: Core) -> std::io::Result<(Handle, JoinHandle<()>)> {
    let (jobs, queue) = sync_channel::<Job>(QUEUE_MAX);
    let shared = Arc::new(Shared {
        core: Mutex::new(core),
        waiting: AtomicUsize::new(0),
        wake_at: AtomicU64::new(u64::MAX),
        start: Instant::now(),
    });
    let handle = Handle { jobs, shared: shared.clone(), news: Arc::new(Semaphore::new(NEWS_MAX)) };
    let thread = std::thread::Builder::new().name("weft-control".into()).spawn(move || {
        loop {
            let first = match queue.recv_timeout(shared.sleep()) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut core = lock(&shared.core);
            core.set_time(shared.start.elapsed());
            for job in first.into_iter().chain(queue.try_iter().take(BATCH_MAX)) {
                (job.work)(&mut core);
            }
            shared.flush(&mut core);
        }
    })?;
    Ok((handle, thread))
}

/// A closure that panicked was one question; the tables are still what they are.
fn lock(core: &Mutex<Core>) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
