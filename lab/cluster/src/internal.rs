//! The hidden subcommands: parts of the embedded cluster that are processes of their own.
//!
//! They must be entered before the program has started any thread, since some of them change namespaces.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Runs what `weft internal ...` and `weft toolbox ...` ask for. `args` begins with `internal` or `toolbox`.
#[must_use]
pub fn run(args: Vec<OsString>) -> ExitCode {
    let mut rest = args.into_iter();
    let first = rest.next().unwrap_or_default();
    if first == "toolbox" {
        return weft_lab_toolbox::main(rest.collect());
    }
    let part = rest.next().unwrap_or_default();
    let rest: Vec<OsString> = rest.collect();
    let part = part.to_string_lossy();
    if matches!(part.as_ref(), "apiserver" | "supervisor" | "node" | "cluster-dns") {
        log_to_stderr();
    }
    match part.as_ref() {
        "apiserver" => weft_lab_apiserver::main(rest),
        "supervisor" => crate::supervisor::main(&rest),
        "node" => weft_lab_node::main(&rest),
        "cluster-dns" => weft_lab_toolbox::cluster_dns::main(rest),
        "enter" => enter(&rest),
        "run" => run_at(&rest),
        "container" => weft_lab_node::pod::shim::main(&rest),
        "init" => weft_lab_node::pod::init::main(&rest),
        "exec" => weft_lab_node::pod::exec::main(&rest),
        "toolbox" => weft_lab_toolbox::main(rest),
        other => {
            let parts = "apiserver, supervisor, node, cluster-dns, enter, run, container, init or exec";
            eprintln!("weft internal {other}: expected {parts}");
            ExitCode::from(2)
        }
    }
}

/// Tells the log what happens; `WEFT_LOG` chooses how much.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).try_init();
}

/// `enter [--netns FILE] [--cgroup DIR] -- PROGRAM ARGS...`: becomes the program, inside the namespace and the group.
fn enter(args: &[OsString]) -> ExitCode {
    match try_enter(args) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("weft internal enter: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_enter(args: &[OsString]) -> io::Result<std::convert::Infallible> {
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| io::Error::other(format!("{}: expected a value", arg.display())));
        match arg.to_string_lossy().as_ref() {
            "--netns" => weft_sys::netns::enter(Path::new(value()?))?,
            "--cgroup" => std::fs::write(Path::new(value()?).join("cgroup.procs"), "0")?,
            "--" => break,
            other => return Err(io::Error::other(format!("{other}: unknown option"))),
        }
    }
    become_program(rest.as_slice())
}

fn become_program(command: &[OsString]) -> io::Result<std::convert::Infallible> {
    let (program, args) = command.split_first().ok_or_else(|| io::Error::other("expected a program behind --"))?;
    let error = Command::new(program).args(args).exec();
    Err(io::Error::new(error.kind(), format!("{}: {error}", program.display())))
}

/// `run CLUSTER PLACE -- PROGRAM ARGS...`: becomes the program as a process of a node (in its namespace and its control
/// group, as whatever an administrator starts there), of the `outside`, or of the `fabric`.
fn run_at(args: &[OsString]) -> ExitCode {
    match try_run_at(args) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("weft internal run: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_run_at(args: &[OsString]) -> io::Result<std::convert::Infallible> {
    let [cluster, place, separator, command @ ..] = args else {
        return Err(io::Error::other("expected CLUSTER PLACE -- PROGRAM ARGS..."));
    };
    if separator != "--" {
        return Err(io::Error::other(format!("{}: expected --", separator.display())));
    }
    let config = weft_lab_config::load(&cluster.to_string_lossy()).map_err(io::Error::other)?;
    let (paths, place) = (config.paths(), place.to_string_lossy());
    let netns = match place.as_ref() {
        "outside" => paths.outside_netns(),
        "fabric" => paths.fabric_netns(),
        node if config.node_names().iter().any(|n| n == node) => {
            let group = weft_sys::cgroup::Cgroup::at(paths.node_cgroup(node))?.child("processes");
            group.create()?;
            group.add(std::process::id())?;
            paths.node_netns(node)
        }
        other => {
            return Err(io::Error::other(format!("{other}: expected outside, fabric or {:?}", config.node_names())));
        }
    };
    weft_sys::netns::enter(&weft_sys::netns::path(&netns))?;
    become_program(command)
}
