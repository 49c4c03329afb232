//! The policy lookup of the kernel programs: tiers, classes, prefixes, types of ICMP, protocols without ports, audit.

use anyhow::{Context, Result, ensure};
use weft_abi::{DropReason, Event, MetricKey, event_kind, flow_kind, identity, verdict};
use weft_tests::packet::kernel::{DROP, Kernel, REDIRECT};
use weft_tests::packet::site::{
    Family, ID_A, ID_B, ID_C, REST, allow, allow_port, audit, cidr, deny, from_a, from_b, from_wire, isolate, pass,
    put_cidr, put_open_policy, put_policy,
};
use weft_tests::packet::stage::native;
use weft_tests::packet::{ACK, ICMP, ICMPV6, SYN, TCP, UDP, ip};

/// Puts pod B under this policy for what comes to it; decided connections decide again.
fn guard(kernel: &mut Kernel, f: Family, policy: u32) -> Result<()> {
    isolate(kernel, f.b, policy, 0)?;
    kernel.bump(&[2])?;
    kernel.drain();
    Ok(())
}

/// Whether A reaches B on this port of TCP.
fn reaches(kernel: &Kernel, f: Family, port: u16) -> Result<bool> {
    Ok(from_a(kernel, &ip(f.a, f.b).tcp(1000, port, SYN, b""))?.action == REDIRECT)
}

/// The last event.
fn last(kernel: &mut Kernel) -> Result<Event> {
    kernel.drain().pop().context("an event")
}

