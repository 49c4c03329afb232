//! `weft-agent`: settings, log, runtime; everything else is in the library.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weft_agent::config::Config;
use weft_agent::{app, uninstall};
use weft_daemon::{log, tasks};

#[derive(Parser)]
#[command(name = "weft-agent", version, about = "The node agent of Weft: pod network and network policy in eBPF")]
struct Cli {
    #[command(flatten)]
    config: Config,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Check the settings and do nothing else.
    CheckSettings,
    /// Remove the CNI executable and configuration from this node.
    Uninstall {
        /// Also pod links, programs, maps, routes and state: pods of this node lose their network.
        #[arg(long)]
        all: bool,
    },
}

fn main() -> ExitCode {
    let cli: Cli = weft_settings::load_or_exit();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    let config = cli.config.check()?;
    log::init(&config.log).context("log")?;
    match cli.command {
        Some(Command::CheckSettings) => return Ok(()),
        Some(Command::Uninstall { all }) => return uninstall::run(&config, all),
        None => {}
    }
    tasks::end_process_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("weft-agent")
        .enable_all()
        .build()
        .context("runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let work = app::run(config, stop.clone());
        tokio::pin!(work);
        tokio::select! {
            result = &mut work => return result,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        work.await
    })
}
