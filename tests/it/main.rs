//! One integration-test binary: a module a behaviour.

mod app_webhooks;
mod bad_input;
mod commands;
mod disk;
mod end_to_end;
mod http_table;
mod layers;
mod observability;
mod outage;
mod remedies;
mod retries;
mod samples;
mod security;
mod spool;
mod stopping;
mod support;
mod topic_trouble;
