//! Many connections: each goes on where it was, whether it keeps its buffers or not, and a crowd is let in at once.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::http::{connect, read, request};
use crate::support::relay::{Relay, await_that};
use crate::support::{chat_id, incoming_event, kafka};

/// More than keep their buffers.
const CROWD: usize = 520;

fn say_and_hear(stream: &mut TcpStream, bytes: &[u8], statuses: &[u16]) {
    stream.write_all(bytes).expect("a socket");
    for &status in statuses {
        assert_eq!(read(stream).map(|answer| answer.status), Some(status));
    }
}

#[test]
fn in_a_crowd_a_connection_goes_on_where_it_was() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[("server.header_timeout", "\"2s\"")]).ready();
    let _crowd: Vec<TcpStream> = (0..CROWD).map(|_| connect(relay.webhooks)).collect();
    await_that("all are there", || relay.metric("livechat_relay_connections") >= CROWD as f64);

    let event = || request("/webhooks", "", incoming_event(&chat_id(), 1));
    let mut stream = connect(relay.webhooks);
    for _ in 0..3 {
        say_and_hear(&mut stream, &event(), &[200]);
    }
    say_and_hear(&mut stream, &[event(), event()].concat(), &[200, 200]);
    // One and a part of the next, cut in its head and in its body.
    for cut in [1, 40, event().len() - 20] {
        let next = event();
        say_and_hear(&mut stream, &[&event()[..], &next[..cut]].concat(), &[200]);
        say_and_hear(&mut stream, &next[cut..], &[200]);
    }
    // A part that nothing follows has the time of a head.
    say_and_hear(&mut stream, &[&event()[..], &event()[..40]].concat(), &[200, 408]);
    assert!(read(&mut stream).is_none(), "the connection has ended");
}

#[test]
fn in_a_crowd_an_idle_connection_keeps_no_buffer() {
    const IDLE: usize = 1000;
    const BUFFER: f64 = 8192.0; // hyper's smallest
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[("server.connections_max", "2000")]).ready();
    let _crowd: Vec<TcpStream> = (0..CROWD).map(|_| connect(relay.webhooks)).collect();
    await_that("all are there", || relay.metric("livechat_relay_connections") >= CROWD as f64);

    let used = || {
        let mut stream = connect(relay.webhooks);
        say_and_hear(&mut stream, &request("/webhooks", "", incoming_event(&chat_id(), 1)), &[200]);
        stream
    };
    (0..100).for_each(|_| drop(used())); // what is made once is there
    let memory = || relay.metric("process_resident_memory_bytes");
    let before = memory();
    let _idle: Vec<TcpStream> = (0..IDLE).map(|_| used()).collect();
    let each = (memory() - before) / IDLE as f64;
    assert!(each < BUFFER, "{each} bytes of memory each");
}

#[test]
fn a_crowd_that_comes_at_once_is_let_in_while_nobody_accepts() {
    const AT_ONCE: usize = 1000;
    let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux");
    let at_once = AT_ONCE.min(allowed.trim().parse().expect("a number"));
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[]).ready();
    relay.signal(Signal::STOP);
    let soon = Duration::from_millis(900); // the kernel of a client that was not let in tries again after a second
    let crowd: Vec<_> = (0..at_once).map_while(|_| TcpStream::connect_timeout(&relay.webhooks, soon).ok()).collect();
    relay.signal(Signal::CONT);
    assert_eq!(crowd.len(), at_once);
    let mut last = crowd.into_iter().next_back().expect("a crowd");
    say_and_hear(&mut last, &request("/webhooks", "", incoming_event(&chat_id(), 1)), &[200]);
}
