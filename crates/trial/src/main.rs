//! `fuzz-policy`: compares the policy compiler with the oracle on random worlds.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use weft_trial::compare::{self, Tally, Until};

const USAGE: &str = "fuzz-policy [--seconds N] [--first SEED]
fuzz-policy --seed SEED

Compares the verdicts of the policy engine with those of the oracle on random worlds, for N seconds (60) on all cores.
With --seed only the world of that seed. If the two differ, prints a minimal world and exits with 1.";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    let (mut seconds, mut first, mut single) = (60, now << 24, None);
    while let Some(argument) = arguments.next() {
        let number = arguments.next().and_then(|value| value.parse::<u64>().ok());
        match (argument.as_str(), number) {
            ("--seconds", Some(number)) => seconds = number,
            ("--first", Some(number)) => first = number,
            ("--seed", Some(number)) => single = Some(number),
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let report = |tally: Tally, passed: Duration| {
        let Tally { worlds, decisions, allowed, by_rule } = tally;
        let per_second = worlds as f64 / passed.as_secs_f64().max(0.001);
        let percent = |part: u64| part * 100 / decisions.max(1);
        println!(
            "{worlds} worlds in {:.0} s ({per_second:.0} a second), {decisions} decisions: {} % allowed, {} % by rules",
            passed.as_secs_f64(),
            percent(allowed),
            percent(by_rule)
        );
    };
    let start = std::time::Instant::now();
    let compared = match single {
        Some(seed) => compare::seed(seed),
        None => {
            println!("seeds from {first}");
            compare::run(first, Until::Passed(Duration::from_secs(seconds)), report)
        }
    };
    match compared {
        Ok(tally) => {
            report(tally, start.elapsed());
            ExitCode::SUCCESS
        }
        Err(difference) => {
            println!("found after {:.1} s, {difference}", start.elapsed().as_secs_f64());
            println!("to repeat: fuzz-policy --seed {}", difference.seed);
            ExitCode::FAILURE
        }
    }
}
