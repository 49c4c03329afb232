//! Loads every kernel program, so that the verifier of this kernel looks at each, and says what the maps take.
//!
//! `cargo run -p weft-tests --example verify [object]`

use anyhow::{Context, Result, bail};
use aya::programs::{Program, ProgramError, ProgramInfo};

/// Lines of the verifier's log to show.
const LOG_LINES: usize = 60;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "target/bpf/weft.o".into());
    let object = std::fs::read(&path).with_context(|| format!("read {path}"))?;
    let mut bpf = aya::EbpfLoader::new().load(&object)?;
    let (mut refused, mut total) = (0, 0);
    for (name, program) in bpf.programs_mut() {
        match load(program).with_context(|| format!("load {name}"))? {
            Ok(info) => {
                let verified = info.verified_instruction_count().unwrap_or(0);
                total += verified;
                println!("{name}: {verified} instructions verified, {} bytes", info.size_translated().unwrap_or(0));
            }
            Err(error) => {
                refused += 1;
                let text = format!("{error:?}").replace("\\n", "\n");
                let lines: Vec<&str> = text.lines().collect();
                println!("{name}: REFUSED\n{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"));
            }
        }
    }
    println!("all programs: {total} instructions verified");
    println!("maps: {} KiB while empty", map_bytes()? / 1024);
    if refused > 0 {
        bail!("{refused} program(s) refused");
    }
    Ok(())
}

/// What the kernel says of a program; an error for a kind that the object should not have.
fn load(program: &mut Program) -> Result<Result<ProgramInfo, ProgramError>> {
    macro_rules! load {
        ($($kind:ident),*) => {
            match program {
                $(Program::$kind(program) => program.load().and_then(|()| program.info()),)*
                _ => bail!("no program of Weft is of this kind"),
            }
        };
    }
    Ok(load!(SchedClassifier, Xdp, CgroupSockAddr, CgroupSock))
}

/// Memory of all maps that this process has open.
fn map_bytes() -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir("/proc/self/fdinfo")? {
        let Ok(text) = std::fs::read_to_string(entry?.path()) else { continue };
        if text.contains("map_type:") {
            let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
            bytes += line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(bytes)
}
