//! The embedded cluster without the rest of the command line: for this crate's own tests, which link it as `weft`, and
//! as stand-ins for agent, operator and CNI executable that do plain routing.

mod stub;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use weft_lab_cluster as cluster;
use weft_lab_config::UpOptions;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(Box<UpOptions>),
    Down { name: String },
    Status { name: String },
}

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let program = std::env::args().next().unwrap_or_default();
    match program.rsplit('/').next().unwrap_or_default() {
        "weft-agent" if args.last().is_some_and(|a| a == "check-settings") => return ExitCode::SUCCESS,
        "weft-agent" => return stub::run(stub::agent),
        "weft-operator" => return stub::run(stub::operator),
        "weft-cni" => return stub::cni(),
        _ => {}
    }
    if args.first().is_some_and(|a| a == "internal" || a == "toolbox") {
        return weft_lab_cluster::internal::run(args);
    }
    let mut progress = |line: &str| eprintln!("{line}");
    let result = match Arguments::parse().command {
        Command::Up(options) => cluster::up(&options, &mut progress).map(|report| println!("{report:?}")),
        Command::Down { name } => cluster::down(&name, false, &mut progress).map(|was| println!("{was}")),
        Command::Status { name } => cluster::status(&name).map(|status| print!("{status}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
