//! Real proxies before the relay: nginx and HAProxy, with the configurations of docs/proxies.md, and what cloud load balancers send.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::http::{self, Answer, read, request};
use crate::support::mock::Mock;
use crate::support::relay::{Relay, await_that, free_address};
use crate::support::{chat_id, data, incoming_event, with_secret};

const NAME: &str = "hooks.example.com";

/// The first block in this language under a heading of docs/proxies.md.
fn snippet(heading: &str, language: &str) -> String {
    let page = include_str!("../../docs/proxies.md");
    let section = page.split("\n## ").find(|section| section.lines().next() == Some(heading)).expect("the heading");
    let block = section.split(&format!("\n```{language}\n")).nth(1).and_then(|rest| rest.split("\n```").next());
    format!("{}\n", block.expect("a block"))
}

/// Fills in what differs here; each of it must be there.
fn filled(snippet: &str, replaced: &[(&str, &str)]) -> String {
    replaced.iter().fold(snippet.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "no `{from}` in:\n{text}");
        text.replace(from, to)
    })
}

/// A relay with the settings under a heading of docs/proxies.md, but for its address; `replaced` stands instead of some values.
fn relay(mock: &Mock, heading: &str, replaced: &[(&str, &str)]) -> Relay {
    let text = filled(&snippet(heading, "toml"), replaced);
    let table: toml::Table = toml::from_str(&text).expect("TOML");
    let server = table["server"].as_table().expect("a section");
    let settings: Vec<(String, String)> = server
        .iter()
        .filter(|(key, _)| *key != "listen")
        .map(|(key, value)| (format!("server.{key}"), value.to_string()))
        .collect();
    let mut settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    settings.push(("server.body_timeout", "\"9s\"")); // on a machine that is busy with other tests
    mock.relay(&settings)
}

/// A proxy process that listens with TLS and without. It ends with the thread that has started it.
struct Proxy {
    child: Child,
    plain: SocketAddr,
    tls: SocketAddr,
    directory: tempfile::TempDir,
}

impl Proxy {
    fn start(directory: tempfile::TempDir, [plain, tls]: [SocketAddr; 2], command: &[&str]) -> Self {
        let log = std::fs::File::create(directory.path().join("log")).expect("a file");
        let mut child = Command::new("setpriv");
        child.args(["--pdeathsig", "TERM", &program(command[0])]).args(&command[1..]);
        let child = child.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log).spawn();
        let mut proxy = Self { child: child.expect("setpriv"), plain, tls, directory };
        await_that("the proxy listens", || {
            let ended = proxy.child.try_wait().expect("a child");
            assert!(ended.is_none(), "the proxy has ended: {}", proxy.log());
            TcpStream::connect(plain).is_ok()
        });
        proxy
    }

    fn nginx(relay: SocketAddr) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let addresses @ [plain, tls] = [free_address(), free_address()];
        let (certificate, key) = certificate(directory.path());
        let listen = format!("listen {tls} ssl; listen {plain};");
        let server = filled(
            &snippet("nginx", "nginx"),
            &[
                ("127.0.0.1:8080", &relay.to_string()),
                ("listen 443 ssl;", &listen),
                ("/etc/ssl/hooks.example.com.crt", &certificate),
                ("/etc/ssl/hooks.example.com.key", &key),
            ],
        );
        let at = directory.path().display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {at}/{what};\n"))
            .concat();
        // One process is enough, and the events of one worker come in an order.
        let main = "daemon off;\nmaster_process off;\nevents { worker_connections 512; }\n";
        let file =
            format!("pid {at}/pid;\nerror_log stderr warn;\n{main}http {{\naccess_log off;\n{temporary}{server}}}\n");
        let path = write(directory.path(), "nginx.conf", &file);
        Self::start(directory, addresses, &["nginx", "-e", "stderr", "-c", &path])
    }

    /// `replaced` stands instead of parts of what is under the heading.
    fn haproxy(relay: SocketAddr, heading: &str, replaced: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let addresses @ [plain, tls] = [free_address(), free_address()];
        let (certificate, key) = certificate(directory.path());
        let both: String = [certificate, key].map(|path| std::fs::read_to_string(path).expect("a file")).concat();
        let pem = write(directory.path(), "hooks.pem", &both);
        let text = snippet(heading, "haproxy");
        let bind = format!("bind {plain}\n    bind {tls}");
        let relay = relay.to_string();
        let mut all = vec![("bind :443", bind.as_str()), ("127.0.0.1:8080", &relay)];
        all.extend(text.contains(" ssl ").then_some(("/etc/haproxy/hooks.example.com.pem", pem.as_str())));
        let path = write(directory.path(), "haproxy.cfg", &filled(&filled(&text, &all), replaced));
        Self::start(directory, addresses, &["haproxy", "-db", "-f", &path])
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// A webhook over HTTPS, as curl sends it: the status, and the version of HTTP.
    fn post_over_tls(&self, body: &str) -> String {
        let port = self.tls.port();
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "30", "--write-out", "%{http_code} %{http_version}"])
            .args(["--cacert", self.directory.path().join("crt").to_str().expect("text")])
            .args(["--resolve", &format!("{NAME}:{port}:127.0.0.1"), "--header", "content-type: application/json"])
            .args(["--data-binary", body, &format!("https://{NAME}:{port}/webhooks")]);
        let said = curl.output().expect("curl");
        format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM); // it may have ended
        }
        let _ = self.child.wait();
    }
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("text").to_owned()
}

