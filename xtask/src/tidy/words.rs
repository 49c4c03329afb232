//! The words of texts that users read: documentation, help, messages. CONTRIBUTING.md has the list of those to avoid, and
//! what to say instead.

use super::{File, text};
use anyhow::{Result, ensure};

const LIST: &str = "CONTRIBUTING.md";
/// The first line of its table.
const HEAD: &str = "| not | but |";

/// A word, or several, and what to say instead.
struct Entry {
    word: String,
    instead: String,
}

/// Words of the list in texts that users read.
pub fn check(files: &[File]) -> Result<Vec<String>> {
    let list = files.iter().find(|file| file.name == LIST).map_or("", |file| file.text.as_str());
    let entries = entries(list);
    ensure!(!entries.is_empty(), "{LIST}: no table that begins with {HEAD}");
    let mut findings = Vec::new();
    for file in files {
        for (line, text) in visible(file) {
            for entry in entries.iter().filter(|entry| has(&text, &entry.word)) {
                let File { name, .. } = file;
                findings.push(format!("{name}:{line}: {:?}: rather {} ({LIST})", entry.word, entry.instead));
            }
        }
    }
    Ok(findings)
}

/// What users may read of a file.
fn visible(file: &File) -> Vec<text::Piece> {
    let name = file.name.as_str();
    if name == "README.md" || name.starts_with("docs/") && name.ends_with(".md") {
        return file.text.lines().enumerate().map(|(n, line)| (n + 1, line.to_owned())).collect();
    }
    let shipped = ["crates/", "lab/"].iter().any(|dir| name.starts_with(dir)) && name.contains("/src/");
    let of_tests = name.contains("/tests/") || name.ends_with("/tests.rs");
    // The oracle and what compares with it speak to us, not to users.
    let ours =
        ["crates/oracle/", "crates/trial/", "crates/bench/", "crates/sim/"].iter().any(|dir| name.starts_with(dir));
    if !name.ends_with(".rs") || !shipped || of_tests || ours {
        return Vec::new();
    }
    let mut pieces = text::strings(&file.text);
    pieces.extend(text::help(&file.text));
    pieces
}

fn entries(list: &str) -> Vec<Entry> {
    let table = list.lines().skip_while(|line| *line != HEAD).skip(2).take_while(|line| line.starts_with('|'));
    let mut entries = Vec::new();
    for line in table {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let (Some(words), Some(instead)) = (cells.next(), cells.next()) else { continue };
        let words = words.split(',').map(|word| word.trim().trim_matches('`').to_lowercase());
        entries.extend(words.filter(|word| !word.is_empty()).map(|word| Entry { word, instead: instead.to_owned() }));
    }
    entries
}

/// Whether a text has a word, whole and in any case.
fn has(text: &str, word: &str) -> bool {
    let text = text.to_lowercase();
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(is_part) && !text[at + word.len()..].starts_with(is_part))
}

#[cfg(test)]
mod tests {
    use super::{File, check};

    fn findings(name: &str, text: &str) -> Vec<String> {
        let list = "# X\n\n| not | but |\n|---|---|\n| `hears of`, `patience` | observes, timeout |\n\nMore.\n";
        let file = |name: &str, text: &str| File { name: name.to_owned(), text: text.to_owned() };
        check(&[file("CONTRIBUTING.md", list), file(name, text)]).expect("a list")
    }

    #[test]
    fn finds_words_of_the_list_where_users_read_them() {
        assert_eq!(findings("README.md", "The cloud asks for Patience.").len(), 1);
        assert_eq!(findings("crates/a/src/b.rs", "f(\"he hears of it\")").len(), 1);
        assert_eq!(
            findings("crates/a/src/b.rs", "#[derive(Parser)]\nstruct A {\n    /// Patience.\n    a: u8,\n}\n").len(),
            1
        );
        assert!(findings("crates/a/src/b.rs", "// he hears of it\nlet patience = 1;").is_empty());
        assert!(findings("crates/a/src/b/tests.rs", "f(\"patience\")").is_empty());
        assert!(findings("docs/a.md", "an impatience, patiences").is_empty());
    }

    #[test]
    fn a_missing_list_is_an_error() {
        assert!(check(&[]).is_err());
    }
}
