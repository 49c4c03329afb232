//! `weft-agent`: settings, log, runtime; everything else is in the library.

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weft_agent::config::{Config, Options};
use weft_agent::{app, uninstall};

#[derive(Parser)]
#[command(name = "weft-agent", version, about = "The node agent of Weft: pod network and network policy in eBPF")]
struct Cli {
    #[command(flatten)]
    options: Options,
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
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    let config = cli.options.with_file()?.check()?;
    log(&config)?;
    match cli.command {
        Some(Command::CheckSettings) => return Ok(()),
        Some(Command::Uninstall { all }) => return uninstall::run(&config, all),
        None => {}
    }
    end_with_any_task();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("weft-agent")
        .enable_all()
        .build()
        .context("runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stopping = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stopping.cancel();
        });
        app::run(config, stop).await
    })
}

/// An agent of which a part has died would go on without hearing of policies, say, and nobody would notice. What is in
/// force stays in force without it, and the next one takes it over.
fn end_with_any_task() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn log(config: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log)
        .with_context(|| format!("log: expected directives such as info, found {:?}", config.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    Ok(())
}
