//! The case `record`: the pure steps, bytes → record, by size of the body.

use std::hint::black_box;

use livechat_relay::event::normalize::normalize;
use livechat_relay::event::receive::receive;
use livechat_relay::event::route::route;
use livechat_relay::event::verify::verify;
use livechat_relay::event::{Keyring, Keys, Mode, Receipt, Routing, Topics};

use crate::body::body;
use crate::counts::Counts;
use crate::valgrind::Callgrind;

/// Bytes of the bodies.
pub const SIZES: [usize; 3] = [700, 6_000, 200_000];
/// Events of the two runs whose difference counts. All of them are alike, so that a few are enough.
pub const EVENTS: [usize; 2] = [5, 25];

/// The process that callgrind watches.
#[derive(clap::Args)]
pub struct Arguments {
    bytes: usize,
    events: usize,
}

pub fn run(arguments: &Arguments) {
    let keyring = Keyring::new([("k".to_owned(), &"k-0123456789".to_owned().into())]);
    let topics = Topics::new("livechat.", |_| None);
    let routing = Routing { topics, mode: Mode::Structured, keys: Keys::Plain, api_version: None };
    let receipt = || Receipt { app: "default", time: jiff::Timestamp::UNIX_EPOCH, fresh_id: uuid::Uuid::nil };
    let body = body(arguments.bytes);
    for _ in 0..arguments.events {
        let delivery = receive(black_box(body.as_bytes())).expect("well-formed");
        let (webhook, _) = verify(delivery, &keyring).expect("the right key");
        black_box(route(normalize(webhook, receipt()), &routing, None));
    }
}

/// What that process executes.
pub fn count(bytes: usize, events: usize) -> Counts {
    let callgrind = Callgrind::new();
    let this = std::env::current_exe().expect("this program");
    let mut command = callgrind.command(&this);
    let status = command.arg("record").args([bytes, events].map(|number| number.to_string())).status();
    assert!(status.is_ok_and(|status| status.success()), "valgrind has said why");
    Counts::sum(&callgrind.threads())
}
