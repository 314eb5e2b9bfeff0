//! Which growth fails the guard, what it names, and that callgrind's files are read as they are meant.

use super::baseline::{Baseline, Tools};
use super::callgrind::parse;
use super::verdict::judge;
use super::{Cost, Counts};

/// What callgrind writes of a thread, shortened.
const FILE: &str = "\
# callgrind format
version: 1
creator: callgrind-3.19.0
thread: 2

positions: line
events: Ir
summary: 160

ob=(1) /usr/lib/libc.so.6
fl=(1) ???
fn=(7) memcpy
0 40

fn=(6) 0x000000000001ab70
0 3

ob=(2) /target/relay
fl=(2) ???
fn=(8) relay::publish
0 10
cob=(1)
cfi=(1)
cfn=(7)
calls=3 0
0 40
0 5
cfn=(9) <relay::A<[u8]> as relay::Step[0123456789abcdef]>::run::h0123456789abcdef
calls=1 0
0 100

fn=(9)
0 99
fi=(3) other.rs
0 1

fn=(8)
0 2

totals: 160
";

fn functions(functions: &[(&str, u64)]) -> Counts {
    Counts(functions.iter().map(|&(function, count)| (function.to_owned(), count)).collect())
}

fn costs(case: &str, of: &[(&str, u64)]) -> Vec<Cost> {
    let functions = functions(of);
    vec![Cost { case: case.to_owned(), instructions: functions.total(), functions: functions.0 }]
}

fn tools(architecture: &str, rustc: &str) -> Tools {
    let [architecture, rustc, valgrind] = [architecture, rustc, "valgrind-3.19.0"].map(str::to_owned);
    Tools { architecture, rustc, valgrind }
}

fn baseline(tools: Tools) -> String {
    serde_json::to_string(&Baseline { tools, costs: Vec::new() }).expect("JSON")
}

#[test]
fn a_function_has_its_own_instructions_and_not_those_of_its_callees() {
    let counts = parse(FILE).expect("a file of callgrind's");
    assert_eq!((counts.0["memcpy"], counts.0["relay::publish"], counts.total()), (40, 17, 160));
}

#[test]
fn hashes_and_addresses_are_no_part_of_a_name() {
    let counts = parse(FILE).expect("a file of callgrind's");
    assert_eq!((counts.0["<relay::A<[u8]> as relay::Step>::run"], counts.0["(no name)"]), (100, 3));
}

#[test]
fn a_file_that_was_cut_or_read_wrongly_is_an_error() {
    let cut = FILE.split("totals").next().expect("its beginning");
    assert_eq!(parse(cut), Err("no `totals:` at its end".to_owned()));
    let more = FILE.replace("fn=(7) memcpy\n0 40", "fn=(7) memcpy\n0 41");
    assert_eq!(parse(&more), Err("161 instructions, but 160 in all".to_owned()));
    assert!(parse("0 12\n").is_err());
}

#[test]
fn what_both_runs_spend_on_starting_cancels_out() {
    let few = functions(&[("main", 5_000), ("relay", 1_000)]);
    let many = functions(&[("main", 5_000), ("relay", 11_000), ("late", 20)]);

    let cost = Cost::of_an_event("record".to_owned(), &few, &many, 10);

    assert_eq!((cost.instructions, cost.functions), (1_002, functions(&[("relay", 1_000), ("late", 2)]).0));
}

#[test]
fn a_function_that_grew_by_a_tenth_fails_and_is_named_with_before_and_after() {
    let before = costs("record", &[("scan", 60_000), ("verify", 40_000)]);
    let after = costs("record", &[("scan", 66_000), ("verify", 40_000)]);

    let report = judge(&before, &after);

    assert!(!report.passes);
    assert!(report.table.contains("+6.00 %"), "{}", report.table);
    assert!(report.remarks.contains("60000 →    66000     +6000  scan\n"), "{}", report.remarks);
    assert!(!report.remarks.contains("verify"), "{}", report.remarks);
}

#[test]
fn growth_up_to_three_percent_passes_and_above_fails() {
    let before = costs("record", &[("scan", 100_000)]);
    for (after, passes) in [(100_000, true), (102_900, true), (103_000, true), (103_001, false), (103_100, false)] {
        assert_eq!(judge(&before, &costs("record", &[("scan", after)])).passes, passes, "{after}");
    }
}

#[test]
fn what_shrank_passes_and_the_baseline_is_to_be_rewritten() {
    let before = costs("record", &[("scan", 100_000)]);
    let report = judge(&before, &costs("record", &[("scan", 96_900)]));
    assert!(report.passes && report.remarks.contains("rewrite the baseline"), "{}", report.remarks);
    let report = judge(&before, &costs("record", &[("scan", 97_100)]));
    assert!(report.passes && report.remarks.is_empty(), "{}", report.remarks);
}

#[test]
fn at_most_five_functions_are_named_and_those_that_grew_most_come_first() {
    let before = costs("request", &[("a", 100), ("b", 100), ("removed", 500)]);
    let after = costs("request", &[("a", 900), ("b", 101), ("c", 300), ("d", 200), ("e", 150), ("f", 140)]);
    let remarks = judge(&before, &after).remarks;
    let named: Vec<_> = remarks.lines().filter(|line| line.contains('→')).collect();
    assert_eq!(named.len(), 5, "{remarks}");
    assert!(named[0].ends_with(" a") && named[1].ends_with(" c"), "{remarks}");
    assert!(!remarks.contains("removed"), "{remarks}");
}

#[test]
fn a_case_that_the_baseline_does_not_know_fails() {
    let report = judge(&[], &costs("new", &[("scan", 1)]));
    assert!(!report.passes && report.remarks.contains("new is not in the baseline"), "{}", report.remarks);
}

#[test]
fn another_compiler_is_noted_and_compared_all_the_same() {
    let here = tools("x86_64", "rustc 1.96.0");
    let baseline = Baseline::parse(&baseline(tools("x86_64", "rustc 1.95.0")), &here).expect("a baseline");
    let note = baseline.other_tools(&here).expect("a note");
    assert!(note.contains("rustc 1.95.0") && note.contains("rustc 1.96.0"), "{note}");
    assert_eq!(baseline.other_tools(&tools("x86_64", "rustc 1.95.0")), None);
}

#[test]
fn another_architecture_is_not_compared() {
    let text = baseline(tools("x86_64", "rustc 1.95.0"));
    let why = Baseline::parse(&text, &tools("aarch64", "rustc 1.95.0")).err().expect("an error");
    assert_eq!(why, "it was counted on x86_64, and this is aarch64");
    assert!(Baseline::parse("{}", &tools("x86_64", "")).is_err());
}
