//! The built-in image's program: a server that tells who asked and who answered, and clients that tell what happened.
//!
//! It has no configuration and keeps nothing; every subcommand prints lines that people and tests can read.

pub mod cluster_dns;
mod connect;
mod dns;
mod load;
mod packet;
mod ping;
mod probe;
mod sctp;
mod serve;
mod stream;

use clap::{Args, Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

/// Port that a toolbox pod serves on.
pub const PORT: u16 = 8080;

/// Names of the subcommands: a container whose arguments begin with one runs it.
pub const COMMANDS: [&str; 7] = ["serve", "connect", "client", "dns", "stream", "ping", "pause"];

/// How an attempt to reach something ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It answered this.
    Ok(String),
    /// It refused: reset, or port or protocol unreachable.
    Refused,
    /// Nothing came back.
    Timeout,
    /// There is no way to it.
    Unreachable(String),
    /// Something else.
    Failed(String),
}

impl Outcome {
    /// Of an I/O error.
    fn of(error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{
            ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut, WouldBlock,
        };
        match error.kind() {
            ConnectionRefused | ConnectionReset => Self::Refused,
            TimedOut | WouldBlock => Self::Timeout,
            HostUnreachable | NetworkUnreachable => Self::Unreachable(error.to_string()),
            // Protocol not available, protocol error: the ICMP errors "protocol unreachable" and "unrecognized next header".
            _ if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EPROTO)) => Self::Refused,
            _ => Self::Failed(error.to_string()),
        }
    }

    /// Prints it; the exit code tells it, too.
    fn report(&self) -> ExitCode {
        match self {
            Self::Ok(answer) => {
                println!("ok {answer}");
                ExitCode::SUCCESS
            }
            Self::Refused => {
                println!("refused");
                ExitCode::from(2)
            }
            Self::Timeout => {
                println!("timeout");
                ExitCode::from(3)
            }
            Self::Unreachable(why) => {
                println!("unreachable {why}");
                ExitCode::from(4)
            }
            Self::Failed(why) => {
                println!("error {why}");
                ExitCode::FAILURE
            }
        }
    }
}

/// Network tools for trying out pods and policies
#[derive(Parser, Debug)]
#[command(name = "weft toolbox", bin_name = "weft toolbox")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Answer on TCP, HTTP, UDP and SCTP: who asked, and who answered
    Serve(ServeArguments),
    /// Reach something once: ok (exit 0), refused (2), timeout (3), unreachable (4), error (1)
    #[command(alias = "client")]
    Connect(ConnectArguments),
    /// Reach many things at once, each told in a line of JSON
    Probe(ProbeArguments),
    /// Ask a name server
    Dns(DnsArguments),
    /// A long stream of numbered packets, reported as JSON lines
    #[command(subcommand)]
    Stream(StreamCommand),
    /// Many TCP connections: some that stay, new ones at a steady rate, reported as JSON lines
    Load(LoadArguments),
    /// ICMP echo
    Ping(PingArguments),
    /// Do nothing until told to end: a pod's first container under runtimes that want one
    Pause,
}

#[derive(Args, Debug)]
struct ServeArguments {
    /// Port for all protocols
    #[arg(long, default_value_t = PORT)]
    port: u16,
    /// Name to answer with
    #[arg(long, env = "HOSTNAME", default_value = "toolbox")]
    name: String,
    /// Told to end, go on accepting connections for so many seconds, and then serve those that there are to their end
    #[arg(long, default_value_t = DRAIN_S)]
    drain: f64,
}

/// By then every node of a cluster knows that the pod ends.
const DRAIN_S: f64 = 0.5;

/// One address family, where a name has both
#[derive(Args, Debug, Default)]
struct FamilyArguments {
    /// IPv4 only
    #[arg(short = '4', long, group = "family")]
    ipv4: bool,
    /// IPv6 only
    #[arg(short = '6', long, group = "family")]
    ipv6: bool,
}

#[derive(Args, Debug)]
struct ConnectArguments {
    /// TCP: connect, send a line, read the answer (the default)
    #[arg(long, group = "protocol")]
    tcp: bool,
    /// UDP: send a datagram, read the answer
    #[arg(long, group = "protocol")]
    udp: bool,
    /// HTTP: GET /
    #[arg(long, group = "protocol")]
    http: bool,
    /// SCTP: INIT and INIT ACK in packets of our own making
    #[arg(long, group = "protocol")]
    sctp: bool,
    /// Seconds to wait
    #[arg(long, default_value = "3", value_parser = seconds)]
    timeout: Duration,
    /// Port to send from
    #[arg(long, default_value_t = 0)]
    source_port: u16,
    /// Address to send from
    #[arg(long)]
    source: Option<IpAddr>,
    #[command(flatten)]
    family: FamilyArguments,
    /// Bytes in the datagram (UDP); more than a packet carries go as fragments
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(16..=65_000), requires = "udp")]
    size: u16,
    /// Name or address
    host: String,
    /// Port
    #[arg(default_value_t = PORT)]
    port: u16,
}

