//! Each file by itself: its length, its first line, its name, and paths of somebody's own machine.

use super::File;

/// Lines of a source file.
const LINES_MAX: usize = 700;
/// Directories that exist on one machine only; in pieces, so that this file does not name them.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/home", "/")];

/// What is wrong with one file.
pub fn check(File { name, text }: &File) -> Vec<String> {
    let mut findings = Vec::new();
    if name.ends_with(".rs") {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            findings.push(format!("{name}: {lines} lines, at most {LINES_MAX}"));
        }
        // `tests.rs` says it by its name.
        if !name.ends_with("/tests.rs") && !text.starts_with("//!") {
            findings.push(format!("{name}: begins without a `//!` that says what it is for"));
        }
        if name.ends_with("/mod.rs") {
            findings.push(format!("{name}: name it after its module"));
        }
    }
    for (n, line) in text.lines().enumerate() {
        for path in MACHINE_PATHS {
            let starts_a_path = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/}".contains(c));
            if line.match_indices(path).any(|(at, _)| starts_a_path(at)) {
                findings.push(format!("{name}:{}: names a path of one machine: {path}", n + 1));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{File, LINES_MAX, MACHINE_PATHS};

    fn findings(name: &str, text: &str) -> usize {
        super::check(&File { name: name.to_owned(), text: text.to_owned() }).len()
    }

    #[test]
    fn finds_long_files_missing_docs_and_machine_paths() {
        let long = format!("//! Doc.\n{}", "x\n".repeat(LINES_MAX));
        assert_eq!(findings("a/b.rs", &long), 1);
        assert_eq!(findings("a/b.rs", "fn main() {}"), 1);
        assert_eq!(findings("a/mod.rs", "//! Doc."), 1);
        assert_eq!(findings("README.md", &format!("see {}main", MACHINE_PATHS[0])), 1);
        assert_eq!(findings("README.md", &format!("a frame{}s, net{0}", MACHINE_PATHS[0])), 0);
    }
}
