//! `weft-lab`: the embedded cluster. `weft up`, `cluster create`, `down`, `status` and `kubeconfig` become this program,
//! and it is all processes of the cluster that a real one does not have; inside pods of the built-in images it is
//! `/weft`. So `weft` and what goes to production has nothing of it.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use weft_lab_cluster as cluster;
use weft_lab_config::aks::CreateOptions;
use weft_lab_config::{UpOptions, load};

/// The embedded cluster of Weft, as `weft` starts it
#[derive(Parser, Debug)]
#[command(name = "weft", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a cluster on this machine, or make sure that it is up
    Up(Box<UpOptions>),
    /// Make a cluster on this machine as a cloud's command line would
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Remove a cluster, however it was left
    Down(DownOptions),
    /// What runs, and what is wrong
    Status(StatusOptions),
    /// Print where kubectl's configuration for a cluster is
    Kubeconfig(ClusterName),
}

#[derive(Subcommand, Debug)]
enum ClusterCommand {
    /// Make a cluster on this machine with the flags of `az aks create`
    Create(Box<CreateOptions>),
}

#[derive(Args, Debug)]
struct ClusterName {
    /// Name of the cluster
    #[arg(long, default_value = "weft", env = "WEFT_CLUSTER")]
    name: String,
}

#[derive(Args, Debug)]
struct DownOptions {
    #[command(flatten)]
    cluster: ClusterName,
    /// Keep the API server's objects and the logs for the next `weft up`
    #[arg(long)]
    keep_state: bool,
}

#[derive(Args, Debug)]
struct StatusOptions {
    #[command(flatten)]
    cluster: ClusterName,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

fn main() -> ExitCode {
    // Processes of the cluster change namespaces: they must start before there is any thread.
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == "internal" || first == "toolbox") {
        return cluster::internal::run(args);
    }
    match run(Cli::parse().command) {
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
        Command::Up(options) => up(&options),
        Command::Cluster(ClusterCommand::Create(options)) => up(&options.check()?),
        Command::Down(options) => down(&options),
        Command::Status(options) => status(&options),
        Command::Kubeconfig(options) => {
            let paths = load(&options.name)?.paths();
            writeln!(io::stdout(), "{}", paths.kubeconfig().display())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Says what happens while something takes its time.
fn progress(text: &str) {
    eprintln!("  {text}");
}

fn up(options: &UpOptions) -> anyhow::Result<ExitCode> {
    let report = cluster::up(options, &mut progress)?;
    let kubeconfig = report.kubeconfig.display();
    let name = if options.name == "weft" { String::new() } else { format!(" --name {}", options.name) };
    let mut out = io::stdout().lock();
    let state = if report.already { "was up already" } else { "is up" };
    let (nodes, seconds) = (report.nodes.len(), report.took.as_secs_f64());
    writeln!(out, "Cluster {} {state}: {nodes} nodes Ready, pods reach each other ({seconds:.1} s).", options.name)?;
    writeln!(
        out,
        "\nTry next:
  export KUBECONFIG={kubeconfig}
  kubectl get nodes -o wide
  kubectl create deployment web --image=weft/toolbox --replicas=6
  kubectl get pods -o wide
  weft observe{name} --follow
  weft status{name}
  weft down{name}"
    )?;
    if io::stdout().is_terminal() && which("kubectl").is_none() {
        writeln!(out, "\nkubectl is not installed here; on Debian and Ubuntu: apt-get install kubernetes-client")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

fn down(options: &DownOptions) -> anyhow::Result<ExitCode> {
    let name = &options.cluster.name;
    let was_there = cluster::down(name, options.keep_state, &mut progress)?;
    let text = if was_there { format!("Cluster {name} is gone.") } else { format!("There is no cluster {name}.") };
    writeln!(io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Exit code 1: something is wrong.
fn status(options: &StatusOptions) -> anyhow::Result<ExitCode> {
    let status = cluster::status(&options.cluster.name)?;
    let mut out = io::stdout().lock();
    match options.output {
        Output::Table => write!(out, "{status}")?,
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?,
    }
    Ok(if status.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The reader of our output went away (`weft status | head`): that is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn refusals_say_what_was_expected() {
        let refused = |args: &[&str]| {
            let parsed = Cli::try_parse_from(["weft"].iter().chain(args));
            parsed.expect_err("must be refused").to_string()
        };
        assert!(refused(&["up", "--node", "3"]).contains("--nodes"));
        assert!(refused(&["status", "-o", "yaml"]).contains("table, json"));
        // What users type is `weft`.
        assert!(refused(&["down", "--keep"]).contains("Usage: weft down"), "{}", refused(&["down", "--keep"]));
    }
}
