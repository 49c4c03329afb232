//! Enforces policies: identifies the two ends of a packet and evaluates the policies of those on this node.

use weft_abi::{
    DropReason, ENDPOINT_ID_HOST, EndpointInfo, NodeConfig, config_flags, endpoint_flags, identity, ipcache_flags,
};

use crate::endpoint::lookup::{endpoint, has_host_policy, identity_of, is_node_address};
use crate::forward::route::is_forwarded;
use crate::forward::vxlan::check_sender;
use crate::hook::Hook;
use crate::maps::config;
use crate::mark::has_socket;
use crate::notify;
use crate::packet::{Skb, TUNNELLED, UNMASQUERADED};
use crate::policy::lookup::lookup;
use crate::scratch::{End, Scratch};
use crate::step::step;

/// Evaluates the policies of both ends, as far as they are on this node, for the originator's packet. In steps that pass
/// results in the scratch memory, so that the verifier does not walk their combinations.
#[inline(always)]
pub fn authorize(skb: Skb, s: &mut Scratch, hook: Hook, forward: bool) -> Result<(), DropReason> {
    destination(skb, s, hook)?;
    source(skb, s, hook)?;
    evaluate(skb, s, forward)
}

step!(destination(hook: Hook) = weft_step_destination: destination_body);

/// Identifies the destination.
#[inline(always)]
fn destination_body(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    s.host = 0;
    if let Some(info) = endpoint(&s.packet.destination) {
        if matches!(hook, Hook::ToPod) && info.ifindex != s.packet.ifindex {
            // This link leads to another pod.
            return Err(DropReason::Unroutable);
        }
        s.to = pod_end(info);
        s.destination_identity = info.identity;
        s.destination_endpoint = info.id;
        return Ok(());
    }
    let to_host = has_host_policy(config)
        && match hook {
            Hook::FromPod => is_node_address(&s.packet.destination, config),
            Hook::FromDevice => {
                s.packet.flags & UNMASQUERADED == 0
                    && (is_node_address(&s.packet.destination, config) || !is_forwarded(skb, s))
            }
            _ => false,
        };
    if matches!(hook, Hook::ToPod) {
        // This link leads to none.
        return Err(DropReason::Unroutable);
    }
    if to_host {
        s.host = 1;
        s.to = host_end(config);
        s.destination_identity = identity::HOST;
        s.destination_endpoint = ENDPOINT_ID_HOST;
    } else {
        s.to = End::NONE;
        s.destination_identity = identity_of(&s.packet.destination, config).0;
        s.destination_endpoint = 0;
    }
    Ok(())
}

step!(source(hook: Hook) = weft_step_source: source_body);

/// Identifies the source, after the destination. Drops spoofed sources (RFC 2827).
#[inline(always)]
fn source_body(skb: Skb, s: &mut Scratch, hook: Hook) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if let Some(info) = endpoint(&s.packet.source) {
        if matches!(hook, Hook::FromDevice) || matches!(hook, Hook::FromPod) && info.ifindex != s.packet.ifindex {
            return Err(DropReason::InvalidSourceIp);
        }
        s.from = pod_end(info);
        s.source_identity = info.identity;
        s.source_endpoint = info.id;
        return Ok(());
    }
    if matches!(hook, Hook::FromPod)
        || matches!(hook, Hook::FromDevice) && (s.packet.source == config.node_v4 || s.packet.source == config.node_v6)
    {
        return Err(DropReason::InvalidSourceIp);
    }
    s.source_identity = if matches!(hook, Hook::ToDevice) {
        identity::HOST
    } else if s.packet.flags & TUNNELLED != 0 {
        check_sender(s)?;
        s.packet.tunnel_identity
    } else {
        let (found, flags) = identity_of(&s.packet.source, config);
        let node_itself =
            flags & (ipcache_flags::NODE | ipcache_flags::LOCAL) == ipcache_flags::NODE | ipcache_flags::LOCAL;
        // No host outside has an address of this node; and with a tunnel, pods of other nodes come through it only.
        let pod = found == identity::UNKNOWN || found >= identity::ALLOCATED_MIN;
        let unproven = matches!(hook, Hook::FromDevice) && config.tunnel_ifindex != 0 && pod;
        if matches!(hook, Hook::FromDevice) && flags & ipcache_flags::LOCAL != 0 || unproven && s.host == 0 {
            return Err(DropReason::InvalidSourceIp);
        }
        if matches!(hook, Hook::ToPod) && (node_itself || has_socket(skb)) {
            identity::HOST
        } else if unproven {
            // Pods may reach the node itself without the tunnel, but nothing proves their identity.
            identity::UNKNOWN
        } else {
            found
        }
    };
    let from_host = has_host_policy(config)
        && (matches!(hook, Hook::ToDevice) || matches!(hook, Hook::ToPod) && s.source_identity == identity::HOST);
    if from_host {
        s.host = 1;
        s.from = host_end(config);
        s.source_endpoint = ENDPOINT_ID_HOST;
    } else {
        s.from = End::NONE;
        s.source_endpoint = 0;
    }
    Ok(())
}

