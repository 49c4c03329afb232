use super::{EndpointRecord, Phase, StateDir};
use std::fs;
use weft_api::cni::{Attachment, DelRequest, queue_file_name};
use weft_model::id::{EndpointId, Identity};
use weft_model::intent::ObjectName;
use weft_sys::files::write_atomically;

fn record(id: u16) -> EndpointRecord {
    EndpointRecord {
        id: EndpointId::new(id).expect("in range"),
        phase: Phase::Reserved,
        attachment: Attachment { container_id: format!("c{id}"), ifname: "eth0".into() },
        netns: "/run/netns/x".into(),
        pod: ObjectName { namespace: "shop".into(), name: "web".into() },
        pod_uid: "u1".into(),
        service_account: "default".into(),
        pod_labels: [("app".to_owned(), "web".to_owned())].into(),
        named_ports: Vec::new(),
        addresses: vec!["10.244.1.2".parse().expect("ip"), "fd44::2".parse().expect("ip")],
        identity: Identity::from_raw(300),
        labels: weft_model::label::LabelSet::default(),
        device: "weft1".into(),
        pod_mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        mtu: 1500,
        audit: false,
    }
}

#[test]
fn records_come_back_and_corrupt_ones_are_set_aside() {
    let dir = tempfile::tempdir().expect("dir");
    let state = StateDir::open(dir.path()).expect("open");
    let mut two = record(2);
    state.write(&record(1)).expect("write");
    state.write(&two).expect("write");
    two.phase = Phase::Ready;
    state.write(&two).expect("write");
    let endpoints = dir.path().join("endpoints");
    for (name, text) in [("3.json", "{"), ("4.json", "{\"id\":0}"), ("5.json", "\u{1}"), (".6.json.tmp", "{")] {
        fs::write(endpoints.join(name), text).expect("write");
    }
    // A file under another number's name would free that number while it is in use.
    fs::copy(endpoints.join("1.json"), endpoints.join("7.json")).expect("copy");
    let (records, unusable) = state.read().expect("read");
    assert_eq!(records, [record(1), two]);
    assert_eq!(unusable.len(), 4);
    let (records, unusable) = state.read().expect("read");
    assert_eq!((records.len(), unusable.len()), (2, 0));
    state.remove(record(1).id).expect("remove");
    state.remove(record(1).id).expect("remove again");
}

#[test]
fn only_one_agent_has_the_directory() {
    let dir = tempfile::tempdir().expect("dir");
    let first = StateDir::open(dir.path()).expect("open");
    let error = StateDir::open(dir.path()).expect_err("taken").to_string();
    assert!(error.contains("another agent"), "{error}");
    drop(first);
    StateDir::open(dir.path()).expect("free again");
}

#[test]
fn queued_deletes_are_read_and_nonsense_is_dropped() {
    let dir = tempfile::tempdir().expect("dir");
    let state = StateDir::open(dir.path()).expect("open");
    let request = DelRequest { attachment: record(1).attachment, netns: None };
    let path = state.queue_dir().join(queue_file_name(&request.attachment));
    write_atomically(&path, &serde_json::to_vec(&request).expect("JSON"), 0o600).expect("write");
    fs::write(state.queue_dir().join("bad.json"), "[]").expect("write");
    assert_eq!(state.queued_deletes().expect("read"), [(path, request)]);
    assert!(!state.queue_dir().join("bad.json").exists());
}
