//! What only a whole process shows: how it ends, and what its log looks like. Each test runs this program again with
//! one of the `child_` tests alone, which does nothing unless it is told to.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_daemon::{log, tasks};

/// Says which child this is.
const CHILD: &str = "WEFT_DAEMON_TEST_CHILD";

fn is_child(what: &str) -> bool {
    std::env::var(CHILD).is_ok_and(|child| child == what)
}

fn child(what: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", what, "--nocapture", "--test-threads=1"]).env(CHILD, what).env_remove("NO_COLOR");
    command.stdout(Stdio::null());
    command
}

fn ended(mut command: Command) -> (ExitStatus, String) {
    let output = command.stderr(Stdio::piped()).output().expect("started");
    (output.status, String::from_utf8(output.stderr).expect("text"))
}

#[test]
fn child_log() {
    if is_child("child_log") {
        log::init("info").expect("a filter");
        tracing::warn!(object = "x", "something happened");
    }
}

fn on_terminal(mut command: Command) -> String {
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let mut child = command.stderr(Stdio::from(pty.slave)).spawn().expect("started");
    drop(command);
    assert!(child.wait().expect("ends").success());
    read_terminal(pty.master)
}

/// What was written before the last writer closed it; then there is an error.
fn read_terminal(master: OwnedFd) -> String {
    let mut file = std::fs::File::from(master);
    let (mut all, mut part) = (Vec::new(), [0; 1024]);
    while let Ok(n @ 1..) = file.read(&mut part) {
        all.extend_from_slice(&part[..n]);
    }
    String::from_utf8(all).expect("text")
}

#[test]
fn only_a_terminal_gets_colours() {
    let (status, piped) = ended(child("child_log"));
    assert!(status.success() && piped.contains("something happened"), "{piped}");
    assert!(!piped.contains('\u{1b}'), "{piped:?}");
    let terminal = on_terminal(child("child_log"));
    assert!(terminal.contains("something happened") && terminal.contains('\u{1b}'), "{terminal:?}");
    let mut without = child("child_log");
    without.env("NO_COLOR", "1");
    let plain = on_terminal(without);
    assert!(plain.contains("something happened") && !plain.contains('\u{1b}'), "{plain:?}");
}

#[test]
fn child_task_panics() {
    if is_child("child_task_panics") {
        log::init("info").expect("a filter");
        tasks::end_process_on_panic();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let tasks = tasks::Tasks::new(CancellationToken::new());
            tasks.spawn("reader", async { panic!("the reader's reason") });
            std::future::pending::<()>().await;
        });
    }
}

#[test]
fn child_thread_panics() {
    if is_child("child_thread_panics") {
        log::init("info").expect("a filter");
        tasks::end_process_on_panic();
        let tasks = tasks::Tasks::new(CancellationToken::new());
        tasks.spawn_thread("weft-reader", || panic!("the reader's reason")).expect("a thread");
        loop {
            std::thread::park();
        }
    }
}

#[test]
fn a_panic_anywhere_ends_the_process_and_names_the_task() {
    for (what, name) in [("child_task_panics", "reader"), ("child_thread_panics", "weft-reader")] {
        let (status, text) = ended(child(what));
        assert_eq!(status.signal(), Some(nix::libc::SIGABRT), "{text}");
        assert!(text.contains(&format!("task=\"{name}\"")) && text.contains("the reader's reason"), "{text}");
    }
}

#[tokio::test]
async fn a_task_that_ends_early_is_named() {
    let stop = CancellationToken::new();
    let tasks = tasks::Tasks::new(stop.clone());
    let until = stop.clone();
    tasks.spawn("lasting", async move { until.cancelled().await });
    tasks.spawn("hasty", async {});
    let early = tokio::time::timeout(Duration::from_secs(10), tasks.ended_early()).await.expect("noticed");
    assert_eq!(early.to_string(), "task \"hasty\" ended before it was told to stop");
    stop.cancel();
    tasks.join(Duration::from_secs(10)).await.expect("all end");
}

#[tokio::test]
async fn a_thread_that_ends_early_is_named() {
    let tasks = tasks::Tasks::new(CancellationToken::new());
    tasks.spawn_thread("weft-hasty", || {}).expect("a thread");
    let early = tokio::time::timeout(Duration::from_secs(10), tasks.ended_early()).await.expect("noticed");
    assert_eq!(early.name, "weft-hasty");
}

#[tokio::test]
async fn ends_after_the_stop_are_no_errors_and_what_still_runs_is_named() {
    let stop = CancellationToken::new();
    let tasks = tasks::Tasks::new(stop.clone());
    let until = stop.clone();
    tasks.spawn("lasting", async move { until.cancelled().await });
    tasks.spawn("stuck", std::future::pending());
    stop.cancel();
    let running = tasks.join(Duration::from_millis(200)).await.expect_err("one is stuck");
    assert_eq!(running.names, ["stuck"]);
    let early = tokio::time::timeout(Duration::from_millis(50), tasks.ended_early()).await;
    assert!(early.is_err(), "{early:?}");
}
