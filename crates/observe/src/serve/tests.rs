use super::*;
use crate::enrich::Nameless;
use std::time::Duration;
use weft_abi::{event_kind, verdict};

fn observer(events_max: usize) -> Arc<Observer> {
    Observer::with_clock("node-1", events_max, Arc::new(Nameless), Clock::fixed(0))
}

fn event(n: u32) -> Event {
    Event {
        time_ns: u64::from(n),
        length: n,
        kind: event_kind::TRACE,
        verdict: verdict::FORWARDED,
        protocol: 17,
        ..Event::default()
    }
}

fn lengths(flows: &[Arc<Flow>]) -> Vec<u32> {
    flows.iter().map(|flow| flow.length).collect()
}

#[test]
fn a_snapshot_is_the_last_ones() {
    let observer = observer(4);
    (1..=6).for_each(|n| observer.push(&event(n)).expect("good event"));
    assert_eq!(lengths(&observer.snapshot(FlowFilter::default(), 3)), [4, 5, 6]);
    assert_eq!(lengths(&observer.snapshot(FlowFilter::default(), 100)), [3, 4, 5, 6]);
    assert_eq!(lengths(&observer.snapshot(FlowFilter::default(), 0)), [] as [u32; 0]);
    assert_eq!(observer.overwritten(), 2);
    let dropped = FlowFilter { verdict: Some(Verdict::Dropped), ..FlowFilter::default() };
    assert!(observer.snapshot(dropped, 10).is_empty());
}

#[test]
fn a_bad_event_is_counted_and_left_out() {
    let observer = observer(4);
    assert_eq!(observer.push(&Event::default()), Err(DecodeError::Kind(0)));
    assert_eq!(observer.malformed(), 1);
    assert!(observer.snapshot(FlowFilter::default(), 10).is_empty());
}

#[tokio::test]
async fn a_follower_gets_past_and_future_once() {
    let observer = observer(4);
    observer.push(&event(1)).expect("good event");
    observer.push(&event(2)).expect("good event");
    let mut following = observer.following();
    let mut subscription = observer.subscribe(FlowFilter::default(), 1);
    assert_eq!(*following.borrow_and_update(), 1);
    observer.push(&event(3)).expect("good event");
    for expected in [2, 3] {
        let Next::Flow(flow) = subscription.next().await else { panic!("nothing was lost") };
        assert_eq!(flow.length, expected);
    }
    drop(subscription);
    assert_eq!(*following.borrow_and_update(), 0);
}

#[tokio::test]
async fn a_slow_reader_loses_and_knows_how_many() {
    let observer = observer(1);
    let mut subscription = observer.subscribe(FlowFilter::default(), 0);
    let behind = u32::try_from(BEHIND_MAX).expect("small");
    (0..behind + 7).for_each(|n| observer.push(&event(n)).expect("good event"));
    for expected in 0..behind {
        let Next::Flow(flow) = subscription.next().await else { panic!("lost before the queue was empty") };
        assert_eq!(flow.length, expected);
    }
    assert_eq!(subscription.next().await, Next::Lost(7));
    observer.push(&event(99)).expect("good event");
    let Next::Flow(flow) = subscription.next().await else { panic!("reported twice") };
    assert_eq!(flow.length, 99);
}

#[tokio::test]
async fn an_answer_ends_with_done_or_with_its_reader() {
    let observer = observer(4);
    (1..=3).for_each(|n| observer.push(&event(n)).expect("good event"));
    let (sender, mut answers) = mpsc::channel(8);
    observer.answer(FlowFilter::default(), 2, false, &sender).await;
    for expected in [2, 3] {
        let Some(Response::Flow(flow)) = answers.recv().await else { panic!("no flow") };
        assert_eq!(flow.length, expected);
    }
    assert_eq!(answers.recv().await, Some(Response::Done));

    let reader = {
        let observer = observer.clone();
        tokio::spawn(async move { observer.answer(FlowFilter::default(), 1, true, &sender).await })
    };
    let Some(Response::Flow(flow)) = answers.recv().await else { panic!("no flow") };
    assert_eq!(flow.length, 3);
    drop(answers);
    tokio::time::timeout(Duration::from_secs(10), reader).await.expect("ends").expect("no panic");
    assert_eq!(*observer.following().borrow(), 0);
}
