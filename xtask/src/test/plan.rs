//! Which tests run when.

use super::Executable;
use super::job::Job;
use anyhow::{Context as _, Result, bail};
use std::process::Command;

/// The executables whose tests are whole clusters: those of the programs, and those of the lab with stand-ins.
const CLUSTERS: &[&str] = &["tests cluster", "cluster cluster", "cluster containers"];
/// Its tests that run one at a time are in modules below this.
const ALONE: &str = "alone::";
/// What takes longest begins first, so that nothing long is left over in the end. Words of names; nothing is lost if one
/// matches no test any more.
const LONG_FIRST: &[&str] = &[
    "trial suite",
    "sim cluster",
    "tests packets",
    "control suite",
    "clean::",
    "containerd::",
    "language::",
    "edge::",
    "policy::",
    "rollout::",
    "service::",
    "churn::",
    "ipam::",
];

/// All jobs.
pub struct Plan {
    /// Tests of all jobs together.
    pub count: usize,
    /// Executables that compute.
    pub computing: Vec<Job>,
    /// Tests with clusters, one at a time.
    pub alone: Vec<Job>,
    /// Other tests with clusters.
    pub clusters: Vec<Job>,
}

impl Plan {
    /// For the tests whose names have one of the words, or for all; of full size or not, and from which seed on.
    pub fn make(executables: &[Executable], words: &[&String], (long, seed): (bool, &str)) -> Result<Self> {
        let mut plan = Self { count: 0, computing: Vec::new(), alone: Vec::new(), clusters: Vec::new() };
        for executable in executables {
            let all = list(executable)?;
            let full = |test: &String| format!("{} {test}", executable.name);
            let wanted =
                |test: &&String| words.is_empty() || words.iter().any(|word| full(test).contains(word.as_str()));
            let tests: Vec<&String> = all.iter().filter(wanted).collect();
            plan.count += tests.len();
            let command = |arguments: &[&str]| {
                let mut command = Command::new(&executable.path);
                command.current_dir(&executable.dir).env("CARGO_MANIFEST_DIR", &executable.dir).args(arguments);
                command.env("WEFT_SEED", seed).env("PROPTEST_RNG_SEED", seed);
                if long {
                    command.env("WEFT_TEST_LONG", "1");
                }
                command
            };
            if CLUSTERS.contains(&executable.name.as_str()) {
                for test in tests {
                    let job = Job::new(full(test), command(&["--exact", test, "--nocapture"]), Some(1));
                    if test.starts_with(ALONE) { plan.alone.push(job) } else { plan.clusters.push(job) }
                }
            } else if !tests.is_empty() {
                let mut arguments = vec!["--exact"];
                if tests.len() < all.len() {
                    arguments.extend(tests.iter().map(|test| test.as_str()));
                } else {
                    arguments.clear();
                }
                plan.computing.push(Job::new(executable.name.clone(), command(&arguments), Some(tests.len())));
            }
        }
        for jobs in [&mut plan.computing, &mut plan.alone, &mut plan.clusters] {
            jobs.sort_by_key(|job| LONG_FIRST.iter().position(|word| job.name().contains(word)).unwrap_or(usize::MAX));
        }
        Ok(plan)
    }
}

/// The names of an executable's tests.
fn list(executable: &Executable) -> Result<Vec<String>> {
    let output = Command::new(&executable.path)
        .current_dir(&executable.dir)
        .args(["--list", "--format", "terse"])
        .output()
        .with_context(|| format!("start {}", executable.path.display()))?;
    if !output.status.success() {
        bail!("{} does not list its tests: {}", executable.name, String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout).context("names of tests are UTF-8")?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}
