//! `cargo xtask test`: all tests, in the order and number at a time in which a machine is used best.
//!
//! 1. What computes (units, properties, packets through the kernel's programs): as many executables at a time as there
//!    are CPUs.
//! 2. Whole clusters, each test a process of its own: they mostly wait. Those below `alone::` count lost packets or
//!    connections, or measure how soon something is refused: one of them at a time, the longest first, with the others
//!    beside it.
//!
//! Every executable first lists its tests; one that is not heard of again is a failure, as is an executable that ends
//! without saying what became of its tests.

mod job;
mod plan;

use crate::build;
use crate::stages::Stages;
use anyhow::{Context as _, Result, bail, ensure};
use job::{Job, Outcome, Tally};
use plan::Plan;
use serde_json::Value;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Whole clusters at a time, unless `WEFT_TEST_CLUSTERS` says how many.
const CLUSTERS: usize = 4;
/// Crates with examples in their documentation, which the harness compiles one by one.
const DOCUMENTED: &str = "weft-datapath";

/// An executable with tests.
pub struct Executable {
    /// `weft-control suite`: package and target.
    name: String,
    path: PathBuf,
    /// Where its package is: tests run there, as cargo runs them.
    dir: PathBuf,
}

/// Builds everything and runs all tests, or those whose name has one of the words in `arguments`.
pub fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let (flags, words): (Vec<&String>, Vec<&String>) = arguments.iter().partition(|word| word.starts_with('-'));
    for flag in &flags {
        ensure!(*flag == "--long", "unknown option {flag}: expected --long, and words of tests' names");
    }
    let long = !flags.is_empty();
    let seed = seed();
    println!("random tests begin with seed {seed}: WEFT_SEED={seed} repeats them");
    std::env::set_current_dir(root).context("go to the workspace's root")?;
    let stages = Stages::begin();
    let mut tally = Tally::default();
    let result = all(root, &stages, &words, (long, &seed), &mut tally);
    stages.print();
    println!("tests: {} passed, {} failed, {} ignored", tally.passed, tally.failed, tally.ignored);
    result?;
    ensure!(tally.failed == 0, "{} tests failed", tally.failed);
    ensure!(tally.passed > 0, "no test has one of these words in its name: {words:?}");
    Ok(())
}

fn all(root: &Path, stages: &Stages, words: &[&String], run: (bool, &str), tally: &mut Tally) -> Result<()> {
    build::programs(root, stages, "test", "dev")?;
    let executables = stages.run("test executables", || executables(root))?;
    let plan = Plan::make(&executables, words, run)?;
    println!("{} tests in {} executables", plan.count, executables.len());
    let mut failures = Vec::new();
    if words.is_empty() {
        let job = Job::new(
            format!("{DOCUMENTED} documentation"),
            build::cargo(root, &["test", "--quiet", "--doc", "-p", DOCUMENTED]),
            None,
        );
        stages.run("documentation", || {
            finish(vec![lanes(vec![job], Vec::new(), 1)], tally, &mut failures);
            Ok(())
        })?;
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if !plan.computing.is_empty() {
        stages.run("units, properties, packets", || {
            finish(vec![lanes(Vec::new(), plan.computing, cpus)], tally, &mut failures);
            Ok(())
        })?;
    }
    if !plan.alone.is_empty() || !plan.clusters.is_empty() {
        let clusters = match std::env::var("WEFT_TEST_CLUSTERS") {
            Ok(number) => number.parse().context("WEFT_TEST_CLUSTERS: expected a number")?,
            Err(_) => CLUSTERS,
        };
        stages.run("whole clusters", || {
            finish(vec![lanes(plan.alone, plan.clusters, clusters)], tally, &mut failures);
            Ok(())
        })?;
    }
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    Ok(())
}

/// `WEFT_SEED`, or one that the day gives.
fn seed() -> String {
    let days = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs() / 86_400);
    std::env::var("WEFT_SEED").unwrap_or_else(|_| (days() << 32).to_string())
}

/// Runs jobs, `width` at a time: of the first list one at a time, of the others as many as there is room for.
fn lanes(one_by_one: Vec<Job>, others: Vec<Job>, width: usize) -> Vec<Outcome> {
    let (first, others) = (Mutex::new(VecDeque::from(one_by_one)), Mutex::new(VecDeque::from(others)));
    let take = |from: &Mutex<VecDeque<Job>>| from.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let outcomes = Mutex::new(Vec::new());
    let work = |is_first: bool| {
        loop {
            let job = if is_first { take(&first).or_else(|| take(&others)) } else { take(&others) };
            let Some(job) = job else { break };
            let outcome = job.run();
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        }
    };
    std::thread::scope(|scope| {
        for lane in 0..width.max(1) {
            let work = &work;
            scope.spawn(move || work(lane == 0));
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn finish(lanes: Vec<Vec<Outcome>>, tally: &mut Tally, failures: &mut Vec<String>) {
    for outcome in lanes.into_iter().flatten() {
        tally.add(&outcome.tally);
        failures.extend(outcome.failures);
    }
}

/// Builds all executables with tests.
fn executables(root: &Path) -> Result<Vec<Executable>> {
    let mut command =
        build::cargo(root, &["test", "--no-run", "--quiet", "--message-format", "json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output().context("start cargo test")?;
    if !output.status.success() {
        bail!("the tests do not compile");
    }
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Value = serde_json::from_str(line).with_context(|| format!("cargo test said {line}"))?;
        let Some(path) = message["executable"].as_str() else { continue };
        if message["profile"]["test"] != true {
            continue;
        }
        let manifest = Path::new(message["manifest_path"].as_str().context("a message without manifest_path")?);
        let dir = manifest.parent().context("a manifest has a directory")?.to_owned();
        let package = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let target = &message["target"];
        let kind = target["kind"][0].as_str().unwrap_or_default();
        let name = if kind == "test" { target["name"].as_str().unwrap_or_default() } else { "unit" };
        found.push(Executable { name: format!("{package} {name}"), path: path.into(), dir });
    }
    ensure!(!found.is_empty(), "cargo test built no executable");
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}
