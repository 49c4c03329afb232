//! Scenarios measured in turn, round by round, each against its bases of the same round.

use crate::chain::Chain;
use crate::cluster::Pod;
use crate::report::{Figure, Report, median};
use crate::traffic::{Metric, Spoiled, Way, slice};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// How to measure.
pub struct Settings {
    /// Rounds.
    pub rounds: usize,
    /// Of one scenario, metric and family.
    pub slice: Duration,
    /// The reference CNI plugins.
    pub cni_plugins: PathBuf,
    /// Beginnings of the names of the wanted scenarios; none: all.
    pub only: Vec<String>,
}

impl Settings {
    /// Some scenario of this group, whose names begin so, may be wanted.
    pub fn may_want(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|start| group.starts_with(start) || start.starts_with(group))
    }
}

/// A way for traffic, and what it is compared with.
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// Names of the scenarios that it is compared with, each of which is measured again as `NAME/again`.
    pub bases: Vec<String>,
    /// Where the client runs.
    pub client: PathBuf,
    /// Where the server runs.
    pub server: PathBuf,
    /// The server's addresses.
    pub addresses: [IpAddr; 2],
    /// The server's port; 0: any.
    pub port: u16,
    /// Where the client sends to, if not to the server itself.
    pub through: Option<[SocketAddr; 2]>,
    /// The client is a process of this control group, so that the cgroup's programs see its sockets.
    pub cgroup: Option<PathBuf>,
    /// Sockets of agents whose flows are watched during the slice.
    pub observe: Vec<PathBuf>,
}

impl Scenario {
    /// Straight to a server.
    pub fn new(name: &str, base: &str, client: PathBuf, server: PathBuf, addresses: [IpAddr; 2]) -> Self {
        Self {
            name: name.to_owned(),
            bases: vec![base.to_owned()],
            client,
            server,
            addresses,
            port: 0,
            through: None,
            cgroup: None,
            observe: Vec::new(),
        }
    }

    /// From a pod to another one.
    pub fn pods(name: &str, base: &str, client: &Pod, server: &Pod) -> Self {
        Self::new(name, base, client.ns.clone(), server.ns.clone(), server.addresses)
    }

    /// Through plain forwarding.
    pub fn chain(name: &str, base: &str, chain: &Chain) -> Self {
        Self::new(name, base, chain.client_ns(), chain.server_ns(), chain.server)
    }

    /// Those that the settings ask for, and their bases.
    pub fn wanted(scenarios: Vec<Self>, settings: &Settings) -> Vec<Self> {
        if settings.only.is_empty() {
            return scenarios;
        }
        let mut names: BTreeSet<String> = BTreeSet::new();
        let is_wanted = |name: &str| settings.only.iter().any(|start| name.starts_with(start.as_str()));
        // Bases have bases.
        let mut more: Vec<&str> =
            scenarios.iter().map(|one| one.name.as_str()).filter(|name| is_wanted(name)).collect();
        while let Some(name) = more.pop() {
            if names.insert(name.to_owned()) {
                for base in scenarios.iter().filter(|one| one.name == name).flat_map(|one| &one.bases) {
                    let measured =
                        scenarios.iter().filter(|one| one.name == *base || one.name == format!("{base}/again"));
                    more.extend(measured.map(|one| one.name.as_str()));
                }
            }
        }
        scenarios.into_iter().filter(|one| names.contains(&one.name)).collect()
    }

    /// One slice.
    pub fn slice(&self, metric: Metric, family: usize, length: Duration) -> Result<Vec<f64>> {
        let watching = watch(&self.observe)?;
        let way = Way {
            client: &self.client,
            server: &self.server,
            bind: SocketAddr::new(self.addresses[family], self.port),
            through: self.through.map(|both| both[family]),
            cgroup: self.cgroup.as_deref(),
        };
        let figures = slice(&way, metric, length);
        drop(watching);
        figures.with_context(|| format!("{} {metric:?} {}", self.name, self.addresses[family]))
    }
}

/// Measures slices, and those again that were spoiled.
#[derive(Default, Debug)]
pub struct Attempts {
    slices: usize,
    again: Vec<String>,
}

impl Attempts {
    /// A path that loses packets every time is an error, not a busy machine.
    const MAX: usize = 4;

    /// Measures until a slice gives its figures.
    pub fn measure<T>(&mut self, slice: impl Fn() -> Result<T>) -> Result<T> {
        self.slices += 1;
        let mut attempt = 1;
        loop {
            match slice() {
                Err(error) if attempt < Self::MAX && error.downcast_ref::<Spoiled>().is_some() => {
                    eprintln!("slice spoiled, measured again: {error:#}");
                    self.again.push(format!("{error:#}"));
                    attempt += 1;
                }
                result => return result.with_context(|| format!("attempt {attempt} of {}", Self::MAX)),
            }
        }
    }

    /// For people: how many slices were measured again, and why.
    pub fn summary(&self) -> Option<String> {
        (!self.again.is_empty()).then(|| {
            format!(
                "note: {} slices, {} measured again because they were spoiled:\n  {}",
                self.slices,
                self.again.len(),
                self.again.join("\n  ")
            )
        })
    }
}