/// The paths of a certificate and of its key.
fn certificate(directory: &Path) -> (String, String) {
    let [certificate, key] = ["crt", "key"].map(|name| directory.join(name).to_str().expect("text").to_owned());
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    openssl.args(["-subj", &format!("/CN={NAME}"), "-addext", &format!("subjectAltName=DNS:{NAME}")]);
    let made = openssl.args(["-keyout", &key, "-out", &certificate]).output().expect("openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (certificate, key)
}

/// Debian has servers where the PATH of users does not lead.
fn program(name: &str) -> String {
    let path = format!("/usr/sbin/{name}");
    if Path::new(&path).exists() { path } else { name.to_owned() }
}

/// Whether these programs are there; a visible "skipped" where they are not, and in CI a failure.
fn has(programs: &[&str]) -> bool {
    let is_missing = |program: &&&str| {
        let flag = if **program == "openssl" { "version" } else { "-v" };
        Command::new(self::program(program)).arg(flag).stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    };
    let missing: Vec<&&str> = programs.iter().filter(|program| is_missing(program)).collect();
    let said = format!("{missing:?} are missing; `scripts/ensure.sh nginx haproxy curl openssl` gets them");
    assert!(missing.is_empty() || std::env::var_os("CI").is_none(), "{said}");
    if !missing.is_empty() {
        eprintln!("skipped: {said}");
    }
    missing.is_empty()
}

/// A connection from another address of this machine.
fn connect_from(from: &str, to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind((from.parse::<IpAddr>().expect("an address"), 0).into()).expect("an address of this machine");
        socket.connect(to).await.expect("a listener").into_std().expect("a socket")
    });
    stream.set_nonblocking(false).expect("a socket");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    stream
}

fn ask(stream: &mut TcpStream, bytes: impl AsRef<[u8]>) -> Option<Answer> {
    let _ = stream.write_all(bytes.as_ref()); // where it has ended, there is no answer
    read(stream)
}

