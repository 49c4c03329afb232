//! The parts of a Rust source that users may read: string literals, and documentation that becomes help.

/// A piece of text and the line that it begins in, from 1.
pub type Piece = (usize, String);

/// String literals of a source, outside of comments, attributes' reasons and tests at the end.
pub fn strings(source: &str) -> Vec<Piece> {
    let source = source.find("#[cfg(test)]\nmod ").map_or(source, |at| &source[..at]);
    let bytes = source.as_bytes();
    let (mut pieces, mut at, mut line) = (Vec::new(), 0, 1);
    while at < bytes.len() {
        let rest = &source[at..];
        let end = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(source, at) {
            let (open, close) = (hashes + 2, format!("\"{}", "#".repeat(hashes)));
            let inner = &rest[open..];
            let end = inner.find(&close).unwrap_or(inner.len());
            pieces.push((line, inner[..end].to_owned()));
            (open + end + close.len()).min(rest.len())
        } else if rest.starts_with('"') {
            let end = closing(rest);
            if !source[..at].ends_with("reason = ") && !source[..at].ends_with(".expect(") {
                pieces.push((line, rest[1..end].to_owned()));
            }
            (end + 1).min(rest.len())
        } else if rest.starts_with('\'') {
            // A character, or a lifetime, which has no closing quote.
            character(rest).unwrap_or(1)
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
        line += rest[..end].matches('\n').count();
        at += end;
    }
    pieces
}

/// The number of `#` of a raw string that begins here.
fn raw_string(source: &str, at: usize) -> Option<usize> {
    let rest = source[at..].strip_prefix('r')?;
    if source[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// Where the string ends that begins with the first byte.
fn closing(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal.
fn character(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        return text[2..].find('\'').map(|end| end + 3);
    }
    let (at, second) = chars.next()?;
    (second == '\'').then_some(at + 1)
}

/// Lines of documentation in a source whose types are read by clap: its help.
pub fn help(source: &str) -> Vec<Piece> {
    const READERS: [&str; 5] = ["Args", "Parser", "Subcommand", "ValueEnum", "CommandFactory"];
    let derives = source.lines().any(|line| {
        let line = line.trim_start();
        line.starts_with("#[derive(") && READERS.iter().any(|reader| line.contains(reader))
    });
    if !derives {
        return Vec::new();
    }
    let lines = source.lines().enumerate();
    lines.filter_map(|(n, line)| Some((n + 1, line.trim_start().strip_prefix("///")?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::{help, strings};

    #[test]
    fn finds_strings_and_nothing_else() {
        let source = "fn a<'a>(b: &'a str) {\n    // \"no\"\n    let _ = ('\"', '\\'', \"one \\\" two\", r#\"three \"\"#);\n    \
                      /* \"no\" */ f(\"four\")\n}\n#[allow(x, reason = \"no\")]\nfn g() { h().expect(\"no\") }\n\
                      #[cfg(test)]\nmod tests { const A: &str = \"no\"; }\n";
        let found = strings(source);
        let expected = [(3, "one \\\" two"), (3, "three \""), (4, "four")].map(|(line, text)| (line, text.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn documentation_of_what_clap_reads_is_help() {
        assert_eq!(
            help("#[derive(Args)]\nstruct A {\n    /// Some help.\n    a: u8,\n}\n"),
            [(3, " Some help.".to_owned())]
        );
        assert!(help("#[derive(Debug)]\n/// Text.\nstruct A;\n").is_empty());
    }
}
