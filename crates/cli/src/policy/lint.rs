//! `weft policy lint`: what the agent would say of a file, before there is a cluster.

use super::files;
use crate::args::{LintOptions, Output};
use anyhow::Result;
use serde::Serialize;
use std::io::Write as _;
use std::process::ExitCode;
use weft_lint::{Severity, lint as findings_of};

/// Exit code of files with an error.
const FAULTY: u8 = 1;

#[derive(Debug, Serialize)]
struct Row {
    file: String,
    line: usize,
    column: usize,
    severity: &'static str,
    path: String,
    message: String,
}

pub fn lint(options: &LintOptions) -> Result<ExitCode> {
    let mut rows = Vec::new();
    for file in &options.files {
        let text = files::read(file)?;
        rows.extend(findings_of(&text).into_iter().map(|finding| Row {
            file: file.display().to_string(),
            line: finding.line,
            column: finding.column,
            severity: match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            path: finding.path,
            message: finding.message,
        }));
    }
    let mut out = std::io::stdout().lock();
    match options.output.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?,
        Output::Table => {
            for row in &rows {
                let separator = if row.path.is_empty() { "" } else { ": " };
                let place = format!("{}:{}:{}", row.file, row.line, row.column);
                writeln!(out, "{place}: {}: {}{separator}{}", row.severity, row.path, row.message)?;
            }
            if rows.is_empty() {
                writeln!(out, "no problems found")?;
            }
        }
    }
    let faulty = rows.iter().any(|row| row.severity == "error");
    Ok(if faulty { ExitCode::from(FAULTY) } else { ExitCode::SUCCESS })
}