/// Webhooks in each way in which a sender may write them, strangers beside them, and the address that the relay sees. hyper does not answer
/// `Expect` over HTTP/2.
fn exercise(relay: &mut Relay, proxy: &Proxy, answers_expect: bool) {
    let event = || incoming_event(&chat_id(), 1);
    let mut stream = http::connect(proxy.plain);
    assert_eq!(ask(&mut stream, request("/webhooks", "", event())).expect("an answer").status, 200);
    let body = event();
    let start = "POST /webhooks HTTP/1.1\r\nhost: relay\r\ncontent-type: application/json\r\n";
    let chunks = format!("{start}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    for _ in 0..3 {
        assert_eq!(ask(&mut stream, &chunks).expect("an answer").status, 200, "in chunks");
    }
    let expecting = format!("{start}expect: 100-continue\r\ncontent-length: {}\r\n\r\n", body.len());
    if answers_expect {
        assert_eq!(ask(&mut stream, expecting).expect("an answer").status, 100);
        assert_eq!(ask(&mut stream, event()).expect("an answer").status, 200);
    }
    let large = format!("{}{}", event(), " ".repeat(1_500_000));
    assert_eq!(ask(&mut stream, request("/webhooks", "", large)).expect("an answer").status, 200, "a large body");

    let spoofed = request("/of-a-stranger", "x-forwarded-for: 203.0.113.9\r\nforwarded: for=203.0.113.9\r\n", "");
    assert_eq!(ask(&mut connect_from("127.0.0.2", proxy.plain), spoofed).expect("an answer").status, 404);
    let line: serde_json::Value = serde_json::from_str(&relay.await_log("/of-a-stranger")).expect("a JSON line");
    assert_eq!(line["client"], "127.0.0.2", "{line}");

    no_webhook_is_lost_to_what_strangers_do(proxy);
}

/// A stranger's answer closes the connection to the relay, which the proxy may be about to use for a webhook.
fn no_webhook_is_lost_to_what_strangers_do(proxy: &Proxy) {
    let lost = AtomicUsize::new(0);
    let said = std::sync::Mutex::new(Vec::new());
    // Requests one after the other, on one connection as long as it is kept.
    let send = |requests: u64, request: &dyn Fn(u64) -> (Vec<u8>, bool)| {
        let mut stream = http::connect(proxy.plain);
        for n in 0..requests {
            let (bytes, is_webhook) = request(n);
            let answer = ask(&mut stream, bytes);
            if is_webhook && answer.as_ref().is_none_or(|answer| answer.status != 200) {
                lost.fetch_add(1, Ordering::Relaxed);
                said.lock().expect("no panic").push(answer.clone());
            }
            if answer.is_none_or(|answer| answer.header("connection") == Some("close")) {
                stream = http::connect(proxy.plain);
            }
        }
    };
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| send(60, &|n| (request("/webhooks", "", incoming_event(&chat_id(), n)), true)));
        }
        for _ in 0..2 {
            threads.spawn(|| {
                send(120, &|n| (request(["/nowhere", "/webhooks"][n as usize % 2], "", wrong_key()), false));
            });
        }
    });
    let said = said.into_inner().expect("no panic");
    assert_eq!(lost.into_inner(), 0, "{said:?}\n{}", proxy.log());
}

fn wrong_key() -> String {
    with_secret(&data("C", 1), "no-key-of-ours")
}

#[test]
fn behind_nginx_no_webhook_is_lost_and_clients_have_their_own_addresses() {
    if !has(&["nginx", "curl", "openssl"]) {
        return;
    }
    let mock = Mock::start();
    let mut relay = relay(&mock, "nginx", &[]);
    let proxy = Proxy::nginx(relay.webhooks);
    exercise(&mut relay, &proxy, true);
    assert_eq!(proxy.post_over_tls(&incoming_event(&chat_id(), 1)), "200 1.1");
}

#[test]
fn behind_haproxy_no_webhook_is_lost_over_http_1_and_2() {
    if !has(&["haproxy", "curl", "openssl"]) {
        return;
    }
    let mock = Mock::start();
    for protocol in ["", " proto h2"] {
        let mut relay = relay(&mock, "HAProxy", &[]);
        let address = relay.webhooks.to_string();
        let proxy = Proxy::haproxy(relay.webhooks, "HAProxy", &[(&address, &format!("{address}{protocol}"))]);
        exercise(&mut relay, &proxy, protocol.is_empty());
        assert_eq!(proxy.post_over_tls(&incoming_event(&chat_id(), 1)), "200 2");
    }
}

