//! One integration-test binary: a module a behaviour.

mod acme;
mod app_webhooks;
mod apply;
mod apps;
mod auth;
mod backfill;
mod bad_input;
mod check_livechat;
mod check_request;
mod client_address;
mod commands;
mod configuration;
mod crowd;
// What judges the counts of benches/instructions: its own tests run here, because that binary has no harness.
mod control;
#[allow(dead_code, reason = "benches/instructions uses the rest")]
#[path = "../../benches/instructions/counts/mod.rs"]
mod counts;
mod disk;
mod end_to_end;
mod http_table;
mod hung_disk;
// The judge of tests/chaos: its own tests run here, because that binary has no harness.
mod initial;
#[allow(dead_code, reason = "tests/chaos uses the rest")]
#[path = "../chaos/judge.rs"]
mod judge;
mod keys;
mod layers;
mod livechat;
mod logging;
mod observability;
mod outage;
mod pages;
mod producer;
mod proxies;
mod refusals;
mod reload;
mod remedies;
mod retries;
mod rules;
mod samples;
mod screens;
mod security;
// The shifted clock of tests/chaos.
#[allow(dead_code, reason = "tests/chaos uses the rest")]
#[path = "../chaos/shim.rs"]
mod shim;
mod simulate;
mod spool;
mod start;
mod stopping;
#[allow(dead_code, reason = "tests/chaos uses the rest")]
mod support;
mod systemd;
mod tls;
mod topic_trouble;
mod topics;
mod watch;
mod webhooks;
mod words;
