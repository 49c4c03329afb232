//! A DNS lookup over UDP, by hand, so that it shows exactly what the server said.

use super::{DnsArguments, Outcome};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const NAME_JUMPS_MAX: usize = 32;

pub(super) fn run(arguments: &DnsArguments) -> io::Result<ExitCode> {
    let server = server(arguments)?;
    let kinds: &[u16] = match arguments.kind.to_ascii_uppercase().as_str() {
        "A" => &[A],
        "AAAA" => &[AAAA],
        "BOTH" => &[A, AAAA],
        other => return Err(io::Error::other(format!("--type {other}: expected A, AAAA or both"))),
    };
    let mut code = ExitCode::SUCCESS;
    for kind in kinds {
        let outcome = match ask(server, &arguments.name, *kind, arguments.timeout) {
            Ok(answer) => Outcome::Ok(answer),
            Err(error) => Outcome::of(&error),
        };
        let result = outcome.report();
        if !matches!(outcome, Outcome::Ok(_)) {
            code = result;
        }
    }
    Ok(code)
}

fn server(arguments: &DnsArguments) -> io::Result<SocketAddr> {
    let text = match &arguments.server {
        Some(server) => server.clone(),
        None => std::fs::read_to_string("/etc/resolv.conf")?
            .lines()
            .find_map(|l| l.strip_prefix("nameserver"))
            .map(|s| s.trim().to_owned())
            .ok_or_else(|| io::Error::other("/etc/resolv.conf names no server; expected --server ADDRESS"))?,
    };
    let unnamed = || io::Error::other(format!("--server {text}: expected an address, with or without :PORT"));
    text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)).or_else(|_| text.parse()).map_err(|_| unnamed())
}

fn query(name: &str, kind: u16, id: u16) -> io::Result<Vec<u8>> {
    // Recursion desired, one question.
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|l| (1..=63).contains(l));
        packet.push(length.ok_or_else(|| io::Error::other(format!("{name}: expected labels of 1 to 63 bytes")))?);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&kind.to_be_bytes());
    packet.extend_from_slice(&[0, 1]);
    Ok(packet)
}

fn ask(server: SocketAddr, name: &str, kind: u16, timeout: std::time::Duration) -> io::Result<String> {
    let any: SocketAddr = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(timeout))?;
    let id = uuid::Uuid::new_v4().as_u128() as u16;
    socket.send(&query(name, kind, id)?)?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer)?;
        if buffer.get(..2) == Some(&id.to_be_bytes()) {
            return parse(&buffer[..length]).ok_or_else(|| io::Error::other("the server's answer is malformed"));
        }
    }
}

/// The answer in words: `NOERROR name A 1.2.3.4, ...`.
fn parse(packet: &[u8]) -> Option<String> {
    let number = |at: usize| Some(u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?));
    let code = match packet.get(3)? & 15 {
        0 => "NOERROR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        5 => "REFUSED",
        _ => "ERROR",
    };
    let mut at = 12;
    for _ in 0..number(4)? {
        at = name(packet, at)?.1 + 4;
    }
    let mut records = Vec::new();
    for _ in 0..number(6)? {
        let (owner, end) = name(packet, at)?;
        let (kind, length) = (number(end)?, usize::from(number(end + 8)?));
        let data = packet.get(end + 10..end + 10 + length)?;
        match kind {
            A => records.push(format!("{owner} A {}", Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?))),
            AAAA => records.push(format!("{owner} AAAA {}", Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?))),
            CNAME => records.push(format!("{owner} CNAME {}", name(packet, end + 10)?.0)),
            _ => {}
        }
        at = end + 10 + length;
    }
    Some(format!("{code} {}", records.join(", ")))
}

/// A name, and where the packet goes on behind it.
fn name(packet: &[u8], start: usize) -> Option<(String, usize)> {
    let (mut at, mut end, mut text) = (start, None, String::new());
    for _ in 0..NAME_JUMPS_MAX {
        let length = usize::from(*packet.get(at)?);
        match length >> 6 {
            3 => {
                end = end.or(Some(at + 2));
                at = (length & 63) << 8 | usize::from(*packet.get(at + 1)?);
            }
            0 if length == 0 => return Some((text, end.unwrap_or(at + 1))),
            0 => {
                text.push_str(&String::from_utf8_lossy(packet.get(at + 1..at + 1 + length)?));
                text.push('.');
                at += 1 + length;
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_compressed_answers_and_survives_cuts() {
        let mut packet = query("a.example", A, 7).expect("a name");
        packet[7] = 1;
        packet.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
        assert_eq!(parse(&packet).as_deref(), Some("NOERROR a.example. A 192.0.2.1"));
        for length in 0..packet.len() {
            assert_eq!(parse(&packet[..length]), None, "cut at {length}");
        }
        // A name that points to itself ends.
        assert_eq!(name(&[0xc0, 0], 0), None);
    }
}
