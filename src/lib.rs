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
//! Read [`event`], then [`relay`], then [`http`], [`publish`], [`spool`] and [`replay`]; [`cli`] wires them. Imports go only downward:
//! `cli → config → http → relay, replay → dead_letter → publish, spool, topics, dedup → metrics, shutdown → outcome, budget,
//! telemetry → event`.

#![forbid(unsafe_code)]

// edge: what people and programs talk to
pub mod cli;
pub mod config;
pub mod desk;
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

// side: tools that know nothing of the rest
pub mod metrics;
pub mod shutdown;
pub mod telemetry;
