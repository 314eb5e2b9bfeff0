//! The sender: keep-alive connections, each with one webhook at a time, or all idle; to one server, or to several in turn. It knows just
//! enough HTTP to cost little beside the server: all requests are made beforehand, and of an answer it looks at the status and the end
//! of its head.

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

/// What is sent, and to whom.
#[derive(clap::Args)]
struct Sent {
    #[arg(long, value_delimiter = ',', required = true)]
    ports: Vec<u16>,
    /// Where the servers' CPU time is read
    #[arg(long, value_delimiter = ',', required = true)]
    pids: Vec<u32>,
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
}

/// Servers over which the connections are spread.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    sent: Sent,
    /// Each action as often as the others, instead of LiveChat's mix
    #[arg(long)]
    in_turn: bool,
    /// Events go to so many apps in turn, each with its own key
    #[arg(long, default_value_t = 1)]
    apps: usize,
    /// Bodies of about this many bytes, where they are shorter: a text of the payload is made longer
    #[arg(long)]
    body_bytes: Option<usize>,
}

/// Servers that take turns: each has so many connections all the while, and is idle while it is not its turn.
#[derive(clap::Args)]
pub struct Turns {
    #[command(flatten)]
    sent: Sent,
    /// Turns of a server, each with so many events
    #[arg(long)]
    rounds: usize,
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

/// Connections to one server, or spread over several.
struct Client<'a> {
    connections: Vec<TcpStream>,
    /// Of the servers.
    pids: &'a [u32],
}

struct Run {
    requests: std::vec::IntoIter<Rc<[u8]>>,
    micros: Histogram<u64>,
}

pub fn run(arguments: &Arguments) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let report = tokio::task::LocalSet::new().block_on(&runtime, measure(arguments));
    println!("{}", serde_json::to_string(&report).expect("numbers are JSON"));
}

pub fn turns(arguments: &Turns) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let reports = tokio::task::LocalSet::new().block_on(&runtime, measure_in_turn(arguments));
    println!("{}", serde_json::to_string(&reports).expect("numbers are JSON"));
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
    let Sent { ports, pids, connections, warm, .. } = &arguments.sent;
    crate::rig::raise_open_files(*connections);
    let mut requests = requests(arguments);
    let events = requests.split_off(*warm);
    let mut client = Client::open(ports, pids, *connections).await;
    client.send(requests).await;
    client.send(events).await
}

/// The reports of each server. The third and later ones have every fourth round only, and who begins changes.
async fn measure_in_turn(Turns { sent, rounds }: &Turns) -> Vec<Vec<Report>> {
    crate::rig::raise_open_files(sent.connections * sent.ports.len());
    let key = secret_key(0);
    let mut samples = Traffic::new(sent.seed).only(&sent.actions).expect("actions of the catalogue");
    let mut next = |events: usize| -> Vec<Rc<[u8]>> {
        samples.by_ref().take(events).map(|sample| request(0, &sample.body(&key))).collect()
    };
    let warm = next(sent.warm);
    let mut clients = Vec::new();
    for (port, pid) in sent.ports.chunks(1).zip(sent.pids.chunks(1)) {
        let mut client = Client::open(port, pid, sent.connections).await;
        client.send(warm.clone()).await;
        clients.push(client);
    }
    let mut reports = vec![Vec::new(); clients.len()];
    for round in 0..*rounds {
        let events = next(sent.events);
        let mut order: Vec<usize> = (0..if round % 4 == 0 { clients.len() } else { 2 }).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for server in order {
            reports[server].push(clients[server].send(events.clone()).await);
        }
    }
    reports
}

impl<'a> Client<'a> {
    async fn open(ports: &[u16], pids: &'a [u32], number: usize) -> Self {
        let mut connections = Vec::with_capacity(number);
        for port in ports.iter().cycle().take(number) {
            connections.push(connect(*port).await);
        }
        Self { connections, pids }
    }

    /// Sends these requests, and says what it took.
    async fn send(&mut self, requests: Vec<Rc<[u8]>>) -> Report {
        let events = requests.len() as f64;
        let micros = Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
        let run = Rc::new(RefCell::new(Run { requests: requests.into_iter(), micros }));
        let cpu = || self.pids.iter().map(|pid| crate::rig::cpu(*pid)).sum::<Duration>();
        let (cpu_before, began) = (cpu(), Instant::now());
        let work = |connection| tokio::task::spawn_local(worker(Rc::clone(&run), connection));
        let workers: Vec<_> = std::mem::take(&mut self.connections).into_iter().map(work).collect();
        for worker in workers {
            self.connections.push(worker.await.expect("every event is answered 200"));
        }
        let (cpu, took) = (cpu().saturating_sub(cpu_before), began.elapsed());
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

/// Every request, as it goes over the wire.
fn requests(arguments: &Arguments) -> Vec<Rc<[u8]>> {
    let keys: Vec<String> = (0..arguments.apps).map(secret_key).collect();
    let apps = keys.iter().enumerate().cycle();
    let one = |(sample, (app, key)): (Sample, (usize, &String))| {
        let body = sample.body(key);
        request(app, &arguments.body_bytes.map_or_else(|| body.clone(), |bytes| longer(&body, bytes)))
    };
    samples(arguments).take(arguments.sent.warm + arguments.sent.events).zip(apps).map(one).collect()
}

fn samples(arguments: &Arguments) -> Box<dyn Iterator<Item = Sample>> {
    let Sent { seed, actions, .. } = &arguments.sent;
    let traffic = |seed, actions: &[String]| Traffic::new(seed).only(actions).expect("actions of the catalogue");
    if !arguments.in_turn {
        return Box::new(traffic(*seed, actions));
    }
    let actions = (*seed..).zip(actions);
    let mut each: Vec<_> = actions.map(|(seed, action)| traffic(seed, std::slice::from_ref(action))).collect();
    let turns = (0..each.len()).collect::<Vec<_>>().into_iter().cycle();
    Box::new(turns.map_while(move |turn| each[turn].next()))
}

fn request(app: usize, body: &str) -> Rc<[u8]> {
    let head = format!(
        "POST /webhooks/app-{app} HTTP/1.1\r\nhost: localhost\r\nuser-agent: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    (head + body).into_bytes().into()
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

async fn worker(run: Rc<RefCell<Run>>, mut connection: TcpStream) -> TcpStream {
    let next = || run.borrow_mut().requests.next();
    while let Some(request) = next() {
        let began = Instant::now();
        connection.write_all(&request).await.expect("the server takes requests");
        answer(&mut connection).await;
        let took = u64::try_from(began.elapsed().as_micros()).expect("no run takes so long");
        run.borrow_mut().micros.saturating_record(took);
    }
    connection
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
