//! Supervised tasks and threads. Each has a name and must last until the process stops: one that ends earlier is an
//! error that ends the process, and so is a panic anywhere. A process of which a part has died would go on without
//! following policies, say, and nobody would notice; its successor adopts what is in force.

use std::collections::BTreeMap;
use std::panic::PanicHookInfo;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

tokio::task_local! {
    /// Name of the running task.
    static NAME: &'static str;
}

/// The tasks of a process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tasks {
    stop: CancellationToken,
    tracker: TaskTracker,
    running: Arc<Mutex<BTreeMap<&'static str, usize>>>,
    ended: watch::Sender<Option<&'static str>>,
}

/// A task or thread ended although nobody told it to stop.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("task {name:?} ended before it was told to stop")]
pub struct EndedEarly {
    /// Its name.
    pub name: &'static str,
}

/// Tasks did not end in the time given.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("tasks did not end within {grace:?}: {}", names.join(", "))]
pub struct StillRunning {
    /// The time given.
    pub grace: Duration,
    /// Their names.
    pub names: Vec<&'static str>,
}

impl Tasks {
    /// None yet; all of them shall last until `stop`.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, tracker: TaskTracker::new(), running: Arc::default(), ended: watch::Sender::new(None) }
    }

    /// Tells tasks to stop.
    #[must_use]
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Starts a task that lasts until the process stops.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let watched = Watched::new(self, name);
        self.tracker.spawn(NAME.scope(name, async move {
            work.await;
            watched.finished();
        }));
    }

    /// Starts a thread that lasts until the process stops. It is not waited for at the end.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn spawn_thread(&self, name: &'static str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let tasks = self.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            work();
            tasks.note_end(name);
        })?;
        Ok(())
    }

    /// Returns once a task or thread has ended too early.
    pub async fn ended_early(&self) -> EndedEarly {
        let mut ended = self.ended.subscribe();
        let name = match ended.wait_for(Option::is_some).await {
            Ok(name) => *name,
            Err(_) => None,
        };
        match name {
            Some(name) => EndedEarly { name },
            // The sender is `self`'s: the channel is open as long as anybody waits here.
            None => std::future::pending().await,
        }
    }

    /// Waits until the tasks have ended; to be called once they are told to stop.
    ///
    /// # Errors
    /// Some are still running after `grace`.
    pub async fn join(&self, grace: Duration) -> Result<(), StillRunning> {
        self.tracker.close();
        match tokio::time::timeout(grace, self.tracker.wait()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(StillRunning { grace, names: lock(&self.running).keys().copied().collect() }),
        }
    }

    fn note_end(&self, name: &'static str) {
        if self.stop.is_cancelled() {
            return;
        }
        tracing::error!(task = name, "a task ended before it was told to stop");
        // The first one is the cause, others may follow from it.
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert(name);
            first
        });
    }
}

/// Counts a task as running for as long as it exists.
struct Watched {
    tasks: Tasks,
    name: &'static str,
}

impl Watched {
    fn new(tasks: &Tasks, name: &'static str) -> Self {
        *lock(&tasks.running).entry(name).or_default() += 1;
        Self { tasks: tasks.clone(), name }
    }

    fn finished(self) {
        self.tasks.note_end(self.name);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut running = lock(&self.tasks.running);
        if let Some(count) = running.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                running.remove(self.name);
            }
        }
    }
}

/// Locks a mutex. A panic ends the process ([`end_process_on_panic`]): nobody ever sees what one left half done.
///
/// # Panics
/// Another thread panicked while it held the lock, in a process without that hook.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a panic ends the process")
}

/// From now on a panic in any task or thread is logged with the task's name, and aborts the process.
pub fn end_process_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        log_panic(panic);
        report(panic);
        std::process::abort();
    }));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = NAME.try_with(|name| *name).ok().or_else(|| thread.name()).unwrap_or("unnamed");
    let message = panic.payload_as_str().unwrap_or("no message");
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(task = name, message, at, "a task panicked: the process ends");
}