/// Measures all of them.
pub fn rounds(scenarios: &[Scenario], metrics: &[Metric], settings: &Settings) -> Result<Report> {
    // (scenario, metric, family) -> figures of each round
    let mut samples: BTreeMap<(usize, usize, usize), Vec<Vec<f64>>> = BTreeMap::new();
    let mut attempts = Attempts::default();
    for round in 0..settings.rounds {
        eprint!("\rround {}/{} ", round + 1, settings.rounds);
        for (m, metric) in metrics.iter().enumerate() {
            for family in 0..2 {
                for turn in 0..scenarios.len() {
                    let s = (turn + round) % scenarios.len();
                    let figures = attempts.measure(|| scenarios[s].slice(*metric, family, settings.slice))?;
                    samples.entry((s, m, family)).or_default().push(figures);
                }
            }
        }
    }
    eprintln!();
    let mut report = Report::default();
    report.note(attempts.summary());
    let position = |name: &str| scenarios.iter().position(|other| other.name == name);
    for (s, scenario) in scenarios.iter().enumerate() {
        for base_name in &scenario.bases {
            let base = position(base_name).with_context(|| format!("no scenario {base_name}"))?;
            let again =
                position(&format!("{base_name}/again")).with_context(|| format!("{base_name} has no control"))?;
            for (m, metric) in metrics.iter().enumerate() {
                for (family, name) in ["ipv4", "ipv6"].into_iter().enumerate() {
                    for (f, (figure, unit)) in metric.figures().iter().enumerate() {
                        let of = |s: usize| samples[&(s, m, family)].iter().map(|round| round[f]).collect::<Vec<_>>();
                        let ratio_to_base = |s: usize| {
                            median(&of(s).iter().zip(of(base)).map(|(value, base)| value / base).collect::<Vec<_>>())
                        };
                        report.add(Figure {
                            scenario: scenario.name.clone(),
                            metric: (*figure).into(),
                            family: name.into(),
                            value: median(&of(s)),
                            unit: (*unit).into(),
                            base: base_name.clone(),
                            ratio: Some(ratio_to_base(s)),
                            rounds: settings.rounds,
                            aa: Some(ratio_to_base(again)),
                        });
                    }
                }
            }
        }
    }
    Ok(report)
}

/// Follows the flows of these agents until the returned connections are dropped; a thread reads each empty.
fn watch(sockets: &[PathBuf]) -> Result<Vec<Watching>> {
    sockets.iter().map(|socket| Watching::start(socket)).collect()
}

struct Watching {
    stream: UnixStream,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Watching {
    fn start(socket: &std::path::Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket).with_context(|| format!("connect {}", socket.display()))?;
        let request =
            weft_api::agent::Request::Observe { filter: weft_api::flow::FlowFilter::default(), last: 0, follow: true };
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut input = stream.try_clone()?;
        let reader = std::thread::spawn(move || {
            if let Err(error) = std::io::copy(&mut input, &mut std::io::sink()) {
                eprintln!("observer: {error}");
            }
        });
        Ok(Self { stream, reader: Some(reader) })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Err(error) = self.stream.shutdown(std::net::Shutdown::Both) {
            eprintln!("observer: {error}");
        }
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            eprintln!("observer: the reader panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn starved() -> anyhow::Error {
        anyhow::Error::from(Spoiled::Starved { round_trips: 3 }).context("same-node TcpRr")
    }

    #[test]
    fn a_spoiled_slice_is_measured_again_and_counted() {
        let (mut attempts, turn) = (Attempts::default(), Cell::new(0));
        let figures = attempts.measure(|| {
            turn.set(turn.get() + 1);
            if turn.get() < 3 { Err(starved()) } else { Ok(turn.get()) }
        });
        assert_eq!(figures.expect("the third one is good"), 3);
        let summary = attempts.summary().expect("two were spoiled");
        assert!(summary.contains("1 slices, 2 measured again") && summary.contains("only 3 round trips"), "{summary}");
    }

    #[test]
    fn a_path_that_never_answers_is_an_error_and_so_is_any_other() {
        let turns = Cell::new(0);
        let error = Attempts::default().measure(|| -> Result<()> {
            turns.set(turns.get() + 1);
            Err(starved())
        });
        assert!(error.expect_err("every one").downcast_ref::<Spoiled>().is_some());
        assert_eq!(turns.replace(0), Attempts::MAX);
        let error = Attempts::default().measure(|| -> Result<()> {
            turns.set(turns.get() + 1);
            anyhow::bail!("bind: address in use")
        });
        error.expect_err("no busy machine");
        assert_eq!(turns.get(), 1, "measured once");
    }

    #[test]
    fn nothing_is_noted_where_no_slice_was_spoiled() {
        let mut attempts = Attempts::default();
        attempts.measure(|| Ok(())).expect("good");
        assert_eq!(attempts.summary(), None);
    }
}
