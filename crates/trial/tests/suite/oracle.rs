//! The compiled policies of random worlds against the oracle.

use weft_oracle::effort::{effort, first_seed};
use weft_trial::compare::{self, Until};

/// Worlds to compare in the gate and in a run of full size, unless `ORACLE_WORLDS` says how many.
const WORLDS: [u64; 2] = [200_000, 2_000_000];

#[test]
fn compiled_policies_agree_with_the_documents() {
    let worlds = match std::env::var("ORACLE_WORLDS") {
        Ok(number) => number.parse().expect("ORACLE_WORLDS is a number"),
        Err(_) => effort(WORLDS[0], WORLDS[1]),
    };
    let tally = match compare::run(first_seed(), Until::Worlds(worlds), |_, _| {}) {
        Ok(tally) => tally,
        Err(difference) => panic!("{difference}"),
    };
    println!("{tally:?}");
    // A test in which nearly everything passes or drops, or no rule has a say, shows little.
    let percent = tally.allowed * 100 / tally.decisions;
    assert!((25..=75).contains(&percent), "{percent} % allowed");
    assert!(tally.by_rule * 100 / tally.decisions >= 15, "{} of {} by rules", tally.by_rule, tally.decisions);
}
