//! One integration-test binary: a module a behaviour.

mod end_to_end;
mod layers;
mod support;
