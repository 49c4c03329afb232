//! `weft-cni`: reads the environment and standard input, prints one JSON document.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

/// More than any network configuration with `prevResult` needs.
const STDIN_MAX: u64 = 4 << 20;

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    let read = std::io::stdin().lock().take(STDIN_MAX).read_to_end(&mut stdin);
    let outcome = match read {
        Ok(_) => weft_cni::plugin::run(|name| std::env::var_os(name), &stdin),
        Err(error) => Err(weft_cni::plugin::stdin_unreadable(&error)),
    };
    let (text, code) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(), ExitCode::FAILURE),
    };
    let written = std::io::stdout().lock().write_all(text.as_bytes());
    if written.is_err() { ExitCode::FAILURE } else { code }
}
