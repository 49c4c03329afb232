//! Measures Weft beside a baseline in the same run, and prints ratios: absolute times on shared machines say little.
//!
//! Everything runs in namespaces of its own and in embedded clusters of its own; nothing is left behind. A hard
//! alarm ends the process should anything hang.

mod chain;
mod cluster;
mod cni;
mod iptables;
mod netns;
mod path;
mod policy;
mod program;
mod report;
mod responsive;
mod scale;
mod scenario;
mod service_path;
mod services;
mod traffic;
mod watermarks;

use anyhow::{Context, Result, bail};
use clap::Parser;
use std::path::PathBuf;

/// Benchmarks of Weft; each prints a table and writes target/bench/NAME.json.
#[derive(Parser)]
#[command(name = "weft-bench", version)]
struct Arguments {
    /// What to measure: baseline (the chains and the bridge plugin alone), path (traffic), program (eBPF run time),
    /// cni, policy, memory, or all; never part of all: policy-scale, services-scale and responsive (which need no cluster), services,
    /// watermarks (which make clusters of their own).
    #[arg(value_delimiter = ',', default_value = "all")]
    what: Vec<String>,
    /// Rounds; every scenario gets one slice a round.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Of `path` and `services`: only the scenarios whose names begin with one of these, and their bases.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Length of a slice in milliseconds.
    #[arg(long, default_value_t = 200)]
    slice_ms: u64,
    /// Directory of the weft binaries; by default that of this program.
    #[arg(long, env = "WEFT_BIN_DIR")]
    bin_dir: Option<PathBuf>,
    /// Directory of the reference CNI plugins.
    #[arg(long, default_value = "/usr/lib/cni")]
    cni_plugins: PathBuf,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// End the process after this many seconds, whatever it is doing.
    #[arg(long, default_value_t = 2400)]
    alarm_s: u32,
}

const BENCHMARKS: [&str; 11] = [
    "baseline",
    "path",
    "program",
    "cni",
    "policy",
    "memory",
    "policy-scale",
    "responsive",
    "services",
    "services-scale",
    "watermarks",
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !nix::unistd::geteuid().is_root() {
        bail!("benchmarks make network namespaces: run them as root");
    }
    for what in &arguments.what {
        if what != "all" && !BENCHMARKS.contains(&what.as_str()) {
            bail!("unknown benchmark `{what}`: expected all or one of {}", BENCHMARKS.join(", "));
        }
    }
    nix::unistd::alarm::set(arguments.alarm_s);
    let bin_dir = match &arguments.bin_dir {
        Some(dir) => dir.clone(),
        None => std::env::current_exe()?.parent().context("the executable has no directory")?.to_path_buf(),
    };
    std::fs::create_dir_all(&arguments.out)?;
    let wanted = |name: &str| arguments.what.iter().any(|what| what == "all" || what == name);
    let settings = scenario::Settings {
        rounds: arguments.rounds,
        slice: std::time::Duration::from_millis(arguments.slice_ms),
        cni_plugins: arguments.cni_plugins.clone(),
        only: arguments.only.clone(),
    };

    if arguments.what == ["baseline"] {
        return path::baseline(&settings)?.write(&arguments.out.join("baseline.json"));
    }
    if arguments.what == ["policy-scale"] {
        return scale::run()?.write(&arguments.out.join("policy-scale.json"));
    }
    if arguments.what == ["responsive"] {
        return responsive::run()?.write(&arguments.out.join("responsive.json"));
    }
    if arguments.what == ["services"] {
        return service_path::run(&bin_dir, &settings)?.write(&arguments.out.join("services.json"));
    }
    if arguments.what == ["services-scale"] {
        return services::run()?.write(&arguments.out.join("services-scale.json"));
    }
    if arguments.what == ["watermarks"] {
        return watermarks::run(&bin_dir)?.write(&arguments.out.join("watermarks.json"));
    }
    let native = cluster::Cluster::up(&bin_dir, "native", 2)?;
    if wanted("cni") {
        cni::run(&native)?.write(&arguments.out.join("cni.json"))?;
    }
    if wanted("path") {
        let vxlan = cluster::Cluster::up(&bin_dir, "vxlan", 2)?;
        path::run(&native, &vxlan, &settings)?.write(&arguments.out.join("path.json"))?;
    }
    if wanted("program") {
        program::run(&native, &settings)?.write(&arguments.out.join("program.json"))?;
    }
    if wanted("policy") {
        policy::run(&native)?.write(&arguments.out.join("policy.json"))?;
    }
    if wanted("memory") {
        cni::memory(&native)?.write(&arguments.out.join("memory.json"))?;
    }
    Ok(())
}