#[test]
fn behind_the_proxy_protocol_of_haproxy_no_webhook_is_lost_and_health_checks_are_no_fault() {
    if !has(&["haproxy", "openssl"]) {
        return;
    }
    let mock = Mock::start();
    let heading = "HAProxy with the PROXY protocol";
    for version in ["send-proxy-v2", "send-proxy"] {
        let mut relay = relay(&mock, heading, &[]);
        let proxy =
            Proxy::haproxy(relay.webhooks, heading, &[("check send-proxy-v2", &format!("check inter 50ms {version}"))]);
        exercise(&mut relay, &proxy, true);
        let checked = || relay.metric(r#"livechat_relay_connections_ended_total{reason="client"}"#);
        let before = checked();
        await_that("health checks have come", || checked() > before + 2.0);
        assert_eq!(
            relay.metric(r#"livechat_relay_connections_ended_total{reason="proxy_protocol"}"#),
            0.0,
            "{version}"
        );
    }
}

/// A relay that ends each connection when it gets a second request there, as one does whose time for idle connections is over at that
/// moment. How many it has ended so.
fn closing_relay() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (address, closed) = (listener.local_addr().expect("an address"), Arc::new(AtomicUsize::new(0)));
    let closing = Arc::clone(&closed);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let closing = Arc::clone(&closing);
            std::thread::spawn(move || {
                let is_whole = |bytes: &[u8]| bytes.ends_with(b"}");
                for is_second in [false, true] {
                    let mut bytes = Vec::new();
                    while !is_whole(&bytes) {
                        let mut more = [0; 4096];
                        match stream.read(&mut more) {
                            Ok(0) | Err(_) => return,
                            Ok(read) => bytes.extend_from_slice(&more[..read]),
                        }
                    }
                    if is_second {
                        closing.fetch_add(1, Ordering::Relaxed);
                    } else {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"); // else the test fails
                    }
                }
            });
        }
    });
    (address, closed)
}

#[test]
fn a_connection_that_the_relay_closes_just_when_it_is_used_again_costs_no_webhook() {
    if !has(&["nginx", "haproxy", "openssl"]) {
        return;
    }
    for start in [Proxy::nginx, |relay| Proxy::haproxy(relay, "HAProxy", &[])] {
        let (relay, closed) = closing_relay();
        let proxy = start(relay);
        let mut stream = http::connect(proxy.plain);
        for n in 0..10 {
            let answer = ask(&mut stream, request("/webhooks", "", incoming_event("C", n))).expect("an answer");
            assert_eq!(answer.status, 200, "{n}: {}", proxy.log());
        }
        assert!(closed.load(Ordering::Relaxed) > 0, "connections were used again");
    }
}

#[test]
fn cloud_load_balancers_are_understood() {
    let mock = Mock::start();
    let forwarded = |list: &str| request("/of-a-client", &format!("x-forwarded-for: {list}\r\n"), "");
    // Version 2, IPv4, with the type that AWS has for the id of an endpoint.
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x24\xcb\0\x71\x09\x0a\0\0\x01\x12\x34\x01\xbb".to_vec();
    header.extend_from_slice(b"\xea\0\x15\x01vpce-08d2bf15fac5001c");
    let from = "127.0.0.0/8";
    for (heading, proxies, sent) in [
        ("AWS Network Load Balancer", "10.0.0.0/16", [header, request("/of-a-client", "", "")].concat()),
        ("AWS Application Load Balancer", "10.0.0.0/16", forwarded("198.51.100.1, 203.0.113.9")),
        ("Google Cloud Application Load Balancer", "35.191.0.0/16", forwarded("198.51.100.1,203.0.113.9,192.0.2.10")),
    ] {
        let mut relay = relay(&mock, heading, &[(proxies, from)]);
        assert_eq!(http::raw(relay.webhooks, sent).expect("an answer").status, 404, "{heading}");
        let line = relay.await_log("/of-a-client");
        assert!(line.contains(r#""client":"203.0.113.9""#), "{heading}: {line}");
    }
}
