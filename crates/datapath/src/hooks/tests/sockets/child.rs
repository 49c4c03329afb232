//! A process of its own, since control groups hold processes: it does with sockets what it is told.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::netns::NetNs;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process in a network namespace, and in a control group if one is given.
pub(super) struct Process {
    child: Child,
    input: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Process {
    pub(super) fn start(netns: &NetNs, group: Option<&Path>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "--nocapture", "hooks::tests::sockets::child::runs_what_it_is_told"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // A thread that has entered a namespace gives it to the process that it starts.
        let mut child = netns.run(|| command.spawn().unwrap()).unwrap();
        let (sender, answers) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut process = Self { input: child.stdin.take().unwrap(), child, answers };
        if let Some(group) = group {
            assert_eq!(process.ask(&format!("join {}", group.display())), "joined");
        }
        process
    }

    /// The file of its network namespace.
    pub(super) fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.child.id()).into()
    }

    /// Does one thing and tells how it went.
    pub(super) fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }

    pub(super) fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub(super) fn answer(&mut self) -> String {
        self.answers.recv_timeout(PATIENCE).expect("the process answers in time")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "the other tests run it as a process of its own"]
fn runs_what_it_is_told() {
    let mut sockets = Sockets::default();
    for line in io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let answer = sockets.run(&words).unwrap_or_else(|error| match error.raw_os_error() {
            Some(number) => format!("error {number}"),
            None => format!("error {error}"),
        });
        eprintln!("{answer}");
    }
}

#[derive(Default)]
struct Sockets {
    tcp: BTreeMap<String, TcpStream>,
    udp: BTreeMap<String, UdpSocket>,
    knocking: Option<(Arc<AtomicBool>, std::thread::JoinHandle<String>)>,
}

impl Sockets {
    fn run(&mut self, words: &[&str]) -> io::Result<String> {
        Ok(match words {
            ["join", group] => {
                std::fs::write(Path::new(group).join("cgroup.procs"), "0")?;
                "joined".into()
            }
            ["serve", address, name] => serve(address, name)?,
            ["tcp", name, address] => {
                let mut stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let answer = format!("{} is {}", stream.peer_addr()?, hear(&mut stream)?);
                self.tcp.insert((*name).into(), stream);
                answer
            }
            ["udp", name, own] => {
                let socket = UdpSocket::bind(own)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                self.udp.insert((*name).into(), socket);
                "open".into()
            }
            ["connect", name, address] => {
                self.udp[*name].connect(address)?;
                self.udp[*name].peer_addr()?.to_string()
            }
            ["send", name, address @ ..] => {
                let socket = &self.udp[*name];
                match address {
                    [address] => socket.send_to(b"?", address)?,
                    _ => socket.send(b"?")?,
                };
                let mut buffer = [0; 64];
                let (length, from) = socket.recv_from(&mut buffer)?;
                format!("{from} is {}", String::from_utf8_lossy(&buffer[..length]))
            }
            // Until something happens to it.
            ["wait", name] => match (self.udp.get(*name), self.tcp.get_mut(*name)) {
                (Some(socket), _) => format!("{:?}", socket.recv(&mut [0; 64])?),
                (None, Some(stream)) => format!("{:?}", stream.read(&mut [0; 64])?),
                (None, None) => "no such socket".into(),
            },
            ["close", name] => {
                let any = self.tcp.remove(*name).is_some() | self.udp.remove(*name).is_some();
                if any { "closed".into() } else { "no such socket".into() }
            }
            ["bind", "tcp", address] => TcpListener::bind(address)?.local_addr()?.to_string(),
            ["bind", "udp", address] => UdpSocket::bind(address)?.local_addr()?.to_string(),
            ["bind-marked", address] => weft_health::listen(address.parse().unwrap())?.local_addr()?.to_string(),
            ["knock", address] => {
                let stop = Arc::new(AtomicBool::new(false));
                let (address, told) = ((*address).to_owned(), stop.clone());
                let thread = std::thread::spawn(move || knock(&address, &told).unwrap_or_else(|e| e.to_string()));
                self.knocking = Some((stop, thread));
                "knocking".into()
            }
            ["stop"] => {
                let (stop, thread) = self.knocking.take().expect("knocks");
                stop.store(true, Ordering::Relaxed);
                thread.join().expect("ends")
            }
            other => format!("what is {other:?}"),
        })
    }
}

/// Answers TCP and UDP with a name for as long as the process lives.
fn serve(address: &str, name: &str) -> io::Result<String> {
    let listener = TcpListener::bind(address)?;
    let socket = UdpSocket::bind(address)?;
    let (tcp, udp) = (name.to_owned(), name.to_owned());
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            // Whoever has gone already is of no interest.
            let _ = stream.write_all(format!("{tcp}\n").as_bytes());
            if open.len() == 8 {
                open.remove(0);
            }
            open.push(stream);
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(udp.as_bytes(), from);
        }
    });
    Ok("serves".into())
}

/// A line.
fn hear(stream: &mut TcpStream) -> io::Result<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&text).into())
}

/// Opens and closes connections, TCP and UDP, until told to stop. Every one must be answered.
fn knock(address: &str, stop: &AtomicBool) -> io::Result<String> {
    let mut count = 0_u32;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    while !stop.load(Ordering::Relaxed) {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        if stream.peer_addr()?.to_string() != address || hear(&mut stream)?.is_empty() {
            return Ok(format!("after {count}: not the frontend"));
        }
        socket.send_to(b"?", address)?;
        let (_, from) = socket.recv_from(&mut [0; 64])?;
        if from.to_string() != address {
            return Ok(format!("after {count}: answer of {from}"));
        }
        count += 1;
    }
    Ok(if count == 0 { "none".into() } else { "all".into() })
}
