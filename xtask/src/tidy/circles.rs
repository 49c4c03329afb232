//! Structure of what goes to production: no circle of files across folders, no crate that outgrows its subject.
//!
//! A file depends on another one that it imports or names by a path (`crate::`, `super::`, or a child module's name). The
//! root file of a module (`policy.rs` beside `policy/`) belongs to the folder above: it may name its children, but they
//! import from each other, not from it.

use super::File;
use std::collections::{BTreeMap, BTreeSet};

/// Lines of a crate, its tests included.
const LINES_MAX: usize = 12_000;

type Module = Vec<String>;

/// Circles and crates that are too large.
pub fn check(files: &[File]) -> Vec<String> {
    let mut crates: BTreeMap<&str, Vec<&File>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.name.ends_with(".rs")) {
        let production = file.name.starts_with("crates/") || file.name.starts_with("ebpf/");
        let folders = if file.name.starts_with("ebpf/") { 1 } else { 2 };
        let end = file.name.match_indices('/').nth(folders - 1).map(|(at, _)| at);
        if let Some(end) = end.filter(|_| production || file.name.starts_with("lab/")) {
            crates.entry(&file.name[..end]).or_default().push(file);
        }
    }
    let mut findings = Vec::new();
    for (name, files) in crates {
        let lines: usize = files.iter().map(|file| file.text.lines().count()).sum();
        if lines > LINES_MAX {
            findings.push(format!("{name}: {lines} lines, at most {LINES_MAX}: split it by subject"));
        }
        // The embedded cluster is no part of production.
        if !name.starts_with("lab/") {
            findings.extend(circles(&format!("{name}/src/"), &files));
        }
    }
    findings
}

/// The circles of one crate.
fn circles(src: &str, files: &[&File]) -> Vec<String> {
    let modules: BTreeMap<Module, &File> =
        files.iter().filter_map(|file| Some((module(file.name.strip_prefix(src)?), *file))).collect();
    let edges: BTreeMap<&Module, BTreeSet<&Module>> = modules
        .iter()
        .map(|(module, file)| {
            let named = paths(&code_of(&file.text), module, &modules);
            (module, named.into_iter().filter_map(|path| owner(path, module, &modules)).collect())
        })
        .collect();
    let reach: BTreeMap<&Module, BTreeSet<&Module>> = edges.keys().map(|from| (*from, reached(from, &edges))).collect();
    let folder = |module: &Module| modules[module].name.rsplit_once('/').map(|(folder, _)| folder);
    let mut findings = Vec::new();
    for (from, targets) in &edges {
        for to in targets {
            if folder(from) != folder(to) && reach[to].contains(from) {
                let (from, to) = (&modules[*from].name, &modules[*to].name);
                findings.push(format!("{from}: needs {to}, which leads back to it"));
            }
        }
    }
    findings
}

/// `a/b.rs` is `a::b`; the crate's root is empty.
fn module(path: &str) -> Module {
    let path = path.trim_end_matches(".rs");
    if matches!(path, "lib" | "main") { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// Without comments, texts and what is compiled for tests only.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            // Up to the end of the item: `mod tests;`, or a block that ends where it begins.
            let indent = line.len() - line.trim_start().len();
            let ends = |line: &str| {
                let closes = line.starts_with(&format!("{}}}", " ".repeat(indent)));
                closes || line.len() - line.trim_start().len() == indent && line.ends_with(';')
            };
            lines.by_ref().find(|line| ends(line));
            continue;
        }
        let line = line.split("//").next().unwrap_or_default();
        // `pub(in crate::a)` says who may see, not what is used.
        let line = line.replace("pub(in ", "pub(");
        code.push_str(line.strip_prefix("pub(crate::").map_or(line.as_str(), |_| ""));
        code.push('\n');
    }
    code
}

/// Paths that the code names, absolute within the crate.
fn paths(code: &str, module: &Module, modules: &BTreeMap<Module, &File>) -> Vec<Module> {
    let children: BTreeSet<&str> = modules
        .keys()
        .filter(|other| other.len() == module.len() + 1 && other.starts_with(module))
        .filter_map(|other| other.last().map(String::as_str))
        .collect();
    let mut found = Vec::new();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    while let Some(start) = code[at..].find(is_name).map(|offset| at + offset) {
        let end = code[start..].find(|c: char| !is_name(c)).map_or(code.len(), |offset| start + offset);
        at = end;
        let before = code[..start].trim_end();
        let name = &code[start..end];
        let begins = !before.ends_with("::") && !before.ends_with('.');
        let visible = before.ends_with("pub(") || before.ends_with("pub(in");
        let is_path = code[end..].starts_with("::");
        if begins && !visible && is_path && (matches!(name, "crate" | "super" | "self") || children.contains(name)) {
            let mut path = Vec::new();
            at = end + expand(&code[start..], &mut path, &mut found).saturating_sub(end - start);
        }
    }
    found.into_iter().map(|path| absolute(&path, module)).collect()
}

