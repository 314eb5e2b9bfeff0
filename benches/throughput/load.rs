//! The sender: keep-alive connections, each with one webhook at a time, to one server or to several in turn. It costs little
//! beside the server: requests are made beforehand, and of an answer only the status and the end of its head are looked at.

use std::cell::RefCell;
use std::io::Read as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, spawn_local};

use crate::figures::Report;
use crate::webhooks::Webhooks;

/// What is sent, and to whom.
#[derive(Clone, Serialize, Deserialize)]
pub struct Job {
    /// Servers that take turns. Each has all its connections open all the while, and idle while it is not its turn.
    pub servers: Vec<Target>,
    /// To each server.
    pub connections: usize,
    /// Events before the clock starts, to each server.
    pub warm: usize,
    /// Turns of each server.
    pub rounds: usize,
    /// Events of a turn, the same ones to each server.
    pub events: usize,
    pub webhooks: Webhooks,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Target {
    pub port: u16,
    /// Where its CPU time is read.
    pub pid: u32,
}

impl Job {
    /// One turn, for servers that are still to be named.
    pub fn of_events(connections: usize, events: usize, webhooks: Webhooks) -> Self {
        Self { servers: Vec::new(), connections, warm: 0, rounds: 1, events, webhooks }
    }
}

/// Connections that stay open, after an event each.
#[derive(clap::Args)]
pub struct Idle {
    port: u16,
    connections: usize,
    seed: u64,
}

/// What `idle` prints when it has opened all.
pub const ALL_OPEN: &str = "all are open";

pub fn run(job: &str) {
    let job: Job = serde_json::from_str(job).expect("a job in JSON");
    raise_open_files(job.connections * job.servers.len());
    let reports = LocalSet::new().block_on(&runtime(), measure(&job));
    println!("{}", serde_json::to_string(&reports).expect("numbers are JSON"));
}

/// The reports of each server. Every second round goes through the servers backwards.
async fn measure(job: &Job) -> Vec<Vec<Report>> {
    let mut requests = job.webhooks.requests();
    let warm: Vec<_> = requests.by_ref().take(job.warm).collect();
    let mut clients = Vec::new();
    for server in &job.servers {
        let mut client = Client::open(server, job.connections).await;
        client.send(warm.clone()).await;
        clients.push(client);
    }
    let mut reports = vec![Vec::new(); clients.len()];
    for round in 0..job.rounds {
        let events: Vec<_> = requests.by_ref().take(job.events).collect();
        let forward = 0..clients.len();
        let order: Vec<usize> = if round % 2 == 0 { forward.collect() } else { forward.rev().collect() };
        for server in order {
            reports[server].push(clients[server].send(events.clone()).await);
        }
    }
    reports
}

/// Opens connections one by one, and keeps them until standard input ends.
pub fn idle(arguments: &Idle) {
    raise_open_files(arguments.connections);
    let runtime = runtime();
    let connections = runtime.block_on(async {
        let mut connections = Vec::with_capacity(arguments.connections);
        for request in Webhooks::usual(arguments.seed).requests().take(arguments.connections) {
            let mut connection = connect(arguments.port).await;
            exchange(&mut connection, &request).await;
            connections.push(connection);
        }
        connections
    });
    println!("{ALL_OPEN}");
    std::io::stdin().read_to_end(&mut Vec::new()).expect("standard input");
    drop(connections);
}

/// The connections to one server.
struct Client {
    connections: Vec<TcpStream>,
    pid: u32,
}

/// What the connections share while they send.
struct Run {
    requests: std::vec::IntoIter<Rc<[u8]>>,
    micros: Histogram<u64>,
}

impl Client {
    async fn open(server: &Target, number: usize) -> Self {
        let mut connections = Vec::with_capacity(number);
        for _ in 0..number {
            connections.push(connect(server.port).await);
        }
        Self { connections, pid: server.pid }
    }

    async fn send(&mut self, requests: Vec<Rc<[u8]>>) -> Report {
        let events = requests.len() as f64;
        let micros = Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
        let run = Rc::new(RefCell::new(Run { requests: requests.into_iter(), micros }));
        let (cpu_before, began) = (cpu(self.pid), Instant::now());
        let work = |connection| spawn_local(worker(Rc::clone(&run), connection));
        let workers: Vec<_> = self.connections.drain(..).map(work).collect();
        for worker in workers {
            self.connections.push(worker.await.expect("every event is answered 200"));
        }
        let (cpu, took) = (cpu(self.pid).saturating_sub(cpu_before), began.elapsed());
        let run = run.borrow();
        let millis = |quantile| run.micros.value_at_quantile(quantile) as f64 / 1000.0;
        Report {
            per_second: events / took.as_secs_f64(),
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
            cpu_micros: cpu.as_secs_f64() * 1e6 / events,
        }
    }
}

async fn worker(run: Rc<RefCell<Run>>, mut connection: TcpStream) -> TcpStream {
    let next = || run.borrow_mut().requests.next();
    while let Some(request) = next() {
        let began = Instant::now();
        exchange(&mut connection, &request).await;
        let took = u64::try_from(began.elapsed().as_micros()).expect("no run takes so long");
        run.borrow_mut().micros.saturating_record(took);
    }
    connection
}

/// Sends a request and reads its answer, which has to be 200 without a body.
async fn exchange(connection: &mut TcpStream, request: &[u8]) {
    connection.write_all(request).await.expect("the server takes requests");
    let (mut bytes, mut length) = ([0; 1024], 0);
    while !bytes[..length].ends_with(b"\r\n\r\n") {
        let read = connection.read(&mut bytes[length..]).await.expect("the server answers");
        assert!(read > 0, "the server has closed the connection");
        length += read;
    }
    let head = String::from_utf8_lossy(&bytes[..length]);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

async fn connect(port: u16) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => {
                stream.set_nodelay(true).expect("a socket");
                return stream;
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// User and system time of all threads of a process until now.
fn cpu(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running process");
    let of_thread = |thread: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?; // it may have ended
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.filter_map(of_thread).sum())
}

fn raise_open_files(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = connections as u64 + 64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum })
            .unwrap_or_else(|error| panic!("{connections} connections need {needed} open files (ulimit -n): {error}"));
    }
}
