//! Loads every kernel program, so that the verifier of this kernel looks at each.
fn main() -> anyhow::Result<()> {
    let object = std::fs::read(std::env::args().nth(1).unwrap_or_else(|| "target/bpf/weft.o".into()))?;
    let mut loader = aya::EbpfLoader::new();
    let mut bpf = loader.load(&object)?;
    let mut failed = false;
    for (name, program) in bpf.programs_mut() {
        let program: &mut aya::programs::SchedClassifier = program.try_into()?;
        match program.load() {
            Ok(()) => {
                let info = program.info()?;
                println!(
                    "{name}: {} instructions verified, {} bytes",
                    info.verified_instruction_count().unwrap_or(0),
                    info.size_translated().unwrap_or(0)
                );
            }
            Err(error) => {
                failed = true;
                let text = format!("{error:?}").replace("\\n", "\n");
                let lines: Vec<&str> = text.lines().collect();
                println!("{name}: REFUSED\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
            }
        }
    }
    std::process::exit(i32::from(failed));
}
