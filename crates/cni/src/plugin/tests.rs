use super::run;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;
use weft_api::agent::{Request, Response};
use weft_api::cni::{AddResult, Attachment, DelRequest, QUEUE_FILES_MAX};
use weft_api::failure::{Failure, Kind};

const ENV: [(&str, &str); 4] = [
    ("CNI_CONTAINERID", "c0ffee"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_NETNS", "/run/netns/x"),
    ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=1-2"),
];

fn call(command: &str, changes: &[(&str, &str)], stdin: &str) -> Result<String, Value> {
    let env = |name: &str| -> Option<OsString> {
        if name == "CNI_COMMAND" {
            return Some(command.into());
        }
        let find = |list: &[(&str, &str)]| list.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
        find(changes).or_else(|| find(&ENV))
    };
    run(env, stdin.as_bytes()).map_err(|failure| serde_json::from_str(&failure.to_json()).expect("JSON"))
}

fn agent(socket: &Path, answer: Response) -> JoinHandle<Request> {
    let listener = UnixListener::bind(socket).expect("bind");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut line = String::new();
        BufReader::new(stream.try_clone().expect("clone")).read_line(&mut line).expect("read");
        let mut text = serde_json::to_vec(&answer).expect("JSON");
        text.push(b'\n');
        stream.write_all(&text).expect("write");
        serde_json::from_str(&line).expect("request")
    })
}

fn config(dir: &Path, version: &str, more: &str) -> String {
    format!(
        r#"{{"cniVersion":"{version}","name":"weft","type":"weft-cni","socket":"{0}/s","queue-dir":"{0}/q"{more}}}"#,
        dir.display()
    )
}

fn added() -> AddResult {
    AddResult {
        host_ifname: "weft1".into(),
        host_mac: "02:00:00:00:00:01".into(),
        pod_mac: "02:00:00:00:00:02".into(),
        mtu: 1450,
        addresses: vec![
            ("10.244.1.5/32".into(), "169.254.1.1".parse().expect("ip")),
            ("fd44::5/128".into(), "fe80::1".parse().expect("ip")),
        ],
    }
}

#[test]
fn add_prints_the_shape_of_each_version() {
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let dir = tempfile::tempdir().expect("dir");
        let agent = agent(&dir.path().join("s"), Response::CniResult(added()));
        let text = call("ADD", &[], &config(dir.path(), version, r#","mtu":1400,"unknown-key":1"#)).expect("added");
        let Request::CniAdd(request) = agent.join().expect("agent") else { panic!("an ADD") };
        assert_eq!(
            (request.pod_namespace.as_str(), request.pod_name.as_str(), request.mtu),
            ("shop", "web-0", Some(1400))
        );
        assert_eq!(request.pod_uid.as_deref(), Some("1-2"));
        let result: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][1]["sandbox"], "/run/netns/x");
        assert_eq!(result["interfaces"][1]["mtu"].is_number(), version == "1.1.0");
        assert_eq!(result["ips"][0]["address"], "10.244.1.5/32");
        assert_eq!(result["ips"][1]["interface"], 1);
        assert_eq!(result["routes"][1], json!({"dst": "::/0", "gw": "fe80::1"}));
        let old = version.starts_with("0.");
        assert_eq!(result["ips"][1].get("version"), old.then_some(&json!("6")), "{version}");
        // CHECK takes the same result back.
        let addresses = crate::config::addresses(&result, "eth0").expect("addresses");
        assert_eq!(addresses, ["10.244.1.5".parse::<std::net::IpAddr>().expect("ip"), "fd44::5".parse().expect("ip")]);
    }
}

/// Command, changes of the environment, standard input, expected code, part of the expected details.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, u64, &'a str);

