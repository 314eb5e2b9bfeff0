//! The sender: keep-alive connections, each with one webhook at a time, or all idle. It knows just enough HTTP to cost little beside
//! the server: all requests are made beforehand, and of an answer it looks at the status and the end of its head.

use std::cell::RefCell;
use std::io::Read as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use livechat_relay::cli::traffic::{Sample, Traffic};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::rig::secret_key;

#[derive(clap::Args)]
pub struct Arguments {
    /// The servers; connections are spread over them
    #[arg(long, value_delimiter = ',', required = true)]
    ports: Vec<u16>,
    #[arg(long)]
    connections: usize,
    #[arg(long)]
    events: usize,
    /// Events sent before the clock starts
    #[arg(long, default_value_t = 0)]
    warm: usize,
    #[arg(long)]
    seed: u64,
    #[arg(long, value_delimiter = ',')]
    actions: Vec<String>,
    /// Each action as often as the others, instead of LiveChat's mix
    #[arg(long)]
    in_turn: bool,
    /// Events go to so many apps in turn, each with its own key
    #[arg(long, default_value_t = 1)]
    apps: usize,
    /// Bodies of about this many bytes, where they are shorter: a text of the payload is made longer
    #[arg(long)]
    body_bytes: Option<usize>,
    /// Where the servers' CPU time is read
    #[arg(long, value_delimiter = ',', required = true)]
    pids: Vec<u32>,
}

/// Connections that stay open, after an event each.
#[derive(clap::Args)]
pub struct Idle {
    #[arg(long)]
    port: u16,
    #[arg(long)]
    connections: usize,
    #[arg(long)]
    seed: u64,
}

/// What `idle` says when it has opened all.
pub const ALL_OPEN: &str = "all are open";

/// What a run showed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Report {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// User and system time of the server.
    pub cpu_micros: f64,
}

struct Run {
    requests: Vec<Box<[u8]>>,
    next: usize,
    micros: Histogram<u64>,
}

pub fn run(arguments: &Arguments) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let report = local.block_on(&runtime, measure(arguments));
    println!("{}", serde_json::to_string(&report).expect("numbers are JSON"));
}

/// Opens connections one by one, and keeps them until standard input ends.
pub fn idle(arguments: &Idle) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let open = async {
        crate::rig::raise_open_files(arguments.connections);
        let mut connections = Vec::with_capacity(arguments.connections);
        for sample in Traffic::new(arguments.seed).take(arguments.connections) {
            let mut connection = connect(arguments.port).await;
            connection.write_all(&request(0, &sample.body(&secret_key(0)))).await.expect("the server takes requests");
            answer(&mut connection).await;
            connections.push(connection);
        }
        connections
    };
    let connections = runtime.block_on(open);
    println!("{ALL_OPEN}");
    std::io::stdin().read_to_end(&mut Vec::new()).expect("standard input");
    drop(connections);
}

async fn measure(arguments: &Arguments) -> Report {
    crate::rig::raise_open_files(arguments.connections);
    let requests = requests(arguments);
    let micros = Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
    let run = Rc::new(RefCell::new(Run { requests, next: 0, micros }));
    let mut connections = Vec::with_capacity(arguments.connections);
    for port in arguments.ports.iter().cycle().take(arguments.connections) {
        connections.push(connect(*port).await);
    }
    let cpu = || arguments.pids.iter().map(|pid| crate::rig::cpu(*pid)).sum::<Duration>();
    let connections = send(&run, connections, arguments.warm).await;
    run.borrow_mut().micros.clear();
    let (cpu_before, began) = (cpu(), Instant::now());
    send(&run, connections, arguments.events).await;
    let (cpu, took) = (cpu().saturating_sub(cpu_before), began.elapsed());
    let run = run.borrow();
    let millis = |quantile| run.micros.value_at_quantile(quantile) as f64 / 1000.0;
    Report {
        per_second: arguments.events as f64 / took.as_secs_f64(),
        p50_ms: millis(0.5),
        p99_ms: millis(0.99),
        cpu_micros: cpu.as_secs_f64() * 1e6 / arguments.events as f64,
    }
}

/// Every request, as it goes over the wire.
fn requests(arguments: &Arguments) -> Vec<Box<[u8]>> {
    let keys: Vec<String> = (0..arguments.apps).map(secret_key).collect();
    let apps = keys.iter().enumerate().cycle();
    let one = |(sample, (app, key)): (Sample, (usize, &String))| {
        let body = sample.body(key);
        request(app, &arguments.body_bytes.map_or_else(|| body.clone(), |bytes| longer(&body, bytes)))
    };
    samples(arguments).take(arguments.warm + arguments.events).zip(apps).map(one).collect()
}

fn samples(arguments: &Arguments) -> Box<dyn Iterator<Item = Sample>> {
    let traffic = |seed, actions: &[String]| Traffic::new(seed).only(actions).expect("actions of the catalogue");
    if !arguments.in_turn {
        return Box::new(traffic(arguments.seed, &arguments.actions));
    }
    let actions = (arguments.seed..).zip(&arguments.actions);
    let mut each: Vec<_> = actions.map(|(seed, action)| traffic(seed, std::slice::from_ref(action))).collect();
    let turns = (0..each.len()).collect::<Vec<_>>().into_iter().cycle();
    Box::new(turns.map_while(move |turn| each[turn].next()))
}

fn request(app: usize, body: &str) -> Box<[u8]> {
    let head = format!(
        "POST /webhooks/app-{app} HTTP/1.1\r\nhost: localhost\r\nuser-agent: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (head + body).into_bytes().into_boxed_slice()
}

/// The same event with a longer text; where it has none, its payload gets one.
fn longer(body: &str, bytes: usize) -> String {
    let words = "so it goes, with \\\"quotes\\\" and words of every length ";
    let missing = bytes.saturating_sub(body.len()) / words.len();
    if missing == 0 {
        return body.to_owned();
    }
    let text = words.repeat(missing);
    if body.contains(r#""text":""#) {
        return body.replacen(r#""text":""#, &format!(r#""text":"{text}"#), 1);
    }
    body.replacen(r#""payload":{"#, &format!(r#""payload":{{"text":"{text}","#), 1)
}

/// Sends the next `events` of the run over these connections, and gives them back.
async fn send(run: &Rc<RefCell<Run>>, connections: Vec<TcpStream>, events: usize) -> Vec<TcpStream> {
    let end = run.borrow().next + events;
    let work = |connection| tokio::task::spawn_local(worker(Rc::clone(run), connection, end));
    let workers: Vec<_> = connections.into_iter().map(work).collect();
    let mut connections = Vec::with_capacity(workers.len());
    for worker in workers {
        connections.push(worker.await.expect("every event is answered 200"));
    }
    connections
}

async fn worker(run: Rc<RefCell<Run>>, mut connection: TcpStream, end: usize) -> TcpStream {
    let next = || run.borrow_mut().next(end);
    while let Some(request) = next() {
        let began = Instant::now();
        connection.write_all(&request).await.expect("the server takes requests");
        answer(&mut connection).await;
        let took = u64::try_from(began.elapsed().as_micros()).expect("no run takes so long");
        run.borrow_mut().micros.saturating_record(took);
    }
    connection
}

impl Run {
    fn next(&mut self, end: usize) -> Option<Box<[u8]>> {
        if self.next == end {
            return None;
        }
        self.next += 1;
        Some(std::mem::take(&mut self.requests[self.next - 1]))
    }
}

/// Reads one answer, which has to be 200 without a body.
async fn answer(connection: &mut TcpStream) {
    let mut bytes = [0; 1024];
    let mut length = 0;
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
