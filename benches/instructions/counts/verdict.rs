//! Holds the costs of today against the baseline's. A case that has grown by more than the slack fails, with the functions
//! that grew; one that has shrunk by more is told, because the baseline then guards less than it could.

use super::Cost;

/// A case may grow by so many percent. Repeated counts differ by less than a tenth of that.
const SLACK_PERCENT: u64 = 3;
/// So many of the functions that grew are named.
const NAMED: usize = 5;

/// What a person reads, and whether the guard lets it pass.
pub struct Report {
    /// A line a case.
    pub table: String,
    /// What is to be done or known.
    pub remarks: String,
    pub passes: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Within,
    Grown,
    Shrunk,
    New,
}

pub fn judge(before: &[Cost], after: &[Cost]) -> Report {
    let mut table = format!("{:<28} {:>13} {:>13} {:>9}\n", "instructions an event", "here", "baseline", "change");
    let mut remarks = String::new();
    let mut passes = true;
    for cost in after {
        let baseline = before.iter().find(|before| before.case == cost.case);
        table.push_str(&row(cost, baseline));
        let verdict = verdict(baseline, cost);
        passes &= !matches!(verdict, Verdict::Grown | Verdict::New);
        remarks.push_str(&remark(verdict, cost, baseline));
    }
    for Cost { case, .. } in before.iter().filter(|before| after.iter().all(|after| after.case != before.case)) {
        remarks.push_str(&format!("\n{case} is in the baseline only: write the baseline anew.\n"));
    }
    Report { table, remarks, passes }
}

fn verdict(before: Option<&Cost>, after: &Cost) -> Verdict {
    let Some(before) = before else { return Verdict::New };
    let (before, after) = (before.instructions * 100, after.instructions * 100);
    let slack = before / 100 * SLACK_PERCENT;
    match after {
        _ if after > before + slack => Verdict::Grown,
        _ if after < before - slack => Verdict::Shrunk,
        _ => Verdict::Within,
    }
}

fn row(after: &Cost, before: Option<&Cost>) -> String {
    let (before, change) = match before {
        Some(before) => (before.instructions.to_string(), format!("{:+.2} %", change(before, after))),
        None => ("none".to_owned(), String::new()),
    };
    format!("{:<28} {:>13} {before:>13} {change:>9}\n", after.case, after.instructions)
}

/// In percent.
fn change(before: &Cost, after: &Cost) -> f64 {
    (after.instructions as f64 / before.instructions as f64 - 1.0) * 100.0
}

fn remark(verdict: Verdict, after: &Cost, before: Option<&Cost>) -> String {
    let case = &after.case;
    match (verdict, before) {
        (Verdict::Grown, Some(before)) => {
            format!("\n{case} has grown by more than {SLACK_PERCENT} %. What grew most:\n{}", growth(before, after))
        }
        (Verdict::Shrunk, _) => {
            format!(
                "\n{case} has shrunk by more than {SLACK_PERCENT} %: write the baseline anew, so that it stays so.\n"
            )
        }
        (Verdict::New, _) => format!("\n{case} is not in the baseline: write the baseline anew.\n"),
        (Verdict::Within | Verdict::Grown, _) => String::new(),
    }
}

/// The functions that grew most. What is below a thousandth of its case is in no cost, and counts as 0.
fn growth(before: &Cost, after: &Cost) -> String {
    let mut grown: Vec<(u64, u64, &str)> = after
        .functions
        .iter()
        .map(|(function, &after)| {
            (before.functions.get(function).copied().unwrap_or_default(), after, function.as_str())
        })
        .filter(|(before, after, _)| after > before)
        .collect();
    grown.sort_by_key(|(before, after, _)| std::cmp::Reverse(after - before));
    let line = |&(before, after, function): &(u64, u64, &str)| {
        format!("{before:>13} → {after:>8} {:>+9}  {function}\n", after.cast_signed() - before.cast_signed())
    };
    grown.iter().take(NAMED).map(line).collect()
}