#[test]
fn the_first_tier_is_before_all_and_its_order_counts() {
    native(|kernel, f| {
        // Denied by Admin, whatever Normal allows; what Admin does not mention is Normal's.
        put_policy(kernel, 10, &[deny(ID_A).port(TCP, 22).admin(0), allow(ID_A)])?;
        guard(kernel, f, 10)?;
        ensure!(!reaches(kernel, f, 22)? && reaches(kernel, f, 80)?);
        // Allowed by Admin before Normal denies.
        put_policy(kernel, 11, &[allow_port(ID_A, TCP, 22).admin(0), deny(ID_A)])?;
        guard(kernel, f, 11)?;
        ensure!(reaches(kernel, f, 22)? && !reaches(kernel, f, 80)?);
        assert_eq!(last(kernel)?.rule, 2);
        // The lower index of two rules of the tier, and of equal ones the deny.
        put_policy(kernel, 12, &[allow_port(ID_A, TCP, 22).admin(1), deny(0).admin(2)])?;
        guard(kernel, f, 12)?;
        ensure!(reaches(kernel, f, 22)? && !reaches(kernel, f, 80)?);
        put_policy(kernel, 13, &[allow_port(ID_A, TCP, 22).admin(1), deny(0).admin(1)])?;
        guard(kernel, f, 13)?;
        ensure!(!reaches(kernel, f, 22)?);
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn a_pass_leaves_it_to_the_tiers_below() {
    native(|kernel, f| {
        // Passed over the Admin deny of everything to what Normal says: one port.
        let rules = [pass(ID_A), deny(0).admin(1), allow_port(ID_A, TCP, 80)];
        put_policy(kernel, 20, &rules)?;
        guard(kernel, f, 20)?;
        ensure!(reaches(kernel, f, 80)?);
        ensure!(!reaches(kernel, f, 81)?);
        let event = last(kernel)?;
        assert_eq!((event.reason, event.rule), (DropReason::PolicyDenied as u8, 0), "nobody's rule: the default");
        // Others meet the deny.
        let outcome = from_wire(kernel, &ip(f.c, f.b).tcp(1, 80, SYN, b""))?;
        let event = last(kernel)?;
        assert_eq!((outcome.action, event.reason, event.rule), (DROP, DropReason::PolicyDenyRule as u8, 2));
        // To Baseline, where Normal does not isolate; and to nothing at all, which then is allowed.
        put_open_policy(kernel, 21, &[pass(ID_A), deny(ID_A).port(TCP, 81).baseline(0)])?;
        guard(kernel, f, 21)?;
        ensure!(reaches(kernel, f, 80)? && !reaches(kernel, f, 81)?);
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn deny_beats_allow_and_no_rule_is_what_the_policy_says() {
    native(|kernel, f| {
        put_policy(
            kernel,
            30,
            &[allow(ID_A), deny(0).port(TCP, 22), allow_port(0, TCP, 23), deny(ID_A).port(TCP, 23)],
        )?;
        guard(kernel, f, 30)?;
        ensure!(reaches(kernel, f, 80)? && !reaches(kernel, f, 22)? && !reaches(kernel, f, 23)?);
        // Rules that only deny, and isolate nobody.
        put_open_policy(kernel, 31, &[deny(ID_A).port(TCP, 22)])?;
        guard(kernel, f, 31)?;
        ensure!(reaches(kernel, f, 80)? && !reaches(kernel, f, 22)?);
        ensure!(from_wire(kernel, &ip(f.new, f.b).tcp(1, 22, SYN, b""))?.action == REDIRECT, "who is not known, too");
        let (one, other) = (f.a.parse()?, f.b.parse()?);
        let (_, entry) = kernel.connection(flow_kind::FLOW, one, other)?.context("an entry")?;
        assert_eq!(entry.ingress_rule, 0);
        // No rules at all.
        put_open_policy(kernel, 32, &[])?;
        guard(kernel, f, 32)?;
        ensure!(reaches(kernel, f, 22)?);
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn the_rest_are_those_with_a_class_of_which_nothing_is_said() {
    native(|kernel, f| {
        // A is named; C has a class in the node, but none here; the other pod of that node has none at all.
        put_policy(kernel, 40, &[allow_port(ID_A, TCP, 80), allow_port(REST, TCP, 90)])?;
        put_policy(kernel, 41, &[allow(ID_C)])?;
        guard(kernel, f, 40)?;
        ensure!(reaches(kernel, f, 80)? && !reaches(kernel, f, 90)?);
        let to = |kernel: &Kernel, source: &str, port: u16| -> Result<bool> {
            Ok(from_wire(kernel, &ip(source, f.b).tcp(1, port, SYN, b""))?.action == REDIRECT)
        };
        ensure!(to(kernel, f.c, 90)? && !to(kernel, f.c, 80)?);
        ensure!(!to(kernel, f.peer, 90)? && !to(kernel, f.new, 90)?);
        // A prefix is never one of the rest.
        put_cidr(kernel, if f.v6 { "2001:db8:100::/48" } else { "198.51.100.0/24" }, cidr(1))?;
        put_policy(kernel, 42, &[allow(cidr(1))])?;
        ensure!(!to(kernel, f.world, 90)?);
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn a_prefix_counts_by_what_its_peer_is() {
    native(|kernel, f| {
        let number = cidr(7);
        let (pods, world, nodes) = if f.v6 {
            ("fd44:0:0:1::/64", "2001:db8:100::/48", "fd31::/64")
        } else {
            ("10.244.1.0/24", "198.51.100.0/24", "172.31.0.0/24")
        };
        for text in [pods, world, nodes] {
            put_cidr(kernel, text, number)?;
        }
        let scopes = [identity::SCOPE_WORLD, identity::SCOPE_NODE, identity::SCOPE_POD];
        for scope in scopes {
            let policy = 50 + scope;
            put_policy(kernel, policy, &[allow_port(number | scope, TCP, 80)])?;
            guard(kernel, f, policy)?;
            assert_eq!(reaches(kernel, f, 80)?, scope == identity::SCOPE_POD, "a pod in scope {scope}");
            let outcome = from_wire(kernel, &ip(f.world, f.b).tcp(1, 80, SYN, b""))?;
            assert_eq!(outcome.action == REDIRECT, scope == identity::SCOPE_WORLD, "the world in scope {scope}");
            let outcome = from_wire(kernel, &ip(f.peer, f.b).tcp(1, 80, SYN, b""))?;
            assert_eq!(outcome.action == REDIRECT, scope == identity::SCOPE_NODE, "a node in scope {scope}");
        }
        // Together with the identity: the best of both.
        put_policy(kernel, 55, &[allow(ID_A), deny(number | identity::SCOPE_POD).port(TCP, 81)])?;
        guard(kernel, f, 55)?;
        ensure!(reaches(kernel, f, 80)? && !reaches(kernel, f, 81)?);
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn icmp_is_judged_by_its_type() {
    native(|kernel, f| {
        let (protocol, request, other) = if f.v6 { (ICMPV6, 128, 139) } else { (ICMP, 8, 13) };
        put_policy(kernel, 60, &[allow_port(ID_A, protocol, request)])?;
        guard(kernel, f, 60)?;
        let (there, back) = (ip(f.a, f.b), ip(f.b, f.a));
        ensure!(from_a(kernel, &there.ping(7))?.action == REDIRECT);
        ensure!(from_b(kernel, &back.pong(7))?.action == REDIRECT);
        // The connection of one type is not that of another: neither beside it nor before it.
        let question = there.icmp(other, 0, &[0; 20]);
        ensure!(from_a(kernel, &question)?.action == DROP);
        ensure!(from_a(kernel, &there.pong(8))?.action == DROP, "an answer that nobody asked for");
        // When policies change, the answer that comes first is judged as the question was.
        kernel.bump(&[2])?;
        ensure!(from_b(kernel, &back.pong(7))?.action == REDIRECT);
        ensure!(from_a(kernel, &there.ping(7))?.action == REDIRECT);
        put_policy(kernel, 61, &[allow_port(ID_A, protocol, u16::from(other))])?;
        guard(kernel, f, 61)?;
        ensure!(from_b(kernel, &back.pong(7))?.action == DROP);
        ensure!(from_a(kernel, &question)?.action == REDIRECT);
        // Its answer belongs to it, whatever B may send by itself.
        put_policy(kernel, 62, &[])?;
        isolate(kernel, f.b, 61, 62)?;
        kernel.bump(&[2])?;
        ensure!(from_b(kernel, &back.icmp(other + 1, 0, &[0; 20]))?.action == REDIRECT);
        ensure!(from_b(kernel, &back.icmp(other, 0, &[0; 20]))?.action == DROP);
        // All types of it, and any protocol.
        for rule in [allow_port(ID_A, protocol, 0), allow(ID_A)] {
            put_policy(kernel, 63, &[rule])?;
            guard(kernel, f, 63)?;
            ensure!(
                from_a(kernel, &there.ping(9))?.action == REDIRECT && from_a(kernel, &question)?.action == REDIRECT
            );
        }
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn protocols_without_ports_are_named_by_their_number() {
    native(|kernel, f| {
        // VRRP, IGMP, GRE, IPIP, IPv6 in IP, ESP, AH.
        for protocol in [112, 2, 47, 4, 41, 50, 51] {
            put_policy(kernel, 70, &[allow_port(ID_A, protocol, 0)])?;
            guard(kernel, f, 70)?;
            let packet = ip(f.a, f.b).raw(protocol, &[0; 24]);
            ensure!(from_a(kernel, &packet)?.action == REDIRECT, "protocol {protocol}");
            ensure!(from_b(kernel, &ip(f.b, f.a).raw(protocol, &[0; 24]))?.action == REDIRECT);
            ensure!(from_a(kernel, &ip(f.a, f.b).raw(99, &[0; 24]))?.action == DROP);
            ensure!(!reaches(kernel, f, 80)?);
            // Nobody named it.
            put_policy(kernel, 71, &[allow_port(ID_A, TCP, 0), allow_port(ID_A, UDP, 0)])?;
            guard(kernel, f, 71)?;
            ensure!(from_a(kernel, &packet)?.action == DROP, "protocol {protocol}");
            kernel.entries.remove(&weft_abi::PolicyEntryKey {
                policy: 70,
                class: ID_A,
                port_be: 0,
                port_prefix_len: 0,
                protocol,
            })?;
        }
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn a_fragment_without_its_first_one_passes_only_where_that_could() {
    native(|kernel, f| {
        let late = ip(f.a, f.b).fragment(31, 1400, false).raw(UDP, &[7; 100]);
        for (rules, passes) in [
            (&[allow_port(ID_A, UDP, 53)][..], true),
            (&[allow_port(ID_C, UDP, 53)], false),
            (&[allow_port(ID_A, UDP, 53), deny(ID_A)], false),
            (&[allow_port(ID_A, UDP, 53), deny(0).admin(0)], false),
            (&[allow(ID_A), deny(ID_A).port(UDP, 53)], true),
            (&[pass(ID_A), deny(0).admin(1), allow(ID_A)], true),
            (&[pass(ID_A), deny(0).admin(1), deny(ID_A).port(UDP, 0)], false),
        ] {
            // Entries of the round before would stay.
            let old = kernel.entries.keys().collect::<Result<Vec<_>, _>>()?;
            old.iter().try_for_each(|key| kernel.entries.remove(key))?;
            let old = kernel.classes.keys().collect::<Result<Vec<_>, _>>()?;
            old.iter().try_for_each(|key| kernel.classes.remove(key))?;
            put_policy(kernel, 80, rules)?;
            guard(kernel, f, 80)?;
            assert_eq!(from_a(kernel, &late)?.action == REDIRECT, passes, "{rules:?}");
        }
        put_open_policy(kernel, 81, &[])?;
        guard(kernel, f, 81)?;
        ensure!(from_a(kernel, &late)?.action == REDIRECT);
        isolate(kernel, f.b, 0, 0)
    });
}

#[test]
fn an_audit_lets_pass_and_tells() {
    native(|kernel, f| {
        put_policy(kernel, 90, &[deny(ID_A).port(TCP, 22), allow_port(ID_A, TCP, 80)])?;
        guard(kernel, f, 90)?;
        audit(kernel, f.b, true)?;
        kernel.bump(&[2])?;
        let counted = kernel.counted_as(MetricKey::AUDITED)?;
        let drops = kernel.counted(Some(DropReason::PolicyDenyRule))?;
        for (n, (port, rule, reason)) in
            [(22, 1, DropReason::PolicyDenyRule), (81, 0, DropReason::PolicyDenied)].into_iter().enumerate()
        {
            let packet = ip(f.a, f.b).tcp(1000, port, SYN, b"");
            ensure!(from_a(kernel, &packet)?.action == REDIRECT);
            let events = kernel.drain();
            assert_eq!(events.len(), 1, "that it passed is in it: {events:?}");
            let event = events[0];
            assert_eq!((event.kind, event.verdict), (event_kind::POLICY_VERDICT, verdict::AUDIT));
            assert_eq!((event.reason, event.rule, event.policy, event.egress), (reason as u8, rule, 90, 0));
            assert_eq!((event.source_identity, event.destination_identity), (ID_A, ID_B));
            // Once for the connection, and its answers pass.
            ensure!(from_a(kernel, &ip(f.a, f.b).tcp(1000, port, ACK, b"x"))?.action == REDIRECT);
            ensure!(from_b(kernel, &ip(f.b, f.a).tcp(port, 1000, ACK, b"x"))?.action == REDIRECT);
            ensure!(kernel.drain().iter().all(|event| event.verdict == verdict::FORWARDED));
            assert_eq!(kernel.counted_as(MetricKey::AUDITED)?, counted + n as u64 + 1);
        }
        assert_eq!(kernel.counted(Some(DropReason::PolicyDenyRule))?, drops);
        // What is allowed is no matter of an audit.
        ensure!(reaches(kernel, f, 80)?);
        let events = kernel.drain();
        ensure!(events.iter().all(|event| event.verdict == verdict::FORWARDED), "{events:?}");
        // The other end's policy is in force, and after the audit this one, too.
        put_policy(kernel, 91, &[allow_port(ID_B, TCP, 22)])?;
        isolate(kernel, f.a, 0, 91)?;
        kernel.bump(&[1])?;
        ensure!(reaches(kernel, f, 22)? && !reaches(kernel, f, 81)?);
        isolate(kernel, f.a, 0, 0)?;
        audit(kernel, f.b, false)?;
        kernel.bump(&[1, 2])?;
        ensure!(!reaches(kernel, f, 22)? && !reaches(kernel, f, 81)? && reaches(kernel, f, 80)?);
        // An audit does not open an endpoint whose policy is not in force.
        isolate(kernel, f.b, 4242, 0)?;
        audit(kernel, f.b, true)?;
        kernel.bump(&[2])?;
        ensure!(!reaches(kernel, f, 80)?);
        audit(kernel, f.b, false)?;
        isolate(kernel, f.b, 0, 0)
    });
}
