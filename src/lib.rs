//! livechat-relay: takes LiveChat's webhooks, verifies them, and publishes each to a Kafka topic before it answers 200.
//!
//! ```text
//!              POST /webhooks/{app}                                    livechat.<action>
//!  LiveChat ───────────────────────►  http ──► relay ──► publish  ───────────────────────►  Kafka ──► consumers
//!           ◄───────────────────────             │  ▲        │ ▲  ◄───────────────────────
//!               200 once it is safe              ▼  │   no ack │  in order   ack of all replicas
//!                                               event        ▼ │
//!                                                           spool ──► replay
//! ```
//!
//! Read [`event`], [`outcome`] and [`relay`], then [`http`], [`publish`], [`spool`] and [`replay`]; `cli/serve.rs` wires them. Imports go
//! only downward, in the order that `tests/it/layers.rs` has and checks.

#![forbid(unsafe_code)]

// edge: what people and programs talk to
pub mod acme;
pub mod cli;
pub mod config;
pub mod control;
pub mod http;

// heart: what happens to an event
pub mod budget;
pub mod dead_letter;
pub mod dedup;
pub mod event;
pub mod outcome;
pub mod publish;
pub mod relay;
pub mod replay;
pub mod spool;
pub mod topics;

// side: LiveChat's own side, invented chats, what the daemon tells of itself, and how it ends
pub mod livechat;
pub mod metrics;
pub mod samples;
pub mod shutdown;
pub mod simulate;
pub mod systemd;
pub mod telemetry;
