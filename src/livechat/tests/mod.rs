//! The client against a server that misbehaves on purpose. It writes its answers byte for byte, so that they may be no HTTP at all.

mod accounts;
mod api;
mod archives;
mod bad_answers;
mod register;
mod tokens;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::*;

const SECRETS: [&str; 4] = ["fra:pat-of-the-test", "key-of-the-test", "secret-of-the-client", "access-0"];

/// A request as the server has read it.
#[derive(Clone, Debug)]
struct Seen {
    /// `POST /v3.6/configuration/action/list_webhooks`.
    line: String,
    head: String,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    fn is(&self, action: &str) -> bool {
        self.line.ends_with(&format!("/{action}"))
    }
}

/// Bytes, after which the connection is closed; or held open without an answer.
enum Reply {
    Bytes(Vec<u8>),
    Silence,
}

fn reply(status: u16, headers: &str, body: &str) -> Reply {
    Reply::Bytes(
        format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}", body.len())
            .into_bytes(),
    )
}

fn ok(body: Value) -> Reply {
    reply(200, "content-type: application/json\r\n", &body.to_string())
}

fn error(status: u16, error_type: &str) -> Reply {
    reply(status, "", &json!({ "error": { "type": error_type, "message": "of the test" } }).to_string())
}

struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Answers each request by what is to be answered to it, which is the nth.
    async fn start(answer: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(None, answer).await
    }

    async fn start_with(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (seen, answer) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::new(answer));
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer, tls) = (Arc::clone(&log), Arc::clone(&answer), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &log, &*answer).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &log, &*answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, seen, task }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    fn count(&self, action: &str) -> usize {
        self.seen().iter().filter(|seen| seen.is(action)).count()
    }

    /// Which time limits nothing but a server that never answers.
    fn config(&self) -> Config {
        Config {
            timeout: Duration::from_secs(60),
            attempts_max: 3,
            retry_min: Duration::from_millis(1),
            retry_max: Duration::from_millis(2),
            retry_after_max: Duration::from_secs(60),
            propagation: Duration::from_millis(15),
            login_timeout: Duration::from_secs(1),
            ..Config::of(&format!("http://{}", self.address))
        }
    }

    fn api(&self) -> Api {
        Api::new(&self.config(), &app())
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    log: &Mutex<Vec<Seen>>,
    answer: &(impl Fn(&Seen, usize) -> Reply + ?Sized),
) {
    let mut bytes = Vec::new();
    let seen = loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let line = head.lines().next().unwrap_or_default().trim_end_matches(" HTTP/1.1").to_owned();
            let seen = Seen { line, head: head.to_owned(), body: body.to_owned() };
            let length = seen.header("content-length").map_or(0, |length| length.parse().expect("a length"));
            if body.len() >= length {
                break seen;
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
    };
    let reply = {
        let mut log = log.lock().expect("no panic");
        log.push(seen.clone());
        answer(&seen, log.len())
    };
    match reply {
        Reply::Bytes(bytes) => {
            let _ = stream.write_all(&bytes).await; // the client may have enough
            let _ = stream.shutdown().await;
        }
        Reply::Silence => std::future::pending().await,
    }
}

fn app() -> App {
    App {
        name: "shop".to_owned(),
        client_id: "client-1".to_owned(),
        client_secret: Some(SECRETS[2].into()),
        public_url: "https://relay.example".to_owned(),
        version: Version::V3_6,
        credential: Some(Credential::Personal { account_id: "account-1".to_owned(), token: SECRETS[0].into() }),
        wanted: None,
        secret_key: None,
        key_directory: None,
        install: None,
        page: false,
        organizations: BTreeSet::new(),
    }
}

fn wanted() -> Wanted {
    Wanted {
        action: "incoming_event".to_owned(),
        url: "https://relay.example/webhooks/shop".to_owned(),
        level: Level::License,
        filters: Filters { author_type: Some("customer".to_owned()), ..Filters::default() },
        additional_data: BTreeSet::from(["chat_properties".to_owned()]),
        description: "livechat-relay".to_owned(),
    }
}

/// An entry of `list_webhooks` that is as [`wanted`].
fn listed(id: &str) -> Value {
    json!({
        "id": id, "action": "incoming_event", "url": "https://relay.example/webhooks/shop", "type": "license",
        "description": "livechat-relay", "owner_client_id": "client-1", "secret_key": SECRETS[1],
        "filters": { "author_type": "customer" }, "additional_data": ["chat_properties"],
    })
}

fn key() -> SecretString {
    SECRETS[1].into()
}

/// A text for people: what happened and what to do, without a secret.
fn assert_told(failure: &Failure) {
    let text = format!("{failure} {failure:?}");
    assert!(!failure.what.is_empty() && !failure.remedy.is_empty(), "{text}");
    assert!(!SECRETS.iter().any(|secret| text.contains(secret)), "{text}");
    assert!(!failure.what.contains('\n') && failure.what.chars().count() < 700, "{text}");
}
