//! A log that is not read, or cannot be written, costs lines: never an answer, an event or the end. And what it looks like.

use std::fs::File;
use std::io::{PipeReader, Write as _};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;

use crate::support::http::{get, post};
use crate::support::kafka::Kafka;
use crate::support::relay::{Relay, await_that};
use crate::support::{chat_id, incoming_event, kafka, with_secret};

/// A pipe that is full, and its reader, who does not read.
fn full_pipe() -> (PipeReader, OwnedFd) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let flags = fcntl_getfl(&writer).expect("its flags");
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("set");
    while writer.write_all(b"x").is_ok() {}
    fcntl_setfl(&writer, flags).expect("set");
    (reader, writer.into())
}

#[test]
fn a_log_that_blocks_holds_up_no_answer_no_probe_and_no_end() {
    let Some(kafka) = kafka::shared_or_skip() else { return };
    let (reader, stderr) = full_pipe();
    let mut relay = Relay::start_logging_to(stderr, kafka.bootstrap(), &[("log.filter", "\"debug\"")]).ready();
    let forged = with_secret(r#"{"action":"incoming_event","payload":{}}"#, "no-key-of-ours");
    assert_eq!(post(relay.webhooks, forged).status, 401);
    for n in 0..50 {
        assert_eq!(post(relay.webhooks, incoming_event(&chat_id(), n)).status, 200);
    }
    assert_eq!(get(relay.admin, "/livez").status, 200);
    relay.signal(Signal::TERM);
    assert!(relay.end().success());
    drop(reader);
}

#[test]
fn the_log_has_colours_where_the_commands_have_them() {
    let said = |variables: &[(&str, &str)]| {
        // No such address is of this machine, so the relay ends with an ERROR.
        let settings = [("server.listen", "\"192.0.2.1:1\""), ("log.format", "\"text\"")];
        let ended = Relay::launch("127.0.0.1:1", &settings, variables);
        ended.err().expect("it cannot listen there")
    };
    let force = ("CLICOLOR_FORCE", "1");
    let coloured = said(&[force]);
    assert!(coloured.contains("ERROR") && coloured.contains('\x1b'), "{coloured}");
    for variables in [&[][..], &[force, ("NO_COLOR", "1")]] {
        let plain = said(variables);
        assert!(plain.contains("ERROR livechat_relay::") && !plain.contains('\x1b'), "{plain}");
    }
}

#[test]
fn a_log_that_cannot_be_written_costs_lines_and_no_event() {
    let full_disk = || File::options().write(true).open("/dev/full").expect("Linux").into();
    let reader_gone = || OwnedFd::from(std::io::pipe().expect("a pipe").1).into();
    for stderr in [&full_disk as &dyn Fn() -> Stdio, &reader_gone] {
        let Some(kafka) = Kafka::start_or_skip(1, &[]) else { return };
        let spool = tempfile::tempdir().expect("a directory");
        let directory = format!("{:?}", spool.path());
        let settings = [("spool.directory", directory.as_str()), ("kafka.publish_deadline", "\"500ms\"")];
        let mut relay = Relay::start_logging_to(stderr(), kafka.bootstrap(), &settings).ready();
        assert_eq!(post(relay.webhooks, incoming_event(&chat_id(), 1)).status, 200);
        kafka.pause(0);
        for n in 0..20 {
            assert_eq!(post(relay.webhooks, incoming_event(&chat_id(), n)).status, 200);
        }
        await_that("the outage is noticed", || relay.metric("livechat_relay_kafka_up") == 0.0);
        kafka.resume(0);
        let waiting = r#"livechat_relay_spool_records{topic="livechat.incoming_event"}"#;
        await_that("all is published", || relay.metric(waiting) == 0.0);
        assert!(relay.metric("livechat_relay_replayed_total") >= 20.0);
        assert!(relay.metric("livechat_relay_log_lines_dropped_total") > 0.0);
        relay.signal(Signal::TERM);
        assert!(relay.end().success());
    }
}
