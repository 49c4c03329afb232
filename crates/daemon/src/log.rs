//! The log: lines on standard error, with colours only where a person reads them on a terminal.

use std::ffi::OsStr;
use std::io::{IsTerminal as _, stderr};
use tracing_subscriber::EnvFilter;

/// The log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is none.
    #[error("expected directives such as `info` or `info,kube=warn`, found {found:?}")]
    Filter {
        /// What was given.
        found: String,
        /// Where it goes wrong.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
}

/// Sends the process's log to standard error, as `filter` selects. A log that is set up already stays.
///
/// # Errors
/// `filter` is not a list of directives.
pub fn init(filter: &str) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(filter).map_err(|source| LogError::Filter { found: filter.to_owned(), source })?;
    let colours = colours(stderr().is_terminal(), std::env::var_os("NO_COLOR").as_deref());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(colours);
    // Only tests set it up twice.
    let _ = subscriber.try_init();
    Ok(())
}

/// The filter in the environment variable `WEFT_LOG`, or else `default`.
#[must_use]
pub fn filter_from_env(default: &str) -> String {
    std::env::var("WEFT_LOG").ok().filter(|filter| !filter.is_empty()).unwrap_or_else(|| default.to_owned())
}

/// Escape sequences garble files and journals. `NO_COLOR`, set and not empty, turns them off everywhere (no-color.org).
fn colours(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}