#[derive(Args, Debug)]
struct ProbeArguments {
    /// Seconds to wait for each
    #[arg(long, default_value = "3", value_parser = seconds)]
    timeout: Duration,
    /// PROTOCOL://HOST:PORT with tcp, udp, sctp or http; ?from=PORT behind it: the port to send from
    #[arg(required = true)]
    targets: Vec<probe::Target>,
}

#[derive(Args, Debug)]
struct DnsArguments {
    /// Name
    name: String,
    /// Name server, with or without a port; default: the first of /etc/resolv.conf
    #[arg(long)]
    server: Option<String>,
    /// Type: A, AAAA, both of them, CNAME, NS, PTR (an address is turned into its name), SOA or SRV
    #[arg(long = "type", default_value = "both")]
    kind: String,
    /// Ask by TCP
    #[arg(long)]
    tcp: bool,
    /// Seconds to wait
    #[arg(long, default_value = "3", value_parser = seconds)]
    timeout: Duration,
}

#[derive(Subcommand, Debug)]
enum StreamCommand {
    /// Send back whatever comes
    Serve(ServeArguments),
    /// Send numbered packets and report what came back
    Run(StreamArguments),
}

#[derive(Args, Debug)]
struct StreamArguments {
    /// UDP (the default): every packet that does not come back is lost
    #[arg(long, group = "protocol")]
    udp: bool,
    /// TCP: nothing can be lost, but a pause shows
    #[arg(long, group = "protocol")]
    tcp: bool,
    /// Packets a second
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Seconds to run
    #[arg(long, default_value = "10", value_parser = seconds)]
    duration: Duration,
    /// Seconds between reports
    #[arg(long, default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Bytes of a packet, at least 32
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(32..=8192))]
    size: u16,
    /// Name or address
    host: String,
    /// Port
    #[arg(default_value_t = PORT)]
    port: u16,
}

#[derive(Args, Debug)]
struct LoadArguments {
    /// Connections that stay, each used once a second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(0..=20_000))]
    hold: u16,
    /// New connections a second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    rate: u32,
    /// Seconds to run
    #[arg(long, default_value = "10", value_parser = seconds)]
    duration: Duration,
    /// Seconds between reports
    #[arg(long, default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Seconds to wait for each answer
    #[arg(long, default_value = "3", value_parser = seconds)]
    timeout: Duration,
    /// Name or address
    host: String,
    /// Port
    #[arg(default_value_t = PORT)]
    port: u16,
}

#[derive(Args, Debug)]
struct PingArguments {
    /// Echo requests
    #[arg(short, long, default_value_t = 1)]
    count: u16,
    /// Bytes behind the ICMP header
    #[arg(short, long, default_value_t = 56, value_parser = clap::value_parser!(u16).range(8..=9000))]
    size: u16,
    /// Seconds to wait for each answer
    #[arg(long, default_value = "3", value_parser = seconds)]
    timeout: Duration,
    /// Name or address
    host: String,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 =
        text.trim_end_matches('s').parse().map_err(|_| "expected seconds, such as 2 or 0.5".to_owned())?;
    Duration::try_from_secs_f64(number)
        .ok()
        .filter(|d| !d.is_zero() && *d <= Duration::from_secs(86_400))
        .ok_or_else(|| "expected more than 0 and at most 86400 seconds".to_owned())
}

/// Runs a subcommand; without one it serves.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let given = std::iter::once(OsString::from("weft toolbox")).chain(args);
    let arguments = match Arguments::try_parse_from(given) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let command = arguments.command.unwrap_or_else(|| {
        Command::Serve(ServeArguments {
            port: PORT,
            name: std::env::var("HOSTNAME").unwrap_or_else(|_| "toolbox".to_owned()),
            drain: DRAIN_S,
        })
    });
    let result = match command {
        Command::Serve(arguments) | Command::Stream(StreamCommand::Serve(arguments)) => serve::run(&arguments),
        Command::Connect(arguments) => Ok(connect::run(&arguments).report()),
        Command::Probe(arguments) => Ok(probe::run(&arguments)),
        Command::Dns(arguments) => dns::run(&arguments),
        Command::Stream(StreamCommand::Run(arguments)) => stream::run(&arguments),
        Command::Load(arguments) => load::run(&arguments),
        Command::Ping(arguments) => ping::run(&arguments),
        Command::Pause => pause(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("weft toolbox: {error}");
        ExitCode::FAILURE
    })
}

/// As process 1 of a container, which has no default actions, it must take the signals itself.
fn pause() -> std::io::Result<ExitCode> {
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    ends.thread_block()?;
    ends.wait()?;
    Ok(ExitCode::SUCCESS)
}

/// The first address of a name; an address is its own.
fn resolve(host: &str, port: u16) -> std::io::Result<SocketAddr> {
    resolve_in(host, port, &FamilyArguments::default())
}

/// The first address of a name in the families that are wanted.
fn resolve_in(host: &str, port: u16, family: &FamilyArguments) -> std::io::Result<SocketAddr> {
    let fits = |a: &SocketAddr| !(family.ipv4 && a.is_ipv6() || family.ipv6 && a.is_ipv4());
    let absent = || std::io::Error::other(format!("{host}: has no such address"));
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, port)).filter(fits).ok_or_else(absent);
    }
    (host, port).to_socket_addrs()?.find(fits).ok_or_else(absent)
}
