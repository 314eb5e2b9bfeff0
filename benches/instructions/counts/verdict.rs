//! Compares the costs of today with the baseline's. A case that grew by more than the slack fails, with the functions that grew;
//! one that shrank by more passes with a remark, because the baseline then guards less than it could.

use super::Cost;

/// A case may grow by so many percent. Repeated counts differ by less than a tenth of that.
const SLACK_PERCENT: u64 = 3;
/// So many of the functions that grew are named.
const NAMED: usize = 5;

/// What a person reads, and whether the guard passes.
pub struct Report {
    /// A line a case.
    pub table: String,
    /// What is to be done or known.
    pub remarks: String,
    pub passes: bool,
}

pub fn judge(before: &[Cost], after: &[Cost]) -> Report {
    let table = row("instructions an event", "here", "baseline", "change");
    let mut report = Report { table, remarks: String::new(), passes: true };
    for cost in after {
        match before.iter().find(|before| before.case == cost.case) {
            Some(before) => report.compare(before, cost),
            None => report.unknown(cost),
        }
    }
    for Cost { case, .. } in before.iter().filter(|before| after.iter().all(|after| after.case != before.case)) {
        report.remarks += &format!("\n{case} is in the baseline only: rewrite the baseline.\n");
    }
    report
}

impl Report {
    fn compare(&mut self, before: &Cost, after: &Cost) {
        let Cost { case, instructions, .. } = after;
        let (here, baseline) = (instructions * 100, before.instructions * 100);
        let slack = before.instructions * SLACK_PERCENT;
        let change = (*instructions as f64 / before.instructions as f64 - 1.0) * 100.0;
        self.table += &row(case, instructions, before.instructions, format!("{change:+.2} %"));
        if here > baseline + slack {
            self.passes = false;
            self.remarks += &format!("\n{case} has grown by more than {SLACK_PERCENT} %. What grew most:\n");
            self.remarks += &growth(before, after);
        } else if here < baseline - slack {
            self.remarks +=
                &format!("\n{case} has shrunk by more than {SLACK_PERCENT} %: rewrite the baseline to keep it so.\n");
        }
    }

    fn unknown(&mut self, Cost { case, instructions, .. }: &Cost) {
        self.passes = false;
        self.table += &row(case, instructions, "none", "");
        self.remarks += &format!("\n{case} is not in the baseline: rewrite the baseline.\n");
    }
}

fn row(case: &str, here: impl ToString, before: impl ToString, change: impl ToString) -> String {
    let [here, before, change] = [here.to_string(), before.to_string(), change.to_string()];
    format!("{case:<28} {here:>13} {before:>13} {change:>9}\n")
}

/// The functions that grew most. What is below a thousandth of its case is in no cost, and counts as 0.
fn growth(before: &Cost, after: &Cost) -> String {
    let before = |function: &String| before.functions.get(function).copied().unwrap_or_default();
    let all = after.functions.iter().map(|(function, &after)| (before(function), after, function));
    let mut grown: Vec<_> = all.filter(|(before, after, _)| after > before).collect();
    grown.sort_by_key(|(before, after, _)| std::cmp::Reverse(after - before));
    let line = |(before, after, function): &(u64, u64, &String)| {
        format!("{before:>13} → {after:>8} {:>+9}  {function}\n", after.cast_signed() - before.cast_signed())
    };
    grown.iter().take(NAMED).map(line).collect()
}
