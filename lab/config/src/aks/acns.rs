//! Flags of Advanced Container Networking Services: by Azure's rules, and as far as Weft has what they ask for.
//!
//! What is there is on in every cluster, so these flags turn nothing on. A flag that asks for what is not there is refused:
//! nobody shall believe in an encryption that does not happen.

use super::{Refusal, one_of, refuse};

/// See the module.
#[derive(Clone, Default, PartialEq, Eq, Debug, clap::Args)]
pub struct AcnsOptions {
    /// Advanced Container Networking Services: observability and security
    #[arg(long)]
    pub enable_acns: bool,
    /// None of them
    #[arg(long)]
    pub disable_acns: bool,
    /// Not observability
    #[arg(long)]
    pub disable_acns_observability: bool,
    /// Not security
    #[arg(long)]
    pub disable_acns_security: bool,
    /// Policies beyond ports: None, FQDN or L7
    #[arg(long, value_name = "LEVEL")]
    pub acns_advanced_networkpolicies: Option<String>,
    /// Encryption between nodes: none, wireguard or mTLS
    #[arg(long, value_name = "TYPE")]
    pub acns_transit_encryption_type: Option<String>,
    /// Packets past the nodes' network stack: None or BpfVeth, which is how Weft always does it
    #[arg(long, value_name = "MODE")]
    pub acns_datapath_acceleration_mode: Option<String>,
    /// Flow logs
    #[arg(long)]
    pub enable_container_network_logs: bool,
}

impl AcnsOptions {
    /// Whether Azure would take it, and Weft can do it.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let level = self.acns_advanced_networkpolicies.as_deref();
        let level = one_of("--acns-advanced-networkpolicies", level, &["None", "FQDN", "L7"])?;
        let encryption = self.acns_transit_encryption_type.as_deref();
        let encryption = one_of("--acns-transit-encryption-type", encryption, &["none", "wireguard", "mTLS"])?;
        let acceleration = self.acns_datapath_acceleration_mode.as_deref();
        let acceleration = one_of("--acns-datapath-acceleration-mode", acceleration, &["None", "BpfVeth"])?;
        if self.enable_acns && self.disable_acns {
            return refuse("Cannot specify --enable-acns and --disable-acns at the same time.");
        }
        let logs = self.enable_container_network_logs.then_some("");
        let parts = [
            ("--acns-advanced-networkpolicies", level.as_deref()),
            ("--acns-transit-encryption-type", encryption.as_deref()),
            ("--acns-datapath-acceleration-mode", acceleration.as_deref()),
            ("--enable-container-network-logs", logs),
            ("--disable-acns-observability", self.disable_acns_observability.then_some("")),
            ("--disable-acns-security", self.disable_acns_security.then_some("")),
        ];
        if let Some((flag, _)) = parts.iter().find(|(_, given)| given.is_some()).filter(|_| !self.enable_acns) {
            return refuse(format!("{flag} requires --enable-acns."));
        }
        if self.disable_acns_observability && self.disable_acns_security {
            return refuse(
                "Cannot specify --disable-acns-observability and --disable-acns-security at the same time: \
                 use --disable-acns.",
            );
        }
        let asks = |given: &Option<String>| given.as_deref().is_some_and(|given| given != "none");
        for (flag, given) in [
            ("--acns-advanced-networkpolicies", &level),
            ("--acns-transit-encryption-type", &encryption),
            ("--acns-datapath-acceleration-mode", &acceleration),
        ] {
            if self.disable_acns_security && asks(given) {
                return refuse(format!("{flag} cannot be used with --disable-acns-security."));
            }
        }
        if self.enable_container_network_logs && self.disable_acns_observability {
            return refuse("--enable-container-network-logs cannot be used with --disable-acns-observability.");
        }
        let missing = [
            (asks(&level), "--acns-advanced-networkpolicies: rules for names and for HTTP are"),
            (asks(&encryption), "--acns-transit-encryption-type: encryption between nodes is"),
            (self.enable_container_network_logs, "--enable-container-network-logs: logs of flows in files are"),
        ];
        match missing.iter().find(|(asked, _)| *asked) {
            Some((_, what)) => refuse(format!("{what} not part of Weft yet.")),
            None => Ok(()),
        }
    }
}
