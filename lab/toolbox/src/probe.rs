//! Many attempts at once, each told in a line of JSON, in the order in which they were asked for.

use super::{ConnectArguments, FamilyArguments, Outcome, ProbeArguments, connect};
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// `tcp://10.0.0.1:80`, `udp://[fd96::1]:53?from=4000`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    protocol: &'static str,
    host: String,
    port: u16,
    source_port: u16,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!("{text}: expected PROTOCOL://HOST:PORT, perhaps with ?from=PORT; PROTOCOL: tcp, udp, sctp or http")
        };
        let (protocol, rest) = text.split_once("://").ok_or_else(expected)?;
        let protocol =
            ["tcp", "udp", "sctp", "http"].into_iter().find(|known| *known == protocol).ok_or_else(expected)?;
        let (place, source) = rest.split_once("?from=").unwrap_or((rest, "0"));
        let (host, port) = place.rsplit_once(':').ok_or_else(expected)?;
        if host.is_empty() || (host.contains(':') && !host.starts_with('[')) {
            return Err(expected());
        }
        let number = |digits: &str| digits.parse().map_err(|_| expected());
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { protocol, host, port: number(port)?, source_port: number(source)? })
    }
}

impl Target {
    fn arguments(&self, timeout: Duration) -> ConnectArguments {
        ConnectArguments {
            tcp: self.protocol == "tcp",
            udp: self.protocol == "udp",
            http: self.protocol == "http",
            sctp: self.protocol == "sctp",
            timeout,
            source_port: self.source_port,
            source: None,
            family: FamilyArguments::default(),
            size: 16,
            host: self.host.clone(),
            port: self.port,
        }
    }
}

/// Tries all at once, so that the whole takes no longer than the slowest of them.
pub(super) fn run(arguments: &ProbeArguments) -> ExitCode {
    let outcomes: Vec<(Outcome, Duration)> = std::thread::scope(|scope| {
        let attempt = |target: &Target| {
            let (began, arguments) = (Instant::now(), target.arguments(arguments.timeout));
            scope.spawn(move || (connect::run(&arguments), began.elapsed()))
        };
        let threads: Vec<_> = arguments.targets.iter().map(attempt).collect();
        let lost = || (Outcome::Failed("the attempt panicked".to_owned()), Duration::ZERO);
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| lost())).collect()
    });
    for (outcome, took) in outcomes {
        let (word, text) = match outcome {
            Outcome::Ok(answer) => ("ok", answer),
            Outcome::Refused => ("refused", String::new()),
            Outcome::Timeout => ("timeout", String::new()),
            Outcome::Unreachable(why) => ("unreachable", why),
            Outcome::Failed(why) => ("error", why),
        };
        println!("{}", json!({"outcome": word, "text": text, "ms": took.as_secs_f64() * 1e3}));
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_what_they_look_like() {
        let target =
            |protocol, host: &str, port, source_port| Target { protocol, host: host.to_owned(), port, source_port };
        assert_eq!("tcp://10.0.0.1:80".parse(), Ok(target("tcp", "10.0.0.1", 80, 0)));
        assert_eq!("udp://[fd96::1]:53?from=4000".parse(), Ok(target("udp", "fd96::1", 53, 4000)));
        assert_eq!("http://web.default:8080".parse(), Ok(target("http", "web.default", 8080, 0)));
        for wrong in [
            "10.0.0.1:80",
            "quic://a:1",
            "tcp://a",
            "tcp://:1",
            "tcp://fd96::1:80",
            "udp://a:99999",
            "tcp://a:1?from=x",
        ] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
