//! The embedded cluster is a program of its own, `weft-lab`: this one becomes it where a command is about a cluster.

use anyhow::{Result, bail};
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `weft-lab` is, if not beside this program.
const VARIABLE: &str = "WEFT_LAB";

/// Commands of which `weft-lab` has the options and the help.
const COMMANDS: [&str; 4] = ["up", "cluster", "down", "kubeconfig"];

/// Whether the arguments are for `weft-lab` alone: parts of the cluster and tools, or the help of its commands.
pub fn is_asked(args: &[OsString]) -> bool {
    match args {
        [first, ..] if first == "internal" || first == "toolbox" => true,
        [help, command, ..] => help == "help" && COMMANDS.iter().any(|known| command == known),
        _ => false,
    }
}

/// Becomes `weft-lab` with the same arguments. Returns only why that failed.
pub fn become_lab() -> Result<std::convert::Infallible> {
    become_program("weft-lab", VARIABLE, std::env::args_os().skip(1).collect())
}

/// Becomes a program that `variable` names, or that is beside this one, or in the PATH.
pub fn become_program(name: &str, variable: &str, args: Vec<OsString>) -> Result<std::convert::Infallible> {
    let program = find(std::env::var_os(variable), std::env::current_exe().ok().as_deref(), name);
    let error = Command::new(&program).args(args).exec();
    if error.kind() == io::ErrorKind::NotFound {
        bail!(
            "start {}: no such program. This command needs {name} beside weft, in the PATH, or where {variable} says; \
             `make build` makes it",
            program.display()
        );
    }
    Err(anyhow::Error::new(error).context(format!("start {}", program.display())))
}

fn find(named: Option<OsString>, own: Option<&Path>, name: &str) -> PathBuf {
    let beside = || own.and_then(Path::parent).map(|dir| dir.join(name)).filter(|program| program.is_file());
    named.filter(|path| !path.is_empty()).map(PathBuf::from).or_else(beside).unwrap_or_else(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_comes_first_then_the_directory_then_the_path() {
        let own = std::env::current_exe().expect("this test is a program");
        let name = own.file_name().expect("it has a name").to_string_lossy().into_owned();
        assert_eq!(find(Some("/opt/lab".into()), Some(&own), &name), Path::new("/opt/lab"));
        assert_eq!(find(Some("".into()), Some(&own), &name), own);
        assert_eq!(find(None, Some(&own), "weft-no-such-program"), Path::new("weft-no-such-program"));
    }

    #[test]
    fn a_missing_program_is_named_with_what_to_do() {
        let error = become_program("weft-no-such-program", "WEFT_NO_SUCH_VARIABLE", Vec::new()).expect_err("missing");
        let text = error.to_string();
        for part in ["weft-no-such-program", "WEFT_NO_SUCH_VARIABLE", "beside weft", "make build"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn help_of_its_commands_is_its_own() {
        let asked = |args: &[&str]| is_asked(&args.iter().map(OsString::from).collect::<Vec<_>>());
        assert!(asked(&["help", "up"]) && asked(&["toolbox", "serve"]) && asked(&["internal"]));
        assert!(!asked(&["help"]) && !asked(&["help", "observe"]) && !asked(&["status"]) && !asked(&[]));
    }
}
