//! One integration-test binary: a module a behaviour.

mod bad_input;
mod commands;
mod end_to_end;
mod http_table;
mod layers;
mod observability;
mod outage;
mod stopping;
mod support;
