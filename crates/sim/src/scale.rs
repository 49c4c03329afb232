//! Several runs beside each other: every mode at every size, each in a process of its own, as a table and as plots.

use crate::options::Run;
use crate::plot;
use crate::report::Report;
use anyhow::Context as _;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::Command;
use weft_k8s::endpoint::Propagation;

/// What is compared.
#[derive(Args, Clone, Debug)]
#[group(id = "comparison")]
pub struct Options {
    /// The size of the comparison.
    #[command(flatten)]
    pub run: Run,
    /// Sizes for the growth, in nodes.
    #[arg(long, value_delimiter = ',', default_value = "100,300,1000")]
    pub growth: Vec<usize>,
    /// Pods at each of them: the same, so that only the number of nodes grows.
    #[arg(long, default_value_t = 2000)]
    pub growth_pods: usize,
    /// Nodes of a larger comparison, made where memory allows; 0: none.
    #[arg(long, default_value_t = 1000)]
    pub larger_nodes: usize,
    /// Pods of it.
    #[arg(long, default_value_t = 25_000)]
    pub larger_pods: usize,
    /// Where results go.
    #[arg(long, default_value = "target/bench")]
    pub out: PathBuf,
    /// Runs whose results are there already are not made again, if they had the same options.
    #[arg(long)]
    pub resume: bool,
}

/// Memory of an agent that knows of no pod, both ends of its connection included, and of what it knows of one.
const AGENT_KIB: usize = 3072;
const POD_BYTES: usize = 2048;

const MODES: [Propagation; 3] = [Propagation::Cep, Propagation::CesOperator, Propagation::CesNode];

/// Runs all.
///
/// # Errors
/// A run failed, or results cannot be written.
pub fn run(options: &Options) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.out).with_context(|| format!("out {}", options.out.display()))?;
    let mut reports = Vec::new();
    let mut sizes: Vec<(usize, usize)> = options.growth.iter().map(|nodes| (*nodes, options.growth_pods)).collect();
    let compared = [(options.run.nodes, options.run.pods), (options.larger_nodes, options.larger_pods)];
    sizes.extend(compared.into_iter().filter(|(nodes, _)| *nodes > 0));
    sizes.sort_unstable();
    sizes.dedup();
    for (nodes, pods) in sizes {
        let (needed, available) = (memory_needed_mib(nodes, pods), memory_available_mib());
        if needed > available {
            println!(
                "{nodes} nodes, {pods} pods: left out, needs some {needed} MiB of memory and {available} are free\n"
            );
            continue;
        }
        for mode in MODES {
            let rates = if (nodes, pods) == compared[0] { options.run.rates.clone() } else { Vec::new() };
            let run = Run { nodes, pods, rates, ..options.run.clone() };
            eprintln!("{}: {nodes} nodes, {pods} pods", mode.as_str());
            let report = match options.resume.then(|| former(&run, mode, &options.out)).flatten() {
                Some(report) => report,
                None => one(&run, mode, &options.out)?,
            };
            print!("{}", report.text());
            reports.push(report);
            let json = serde_json::to_vec_pretty(&reports)?;
            std::fs::write(options.out.join("scale.json"), json).context("scale.json")?;
        }
    }
    for size in compared.into_iter().filter(|size| reports.iter().any(|r| (r.options.nodes, r.options.pods) == *size)) {
        println!("{}", table(&reports, size));
    }
    let series = |value: &dyn Fn(&Report) -> f64| -> Vec<(String, Vec<(f64, f64)>)> {
        let of = |mode: Propagation| {
            let grown =
                |r: &&Report| options.growth.contains(&r.options.nodes) && r.options.pods == options.growth_pods;
            let mine = reports.iter().filter(|r| r.mode == mode.as_str()).filter(grown);
            (mode.as_str().to_owned(), mine.map(|r| (r.options.nodes as f64, value(r))).collect())
        };
        MODES.map(of).into()
    };
    let propagation = series(&|report| report.propagation.p99_ms);
    let bytes = series(&|report| report.api_bytes_per_pod / 1024.0);
    for (file, title, unit, series) in [
        ("scale-propagation.svg", "Propagation p99", "ms", propagation),
        ("scale-bytes.svg", "API bodies per started pod", "KiB", bytes),
    ] {
        let svg = plot::svg(title, "nodes", unit, &series);
        std::fs::write(options.out.join(file), svg).with_context(|| file.to_owned())?;
    }
    Ok(())
}

/// What a run needs at most, as measured: an agent with both ends of its connection, and what it knows of each pod.
fn memory_needed_mib(nodes: usize, pods: usize) -> usize {
    nodes * (AGENT_KIB + pods * POD_BYTES / 1024) / 1024
}

fn memory_available_mib() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<usize> = line.and_then(|line| line.trim().split(' ').next()?.parse().ok());
    kib.map_or(usize::MAX, |kib| kib / 1024)
}

fn file_of(run: &Run, mode: Propagation, out: &Path) -> PathBuf {
    out.join(format!("sim-{}-{}-{}.json", mode.as_str(), run.nodes, run.pods))
}

/// What came out of the same run before.
fn former(run: &Run, mode: Propagation, out: &Path) -> Option<Report> {
    let report: Report = serde_json::from_slice(&std::fs::read(file_of(run, mode, out)).ok()?).ok()?;
    let same = serde_json::to_value(&report.options).ok()? == serde_json::to_value(run).ok()?;
    same.then_some(report)
}

