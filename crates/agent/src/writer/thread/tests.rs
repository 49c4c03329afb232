//! Who comes first, and who wakes whom.
#![allow(clippy::disallowed_methods, reason = "the test ends its threads")]

use super::*;
use crate::fakes::{World, ip, ready};
use crate::tables::addresses::LINGER;
use crate::writer::tests::{remote, slice};
use weft_model::intent::Change;

/// A closure that comes while others wait has its turn behind them, wherever it runs.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_brief_does_not_overtake() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (handle, _) = ready(&world, dir.path()).await;
    let order: Arc<Mutex<Vec<usize>>> = Arc::default();
    let note = |n: usize| {
        let order = order.clone();
        move |_: &mut Writer| order.lock().expect("not poisoned").push(n)
    };
    for round in 0..200 {
        let (before, first, second) = (round * 3, note(round * 3 + 1), note(round * 3 + 2));
        handle.apply(note(before)).await.expect("runs");
        handle.apply_brief(first).await.expect("runs");
        handle.apply_brief(second).await.expect("runs");
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
    let noted = ran_on.clone();
    handle
        .apply_brief(move |_| *noted.lock().expect("not poisoned") = Some(std::thread::current().id()))
        .await
        .expect("runs");
    let ran_on = *ran_on.lock().expect("not poisoned");
    assert_eq!(ran_on, Some(std::thread::current().id()));
    // A snapshot can be had while it is being done, and what comes meanwhile is handed over.
    let (shared, (held, is_held), (release, released)) =
        (handle.shared.clone(), oneshot::channel(), std::sync::mpsc::channel::<()>());
    let holder = std::thread::spawn(move || {
        let _held = lock(&shared.writer);
        let _ = held.send(());
        let _ = released.recv();
    });
    is_held.await.expect("held");
    let (sender, receiver) = oneshot::channel();
    assert!(handle.snapshot().progress.ready);
    assert!(handle.try_now(|_| ()).is_err());
    let work = move |_: &mut Writer| {
        let _ = sender.send(std::thread::current().id());
    };
    handle.apply_brief(work).await.expect("handed over");
    drop(release);
    assert_ne!(receiver.await.expect("ran"), std::thread::current().id());
    holder.join().expect("did not panic");
}

/// Work that was done outside of the thread and is due again later wakes the thread in time.
#[tokio::test(flavor = "multi_thread")]
async fn the_thread_comes_when_what_was_done_without_it_is_due() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (handle, _) = ready(&world, dir.path()).await;
    let known = || world.held().ipcache.contains_key(&ip("10.244.2.7"));
    let there = slice("ces-a", &[remote("u1", 300, "10.244.2.7")]);
    handle.apply_brief(move |writer| writer.apply(vec![there])).await.expect("runs");
    handle.call(|_| ()).await.expect("runs");
    assert!(known());
    handle.apply_brief(|writer| writer.apply(vec![Change::SliceGone("ces-a".to_owned())])).await.expect("runs");
    assert!(known(), "it lingers");
    let gone = world.until(|held| !held.ipcache.contains_key(&ip("10.244.2.7")));
    tokio::time::timeout(LINGER * 3, gone).await.expect("somebody comes to let it go");
}

/// Readers have the snapshot while the writer works, and it is the one before the work until that is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_can_be_had_while_the_writer_works() {
    let (world, dir) = (World::default(), tempfile::tempdir().expect("dir"));
    let (handle, _) = ready(&world, dir.path()).await;
    let ((entered, is_entered), (release, released)) = (oneshot::channel(), std::sync::mpsc::channel::<()>());
    let there = slice("ces-a", &[remote("u1", 300, "10.244.2.7")]);
    let work = handle.call(move |writer| {
        writer.apply(vec![there]);
        let _ = entered.send(());
        let _ = released.recv();
    });
    let meanwhile = async {
        is_entered.await.expect("runs");
        let snapshot = handle.snapshot();
        assert!(snapshot.progress.ready && snapshot.status().ready);
        assert_eq!(snapshot.addresses.get(ip("10.244.2.7")), None, "half done work is not seen");
        drop(release);
        snapshot
    };
    let (done, before) = tokio::join!(work, meanwhile);
    done.expect("runs");
    // The caller has its answer: what it did is published.
    let after = handle.snapshot();
    assert_eq!(after.addresses.get(ip("10.244.2.7")).map(|entry| entry.identity.raw()), Some(300));
    assert!(after.addresses.in_force(ip("10.244.2.7")).is_some());
    assert!(after.progress.in_force > before.progress.in_force);
    assert_eq!(before.addresses.get(ip("10.244.2.7")), None, "a snapshot never changes");
    let metrics = crate::metrics::Metrics::new(&crate::metrics::Services::default(), None);
    let text = metrics.with(Box::new(crate::reconcile::metrics::Reconcilers::new(handle.clone()))).text();
    let line = format!("cilium_reconciler_revision_in_force{{reconciler=\"ipcache\"}} {}", after.progress.in_force);
    assert!(text.contains(&line), "{line}: {text}");
}
