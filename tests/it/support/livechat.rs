//! As much of LiveChat as the pages ask for, with answers that the code or the token chooses.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// A small LiveChat. It ends with the test process.
pub struct LiveChat {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Each as `METHOD path authorization body`.
    requests: Mutex<Vec<String>>,
    /// Whether the license's webhooks are on.
    is_on: AtomicBool,
}

pub const CLIENT: &str = "client-of-the-tests";
pub const SCOPES: &str = "webhooks.configuration:rw,webhooks.state:rw";

impl LiveChat {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let livechat = Self { address: listener.local_addr().expect("an address"), state: Arc::default() };
        let state = Arc::clone(&livechat.state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&state);
                std::thread::spawn(move || state.serve(stream));
            }
        });
        livechat
    }

    pub fn requests(&self) -> Vec<String> {
        self.state.requests.lock().expect("no panic").clone()
    }

    /// How many requests begin so.
    pub fn count(&self, beginning: &str) -> usize {
        self.requests().iter().filter(|request| request.starts_with(beginning)).count()
    }

    pub fn set_webhooks(&self, is_on: bool) {
        self.state.is_on.store(is_on, Ordering::Relaxed);
    }

    pub fn are_webhooks_on(&self) -> bool {
        self.state.is_on.load(Ordering::Relaxed)
    }
}

impl State {
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let header = |name: &str| {
            let line = lines.iter().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let mut body = vec![0; header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let (request, _) = lines.first()?.split_once(" HTTP/")?;
        let authorization = header("authorization").unwrap_or_default();
        let (status, answer) = self.answer(request, &authorization, &body);
        self.requests.lock().expect("no panic").push(format!("{request} {authorization} {body}"));
        let answer = answer.to_string();
        let head = format!("HTTP/1.1 {status} Ok\r\ncontent-type: application/json\r\nconnection: close\r\n");
        write!(&stream, "{head}content-length: {}\r\n\r\n{answer}", answer.len()).ok()
    }

    fn answer(&self, request: &str, authorization: &str, body: &str) -> (u16, Value) {
        let error = |status, error: &str| (status, json!({ "error": error, "error_description": "<b>as it is</b>" }));
        let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
        match request {
            "POST /v2/token" => {
                let code = body.split('&').find_map(|part| part.strip_prefix("code=")).unwrap_or_default();
                match code.split('-').next().unwrap_or_default() {
                    "good" => (200, pair(code, "org-1", SCOPES)),
                    "elsewhere" => (200, pair(code, "org-2", SCOPES)),
                    "few" => (200, pair(code, "org-1", "webhooks.state:ro")),
                    "blind" => (200, pair(code, "org-1", "webhooks.configuration:rw")),
                    "broken" => error(500, "server_error"),
                    "strange" => error(404, "client_id_not_found"),
                    _ => error(401, "unauthorized_client"),
                }
            }
            "DELETE /v2/token" => (200, json!({})),
            "GET /v2/info" => match token.split('-').nth(1).unwrap_or_default() {
                "good" | "blind" => (200, info(CLIENT, "org-1")),
                "elsewhere" => (200, info(CLIENT, "org-2")),
                "another" => (200, info("another-client", "org-1")),
                "broken" => error(500, "server_error"),
                _ => error(401, "unauthorized"),
            },
            _ if request.ends_with("/get_license_webhooks_state") && token.contains("blind") => {
                (403, json!({ "error": { "type": "authorization", "message": "Authorization error" } }))
            }
            _ if request.ends_with("/get_license_webhooks_state") => {
                (200, json!({ "license_webhooks_enabled": self.is_on.load(Ordering::Relaxed) }))
            }
            _ if request.ends_with("/enable_license_webhooks") => {
                self.is_on.store(true, Ordering::Relaxed);
                (200, json!({}))
            }
            _ => error(404, "resource_not_found"),
        }
    }
}

/// The token has the code in it.
fn pair(code: &str, organization: &str, scopes: &str) -> Value {
    json!({
        "access_token": format!("token-{code}-of-the-tests"), "refresh_token": format!("refresh-{code}"),
        "account_id": "account-1", "organization_id": organization, "scope": scopes, "expires_in": 28800,
        "token_type": "Bearer",
    })
}

fn info(client: &str, organization: &str) -> Value {
    json!({
        "client_id": client, "organization_id": organization, "account_id": "account-1", "scope": SCOPES,
        "expires_in": 28000, "access_token": "…", "token_type": "Bearer",
    })
}
