//! Instruction counts: read, and compared with the baseline. Nothing here runs a program, so that tests/it can test every case.

pub mod baseline;
pub mod callgrind;
#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the bench has no test harness: they run in tests/it")]
mod tests;
pub mod verdict;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Instructions by function: those of the function itself, without what it calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub BTreeMap<String, u64>);

impl Counts {
    pub fn add(&mut self, function: &str, instructions: u64) {
        *self.0.entry(function.to_owned()).or_default() += instructions;
    }

    /// Of several threads together.
    pub fn sum(threads: &[Self]) -> Self {
        let mut sum = Self::default();
        let functions = threads.iter().flat_map(|thread| &thread.0);
        functions.for_each(|(function, &instructions)| sum.add(function, instructions));
        sum
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Those of the functions that are meant, and of the others.
    pub fn split(self, is_meant: impl Fn(&str) -> bool) -> (Self, Self) {
        let (meant, others) = self.0.into_iter().partition(|(function, _)| is_meant(function));
        (Self(meant), Self(others))
    }
}

/// What one event costs in one case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    pub case: String,
    pub instructions: u64,
    /// Those that are at least a thousandth of it.
    pub functions: BTreeMap<String, u64>,
}

impl Cost {
    /// The difference of two runs over the difference of their events: start and end of the process cancel out.
    pub fn of_an_event(case: String, few: &Counts, many: &Counts, events: u64) -> Self {
        let difference = |function: &str, of_many: u64| {
            let of_few = few.0.get(function).copied().unwrap_or_default();
            (of_many.saturating_sub(of_few) + events / 2) / events
        };
        let instructions = many.total().saturating_sub(few.total()) / events;
        let functions = many.0.iter().map(|(function, &count)| (function.clone(), difference(function, count)));
        let functions = functions.filter(|(_, count)| count * 1000 >= instructions.max(1)).collect();
        Self { case, instructions, functions }
    }
}
