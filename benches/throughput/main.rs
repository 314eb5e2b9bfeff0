//! `make bench`: the whole relay against the floor, the smallest program that does the same job, in alternation.
//! `make bench-plots`: how the relay's cost grows with each thing that can be large.
//!
//! Sender, Kafka and server share this machine, so only CPU time per event and ratios of neighbouring runs mean anything.
//! This program is also each of the processes that it needs: the floor, the sender, and the mock cluster.

mod backlog;
mod compare;
mod floor;
mod footprint;
mod growth;
mod load;
mod page;
mod plot;
mod rig;

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
    /// How cost grows with bodies, connections, topics, apps, keys, replicas and the spool's backlog; and the footprint
    Growth(growth::Arguments),
    /// Be the floor program
    #[command(hide = true)]
    Floor(floor::Arguments),
    /// Be the sender, and report as JSON
    #[command(hide = true)]
    Load(load::Arguments),
    /// Be the sender to servers in turn, and report as JSON
    #[command(hide = true)]
    Turns(load::Turns),
    /// Be a sender that waits: open connections, end with standard input
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
        Some(Command::Load(arguments)) => load::run(&arguments),
        Some(Command::Turns(arguments)) => load::turns(&arguments),
        Some(Command::Idle(arguments)) => load::idle(&arguments),
        Some(Command::Mock) => rig::mock(),
        None => compare::run(&arguments.compare),
    }
}