/// In a process of its own, so that its memory is its own.
fn one(run: &Run, mode: Propagation, out: &Path) -> anyhow::Result<Report> {
    let file = file_of(run, mode, out);
    let program = std::env::current_exe().context("this program's path")?;
    let numbers = [
        ("--nodes", run.nodes.to_string()),
        ("--pods", run.pods.to_string()),
        ("--deployments", run.deployments.to_string()),
        ("--namespaces", run.namespaces.to_string()),
        ("--policies", run.policies.to_string()),
        ("--rate", run.rate.to_string()),
        ("--warm-up", run.warm_up.to_string()),
        ("--seconds", run.seconds.to_string()),
        ("--scale-to-zero", run.scale_to_zero.to_string()),
        ("--lost-nodes", run.lost_nodes.to_string()),
        ("--drain", run.drain.to_string()),
        ("--seed", run.seed.to_string()),
    ];
    let mut command = Command::new(program);
    command.args(["run", "--mode", mode.as_str(), "--quiet", "--json"]).arg(&file);
    for (flag, value) in numbers {
        command.args([flag, &value]);
    }
    if !run.rates.is_empty() {
        let rates: Vec<String> = run.rates.iter().map(f64::to_string).collect();
        command.args(["--rates", &rates.join(",")]);
    }
    let status = command.status().context("start a run")?;
    anyhow::ensure!(status.success(), "{} with {} nodes failed: {status}", mode.as_str(), run.nodes);
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

/// The rates of pods with which a mode keeps up, as far as they were tried.
fn keeps_up(report: &Report) -> String {
    match (report.rates_kept, report.rate_lost) {
        (Some(kept), Some(_)) => format!("{kept}/s"),
        (Some(kept), None) => format!(">= {kept}/s"),
        (None, Some(lost)) => format!("< {lost}/s"),
        (None, None) => String::new(),
    }
}

/// The modes of one size beside each other, and how much better they are than `cep`.
#[must_use]
pub fn table(reports: &[Report], (nodes, pods): (usize, usize)) -> String {
    let of = |mode: Propagation| {
        let sized = |r: &&Report| (r.options.nodes, r.options.pods) == (nodes, pods);
        reports.iter().filter(sized).find(|r| r.mode == mode.as_str())
    };
    let Some(base) = of(Propagation::Cep) else { return "no run of cep at this size".to_owned() };
    let options = &base.options;
    let mut text = format!(
        "\n{} nodes, {} pods; {} pods/s rolled out for {} s, {} % scaled to zero, {} nodes lost; seed {}\n\n",
        nodes, options.pods, options.rate, options.seconds, options.scale_to_zero, options.lost_nodes, options.seed
    );
    text += &format!(
        "{:<13}{:>24}{:>24}{:>30}{:>11}{:>8}{:>8}{:>7}{:>13}{:>14}\n",
        "",
        "API latency p50/p99 ms",
        "pod start p50/p99 ms",
        "propagation p50/p99/max ms",
        "KiB/pod",
        "events",
        "writes",
        "CPUs",
        "timers late",
        "keeps up with"
    );
    for report in MODES.into_iter().filter_map(of) {
        let (api, start, all) = (&report.api_latency, &report.pod_start, &report.propagation);
        text += &format!(
            "{:<13}{:>24}{:>24}{:>30}{:>11.1}{:>8.0}{:>8.2}{:>7.2}{:>13}{:>14}\n",
            report.mode,
            format!("{:.1} / {:.1}", api.p50_ms, api.p99_ms),
            format!("{:.1} / {:.1}", start.p50_ms, start.p99_ms),
            format!("{:.0} / {:.0} / {:.0}", all.p50_ms, all.p99_ms, all.max_ms),
            report.api_bytes_per_pod / 1024.0,
            report.events_per_pod,
            report.writes_per_pod,
            report.cpus,
            format!("{:.0} / {:.0}", report.lag.p50_ms, report.lag.p99_ms),
            keeps_up(report),
        );
    }
    if let (Some(node), Some(operator)) = (of(Propagation::CesNode), of(Propagation::CesOperator)) {
        let less = |ours: f64, theirs: f64| 100.0 * (1.0 - ours / theirs.max(f64::MIN_POSITIVE));
        text += &format!(
            "\nces-node against cep, p99: API latency {:.0} % less (goal: 50), pod start {:.0} % less (goal: 60), \
             propagation {:.0} % less (goal: 80)\nces-node against ces-operator: propagation p50 {:.1} times, p99 {:.1} \
             times faster (goal: 5)\n",
            less(node.api_latency.p99_ms, base.api_latency.p99_ms),
            less(node.pod_start.p99_ms, base.pod_start.p99_ms),
            less(node.propagation.p99_ms, base.propagation.p99_ms),
            operator.propagation.p50_ms / node.propagation.p50_ms.max(f64::MIN_POSITIVE),
            operator.propagation.p99_ms / node.propagation.p99_ms.max(f64::MIN_POSITIVE),
        );
        text += &format!(
            "ces-node against cep, p50: API latency {:.0} % less, pod start {:.0} % less, propagation {:.0} % less\n",
            less(node.api_latency.p50_ms, base.api_latency.p50_ms),
            less(node.pod_start.p50_ms, base.pod_start.p50_ms),
            less(node.propagation.p50_ms, base.propagation.p50_ms),
        );
    }
    text += "\nConditions:\n";
    for condition in &base.conditions {
        text += &format!("- {condition}\n");
    }
    text
}
