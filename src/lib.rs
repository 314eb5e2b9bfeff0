//! livechat-relay: takes LiveChat's webhooks, verifies them, and publishes each to a Kafka topic before it answers 200.

#![forbid(unsafe_code)]

pub mod event;
