//! What a container finds in /etc/resolv.conf and /etc/hosts, by its pod's `dnsPolicy` and names.

use serde_json::Value;
use std::fmt::Write as _;
use std::net::IpAddr;

/// Name servers that resolvers take.
const SERVERS_MAX: usize = 3;
/// Domains that resolvers try.
const SEARCHES_MAX: usize = 32;
/// A name with fewer dots is tried in the cluster's domains first.
const NDOTS: &str = "ndots:5";

/// The parts of a resolv.conf.
#[derive(Default)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => found.servers.extend(words.next()),
                // The last line of its kind counts.
                Some("search" | "domain") => found.searches = words.collect(),
                Some("options") => found.options.extend(words),
                _ => {}
            }
        }
        found
    }

    /// Adds what the pod itself wants (`dnsConfig`).
    fn with(mut self, config: &Value) -> Self {
        let texts = |field: &str| config[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        for (list, field) in [(&mut self.servers, "nameservers"), (&mut self.searches, "searches")] {
            for text in texts(field) {
                if !list.iter().any(|known| known == text) {
                    list.push(text.to_owned());
                }
            }
        }
        for option in config["options"].as_array().into_iter().flatten() {
            let Some(name) = option["name"].as_str() else { continue };
            self.options.retain(|o| o.split(':').next() != Some(name));
            self.options.push(match option["value"].as_str() {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
        self
    }

    fn text(mut self) -> String {
        self.servers.truncate(SERVERS_MAX);
        self.searches.truncate(SEARCHES_MAX);
        let mut text = String::new();
        for server in &self.servers {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "nameserver {server}");
        }
        for (word, list) in [("search", &self.searches), ("options", &self.options)] {
            if !list.is_empty() {
                let _ = writeln!(text, "{word} {}", list.join(" "));
            }
        }
        text
    }
}

/// /etc/resolv.conf. `servers` are those of the cluster, `machine` is the machine's own file.
pub(super) fn conf(pod: &Value, namespace: &str, domain: &str, servers: &[IpAddr], machine: &str) -> String {
    let spec = &pod["spec"];
    let policy = spec["dnsPolicy"].as_str().unwrap_or("ClusterFirst");
    let on_node = spec["hostNetwork"] == true;
    let of_cluster = match policy {
        "ClusterFirst" => !on_node,
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let resolver = if policy == "None" {
        Resolver::default()
    } else if of_cluster && !servers.is_empty() {
        let own = Resolver::parse(machine);
        let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        searches.extend(own.searches);
        let servers = servers.iter().map(ToString::to_string).collect();
        Resolver { servers, searches, options: vec![NDOTS.to_owned()] }
    } else {
        Resolver::parse(machine)
    };
    resolver.with(&spec["dnsConfig"]).text()
}

/// /etc/hosts. `own` is the pod's name for itself.
pub(super) fn hosts(pod: &Value, namespace: &str, domain: &str, own: &str, addresses: &[IpAddr]) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    let full = match pod["spec"]["subdomain"].as_str().filter(|s| !s.is_empty()) {
        Some(subdomain) => format!("{own}.{subdomain}.{namespace}.svc.{domain} "),
        None => String::new(),
    };
    for address in addresses {
        let _ = writeln!(text, "{address} {full}{own}");
    }
    for alias in pod["spec"]["hostAliases"].as_array().into_iter().flatten() {
        let names: Vec<&str> = alias["hostnames"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if let (Some(address), false) = (alias["ip"].as_str(), names.is_empty()) {
            let _ = writeln!(text, "{address} {}", names.join(" "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const MACHINE: &str = "nameserver 192.0.2.53\nsearch example.org\noptions edns0\n";

    fn of(spec: Value) -> String {
        let servers = ["10.96.0.10", "fd96::a"].map(|a| a.parse().expect("an address"));
        conf(&json!({"spec": spec}), "shop", "cluster.local", &servers, MACHINE)
    }

    #[test]
    fn policies() {
        let cluster = "nameserver 10.96.0.10\nnameserver fd96::a\nsearch shop.svc.cluster.local svc.cluster.local \
                       cluster.local example.org\noptions ndots:5\n";
        assert_eq!(of(json!({})), cluster);
        assert_eq!(of(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirst"})), MACHINE);
        assert_eq!(of(json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})), cluster);
        assert_eq!(of(json!({"dnsPolicy": "Default"})), MACHINE);
        let own = json!({"nameservers": ["192.0.2.1"], "searches": ["a.b"], "options": [
            {"name": "ndots", "value": "2"}, {"name": "rotate"}]});
        let none = of(json!({"dnsPolicy": "None", "dnsConfig": own}));
        assert_eq!(none, "nameserver 192.0.2.1\nsearch a.b\noptions ndots:2 rotate\n");
        let more = of(json!({"dnsConfig": own}));
        assert!(more.contains("nameserver 192.0.2.1\n") && more.ends_with("options ndots:2 rotate\n"), "{more}");
        // A cluster without cluster DNS.
        assert_eq!(conf(&json!({}), "shop", "cluster.local", &[], MACHINE), MACHINE);
    }

    #[test]
    fn hosts_know_the_pods_names() {
        let pod = json!({"spec": {"subdomain": "db", "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["x", "y"]}]}});
        let text = hosts(&pod, "shop", "cluster.local", "db-0", &["10.244.0.5".parse().expect("an address")]);
        assert!(text.contains("10.244.0.5 db-0.db.shop.svc.cluster.local db-0\n192.0.2.9 x y\n"), "{text}");
    }
}
