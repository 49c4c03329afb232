//! The `weft-operator` program.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weft_daemon::{log, tasks};
use weft_k8s::client::{Client, Options};
use weft_operator::config::{Config, Flags};

fn main() -> ExitCode {
    let flags = Flags::parse();
    match start(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-operator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(flags: Flags) -> anyhow::Result<()> {
    let config = Config::read(flags)?;
    log::init(&log::filter_from_env("info,kube=warn")).context("WEFT_LOG")?;
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
