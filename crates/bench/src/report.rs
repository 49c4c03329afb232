//! Figures: medians of per-round ratios, a table, and JSON.

use anyhow::{Context, Result};
use serde::Serialize;
use std::path::Path;

/// One line of the JSON.
#[derive(Serialize, Clone, Debug)]
pub struct Figure {
    /// `same-node/policy-1`
    pub scenario: String,
    /// `tcp_rr_p50`
    pub metric: String,
    /// `ipv4`, `ipv6` or empty.
    pub family: String,
    /// Median over the rounds.
    pub value: f64,
    /// Of `value`.
    pub unit: String,
    /// Name of the scenario that it is compared with.
    pub base: String,
    /// Median of the ratios to the base of the same round.
    pub ratio: Option<f64>,
    /// How many.
    pub rounds: usize,
    /// The control's ratio: the base measured a second time in the same rounds.
    pub aa: Option<f64>,
}

/// The middle of some values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The value that a share `p` of the values does not exceed.
pub fn percentile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(((sorted.len().max(1) - 1) as f64 * p).round() as usize).copied().unwrap_or(f64::NAN)
}

/// A benchmark's figures.
#[derive(Default)]
pub struct Report {
    figures: Vec<Figure>,
    notes: Vec<String>,
}

impl Report {
    /// Adds and prints one.
    pub fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// A line below the table.
    pub fn note(&mut self, note: Option<String>) {
        self.notes.extend(note);
    }

    /// A figure without a base.
    pub fn plain(&mut self, scenario: &str, metric: &str, value: f64, unit: &str, rounds: usize) {
        self.add(Figure {
            scenario: scenario.into(),
            metric: metric.into(),
            family: String::new(),
            value,
            unit: unit.into(),
            base: String::new(),
            ratio: None,
            rounds,
            aa: None,
        });
    }

    /// Prints the table and writes the JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        println!(
            "{:<26} {:<22} {:<5} {:>10} {:<7} {:>7} {:>6}  base",
            "scenario", "metric", "ip", "median", "unit", "ratio", "A/A"
        );
        for figure in &self.figures {
            let number = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.3}"));
            println!(
                "{:<26} {:<22} {:<5} {:>10.3} {:<7} {:>7} {:>6}  {}",
                figure.scenario,
                figure.metric,
                figure.family.trim_start_matches("ip"),
                figure.value,
                figure.unit,
                number(figure.ratio),
                number(figure.aa),
                figure.base
            );
        }
        if let Some(off) = self.figures.iter().find(|figure| figure.aa.is_some_and(|aa| (aa - 1.0).abs() > 0.03)) {
            println!(
                "note: the control is off by more than 3 % ({} {} {}): that part is no evidence",
                off.metric,
                off.family,
                number3(off.aa)
            );
        }
        for note in &self.notes {
            println!("{note}");
        }
        std::fs::write(path, serde_json::to_vec_pretty(&self.figures)?)
            .with_context(|| format!("write {}", path.display()))?;
        println!("written: {}", path.display());
        Ok(())
    }
}

fn number3(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.3}"))
}
