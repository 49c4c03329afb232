//! What takes how long: each stage of a task says when it begins and ends, and all of them are listed in the end.

use anyhow::{Context as _, Result};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One stage that is over.
struct Row {
    name: String,
    began: Duration,
    took: Duration,
}

/// The stages of a task. Some of them run beside each other.
pub struct Stages {
    began: Instant,
    rows: Mutex<Vec<Row>>,
}

impl Stages {
    /// None yet; the clock runs from now.
    pub fn begin() -> Self {
        Self { began: Instant::now(), rows: Mutex::default() }
    }

    /// Runs one stage, and says so before and after.
    pub fn run<T>(&self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = self.began.elapsed();
        println!("{} {name} ...", clock(began));
        let result = work();
        let took = self.began.elapsed().saturating_sub(began);
        let end = if result.is_ok() { "done" } else { "FAILED" };
        println!("{} {name}: {end} after {:.1} s", clock(self.began.elapsed()), took.as_secs_f64());
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.push(Row { name: name.to_owned(), began, took });
        result
    }

    /// A stage that is one command, which must succeed.
    pub fn command(&self, name: &str, command: &mut Command) -> Result<()> {
        self.run(name, || {
            let status = command.status().with_context(|| format!("start {}", command.get_program().display()))?;
            anyhow::ensure!(status.success(), "{name}: {} ended with {status}", command.get_program().display());
            Ok(())
        })
    }

    /// Prints all stages in the order in which they began, and the time from the first to now.
    pub fn print(&self) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.sort_by_key(|row| row.began);
        println!("\n  from    takes  stage");
        for row in rows.iter() {
            println!("{} {:>7.1}s  {}", clock(row.began), row.took.as_secs_f64(), row.name);
        }
        println!("{} {:>7.1}s  in all", clock(Duration::ZERO), self.began.elapsed().as_secs_f64());
    }
}

/// Minutes and seconds.
fn clock(time: Duration) -> String {
    format!("{:>3}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}
