//! Checks that no compiler makes: which crates may know each other, that no list was forgotten, that generated
//! documentation is as the code says, the words that users read, how long files and crates get, circles of files.

mod circles;
mod edges;
mod files;
mod generated;
mod kinds;
mod lists;
mod production;
mod text;
mod words;

use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Command;

/// A file that git keeps, by its name relative to the root, and its text.
struct File {
    name: String,
    text: String,
}

/// Runs all checks and names every finding. With `write`, generated documentation is written anew instead.
pub fn run(root: &Path, write: bool) -> Result<()> {
    let files = tracked(root)?;
    let packages = edges::packages(root)?;
    let mut findings = edges::check(&packages);
    findings.extend(files.iter().flat_map(files::check));
    findings.extend(circles::check(&files));
    findings.extend(kinds::run(root)?);
    findings.extend(lists::check(&files, &packages));
    findings.extend(production::check(root)?);
    findings.extend(words::check(&files)?);
    findings.extend(generated::check(root, &files, write)?);
    if findings.is_empty() {
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("tidy: {} finding(s)", findings.len())
}

/// All files of the tree that git keeps, or would.
fn tracked(root: &Path) -> Result<Vec<File>> {
    let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").current_dir(root).args(list).output().context("start git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8(output.stdout).context("file names are UTF-8")?;
    // A file of the index may be gone from the tree; one that is no text is nobody's style.
    let read = |name: &str| {
        let text = std::fs::read_to_string(root.join(name)).ok()?;
        Some(File { name: name.to_owned(), text })
    };
    Ok(names.split('\0').filter(|name| !name.is_empty()).filter_map(read).collect())
}
