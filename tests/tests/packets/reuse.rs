//! Programs that serve one test after the other keep nothing of a former one.

use anyhow::{Context as _, Result, ensure};
use weft_abi::{identity, map_name};
use weft_tests::packet::kernel::Kernel;
use weft_tests::packet::site::{FAMILIES, Routing, allow_port, devices, fill, from_a, from_b, isolate, put_policy};
use weft_tests::packet::{ACK, SYN, TCP, ip};

/// All maps that programs which run here use; those at sockets have one more.
const MAPS: [&str; 19] = [
    map_name::ENDPOINTS,
    map_name::IPCACHE,
    map_name::PREFIXES,
    map_name::ROUTES,
    map_name::PEERS,
    map_name::POLICY_CLASSES,
    map_name::POLICY_ENTRIES,
    map_name::POLICY_INFO,
    map_name::FLOWS,
    map_name::FRAGMENTS,
    map_name::GENERATIONS,
    map_name::CONFIG,
    map_name::METRICS,
    map_name::FRONTENDS,
    map_name::SLOTS,
    map_name::BACKENDS,
    map_name::MAGLEV,
    map_name::RANGES,
    map_name::AFFINITY,
];

#[test]
fn what_a_test_left_is_gone() -> Result<()> {
    let outcome = std::thread::spawn(|| -> Result<()> {
        devices()?;
        let mut kernel = Kernel::load()?;
        let fresh = kernel.contents().read()?;

        // What a test does: policies, connections, drops, events.
        fill(&mut kernel, Routing::Vxlan)?;
        for f in FAMILIES {
            put_policy(&mut kernel, 10, &[allow_port(identity::WORLD_IPV4, TCP, 80)])?;
            isolate(&mut kernel, f.b, 10, 0)?;
            from_a(&kernel, &ip(f.a, f.b).tcp(1, 80, SYN, b""))?;
            from_a(&kernel, &ip(f.a, f.b).fragment(7, 0, true).udp(1, 80, &[0; 64]))?;
            from_b(&kernel, &ip(f.b, f.a).tcp(80, 1, SYN | ACK, b""))?;
        }
        ensure!(kernel.contents().read()? != fresh, "packets have left nothing: the test shows nothing");
        kernel.forget_everything()?;
        same(&fresh, &kernel)?;
        ensure!(kernel.drain().is_empty(), "events are left");

        // Whatever a test could do: something in every map.
        let written: Vec<String> = kernel.contents().scribble()?.into_iter().map(str::to_owned).collect();
        for map in MAPS {
            // The kernel keeps 15 bytes of a name.
            let name = &map[..map.len().min(15)];
            ensure!(written.iter().any(|written| written == name), "{map} was not written: {written:?}");
        }
        for (name, elements) in kernel.contents().read()? {
            let differs = elements != fresh[&name];
            ensure!(differs == written.contains(&name), "{name}: written or not, {differs}");
        }
        kernel.forget_everything()?;
        same(&fresh, &kernel)
    });
    outcome.join().map_err(|_| anyhow::anyhow!("it panicked"))?
}

fn same(
    fresh: &std::collections::BTreeMap<String, std::collections::BTreeMap<Vec<u8>, Vec<u8>>>,
    kernel: &Kernel,
) -> Result<()> {
    for (name, elements) in kernel.contents().read()? {
        let before = fresh.get(&name).with_context(|| format!("{name} was not there"))?;
        ensure!(elements == *before, "{name} is not as it was: {} elements, {} before", elements.len(), before.len());
    }
    Ok(())
}
