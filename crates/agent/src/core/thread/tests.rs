//! Who comes first, and who wakes whom.
#![allow(clippy::disallowed_methods, reason = "tasks of a test end with its runtime")]

use super::*;
use crate::addresses::LINGER;
use crate::core::tests::{remote, slice};
use crate::fakes::{World, ip, ready};
use weft_model::intent::Change;

/// A closure that comes while others wait has its turn behind them, wherever it runs.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_brief_does_not_overtake() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (handle, _) = ready(&world, dir.path()).await;
    let order: Arc<Mutex<Vec<usize>>> = Arc::default();
    let note = |n: usize| {
        let order = order.clone();
        move |_: &mut Core| order.lock().expect("not poisoned").push(n)
    };
    for round in 0..200 {
        let (before, first, second) = (round * 3, note(round * 3 + 1), note(round * 3 + 2));
        handle.tell(note(before)).await.expect("runs");
        handle.tell_brief(first).await.expect("runs");
        handle.tell_brief(second).await.expect("runs");
    }
    handle.call(|_| ()).await.expect("runs");
    let seen = order.lock().expect("not poisoned").clone();
    assert_eq!(seen, (0..600).collect::<Vec<_>>());
}

/// Nobody waits: it is done when the call returns, without the thread.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_brief_is_done_at_once() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (handle, _) = ready(&world, dir.path()).await;
    let ran_on = Arc::new(Mutex::new(None));
    handle.call(|_| ()).await.expect("runs");
    // It was answered under the lock, which the thread gives back when it has nothing left to do.
    handle.look(|_| ());
    let noted = ran_on.clone();
    handle
        .tell_brief(move |_| *noted.lock().expect("not poisoned") = Some(std::thread::current().id()))
        .await
        .expect("runs");
    let ran_on = *ran_on.lock().expect("not poisoned");
    assert_eq!(ran_on, Some(std::thread::current().id()));
    // Who looks while it is being done waits, and who brings something meanwhile hands it over.
    let (shared, (held, is_held), (release, released)) =
        (handle.shared.clone(), oneshot::channel(), std::sync::mpsc::channel::<()>());
    let holder = std::thread::spawn(move || {
        let _held = lock(&shared.core);
        let _ = held.send(());
        let _ = released.recv();
    });
    is_held.await.expect("held");
    let (sender, receiver) = oneshot::channel();
    assert!(handle.try_now(|_| ()).is_err());
    let tell = move |_: &mut Core| {
        let _ = sender.send(std::thread::current().id());
    };
    handle.tell_brief(tell).await.expect("handed over");
    drop(release);
    assert_ne!(receiver.await.expect("ran"), std::thread::current().id());
    holder.join().expect("did not panic");
}

/// What was done outside of the thread and has to be looked at again wakes the thread in time.
#[tokio::test(flavor = "multi_thread")]
async fn the_thread_comes_when_what_was_done_without_it_is_due() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (handle, _) = ready(&world, dir.path()).await;
    let known = || world.held().ipcache.contains_key(&ip("10.244.2.7"));
    let there = slice("ces-a", &[remote("u1", 300, "10.244.2.7")]);
    handle.tell_brief(move |core| core.apply(vec![there])).await.expect("runs");
    handle.call(|_| ()).await.expect("runs");
    assert!(known());
    handle.tell_brief(|core| core.apply(vec![Change::SliceGone("ces-a".to_owned())])).await.expect("runs");
    assert!(known(), "it lingers");
    let gone = world.until(|held| !held.ipcache.contains_key(&ip("10.244.2.7")));
    tokio::time::timeout(LINGER * 3, gone).await.expect("somebody comes to let it go");
}