/// Reads a path with its braces; answers how long it is.
fn expand(text: &str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let depth = prefix.len();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let skipped = rest.len() - rest.trim_start().len();
        let rest = &rest[skipped..];
        if rest.starts_with('{') {
            at += skipped + 1;
            loop {
                let rest = &text[at..];
                let skipped = rest.len() - rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',').len();
                at += skipped;
                if text[at..].is_empty() || text[at..].starts_with('}') {
                    at = (at + 1).min(text.len());
                    break;
                }
                let length = expand(&text[at..], &mut prefix.clone(), found);
                at += length;
                // `as other`, or something that is no path.
                let tail = text[at..].find([',', '}']).unwrap_or(text.len() - at);
                at += tail;
            }
            break;
        }
        let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
        if end == 0 {
            found.push(prefix.clone());
            break;
        }
        prefix.push(rest[..end].to_owned());
        at += skipped + end;
        if text[at..].starts_with("::") {
            at += 2;
        } else {
            found.push(prefix.clone());
            break;
        }
    }
    prefix.truncate(depth);
    at
}

fn absolute(path: &[String], module: &Module) -> Module {
    let mut base = match path.first().map(String::as_str) {
        Some("crate") => Vec::new(),
        _ => module.clone(),
    };
    for name in path {
        match name.as_str() {
            "crate" | "self" => {}
            "super" => drop(base.pop()),
            name => base.push(name.to_owned()),
        }
    }
    base
}

/// The file that the path leads into, unless it is the crate's root or the file itself.
fn owner<'a>(mut path: Module, from: &Module, modules: &'a BTreeMap<Module, &File>) -> Option<&'a Module> {
    while !path.is_empty() {
        if let Some((owner, _)) = modules.get_key_value(&path) {
            return (owner != from).then_some(owner);
        }
        path.pop();
    }
    None
}

/// All that can be reached from a file.
fn reached<'a>(from: &'a Module, edges: &BTreeMap<&'a Module, BTreeSet<&'a Module>>) -> BTreeSet<&'a Module> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        for next in edges.get(module).into_iter().flatten() {
            if seen.insert(*next) {
                open.push(next);
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::{File, LINES_MAX, check};

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        let file = |(name, text): &(&str, &str)| File { name: (*name).to_owned(), text: (*text).to_owned() };
        check(&files.iter().map(file).collect::<Vec<_>>())
    }

    #[test]
    fn a_child_that_imports_from_the_root_above_it_is_a_circle() {
        let root = ("crates/x/src/policy.rs", "mod rule;\npub use rule::Rule;\npub struct Policy;");
        let found = findings(&[root, ("crates/x/src/policy/rule.rs", "use super::Policy;\npub struct Rule;")]);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("policy.rs") && found[0].contains("policy/rule.rs"), "{found:?}");
        let named = ("crates/x/src/policy/rule.rs", "fn f() { let _ = crate::policy::Policy; }");
        assert_eq!(findings(&[root, named]).len(), 2);
        let lower = ("crates/x/src/policy/rule.rs", "use super::name::Name;\nuse std::fmt;\npub struct Rule;");
        assert_eq!(findings(&[root, lower, ("crates/x/src/policy/name.rs", "pub struct Name;")]), [""; 0]);
    }

    #[test]
    fn folders_that_need_each_other_are_a_circle_however_they_write_it() {
        let a = ("crates/x/src/a/one.rs", "use crate::{b::{two::Two, other}, c};");
        for b in [
            "use crate::a::one::One;",
            "use super::super::a::one::{self, One as First};",
            "fn f(_: crate::a::one::One) {}",
        ] {
            let found = findings(&[a, ("crates/x/src/b/two.rs", b), ("crates/x/src/c.rs", "")]);
            assert_eq!(found.len(), 2, "{b}: {found:?}");
        }
    }

    #[test]
    fn comments_tests_visibility_and_one_folder_are_no_circle() {
        let a = ("crates/x/src/a/one.rs", "use crate::b::two::Two;");
        for b in [
            "// use crate::a::one::One;",
            "//! See [`crate::a::one`].",
            "#[cfg(test)]\nmod tests {\n    use crate::a::one::One;\n}",
            "pub(in crate::a) struct Two;",
        ] {
            assert_eq!(findings(&[a, ("crates/x/src/b/two.rs", b)]), [""; 0], "{b}");
        }
        let same = [("ebpf/src/a/one.rs", "use super::two::Two;"), ("ebpf/src/a/two.rs", "use super::one::One;")];
        assert_eq!(findings(&same), [""; 0]);
    }

    #[test]
    fn a_crate_of_any_folder_may_be_too_large() {
        let long = "x\n".repeat(LINES_MAX / 2 + 1);
        for folder in ["crates/x", "lab/x", "ebpf"] {
            let (src, tests) = (format!("{folder}/src/a.rs"), format!("{folder}/tests/a.rs"));
            assert_eq!(findings(&[(&src, &long), (&tests, &long)]).len(), 1, "{folder}");
            assert_eq!(findings(&[(&src, &long)]), [""; 0]);
        }
    }
}