#[test]
fn bad_input_names_the_field() {
    let conf = |more: &str| format!(r#"{{"cniVersion":"1.1.0","name":"weft"{more}}}"#);
    let plain = conf("");
    #[rustfmt::skip]
    let cases: &[Case<'_>] = &[
        ("ADD", &[], "", 6, "standard input: EOF"),
        ("ADD", &[], "{\"a\":", 6, "standard input: EOF"),
        ("ADD", &[], "[]", 7, "network configuration: expected an object, found a list"),
        ("ADD", &[], "{}", 1, "cniVersion: expected one of 0.3.0"),
        ("ADD", &[], r#"{"cniVersion":"9.9.9","name":"n"}"#, 1, "found \"9.9.9\""),
        ("ADD", &[], r#"{"cniVersion":1,"name":"n"}"#, 7, "cniVersion: expected a string, found a number"),
        ("ADD", &[], r#"{"cniVersion":"1.0.0"}"#, 7, "name: expected a string, found nothing"),
        ("ADD", &[], r#"{"cniVersion":"1.0.0","name":"a b"}"#, 7, "name: expected letters"),
        ("ADD", &[], &conf(r#","mtu":"1500""#), 7, "mtu: expected a number, found a string"),
        ("ADD", &[], &conf(r#","mtu":-1"#), 7, "mtu: expected 0"),
        ("ADD", &[], &conf(r#","mtu":1e3"#), 7, "mtu: expected 0"),
        ("ADD", &[], &conf(r#","mtu":70000"#), 7, "mtu: expected 0"),
        ("ADD", &[], &conf(r#","socket":5"#), 7, "socket: expected a string, found a number"),
        ("ADD", &[], &conf(r#","socket":"run/x""#), 7, "socket: expected an absolute path"),
        ("ADD", &[], &conf(r#","queue-dir":[]"#), 7, "queue-dir: expected a string, found a list"),
        ("ADD", &[], &conf(r#","prevResult":3"#), 7, "prevResult: expected an object, found a number"),
        ("ADD", &[], &conf(r#","prevResult":{"ips":[]}"#), 7, "prevResult: expected none on ADD"),
        ("ADD", &[], &conf(r#","ipam":{"type":"host-local"}"#), 4, "CNI_PATH: expected a directory with the plugin \"host-local\""),
        ("ADD", &[], &conf(r#","ipam":{"type":"../x"}"#), 7, "ipam.type: expected the name of a plugin"),
        ("ADD", &[], &conf(r#","ipam":{"type":3}"#), 7, "ipam.type: expected the name of a plugin, found a number"),
        ("ADD", &[], &conf(r#","ipam":"x""#), 7, "ipam: expected an object, found a string"),
        ("ADD", &[("CNI_CONTAINERID", "")], &plain, 4, "CNI_CONTAINERID: expected a value; it is not set"),
        ("ADD", &[("CNI_CONTAINERID", "../x")], &plain, 4, "CNI_CONTAINERID: expected letters"),
        ("ADD", &[("CNI_CONTAINERID", "-x")], &plain, 4, "CNI_CONTAINERID: expected letters"),
        ("ADD", &[("CNI_IFNAME", "0123456789abcdef")], &plain, 4, "CNI_IFNAME: expected an interface name of at most 15"),
        ("ADD", &[("CNI_IFNAME", "a/b")], &plain, 4, "CNI_IFNAME"),
        ("ADD", &[("CNI_IFNAME", "..")], &plain, 4, "CNI_IFNAME"),
        ("ADD", &[("CNI_NETNS", "")], &plain, 4, "CNI_NETNS: expected an absolute path; it is not set"),
        ("ADD", &[("CNI_NETNS", "x")], &plain, 4, "CNI_NETNS: expected an absolute path, found \"x\""),
        ("ADD", &[("CNI_ARGS", "")], &plain, 4, "CNI_ARGS: expected K8S_POD_NAMESPACE"),
        ("ADD", &[("CNI_ARGS", "K8S_POD_NAME")], &plain, 4, "CNI_ARGS: expected KEY=VALUE"),
        ("ADD", &[("CNI_ARGS", "K8S_POD_NAME=a/b")], &plain, 4, "CNI_ARGS: K8S_POD_NAME: expected a Kubernetes name"),
        ("CHECK", &[], &plain, 7, "prevResult: expected the result of ADD, found nothing"),
        ("CHECK", &[], &conf(r#","prevResult":{"ips":7}"#), 7, "prevResult.ips: expected a list, found a number"),
        ("CHECK", &[], &conf(r#","prevResult":{"ips":[{"address":"x"}]}"#), 7, "prevResult.ips[0].address: expected an address"),
        ("CHECK", &[], r#"{"cniVersion":"0.3.1","name":"n"}"#, 1, "expected 0.4.0 or newer for CHECK"),
        ("GC", &[], &plain, 7, "cni.dev/valid-attachments: expected a list, found nothing"),
        ("GC", &[], &conf(r#","cni.dev/valid-attachments":[{"containerID":1}]"#), 7, "cni.dev/valid-attachments[0].containerID: expected a string, found a number"),
        ("GC", &[], r#"{"cniVersion":"1.0.0","name":"n"}"#, 1, "expected 1.1.0 or newer for GC"),
        ("STATUS", &[], r#"{"cniVersion":"1.0.0","name":"n"}"#, 1, "expected 1.1.0 or newer for STATUS"),
        ("STATUS", &[], &conf(r#","socket":"/nonexistent/weft""#), 50, "/nonexistent/weft: cannot connect"),
        ("add", &[], &plain, 4, "CNI_COMMAND: expected ADD"),
        ("", &[], &plain, 4, "CNI_COMMAND: expected ADD"),
        ("VERSION", &[], "7", 7, "network configuration: expected an object, found a number"),
    ];
    for (command, env, stdin, code, details) in cases {
        let error = call(command, env, stdin).expect_err(details);
        assert_eq!(error["code"], *code, "{command} {stdin} {error}");
        assert!(error["details"].as_str().is_some_and(|text| text.contains(details)), "{details:?} in {error}");
        assert!(error["msg"].is_string() && error["cniVersion"].is_string(), "{error}");
    }
}

#[test]
fn version_answers_what_is_spoken() {
    let answer: Value =
        serde_json::from_str(&call("VERSION", &[], r#"{"cniVersion":"0.4.0"}"#).expect("version")).expect("JSON");
    assert_eq!(answer["cniVersion"], "0.4.0");
    assert_eq!(answer["supportedVersions"].as_array().map(Vec::len), Some(5));
    assert!(call("VERSION", &[], "").is_ok());
}

#[test]
fn delete_waits_in_the_queue_while_the_agent_is_down() {
    let dir = tempfile::tempdir().expect("dir");
    let conf = config(dir.path(), "1.0.0", "");
    assert_eq!(call("DEL", &[], &conf), Ok(String::new()));
    assert_eq!(call("DEL", &[("CNI_NETNS", "")], &conf), Ok(String::new()));
    let queued: Vec<_> =
        std::fs::read_dir(dir.path().join("q")).expect("queue").map(|file| file.expect("file").path()).collect();
    let files: Vec<_> = queued.iter().filter(|path| path.extension().is_some_and(|e| e == "json")).collect();
    assert_eq!(files.len(), 1, "the same attachment is one file: {queued:?}");
    let request: DelRequest = serde_json::from_slice(&std::fs::read(files[0]).expect("read")).expect("JSON");
    assert_eq!((request.attachment.container_id.as_str(), request.netns), ("c0ffee", None));
    for n in 1..QUEUE_FILES_MAX {
        let attachment = Attachment { container_id: format!("c{n}"), ifname: "eth0".into() };
        crate::queue::push(&dir.path().join("q"), &DelRequest { attachment, netns: None }).expect("room");
    }
    let error = call("DEL", &[("CNI_CONTAINERID", "last")], &conf).expect_err("full");
    assert_eq!(error["code"], 11);
    assert!(error["details"].as_str().is_some_and(|text| text.contains("holds 256")), "{error}");
}

#[test]
fn the_agents_failure_is_passed_on_by_every_command() {
    let valid = r#","cni.dev/valid-attachments":[]"#;
    let previous = r#","prevResult":{"interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.9/32","interface":0}]}"#;
    for (command, more) in [("ADD", ""), ("DEL", ""), ("CHECK", previous), ("GC", valid), ("STATUS", "")] {
        for (kind, code) in [
            (Kind::NotReady, 50),
            (Kind::TryAgain, 11),
            (Kind::Malformed, 6),
            (Kind::Misconfigured, 7),
            (Kind::NoContainer, 3),
            (Kind::NoAddresses, 101),
            (Kind::System, 5),
            (Kind::Refused, 100),
        ] {
            let dir = tempfile::tempdir().expect("dir");
            let failure = Failure::new(kind, "in a few words", "and why");
            let agent = agent(&dir.path().join("s"), Response::Error(failure));
            let error = call(command, &[], &config(dir.path(), "1.1.0", more)).expect_err("failed");
            agent.join().expect("agent");
            let expected = (&json!(code), &json!("1.1.0"), &json!("in a few words"), &json!("and why"));
            let found = (&error["code"], &error["cniVersion"], &error["msg"], &error["details"]);
            assert_eq!(found, expected, "{command}");
        }
    }
}

#[test]
fn gc_and_check_pass_on_what_was_listed() {
    let dir = tempfile::tempdir().expect("dir");
    let listening = agent(&dir.path().join("s"), Response::Done);
    let more = r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]"#;
    assert_eq!(call("GC", &[], &config(dir.path(), "1.1.0", more)), Ok(String::new()));
    let Request::CniGc(gc) = listening.join().expect("agent") else { panic!("a GC") };
    assert_eq!(gc.valid[0].container_id, "a");

    std::fs::remove_file(dir.path().join("s")).expect("remove");
    let listening = agent(&dir.path().join("s"), Response::Done);
    let more = r#","prevResult":{"interfaces":[{"name":"weft1"},{"name":"eth0"}],"ips":[{"address":"10.0.0.1/32","interface":1},{"address":"10.0.0.9/32","interface":0}]}"#;
    assert_eq!(call("CHECK", &[], &config(dir.path(), "0.4.0", more)), Ok(String::new()));
    let Request::CniCheck(check) = listening.join().expect("agent") else { panic!("a CHECK") };
    assert_eq!(check.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().expect("ip")]);
}
