//! `weft`: a cluster on this machine, and a look into the agents of it or of a real node.

mod agents;
mod args;
mod audit;
mod cluster;
mod explain;
mod list;
mod observe;
mod policy;
mod services;
mod table;

use anyhow::Context as _;
use args::{Cli, Command, SimOptions};
use clap::Parser as _;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    // The embedded cluster's own processes change namespaces: they must start before there is any thread.
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == "internal" || first == "toolbox") {
        return weft_lab_cluster::internal::run(args);
    }
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(options) => cluster::up(&options),
        Command::Cluster(args::ClusterCommand::Create(options)) => cluster::up(&options.check()?),
        Command::Down(options) => cluster::down(&options),
        Command::Status(options) => cluster::status(&options),
        Command::Kubeconfig(options) => cluster::kubeconfig(&options),
        Command::Observe(options) => observe::run(options),
        Command::Explain(options) => explain::run(&options),
        Command::Endpoint(args::EndpointCommand::List(options)) => list::endpoints(&options),
        Command::Endpoint(args::EndpointCommand::Audit(options)) => audit::run(&options),
        Command::Identity(args::ListCommand::List(options)) => list::identities(&options),
        Command::Service(args::ListCommand::List(options)) => services::list(&options),
        Command::Ipcache(args::ListCommand::List(options)) => list::ipcache(&options),
        Command::Ct(args::ListCommand::List(options)) => list::connections(&options),
        Command::Map(args::ListCommand::List(options)) => list::maps(&options),
        Command::Policy(args::PolicyCommand::List(options)) => list::policies(&options),
        Command::Policy(args::PolicyCommand::Wait(options)) => policy::wait(&options),
        Command::Policy(args::PolicyCommand::Lint(options)) => policy::lint(&options),
        Command::Policy(args::PolicyCommand::Preview(options)) => policy::preview(&options),
        Command::Sim(options) => sim(options),
        Command::Toolbox => unreachable!("main() handed it on"),
    }
}

/// Becomes `weft-sim`, a program of its own: it has all of the agent and the operator in it, which this one need not.
fn sim(options: SimOptions) -> anyhow::Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;
    let beside =
        weft_lab_cluster::internal::bin_dir().map(|dir| dir.join("weft-sim")).ok().filter(|path| path.is_file());
    let program = beside.unwrap_or_else(|| "weft-sim".into());
    let error = std::process::Command::new(&program).args(options.args).exec();
    Err(error).with_context(|| format!("start {} (cargo build --release -p weft-sim makes it)", program.display()))
}

/// The reader of our output went away (`weft ... | head`): that is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
