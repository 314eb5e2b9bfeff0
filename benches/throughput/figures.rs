//! The figures of runs, and how many runs become one figure: medians, quartiles, ratios of neighbouring runs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What one run showed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Report {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// User and system time of the server per event.
    pub cpu_micros: f64,
}

/// The middle half of some figures, and their median.
#[derive(Clone, Copy)]
pub struct Quartiles {
    pub lower: f64,
    pub median: f64,
    pub upper: f64,
}

impl Report {
    /// The median of each figure.
    pub fn median(runs: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| Quartiles::of(runs.iter().map(figure).collect()).median;
        Self {
            per_second: of(|r| r.per_second),
            p50_ms: of(|r| r.p50_ms),
            p99_ms: of(|r| r.p99_ms),
            cpu_micros: of(|r| r.cpu_micros),
        }
    }
}

impl Quartiles {
    pub fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let at = |quarters: usize| {
            let place = (figures.len() - 1) * quarters;
            f64::midpoint(figures[place / 4], figures[place.div_ceil(4)])
        };
        Self { lower: at(1), median: at(2), upper: at(3) }
    }

    /// Of the ratios of each run to its neighbour, which was measured right before or after it.
    pub fn of_ratios(runs: &[Report], neighbours: &[Report], figure: fn(&Report) -> f64) -> Self {
        Self::of(runs.iter().zip(neighbours).map(|(run, neighbour)| figure(run) / figure(neighbour)).collect())
    }
}

impl fmt::Display for Quartiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.lower, self.upper)
    }
}

/// A whole number with commas.
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).expect("digits")).collect();
    groups.join(",")
}
