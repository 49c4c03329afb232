//! How much random tests try, and where they begin: every day with other worlds, and again with the same ones for whoever
//! asks for them.

use std::time::{SystemTime, UNIX_EPOCH};

/// The first seed of this run: `WEFT_SEED`, or else one that the day gives. It is printed: a test that fails is repeated
/// with it.
///
/// # Panics
/// If `WEFT_SEED` is no number.
#[must_use]
pub fn first_seed() -> u64 {
    let first = match std::env::var("WEFT_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("WEFT_SEED={text}: expected a number")),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs() / 86_400) << 32,
    };
    println!("seeds from {first} on: WEFT_SEED={first} repeats them");
    first
}

/// So many seeds, from the first one of this run on.
pub fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let first = first_seed();
    first..first + count
}

/// Whether this is a run of full size: `make test-long` (`WEFT_TEST_LONG=1`).
#[must_use]
pub fn is_long() -> bool {
    std::env::var_os("WEFT_TEST_LONG").is_some()
}

/// How much is tried in the gate, and in a run of full size.
#[must_use]
pub fn effort<T>(gate: T, full: T) -> T {
    if is_long() { full } else { gate }
}
