//! A simulated LiveChat as a process (`livechat-relay simulate`), with its control endpoints, which are the same for curl and for tests.
//!
//! ```text
//! let livechat = Simulator::start();                               // one organization, account, client and personal access token
//! let apps = simulator::apps(r#"webhooks = [{ actions = "all" }]"#); // [[apps]] with [apps.livechat], as one line of TOML
//! let api = format!("{:?}", livechat.url);
//! let settings = [("apps", apps.as_str()), ("livechat.api", &api), ("livechat.accounts", &api)];
//! let relay = Relay::start(kafka, &settings);
//! livechat.route_to(relay.webhooks);                               // webhooks for https://relay.example go there
//! livechat.switch(json!({"delivery_lag": 30, "null_list": true}));
//! livechat.fault(json!({"method": "register_webhook", "when": "after", "answer": "close"}));
//! livechat.post("chats", json!({"text": "Hello"}));
//! assert_eq!(livechat.requests("register_webhook").len(), 1);
//! await_that("it is delivered", || livechat.report()["answered"] == 1);
//! ```
//!
//! The endpoints and the members of faults are in `src/simulate/control.txt`, which GET `/_simulate/` answers; switches are in
//! `src/simulate/switches.toml`, which it answers, too.
//!
//! A browser: GET `/?response_type=code&client_id=…&redirect_uri=…&state=…` answers the consent page; POST of the same members as a form, with
//! `decision=accept`, to `/` answers 302 to the redirect URI ([`Simulator::authorize`]). With the switch `skip_consent` GET does.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::http::{self, Answer};
use super::relay::{Guard, SECRET};

pub const ORGANIZATION: &str = "0a1b2c3d-0000-4000-8000-000000000001";
pub const ACCOUNT: &str = "0a1b2c3d-0000-4000-8000-0000000000a1";
pub const CLIENT: &str = "0a1b2c3d0000400080000000000000c1";
pub const CLIENT_SECRET: &str = "simulated-client-secret";
pub const TOKEN: &str = "dal:simulated-personal-access-token";
/// `base64(ACCOUNT:TOKEN)`.
pub const BASIC: &str =
    "MGExYjJjM2QtMDAwMC00MDAwLTgwMDAtMDAwMDAwMDAwMGExOmRhbDpzaW11bGF0ZWQtcGVyc29uYWwtYWNjZXNzLXRva2Vu";
pub const PUBLIC_URL: &str = "https://relay.example";

pub struct Simulator {
    guard: Guard,
    child: Child,
    pub address: SocketAddr,
    /// For `livechat.api` and `livechat.accounts`.
    pub url: String,
    _stdout: BufReader<ChildStdout>,
    _directory: tempfile::TempDir,
}

impl Simulator {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As `start`, with more arguments, such as `["--setup", "file.json"]`.
    pub fn start_with(arguments: &[&str]) -> Self {
        let public_url = if arguments.contains(&"--setup") { &[][..] } else { &["--public-url", PUBLIC_URL] };
        let mut child = Command::new(env!("CARGO_BIN_EXE_livechat-relay"))
            .args(["simulate", "--listen", "127.0.0.1:0", "--json"])
            .args(public_url)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let guard = Guard::new(&child, directory.path());
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        let started: Value = serde_json::from_str(&line).expect("the line with which the simulator starts");
        let text = |name: &str| started[name].as_str().expect("a text").to_owned();
        let (address, url) = (text("address").parse().expect("an address"), text("url"));
        Self { guard, child, address, url, _stdout: stdout, _directory: directory }
    }

    /// GET of a control endpoint: `state`, `requests?method=token`, …
    pub fn get(&self, path: &str) -> Value {
        right(path, http::get(self.address, &format!("/_simulate/{path}")))
    }

    /// POST to a control endpoint.
    pub fn post(&self, path: &str, body: Value) -> Value {
        right(path, http::post_to(self.address, &format!("/_simulate/{path}"), body.to_string()))
    }

    /// DELETE of a control endpoint.
    pub fn delete(&self, path: &str) -> Value {
        let request = format!("DELETE /_simulate/{path} HTTP/1.1\r\nhost: simulator\r\nconnection: close\r\n\r\n");
        right(path, http::raw(self.address, request).expect("an answer"))
    }

    /// Sets the switches that are named.
    pub fn switch(&self, switches: Value) {
        self.post("switches", switches);
    }

    pub fn fault(&self, fault: Value) {
        self.post("faults", fault);
    }

    /// Webhooks and installations for [`PUBLIC_URL`] go to this listener.
    pub fn route_to(&self, relay: SocketAddr) {
        self.post("routes", json!({ PUBLIC_URL: format!("http://{relay}") }));
    }

    /// The calls of a method so far, with their secrets.
    pub fn requests(&self, method: &str) -> Vec<Value> {
        self.get(&format!("requests?method={method}")).as_array().expect("a list").clone()
    }

    /// What is registered, with secret keys.
    pub fn registrations(&self) -> Vec<Value> {
        self.get("state")["registrations"].as_array().expect("a list").clone()
    }

    /// What was delivered so far.
    pub fn report(&self) -> Value {
        self.get("deliveries")
    }

    /// Calls a method of the Configuration API 3.6 with the personal access token.
    pub fn call(&self, method: &str, body: Value) -> Answer {
        self.call_as(&format!("Basic {BASIC}"), &format!("/v3.6/configuration/action/{method}"), body)
    }

    /// As `call`, with a header `Authorization` and a path.
    pub fn call_as(&self, authorization: &str, path: &str, body: Value) -> Answer {
        let headers = format!("authorization: {authorization}\r\nconnection: close\r\n");
        http::raw(self.address, http::request(path, &headers, body.to_string())).expect("an answer")
    }

    /// What a browser does whose user accepts: opens this address of the consent page, and presses the button. Where it is sent.
    pub fn authorize(&self, address: &str) -> String {
        let (_, query) = address.split_once('?').expect("a query");
        let page = http::get(self.address, &format!("/?{query}"));
        assert_eq!(page.status, 200, "{page:?}");
        let form = format!("{query}&decision=accept");
        let request = format!(
            "POST / HTTP/1.1\r\nhost: simulator\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{form}",
            form.len()
        );
        let mut stream = http::connect(self.address);
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let location = answer.lines().find_map(|line| line.strip_prefix("location: "));
        location.unwrap_or_else(|| panic!("no redirect: {answer}")).to_owned()
    }

    /// Ends it as Ctrl-C does.
    pub fn interrupt(&mut self) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("a pid");
        kill_process(pid, Signal::INT).expect("a process of ours");
        self.child.wait().expect("a child").code()
    }
}

/// `apps` for a relay's configuration: the app `default`, with `[apps.livechat]` and the personal access token, and more of that
/// table, such as `webhooks = [{ actions = "all" }]`.
pub fn apps(livechat: &str) -> String {
    let more = if livechat.is_empty() { String::new() } else { format!(", {livechat}") };
    format!(
        "[{{ name = \"default\", secret_keys = [{{ name = \"test\", value = \"{SECRET}\" }}], livechat = {{ \
         client_id = \"{CLIENT}\", client_secret = {{ value = \"{CLIENT_SECRET}\" }}, public_url = \"{PUBLIC_URL}\", \
         account_id = \"{ACCOUNT}\", personal_access_token = {{ value = \"{TOKEN}\" }}{more} }} }}]"
    )
}

fn right(path: &str, answer: Answer) -> Value {
    assert_eq!(answer.status, 200, "/_simulate/{path}: {}", answer.body);
    serde_json::from_str(&answer.body).expect("JSON")
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.guard.end();
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}
