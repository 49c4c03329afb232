//! One process with tests: its output is kept and shown if it fails, its results are counted, and what it leaves is
//! removed.

use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A process that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// How many tests ended how.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    pub passed: usize,
    pub failed: usize,
    pub ignored: usize,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Of the harness's lines `test result: ok. 12 passed; 0 failed; 0 ignored; ...`.
    fn read(output: &str) -> Self {
        let mut tally = Self::default();
        for line in output.lines().filter(|line| line.starts_with("test result:")) {
            let words: Vec<&str> = line.split([' ', ';']).collect();
            let count = |what: &str| {
                let at = words.iter().position(|word| *word == what)?;
                words.get(at.checked_sub(1)?)?.parse::<usize>().ok()
            };
            tally.add(&Self {
                passed: count("passed").unwrap_or(0),
                failed: count("failed").unwrap_or(0),
                ignored: count("ignored").unwrap_or(0),
            });
        }
        tally
    }

    fn all(&self) -> usize {
        self.passed + self.failed + self.ignored
    }
}

/// What became of a job.
pub struct Outcome {
    pub tally: Tally,
    /// Names of what failed.
    pub failures: Vec<String>,
}

/// A process to be run.
pub struct Job {
    name: String,
    command: Command,
    expected: Option<usize>,
}

impl Job {
    /// `expected`: how many tests it has, if that is known.
    pub fn new(name: String, command: Command, expected: Option<usize>) -> Self {
        Self { name, command, expected }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs it to its end. A test that does not say how it ended has failed.
    pub fn run(mut self) -> Outcome {
        let began = Instant::now();
        let (output, end) = match self.output() {
            Ok((output, status)) if status.success() => (output, Ok(())),
            Ok((output, status)) => {
                let how = status.signal().map_or_else(|| status.to_string(), |signal| format!("signal {signal}"));
                (output, Err(how))
            }
            Err(error) => (String::new(), Err(format!("{error:#}"))),
        };
        let mut tally = Tally::read(&output);
        let mut failures: Vec<String> = failed(&output).map(|test| format!("{} {test}", self.name)).collect();
        let mut why = end.err();
        if let Some(expected) = self.expected.filter(|expected| *expected != tally.all()) {
            why = Some(format!(
                "{expected} tests, but {} have said how they ended; {}",
                tally.all(),
                why.unwrap_or_default()
            ));
        }
        if why.is_some() && tally.failed == 0 {
            tally.failed =
                self.expected.map_or(1, |expected| expected.saturating_sub(tally.passed + tally.ignored).max(1));
            failures.push(self.name.clone());
        }
        let seconds = began.elapsed().as_secs_f64();
        match why {
            None => println!("ok     {seconds:>6.1} s  {} ({})", self.name, tally.passed),
            // One piece, so that two jobs that fail at once stay apart.
            Some(why) => println!("{0}\n{output}\nFAILED {seconds:>6.1} s  {1}: {why}\n{0}", "-".repeat(80), self.name),
        }
        Outcome { tally, failures }
    }

    /// Everything that it writes, and how it ends.
    fn output(&mut self) -> Result<(String, ExitStatus)> {
        let mut file = temporary()?;
        self.command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file.try_clone()?);
        let mut child = self.command.spawn().with_context(|| format!("start {}", self.name))?;
        let status = wait(&mut child);
        remove_clusters(child.id());
        file.rewind()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut output = String::from_utf8_lossy(&bytes).into_owned();
        match status {
            Ok(status) => Ok((output, status)),
            Err(error) => {
                output.push_str(&format!("{error:#}\n"));
                bail!("{output}")
            }
        }
    }
}

/// A file that goes with its descriptor.
fn temporary() -> Result<File> {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("weft-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.with_context(|| format!("create {}", path.display()))?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > until {
            child.kill()?;
            let status = child.wait()?;
            bail!("it was ended ({status}) since it took longer than {} minutes", LIMIT.as_secs() / 60);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Tests that failed, as the harness names them: `test a::b ... FAILED`, or in its list at the end.
fn failed(output: &str) -> impl Iterator<Item = &str> {
    let list = output.rfind("\nfailures:\n").map_or("", |at| &output[at + "\nfailures:\n".len()..]);
    list.lines().take_while(|line| line.starts_with("    ")).map(str::trim)
}

/// A cluster's name ends with the number of the process that made it. A process that was killed could not remove its own.
fn remove_clusters(pid: u32) {
    for dir in ["/run/weft", "/var/lib/weft"] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let label = name.strip_suffix(&pid.to_string());
            if label.is_some_and(|label| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_lowercase())) {
                let weft = Path::new("target/debug/weft");
                let _ = Command::new(weft).args(["down", "--name", &name]).stdout(Stdio::null()).status();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Job, Tally, failed};
    use std::process::Command;

    const OUTPUT: &str = "running 3 tests\ntest a ... ok\ntest b::c ... FAILED\n\nfailures:\n\n---- b::c stdout ----\noh\n\n\
                          failures:\n    b::c\n\ntest result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; \
                          finished in 0.01s\n";

    #[test]
    fn counts_and_names_what_the_harness_says() {
        assert_eq!(Tally::read(OUTPUT), Tally { passed: 1, failed: 1, ignored: 1 });
        assert_eq!(failed(OUTPUT).collect::<Vec<_>>(), ["b::c"]);
    }

    fn shell(script: &str, expected: usize) -> super::Outcome {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Job::new("x".to_owned(), command, Some(expected)).run()
    }

    #[test]
    fn whoever_does_not_say_how_it_ended_has_failed() {
        let fine = shell("echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured'", 2);
        assert_eq!((fine.tally, fine.failures.len()), (Tally { passed: 2, failed: 0, ignored: 0 }, 0));
        for script in ["true", "kill -9 $$", "echo 'test result: ok. 1 passed; 0 failed; 0 ignored'", "exit 3"] {
            let outcome = shell(script, 2);
            assert!(outcome.tally.failed > 0 && outcome.failures == ["x"], "{script}");
        }
        let code = shell("echo 'test result: ok. 2 passed; 0 failed; 0 ignored'; exit 1", 2);
        assert!(code.tally.failed > 0, "the code counts, whatever was said");
    }
}
