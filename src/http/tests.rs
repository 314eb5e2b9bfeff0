//! Connections: what ends them, what is evicted, and what a certificate that is replaced does to them.

use tokio::io::AsyncReadExt as _;

use super::*;

/// Panics where it is asked to, or answers when it is told to.
#[derive(Default)]
struct Faulty {
    is_asked: Arc<Notify>,
    go_on: Arc<Notify>,
}

impl Handler for Faulty {
    async fn answer(&self, request: Request<Incoming>, exchange: &Exchange) -> Answer {
        match request.uri().path() {
            "/wait" => {
                self.is_asked.notify_one();
                self.go_on.notified().await;
            }
            path => {
                exchange.verified();
                tokio::task::yield_now().await;
                assert_ne!(path, "/panic");
            }
        }
        answer(Outcome::Published)
    }
}

fn limits(connections_max: usize) -> Limits {
    Limits {
        connections_max,
        eviction_grace: Duration::from_millis(1),
        header_bytes_max: 8192,
        header_timeout: Duration::from_secs(60),
        keepalive_timeout: Duration::from_secs(60),
        write_timeout: Duration::from_secs(60),
        linger_timeout: Duration::from_millis(10),
        streams_max: 1,
        window_bytes: 65_536,
        lifetime: Some(Duration::from_secs(60)),
    }
}

/// A server of two connections at most, where it listens, and what ends it.
struct Running {
    server: Arc<Server<Faulty>>,
    address: SocketAddr,
    closing: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn start(handler: Faulty) -> Self {
        Self::start_with(handler, None).await
    }

    async fn start_with(handler: Faulty, tls: Option<Arc<Tls>>) -> Self {
        let closing = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = Server::new(handler, limits(2), client::Config::default(), Shutdown::default());
        let serving = tokio::spawn(Arc::clone(&server).serve(listener, tls, closing.clone()));
        Self { server, address, closing, serving }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("a listener")
    }

    async fn end(self) {
        self.closing.cancel();
        self.serving.await.expect("it ends, though a connection is open");
        assert_eq!(self.server.open(), 0);
    }
}

#[tokio::test]
async fn the_accept_loop_comes_round_when_it_is_idle_full_or_needed_no_longer_and_not_when_it_is_stuck() {
    let most = Duration::from_secs(30);
    let running = Running::start(Faulty::default()).await;
    let server = Arc::clone(&running.server);
    for _ in 0..3 {
        tokio::time::timeout(most, server.come_round()).await.expect("idle");
    }
    let (is_asked, go_on) = (Arc::clone(&server.handler.is_asked), Arc::clone(&server.handler.go_on));
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = running.connect().await;
        ask(&mut stream, "/wait").await;
        is_asked.notified().await;
        streams.push(stream);
    }
    let third = running.connect().await;
    for _ in 0..3 {
        tokio::time::timeout(most, server.come_round()).await.expect("full, and one waits for room");
    }
    drop(third);
    go_on.notify_waiters();
    running.closing.cancel();
    let _ = running.serving.await;
    let stuck = tokio::time::timeout(Duration::from_millis(50), server.come_round()).await;
    assert!(stuck.is_err(), "there is no accept loop any more, and it is not known that none is needed");
    server.shutdown.closing.cancel();
    tokio::time::timeout(most, server.come_round()).await.expect("none is needed");
}

async fn ask(stream: &mut TcpStream, path: &str) {
    let request = format!("POST {path} HTTP/1.1\r\nhost: relay\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
}

#[tokio::test]
async fn a_request_whose_handler_panics_is_answered_503_and_changes_nothing_for_others() {
    let running = Running::start(Faulty::default()).await;
    let mut stream = running.connect().await;
    for (path, status) in [("/", "200"), ("/panic", "503"), ("/", "200")] {
        ask(&mut stream, path).await;
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut answer).await.expect("read"), 0, "the connection goes on");
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        if status == "503" {
            let body = "the event could not be stored; try again later\n";
            let mut rest = vec![0; body.len() - answer.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len())];
            stream.read_exact(&mut rest).await.expect("its body");
        }
    }
    running.end().await;
}