step!(evaluate(forward: bool) = weft_step_evaluate: evaluate_body);

/// Evaluates the policies of the originator and the responder of the connection, whichever way this packet goes.
#[inline(always)]
fn evaluate_body(skb: Skb, s: &mut Scratch, forward: bool) -> Result<(), DropReason> {
    let Some(config) = config() else { return Err(DropReason::NoConfig) };
    if (s.from.flags | s.to.flags) & endpoint_flags::BLOCKED != 0 {
        return Err(DropReason::EndpointNotReady);
    }
    let known = s.entry.source_identity;
    let (origin, responder) = if forward { (s.from, s.to) } else { (s.to, s.from) };
    (s.entry.source_endpoint, s.entry.destination_endpoint) =
        if forward { (s.source_endpoint, s.destination_endpoint) } else { (s.destination_endpoint, s.source_endpoint) };
    (s.entry.source_identity, s.entry.destination_identity) =
        if forward { (s.source_identity, s.destination_identity) } else { (s.destination_identity, s.source_identity) };
    if !forward && origin.is_pod == 0 && config.tunnel_ifindex != 0 && known != 0 {
        // The tunnel header of the first packet named the originator.
        s.entry.source_identity = known;
    }
    if s.entry.source_endpoint != 0 && s.entry.source_endpoint == s.entry.destination_endpoint {
        // A pod and itself.
        return Ok(());
    }
    s.query.port = if forward { s.packet.destination_port } else { s.packet.source_port };
    // The node may always reach its own pods.
    let to_own_pod = origin.is_pod == 0 && responder.is_pod == 1;
    if origin.egress != 0 && !to_own_pod {
        s.egress = 1;
        s.query.policy = origin.egress;
        s.query.identity = s.entry.destination_identity;
        s.query.address = if forward { s.packet.destination } else { s.packet.source };
        let verdict = lookup(skb, s);
        apply_audit(s, verdict, origin.flags)?;
        s.entry.egress_rule = s.rule;
    }
    if responder.ingress != 0 && !(to_own_pod && s.entry.source_identity == identity::HOST) {
        s.egress = 0;
        s.query.policy = responder.ingress;
        s.query.identity = s.entry.source_identity;
        s.query.address = if forward { s.packet.source } else { s.packet.destination };
        let mut verdict = lookup(skb, s);
        if verdict == Err(DropReason::PolicyDenied) && s.query.identity == identity::UNKNOWN {
            verdict = Err(DropReason::UnknownSender);
        }
        apply_audit(s, verdict, responder.flags)?;
        s.entry.ingress_rule = s.rule;
    }
    Ok(())
}

/// In audit mode a denied packet passes and is reported.
#[inline(always)]
fn apply_audit(s: &mut Scratch, verdict: Result<(), DropReason>, flags: u16) -> Result<(), DropReason> {
    use DropReason::{PolicyDenied, PolicyDenyRule, UnknownSender};
    match verdict {
        Err(reason @ (PolicyDenied | PolicyDenyRule | UnknownSender)) if flags & endpoint_flags::AUDIT != 0 => {
            if s.known == 0 {
                notify::report_audited(s, reason as u32);
            }
            s.audited = 1;
            // No rule allowed it.
            s.rule = 0;
            Ok(())
        }
        _ => verdict,
    }
}

/// The policies of a pod.
#[inline(always)]
const fn pod_end(info: &EndpointInfo) -> End {
    End { ingress: info.policy_ingress, egress: info.policy_egress, flags: info.flags, is_pod: 1, pad: 0 }
}

/// The policies of the node itself.
#[inline(always)]
const fn host_end(config: &NodeConfig) -> End {
    let flags = if config.flags & config_flags::HOST_AUDIT != 0 { endpoint_flags::AUDIT } else { 0 };
    End { ingress: config.host_ingress, egress: config.host_egress, flags, is_pod: 0, pad: 0 }
}
