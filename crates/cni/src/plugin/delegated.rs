//! Addresses from another plugin, Debian's host-local: random calls as a runtime makes them, and an agent that refuses, dies
//! before or after it did what it was asked, or is not there at all. Never have two attachments one address; nothing is
//! left in the end.

use super::run;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use weft_api::agent::{Request, Response};
use weft_api::cni::{AddResult, Attachment, DelRequest};
use weft_api::failure::{Failure, Kind};

/// What the agent does with the next question.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Mood {
    Fine,
    Refuses,
    DiesBefore,
    DiesAfter,
}

/// The agent: which attachment has which addresses.
#[derive(Default)]
struct Agent {
    endpoints: BTreeMap<Attachment, Vec<IpAddr>>,
    mood: Option<Mood>,
}

impl Agent {
    fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::CniAdd(add) => {
                let addresses = add.addresses.expect("addresses of the plugin");
                assert_eq!(addresses.len(), 2, "one of each family");
                for address in &addresses {
                    let other =
                        self.endpoints.iter().find(|(other, has)| **other != add.attachment && has.contains(address));
                    assert_eq!(other, None, "{address} is given twice");
                }
                let text = |ip: &IpAddr| (format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }), *ip);
                let result = AddResult {
                    host_ifname: "weft1".into(),
                    host_mac: "02:00:00:00:00:01".into(),
                    pod_mac: "02:00:00:00:00:02".into(),
                    mtu: 1450,
                    addresses: addresses.iter().map(text).collect(),
                };
                self.endpoints.insert(add.attachment, addresses);
                Response::CniResult(result)
            }
            Request::CniDel(del) => {
                self.endpoints.remove(&del.attachment);
                Response::Done
            }
            other => panic!("{other:?}"),
        }
    }

    /// Deletes that waited for it, before it answers anybody.
    fn drain(&mut self, queue: &Path) {
        for file in std::fs::read_dir(queue).into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|extension| extension == "json") {
                let del: DelRequest = serde_json::from_slice(&std::fs::read(file.path()).expect("file")).expect("JSON");
                self.endpoints.remove(&del.attachment);
                std::fs::remove_file(file.path()).expect("remove");
            }
        }
    }
}

fn serve(agent: &Mutex<Agent>, mut stream: UnixStream) {
    let mut line = String::new();
    BufReader::new(stream.try_clone().expect("clone")).read_line(&mut line).expect("read");
    // Nobody wanted anything.
    if line.is_empty() {
        return;
    }
    let request: Request = serde_json::from_str(&line).expect("a request");
    let mut agent = agent.lock().expect("agent");
    let mood = agent.mood.take().unwrap_or(Mood::Fine);
    let answer = match mood {
        Mood::DiesBefore => return,
        Mood::Refuses if matches!(request, Request::CniAdd(_)) => {
            Response::Error(Failure::new(Kind::Refused, "not today", ""))
        }
        _ => agent.answer(request),
    };
    if mood != Mood::DiesAfter {
        let mut text = serde_json::to_vec(&answer).expect("JSON");
        text.push(b'\n');
        stream.write_all(&text).expect("write");
    }
}

struct World {
    dir: tempfile::TempDir,
    agent: Arc<Mutex<Agent>>,
    random: u64,
}

impl World {
    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random % limit as u64).expect("small")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One call; `up`: whether the agent is there.
    fn call(&mut self, command: &str, container: &str, mood: Option<Mood>) -> Result<Value, Value> {
        self.agent.lock().expect("agent").mood = mood;
        let socket = self.path("s");
        let listener = mood.map(|_| {
            self.agent.lock().expect("agent").drain(&self.path("q"));
            let listener = UnixListener::bind(&socket).expect("bind");
            let agent = self.agent.clone();
            std::thread::spawn(move || {
                if let Ok((stream, _)) = listener.accept() {
                    serve(&agent, stream);
                }
            })
        });
        let ranges = json!([[{"subnet": "10.9.0.0/28"}], [{"subnet": "fd09::/124"}]]);
        let conf = json!({
            "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni", "socket": socket, "queue-dir": self.path("q"),
            "ipam": {"type": "host-local", "ranges": ranges, "dataDir": self.path("d")},
        });
        let env = |name: &str| -> Option<OsString> {
            Some(match name {
                "CNI_COMMAND" => command.into(),
                "CNI_CONTAINERID" => container.into(),
                "CNI_IFNAME" => "eth0".into(),
                "CNI_NETNS" => "/run/netns/x".into(),
                "CNI_PATH" => "/nowhere:/usr/lib/cni".into(),
                "CNI_ARGS" => "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0".into(),
                _ => return None,
            })
        };
        let answer = run(env, conf.to_string().as_bytes());
        if let Some(listener) = listener {
            // One that was not asked at all must not wait for ever.
            drop(UnixStream::connect(&socket));
            listener.join().expect("an agent without complaints");
            std::fs::remove_file(&socket).expect("socket");
        }
        let text = answer.map_err(|failure| serde_json::from_str::<Value>(&failure.to_json()).expect("JSON"))?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// What host-local has given and not got back.
    fn held(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.path("d/weft")).into_iter().flatten().flatten();
        let names = files.filter_map(|file| file.file_name().into_string().ok());
        names.filter(|name| name.parse::<IpAddr>().is_ok()).collect()
    }
}

#[test]
fn never_two_with_one_address_and_nothing_left_with_host_local() {
    let random = 0x9e37_79b9_7f4a_7c15;
    let mut world = World { dir: tempfile::tempdir().expect("dir"), agent: Arc::default(), random };
    // What the runtime takes for running, and what it still has to delete.
    let (mut running, mut doomed): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let (mut names, mut full) = (0, 0);
    for _ in 0..220 {
        let mood = match world.below(10) {
            0 => Mood::Refuses,
            1 => Mood::DiesBefore,
            2 => Mood::DiesAfter,
            _ => Mood::Fine,
        };
        match world.below(9) {
            0..5 => {
                names += 1;
                let name = format!("c{names}");
                match world.call("ADD", &name, Some(mood)) {
                    Ok(_) => running.push(name),
                    Err(error) => {
                        let message = error["msg"].as_str().expect("a message");
                        full += usize::from(message.starts_with("host-local ADD"));
                        doomed.push(name);
                    }
                }
            }
            5..8 if !running.is_empty() => {
                let at = world.below(running.len());
                doomed.push(running.swap_remove(at));
            }
            _ => {}
        }
        if !doomed.is_empty() && world.below(2) == 0 {
            let at = world.below(doomed.len());
            let mood = (world.below(4) > 0).then_some(mood);
            if world.call("DEL", &doomed[at].clone(), mood).is_ok() {
                doomed.swap_remove(at);
            }
        }
    }
    assert!(running.len() > 2 && full > 2, "{} running, {full} refused for want of addresses", running.len());
    for name in running.iter().chain(&doomed) {
        world.call("DEL", name, Some(Mood::Fine)).expect("DEL");
    }
    assert_eq!(world.held(), Vec::<String>::new(), "host-local still holds these");
    world.agent.lock().expect("agent").drain(&world.path("q"));
    assert!(world.agent.lock().expect("agent").endpoints.is_empty());
    // All that there is can be given again.
    for n in 0..13 {
        world.call("ADD", &format!("again{n}"), Some(Mood::Fine)).expect("an address");
    }
    let error = world.call("ADD", "last", Some(Mood::Fine)).expect_err("full");
    assert!(error.to_string().contains("no IP addresses available"), "{error}");
}
