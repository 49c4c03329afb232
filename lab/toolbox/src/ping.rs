//! ICMP echo in both families.

use super::packet::{ICMP, ICMPV6, RawSocket, checksum};
use super::{Outcome, PingArguments, resolve};
use std::io;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

pub(super) fn run(arguments: &PingArguments) -> io::Result<ExitCode> {
    let target = resolve(&arguments.host, 0)?.ip();
    let mut last = ExitCode::SUCCESS;
    for sequence in 1..=arguments.count {
        let outcome = match echo(target, sequence, arguments) {
            Ok(took) => Outcome::Ok(format!("{target} seq={sequence} time={:.3} ms", took.as_secs_f64() * 1e3)),
            Err(error) => Outcome::of(&error),
        };
        last = outcome.report();
    }
    Ok(last)
}

fn echo(target: IpAddr, sequence: u16, arguments: &PingArguments) -> io::Result<Duration> {
    let v6 = target.is_ipv6();
    let (request, reply) = if v6 { (128, 129) } else { (8, 0) };
    let socket = RawSocket::open(v6, if v6 { ICMPV6 } else { ICMP })?;
    socket.connect(target)?;
    // In a pod every process may have the same number; the time tells them apart.
    let identifier = uuid::Uuid::new_v4().as_u128() as u16;
    let mut packet = vec![request, 0, 0, 0];
    packet.extend_from_slice(&identifier.to_be_bytes());
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.resize(8 + usize::from(arguments.size), 0x77);
    if !v6 {
        // For ICMPv6 the kernel does it, since the sum covers addresses that it chooses.
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let began = Instant::now();
    let deadline = began + arguments.timeout;
    socket.send(&packet)?;
    loop {
        let left = deadline.checked_duration_since(Instant::now()).ok_or(io::ErrorKind::TimedOut)?;
        socket.set_timeout(left)?;
        let answer = socket.receive()?;
        let ours = answer.len() == packet.len() && answer.get(4..) == packet.get(4..);
        if answer.first() == Some(&reply) && ours {
            return Ok(began.elapsed());
        }
        // Destination unreachable about our request.
        let unreachable = if v6 { 1 } else { 3 };
        if answer.first() == Some(&unreachable) && answer.windows(4).any(|w| w == &packet[4..8]) {
            return Err(io::Error::new(io::ErrorKind::HostUnreachable, format!("code {}", answer[1])));
        }
    }
}
