//! A DNS lookup over UDP or TCP, by hand, so that it shows exactly what the server said.

use super::{DnsArguments, Outcome};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

const A: u16 = 1;
const NS: u16 = 2;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const NAME_JUMPS_MAX: usize = 32;

pub(super) fn run(arguments: &DnsArguments) -> io::Result<ExitCode> {
    let server = server(arguments)?;
    let kinds: &[u16] = match arguments.kind.to_ascii_uppercase().as_str() {
        "A" => &[A],
        "AAAA" => &[AAAA],
        "BOTH" => &[A, AAAA],
        "CNAME" => &[CNAME],
        "NS" => &[NS],
        "PTR" => &[PTR],
        "SOA" => &[SOA],
        "SRV" => &[SRV],
        other => {
            let expected = "A, AAAA, both, CNAME, NS, PTR, SOA or SRV";
            return Err(io::Error::other(format!("--type {other}: expected {expected}")));
        }
    };
    let mut code = ExitCode::SUCCESS;
    for kind in kinds {
        let name = match arguments.name.parse::<IpAddr>() {
            Ok(address) if *kind == PTR => reverse(address),
            _ => arguments.name.clone(),
        };
        let transport = if arguments.tcp { by_tcp } else { by_udp };
        let outcome = match transport(server, &name, *kind, arguments.timeout) {
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

/// The name that an address's own name is kept under.
fn reverse(address: IpAddr) -> String {
    match address {
        IpAddr::V4(a) => {
            let [a, b, c, d] = a.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(a) => {
            let digits = a.octets().iter().rev().map(|b| format!("{:x}.{:x}.", b & 15, b >> 4)).collect::<String>();
            format!("{digits}ip6.arpa")
        }
    }
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

fn malformed() -> io::Error {
    io::Error::other("the server's answer is malformed")
}

fn by_udp(server: SocketAddr, name: &str, kind: u16, timeout: Duration) -> io::Result<String> {
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
            return parse(&buffer[..length]).ok_or_else(malformed);
        }
    }
}

fn by_tcp(server: SocketAddr, name: &str, kind: u16, timeout: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    let query = query(name, kind, uuid::Uuid::new_v4().as_u128() as u16)?;
    let mut framed = u16::try_from(query.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
    framed.extend_from_slice(&query);
    stream.write_all(&framed)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    parse(&answer).ok_or_else(malformed)
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
            NS => records.push(format!("{owner} NS {}", name(packet, end + 10)?.0)),
            CNAME => records.push(format!("{owner} CNAME {}", name(packet, end + 10)?.0)),
            SOA => records.push(format!("{owner} SOA {}", name(packet, end + 10)?.0)),
            PTR => records.push(format!("{owner} PTR {}", name(packet, end + 10)?.0)),
            SRV => {
                let (priority, weight, port) = (number(end + 10)?, number(end + 12)?, number(end + 14)?);
                let target = name(packet, end + 16)?.0;
                records.push(format!("{owner} SRV {priority} {weight} {port} {target}"));
            }
            _ => {}
        }
        at = end + 10 + length;
    }
    // What did not fit is to be asked for by TCP.
    let cut = if packet.get(2)? & 2 == 0 { "" } else { "truncated " };
    Some(format!("{code} {cut}{}", records.join(", ")))
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
        let mut service = query("a.example", SRV, 7).expect("a name");
        service[7] = 1;
        service.extend_from_slice(&[0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 9, 0, 8, 0, 0, 0, 50, 0, 80, 0xc0, 12]);
        assert_eq!(parse(&service).as_deref(), Some("NOERROR a.example. SRV 0 50 80 a.example."));
        assert_eq!(reverse([192, 0, 2, 1].into()), "1.2.0.192.in-addr.arpa");
        let long = reverse("2001:db8::1".parse().expect("an address"));
        assert!(long.starts_with("1.0.0.0.") && long.ends_with("8.b.d.0.1.0.0.2.ip6.arpa"), "{long}");
        // A name that points to itself ends.
        assert_eq!(name(&[0xc0, 0], 0), None);
    }
}
