//! What the programs cost: nanoseconds per packet on the ways that matter, maps at their full size.
//!
//! `cargo run --release -p weft-tests --example prog_cost [packets]`. A program run 250 times changes its frame only by
//! the TTL; one that rewrites addresses or adds a header runs once per call, so the cost of the call itself, measured
//! on a program that does nothing, is taken off.

use anyhow::{Result, ensure};
use weft_tests::packet::kernel::{Kernel, PASS, REDIRECT};
use weft_tests::packet::site::{
    DEVICE, FAMILIES, POD_A, POD_B, Routing, allow_port, devices, fill, isolate, put_policy,
};
use weft_tests::packet::{ACK, SYN, TCP, ip};

/// TTL of a frame that is run again and again.
const TTL: u8 = 255;

fn main() -> Result<()> {
    let packets: u32 = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    devices()?;
    for routing in [Routing::Native, Routing::Vxlan] {
        let mut kernel = Kernel::load_with(&[("FLOWS", 524_288), ("IPCACHE", 262_144), ("POLICY_ENTRIES", 262_144)])?;
        fill(&mut kernel, routing)?;
        let mut config = kernel.config.get(&0, 0)?;
        config.flags &= !weft_abi::config_flags::OBSERVE;
        kernel.config.set(0, config, 0)?;
        for f in FAMILIES {
            let version = if f.v6 { "IPv6" } else { "IPv4" };
            put_policy(&mut kernel, 10, &[allow_port(300, TCP, 80)])?;
            isolate(&mut kernel, f.b, 10, 0)?;
            if routing == Routing::Native {
                let segment = ip(f.a, f.b).ttl(TTL).tcp(40000, 80, ACK, &[0; 64]);
                report(
                    &format!("{version} same node, established"),
                    &kernel,
                    "weft_from_pod",
                    POD_A,
                    &segment,
                    packets,
                )?;
                let reply = ip(f.b, f.a).ttl(TTL).tcp(80, 40000, ACK, &[0; 64]);
                report(&format!("{version} same node, reply"), &kernel, "weft_from_pod", POD_B, &reply, packets)?;
                let out = ip(f.a, f.c).ttl(TTL).tcp(40000, 80, ACK, &[0; 64]);
                report(&format!("{version} to another node, native"), &kernel, "weft_from_pod", POD_A, &out, packets)?;
                let back = ip(f.c, f.a).ttl(TTL).tcp(80, 40000, ACK, &[0; 64]);
                report(
                    &format!("{version} from another node, native"),
                    &kernel,
                    "weft_from_device",
                    DEVICE,
                    &back,
                    packets,
                )?;
                let denied = ip(f.a, f.b).ttl(TTL).tcp(40000, 81, SYN, &[0; 64]);
                report(&format!("{version} denied"), &kernel, "weft_from_pod", POD_A, &denied, packets)?;
                let world = ip(f.a, f.world).tcp(40000, 80, ACK, &[0; 64]);
                single(&format!("{version} masqueraded"), &kernel, &world, packets / 10)?;
            } else {
                let remote = ip(f.a, f.c).tcp(40000, 80, ACK, &[0; 64]);
                single(&format!("{version} into the tunnel"), &kernel, &remote, packets / 10)?;
            }
        }
    }
    Ok(())
}

fn report(what: &str, kernel: &Kernel, program: &str, ifindex: u32, frame: &[u8], packets: u32) -> Result<()> {
    const RUNS: u32 = 250;
    let first = kernel.run(program, ifindex, frame)?;
    ensure!(first.action == REDIRECT || what.ends_with("denied"), "{what}: {first:?}");
    let mut best = u64::MAX;
    let mut total = 0;
    let calls = (packets / RUNS).max(1);
    for _ in 0..calls {
        let ns = kernel.repeat(program, ifindex, frame, RUNS, 0)?.ns;
        total += ns;
        best = best.min(ns);
    }
    println!("{what:<36} mean {:>5} ns, best {best:>5} ns", total / u64::from(calls));
    Ok(())
}

fn single(what: &str, kernel: &Kernel, frame: &[u8], packets: u32) -> Result<()> {
    let mut samples = Vec::new();
    let mut nothing = Vec::new();
    for _ in 0..packets {
        let outcome = kernel.run("weft_from_pod", POD_A, frame)?;
        ensure!(outcome.action == REDIRECT, "{what}: {outcome:?}");
        samples.push(outcome.ns);
        let outcome = kernel.run("weft_to_device", DEVICE, frame)?;
        ensure!(outcome.action == PASS, "{what}");
        nothing.push(outcome.ns);
    }
    samples.sort_unstable();
    nothing.sort_unstable();
    let median = samples[samples.len() / 2].saturating_sub(nothing[nothing.len() / 2]);
    println!("{what:<36} median {median:>3} ns above a call that does nothing");
    Ok(())
}
