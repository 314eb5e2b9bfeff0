//! Many connections: each is answered whatever the others do, and a crowd is let in at once.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::http::{connect, read, request};
use crate::support::relay::{Relay, await_that};
use crate::support::{chat_id, incoming_event, kafka};

const CROWD: usize = 600;

fn say_and_hear(stream: &mut TcpStream, bytes: &[u8], statuses: &[u16]) {
    stream.write_all(bytes).expect("a socket");
    for &status in statuses {
        assert_eq!(read(stream).map(|answer| answer.status), Some(status));
    }
}

#[test]
fn in_a_crowd_every_pipelined_request_is_answered() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let relay = Relay::start(kafka.bootstrap(), &[("server.header_timeout", "\"1m\"")]).ready();
    let _crowd: Vec<TcpStream> = (0..CROWD).map(|_| connect(relay.webhooks)).collect();
    await_that("all are there", || relay.metric("livechat_relay_connections") >= CROWD as f64);

    let event = || request("/webhooks", "", incoming_event(&chat_id(), 1));
    let mut stream = connect(relay.webhooks);
    say_and_hear(&mut stream, &event(), &[200]); // from now on it is kept alive
    // More requests in one write than hyper reads, or answers, before it yields.
    let nowhere = b"GET /nowhere HTTP/1.1\r\nhost: relay\r\n\r\n".repeat(500);
    say_and_hear(&mut stream, &nowhere, &[404; 500]);
    let many = [&nowhere[..nowhere.len() / 10], &(0..70).flat_map(|_| event()).collect::<Vec<_>>()].concat();
    say_and_hear(&mut stream, &many, &[[404; 50].as_slice(), &[200; 70]].concat());
    // One and a part of the next, cut in its head and in its body.
    for cut in [1, 40, event().len() - 20] {
        let next = event();
        say_and_hear(&mut stream, &[&event()[..], &next[..cut]].concat(), &[200]);
        say_and_hear(&mut stream, &next[cut..], &[200]);
    }
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

/// 400 open files are not enough for 4,096 connections and a spool of 10 GiB in segments of 64 MiB.
#[test]
fn with_few_open_files_there_are_fewer_connections_and_a_webhook_gets_one_of_them() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let spool = format!("{:?}", directory.path().join("spool").display().to_string());
    let mut relay = Relay::start_with_open_files(400, kafka.bootstrap(), &[("spool.directory", &spool)]).ready();
    assert!(relay.await_log("too few open files").contains("\"connections_max\":72"), "{}", relay.log());
    let crowd: Vec<TcpStream> = (0..300).map(|_| connect(relay.webhooks)).collect();
    let mut stream = connect(relay.webhooks);
    say_and_hear(&mut stream, &request("/webhooks", "", incoming_event(&chat_id(), 1)), &[200]);
    await_that("those that have waited longest are closed", || {
        relay.metric(r#"livechat_relay_connections_ended_total{reason="evicted"}"#) >= 228.0
    });
    assert!(!relay.log().contains("cannot accept"), "{}", relay.log());
    drop(crowd);
}
