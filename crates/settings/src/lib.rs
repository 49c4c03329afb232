//! Settings of a program, from a file, the environment and flags.
//!
//! A setting is one field of a struct that derives [`clap::Args`]. Its name is the flag's and the file's key, its doc
//! comment is the help text, its `value_parser` the check (see [`value`]), its `default_value` the default. Everything
//! else follows from that: `routing` is `--routing`, `WEFT_ROUTING` and `routing:` in the file, and [`docs`] makes the
//! tables of the documentation.

#![forbid(unsafe_code)]

pub mod docs;
mod file;
pub mod value;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches};
use std::error::Error as _;
use std::ffi::OsString;
use std::path::PathBuf;
use value::Expected;

/// The setting that names the file.
const FILE: &str = "config";

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("config: cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a list of settings.
    #[error("config {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where in it, and what was expected.
        problem: String,
    },
    /// A value of a setting.
    #[error(transparent)]
    Value(#[from] Invalid),
    /// Not a value: an unknown flag, say, or a call for help.
    #[error(transparent)]
    Usage(#[from] clap::Error),
}

/// A value that its setting does not take.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{setting}: expected {expected}, found {}", if found.is_empty() { "nothing" } else { found })]
pub struct Invalid {
    /// Name of the setting.
    pub setting: String,
    /// What it takes.
    pub expected: String,
    /// What it was given.
    pub found: String,
}

impl Invalid {
    /// For checks that look at several settings.
    #[must_use]
    pub fn new(setting: &str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self { setting: setting.to_owned(), expected: expected.into(), found: found.to_string() }
    }
}

/// Reads the settings of a program: flags before the environment before the file before defaults.
///
/// # Errors
/// The first value that is not acceptable, whether or not another takes precedence over it; an unknown name; a file that
/// cannot be read. A call for help is [`Error::Usage`] as well: `clap::Error::exit` answers it.
pub fn load<S: CommandFactory + FromArgMatches>(args: impl IntoIterator<Item = OsString>) -> Result<S, Error> {
    Ok(S::from_arg_matches(&matches(S::command(), args)?)?)
}

/// The same for settings alone, without what else a program has on its command line.
///
/// # Errors
/// As [`load`].
pub fn from_args<C: Args>(args: impl IntoIterator<Item = OsString>) -> Result<C, Error> {
    Ok(C::from_arg_matches(&matches(C::augment_args(Command::default()), args)?)?)
}

fn matches(command: Command, args: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, Error> {
    let command = with_variables(command);
    let args: Vec<OsString> = args.into_iter().collect();
    let mut matches = parse(&command, args.clone())?;
    // A program without the setting has no file.
    if let Some(path) = matches.try_get_one::<PathBuf>(FILE).ok().flatten().cloned() {
        let settings = file::read(&path, &command)?;
        let (program, given) = args.split_first().map_or((OsString::new(), &args[..]), |(p, given)| (p.clone(), given));
        let whole = settings.iter().map(|setting| setting.flag.clone());
        parse(&command, std::iter::once(program.clone()).chain(whole)).map_err(|error| match error {
            Error::Value(invalid) => Error::File { path, problem: invalid.to_string() },
            other => other,
        })?;
        let beaten =
            |name| matches!(matches.value_source(name), Some(ValueSource::CommandLine | ValueSource::EnvVariable));
        let left = settings.iter().filter(|setting| !beaten(&setting.id)).map(|setting| setting.flag.clone());
        matches = parse(&command, std::iter::once(program).chain(left).chain(given.iter().cloned()))?;
    }
    Ok(matches)
}

/// Reads the settings of this process, or ends it: with what is wrong, or with the help that was asked for.
#[must_use]
pub fn load_or_exit<S: CommandFactory + FromArgMatches>() -> S {
    match load(std::env::args_os()) {
        Ok(settings) => settings,
        Err(Error::Usage(error)) => error.exit(),
        Err(error) => {
            eprintln!("{}: {error}", S::command().get_name());
            std::process::exit(1)
        }
    }
}

/// Every flag may be given in the environment.
fn with_variables(command: Command) -> Command {
    command.mut_args(|arg| {
        let Some(name) = arg.get_long().map(variable) else { return arg };
        // What defaults to nothing has no default to show.
        let nothing = arg.get_default_values().iter().all(|value| value.is_empty());
        // An empty variable counts as unset.
        if std::env::var_os(&name).is_some_and(|value| value.is_empty()) {
            return arg.hide_default_value(nothing);
        }
        // clap takes names that live as long as the program.
        arg.env(&*name.leak()).hide_env_values(true).hide_default_value(nothing)
    })
}

/// Name in the environment.
fn variable(flag: &str) -> String {
    format!("WEFT_{}", flag.replace('-', "_").to_ascii_uppercase())
}

fn parse(command: &Command, args: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, Error> {
    command.clone().try_get_matches_from(args).map_err(|error| match invalid(&error) {
        Some(invalid) => Error::Value(invalid),
        None => Error::Usage(error),
    })
}

/// The refusal of a value by one of the parsers of [`value`].
fn invalid(error: &clap::Error) -> Option<Invalid> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let expected = error.source().filter(|_| error.kind() == ErrorKind::ValueValidation)?.downcast_ref::<Expected>()?;
    // As the help has it: `--mtu <BYTES>`.
    let setting = text(ContextKind::InvalidArg)?.trim_start_matches('-').split(' ').next()?;
    Some(Invalid::new(setting, expected.what(), text(ContextKind::InvalidValue)?))
}

#[cfg(test)]
mod tests;
