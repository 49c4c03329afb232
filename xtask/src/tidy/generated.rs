//! Documentation that is generated: what stands between the two marks is what the command says.
//!
//! ```text
//! <!-- generated: cargo run --quiet -p weft-agent -- --help -->
//! ...
//! <!-- end of generated -->
//! ```

use super::File;
use anyhow::{Context as _, Result, bail, ensure};
use std::path::Path;
use std::process::Command;

const BEGIN: &str = "<!-- generated: ";
const BEGIN_END: &str = " -->";
const END: &str = "<!-- end of generated -->";

/// Blocks that differ from what their command says; with `write` they are written anew.
pub fn check(root: &Path, files: &[File], write: bool) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.name.ends_with(".md")) {
        let fresh = regenerate(&file.text, |command| output(root, command)).with_context(|| file.name.clone())?;
        if fresh == file.text {
            continue;
        }
        if write {
            std::fs::write(root.join(&file.name), fresh).with_context(|| format!("write {}", file.name))?;
        } else {
            findings.push(format!("{}: not as the code says: `cargo xtask tidy --write`", file.name));
        }
    }
    Ok(findings)
}

/// The text with all its blocks made anew.
fn regenerate(text: &str, output: impl Fn(&str) -> Result<String>) -> Result<String> {
    let (mut fresh, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(BEGIN).filter(|at| *at == 0 || rest[..*at].ends_with('\n')) {
        let command_at = at + BEGIN.len();
        let line_end = rest[at..].find('\n').context("a mark that nothing follows")? + at;
        let command =
            rest[command_at..line_end].strip_suffix(BEGIN_END).context("a mark that does not end with -->")?;
        let block_end = rest[line_end..].find(END).with_context(|| format!("no {END} after {command}"))? + line_end;
        fresh.push_str(&rest[..=line_end]);
        fresh.push_str(output(command)?.trim_end());
        fresh.push('\n');
        rest = &rest[block_end..];
        fresh.push_str(END);
        rest = &rest[END.len()..];
    }
    fresh.push_str(rest);
    Ok(fresh)
}

/// What a command of cargo says.
fn output(root: &Path, command: &str) -> Result<String> {
    let mut words = command.split_whitespace();
    ensure!(words.next() == Some("cargo"), "{command}: expected a command of cargo");
    let output = Command::new(env!("CARGO")).current_dir(root).args(words).output().context("start cargo")?;
    if !output.status.success() {
        bail!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("text is UTF-8")
}

#[cfg(test)]
mod tests {
    use super::regenerate;

    #[test]
    fn replaces_what_is_between_the_marks() {
        let text = "a\n<!-- generated: cargo one -->\nold\n<!-- end of generated -->\nb\n";
        let fresh = regenerate(text, |command| Ok(format!("said by {command}\n"))).expect("well-formed");
        assert_eq!(fresh, "a\n<!-- generated: cargo one -->\nsaid by cargo one\n<!-- end of generated -->\nb\n");
        assert_eq!(regenerate(&fresh, |_| Ok("said by cargo one".to_owned())).expect("well-formed"), fresh);
        assert!(regenerate("<!-- generated: cargo one -->\nno end\n", |_| Ok(String::new())).is_err());
    }
}