#[tokio::test]
async fn a_connection_that_the_stop_finds_new_has_its_first_request_answered() {
    let running = Running::start(Faulty::default()).await;
    running.server.set(Limits { linger_timeout: Duration::from_secs(60), ..limits(2) }, client::Config::default());
    let mut stream = running.connect().await;
    while running.server.open() == 0 {
        tokio::task::yield_now().await;
    }
    running.closing.cancel();
    while running.server.connections().values().any(|connection| connection.closing().is_none()) {
        tokio::task::yield_now().await;
    }
    ask(&mut stream, "/").await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer, and a clean end");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    drop(stream);
    running.end().await;
}

#[tokio::test]
async fn fewer_connections_are_those_that_have_waited_least_from_the_next_one_on() {
    let running = Running::start(Faulty::default()).await;
    let [mut first, mut second] = [running.connect().await, running.connect().await];
    for stream in [&mut first, &mut second] {
        ask(stream, "/").await;
        assert_ne!(stream.read(&mut [0; 4096]).await.expect("an answer"), 0);
    }
    running.server.set(limits(1), client::Config::default());
    let mut third = running.connect().await;
    for stream in [&mut first, &mut second] {
        assert_eq!(stream.read(&mut [0]).await.expect("a clean end"), 0);
    }
    ask(&mut third, "/").await;
    assert_ne!(third.read(&mut [0; 4096]).await.expect("an answer"), 0);
    running.end().await;
}

#[tokio::test]
async fn a_probe_that_is_being_answered_is_not_evicted_though_it_has_waited_longest() {
    let handler = Faulty::default();
    let (is_asked, go_on) = (Arc::clone(&handler.is_asked), Arc::clone(&handler.go_on));
    let running = Running::start(handler).await;
    let mut probe = running.connect().await;
    ask(&mut probe, "/wait").await;
    is_asked.notified().await;
    let mut answer = String::new();
    for n in 0..3 {
        let mut silent = running.connect().await;
        let mut next = running.connect().await;
        assert_eq!(silent.read(&mut [0]).await.expect("a clean end"), 0, "it makes room for the next one, round {n}");
        ask(&mut next, "/wait").await;
        is_asked.notified().await;
        go_on.notify_one(); // the one that has waited for longest
        probe.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("connection: close"), "{answer}");
        (probe, answer) = (next, String::new());
    }
    go_on.notify_one();
    running.end().await;
}

/// A certificate for `localhost`, and the roots of a client that trusts it.
fn certificate() -> (tls::Config, rustls::RootCertStore) {
    let (chain, key) = tls::certificate::tests::issue(&["localhost"]);
    let certificate = tls::Certificate::read("test", chain.as_bytes(), key.as_bytes()).expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.key.cert[0].clone()).expect("a root");
    let limits = tls::Limits { handshake_timeout: Duration::from_secs(60), handshakes_max: 10 };
    (tls::Config { certificates: vec![Arc::new(certificate)], client_roots: None, limits }, roots)
}

#[tokio::test]
async fn a_certificate_is_replaced_for_new_handshakes_while_open_connections_go_on() {
    let [(first, old), (second, new)] = [certificate(), certificate()];
    let tls = Arc::new(Tls::new(&first, None).expect("TLS"));
    let running = Running::start_with(Faulty::default(), Some(Arc::clone(&tls))).await;
    let connect = async |roots: &rustls::RootCertStore| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let name = "localhost".try_into().expect("a name");
        tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, running.connect().await).await
    };
    let is_answered = async |stream: &mut tokio_rustls::client::TlsStream<TcpStream>| {
        stream.write_all(b"POST / HTTP/1.1\r\nhost: relay\r\ncontent-length: 0\r\n\r\n").await.expect("written");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut answer).await.expect("read"), 0, "the connection goes on");
        }
        answer.starts_with(b"HTTP/1.1 200 ")
    };
    let mut open = connect(&old).await.expect("a handshake");
    assert!(is_answered(&mut open).await);
    tls.replace(&second).expect("replaced");
    assert!(is_answered(&mut open).await, "with the certificate of before");
    assert!(connect(&old).await.is_err());
    assert!(is_answered(&mut connect(&new).await.expect("a handshake")).await);
    running.end().await;
}
