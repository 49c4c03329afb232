//! `weft`: asks the agents of real nodes or of a cluster on this machine; `weft-lab` makes such clusters.

mod agents;
mod args;
mod audit;
mod explain;
mod lab;
mod list;
mod observe;
mod policy;
mod services;
mod status;
mod table;

use args::{Cli, Command};
use clap::Parser as _;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if lab::is_asked(&args) {
        return match lab::become_lab() {
            Ok(never) => match never {},
            Err(error) => {
                eprintln!("weft: {error:#}");
                ExitCode::FAILURE
            }
        };
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
        Command::Up(_) | Command::Cluster(_) | Command::Down(_) | Command::Kubeconfig(_) | Command::Toolbox(_) => {
            match lab::become_lab()? {}
        }
        Command::Status(options) => status::run(&options),
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
        // It has all of the agent and the operator in it, which this program need not.
        Command::Sim(options) => match lab::become_program("weft-sim", "WEFT_SIM", options.args)? {},
    }
}

/// The reader of our output went away (`weft ... | head`): that is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
