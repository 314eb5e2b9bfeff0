//! The case `record`: the pure steps, bytes → record, by size of the body.

use std::hint::black_box;

use crate::counts::Counts;
use crate::input::Input;
use crate::valgrind::Callgrind;

/// Events of the two runs whose difference counts. All of them are alike, so that a few are enough.
pub const EVENTS: [usize; 2] = [5, 25];

/// The process that callgrind watches.
#[derive(clap::Args)]
pub struct Arguments {
    bytes: usize,
    events: usize,
}

pub fn run(arguments: &Arguments) {
    let input = Input::new(arguments.bytes);
    for _ in 0..arguments.events {
        black_box(black_box(&input).record());
    }
}

/// What that process executes.
pub fn count(bytes: usize, events: usize) -> Counts {
    let callgrind = Callgrind::new();
    let this = std::env::current_exe().expect("this program");
    let mut command = callgrind.command(&this);
    let status = command.arg("record").args([bytes, events].map(|number| number.to_string())).status();
    assert!(status.is_ok_and(|status| status.success()), "valgrind has written why");
    Counts::sum(&callgrind.threads())
}
