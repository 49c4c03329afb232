//! The `weft-sim` program: the control plane at scale on one machine.
#![forbid(unsafe_code)]

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use weft_daemon::log;
use weft_k8s::endpoint::Propagation;
use weft_sim::options::Run;
use weft_sim::{run, scale};

/// Simulates many agents of Weft, an operator and an API server in one process, under scripted churn.
#[derive(Parser)]
#[command(name = "weft-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// One run.
    Run {
        #[command(flatten)]
        run: Run,
        /// Endpoint propagation: cep, ces-operator or ces-node.
        #[arg(long, default_value = "ces-node")]
        mode: String,
        /// Where to write the results as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Print nothing but what goes wrong.
        #[arg(long)]
        quiet: bool,
    },
    /// All modes beside each other, and their growth.
    Scale(scale::Options),
}

fn main() -> ExitCode {
    match start(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(command: Command) -> anyhow::Result<()> {
    log::init(&log::filter_from_env("error")).context("WEFT_LOG")?;
    match command {
        Command::Scale(options) => scale::run(&options),
        Command::Run { run, mode, json, quiet } => {
            let mode = Propagation::read(&mode)
                .with_context(|| format!("mode: expected cep, ces-operator or ces-node, found {mode}"))?;
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("runtime")?;
            let report = runtime.block_on(run::run(run, mode))?;
            if let Some(json) = json {
                let text = serde_json::to_vec_pretty(&report)?;
                std::fs::write(&json, text).with_context(|| json.display().to_string())?;
            }
            if !quiet {
                print!("{}", report.text());
            }
            // Connections and threads by the thousand need no orderly end.
            runtime.shutdown_background();
            Ok(())
        }
    }
}
