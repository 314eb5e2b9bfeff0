//! `make bench`: the relay against the floor, the smallest program that does the same job, in alternation.
//! `make bench-growth`: how the cost of an event grows with each thing that can be large.
//!
//! Sender, brokers and server share one machine, so only CPU time per event and ratios of neighbouring runs mean anything.
//! This program is also each of the processes that it needs: the floor, the sender, and the mock cluster.
//!
//! ```text
//! main                     the command line
//!   compare   growth       what is measured, and printed as tables
//!             footprint
//!   rig                    starts and ends the processes, reads their memory
//!   load   floor   mock    each is a process of its own: the sender, the floor, the mock cluster
//!   webhooks               what is sent, and to which topics
//!   figures                medians, quartiles, ratios
//! ```
//!
//! A module imports only from lines below its own.

mod compare;
mod figures;
mod floor;
mod footprint;
mod growth;
mod load;
mod mock;
mod rig;
mod webhooks;

use clap::{Parser, Subcommand};

/// The relay against the floor program, on a real Kafka and on librdkafka's mock cluster
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compare: compare::Arguments,
    /// Given by `cargo bench`
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// How cost grows with bodies, connections, topics and the spool's backlog; and the footprint
    Growth(growth::Arguments),
    /// Be the floor program
    #[command(hide = true)]
    Floor(floor::Arguments),
    /// Be the sender: a job in JSON; print the reports as JSON
    #[command(hide = true)]
    Load { job: String },
    /// Be a sender that keeps idle connections open until standard input ends
    #[command(hide = true)]
    Idle(load::Idle),
    /// Be a mock cluster: print its address, end with standard input
    #[command(hide = true)]
    Mock,
}

fn main() {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Growth(arguments)) => growth::run(&arguments),
        Some(Command::Floor(arguments)) => floor::run(&arguments),
        Some(Command::Load { job }) => load::run(&job),
        Some(Command::Idle(arguments)) => load::idle(&arguments),
        Some(Command::Mock) => mock::run(),
        None => compare::run(&arguments.compare),
    }
}
