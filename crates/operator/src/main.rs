//! The `weft-operator` program.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weft_daemon::{log, tasks};
use weft_k8s::client::{Client, Options};
use weft_operator::config::Config;

/// Weft's operator: assigns pod CIDRs to nodes and deletes what nodes that are gone have left.
#[derive(Parser)]
#[command(name = "weft-operator", version)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

fn main() -> ExitCode {
    let cli: Cli = weft_settings::load_or_exit();
    match start(cli.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    let config = config.check()?;
    log::init(&config.log).context("log")?;
    tasks::end_process_on_panic();
    // The work is a few requests a minute.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let options = Options {
            kubeconfig: config.kubeconfig.clone(),
            user_agent: concat!("weft-operator/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let client = Client::connect(&options).await?;
        let work = weft_operator::run(config, client, stop.clone());
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
