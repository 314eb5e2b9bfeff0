//! `auth` against the simulated LiveChat, with a scripted browser: from the login to the logout, and what gets in between.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::http;
use crate::support::relay::{SECRET, await_that, free_address};
use crate::support::simulator::{ACCOUNT, CLIENT, CLIENT_SECRET, ORGANIZATION, Simulator, TOKEN};

/// A LiveChat with one app, the relay's configuration for it, and a free port for the browser.
struct Scene {
    livechat: Simulator,
    directory: tempfile::TempDir,
    port: u16,
}

impl Scene {
    /// Of an app with a secret, or of a public one, whose refresh tokens are good for once.
    fn new(client_secret: Option<&str>, scopes: &[&str], switches: Value) -> Self {
        let (directory, port) = (tempfile::tempdir().expect("a directory"), free_address().port());
        let setup = json!({
            "organizations": [{ "id": ORGANIZATION, "license_id": 1, "region": "dal" }],
            "accounts": [{ "id": ACCOUNT, "organization_id": ORGANIZATION, "email": "a@relay.example" }],
            "clients": [{ "id": CLIENT, "secret": client_secret, "organization_id": ORGANIZATION, "scopes": scopes,
                          "redirect_uris": [format!("http://localhost:{port}/")], "installed": [ORGANIZATION] }],
            "personal_access_tokens": [{ "token": TOKEN, "account_id": ACCOUNT, "scopes": scopes }],
            "switches": switches,
        });
        let file = directory.path().join("setup.json");
        std::fs::write(&file, setup.to_string()).expect("written");
        let livechat = Simulator::start_with(&["--setup", file.to_str().expect("text")]);
        let scene = Self { livechat, directory, port };
        let secret =
            client_secret.map_or_else(String::new, |secret| format!("client_secret = {{ value = \"{secret}\" }}"));
        scene.configure(&format!("tokens = \"{}\"\n{secret}", scene.tokens().display()));
        scene
    }

    fn configure(&self, credential: &str) {
        let url = &self.livechat.url;
        let text = format!(
            "[livechat]\napi = \"{url}\"\naccounts = \"{url}\"\nlogin_port = {}\nretry_min = \"10ms\"\nretry_max = \"20ms\"\n\
             [[apps]]\nname = \"shop\"\nsecret_keys = [{{ name = \"k\", value = \"{SECRET}\" }}]\n\
             [apps.livechat]\nclient_id = \"{CLIENT}\"\npublic_url = \"https://relay.example\"\n{credential}\n",
            self.port
        );
        std::fs::write(self.configuration(), text).expect("written");
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("relay.toml")
    }

    fn tokens(&self) -> PathBuf {
        self.directory.path().join("tokens.json")
    }

    fn auth(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        command.arg("auth").args(arguments).arg("--config").arg(self.configuration());
        // No proxy may see what goes to loopback.
        command
            .env("HTTP_PROXY", "http://127.0.0.1:9")
            .env("http_proxy", "http://127.0.0.1:9")
            .env("ALL_PROXY", "http://127.0.0.1:9");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.auth(arguments).output().expect("the relay's binary")
    }

    fn begin(&self, arguments: &[&str]) -> Login {
        Login::of(self.auth(arguments))
    }

    /// The file's tokens.
    fn secrets(&self) -> [String; 2] {
        let pair: Value = serde_json::from_slice(&std::fs::read(self.tokens()).expect("tokens")).expect("JSON");
        ["access_token", "refresh_token"].map(|name| pair[name].as_str().expect("a token").to_owned())
    }

    /// What it says on standard error.
    fn log_in(&self) -> String {
        let login = self.begin(&["login"]);
        assert_eq!(self.visit(&self.livechat.authorize(&login.address)).status, 200);
        let output = login.end();
        assert!(output.status.success(), "{output:?}");
        text(&output.stderr)
    }

    /// The browser goes where it is sent.
    fn visit(&self, location: &str) -> http::Answer {
        let path = location.strip_prefix(&format!("http://localhost:{}", self.port)).expect(location);
        http::get(([127, 0, 0, 1], self.port).into(), path)
    }
}

/// An `auth login` that waits.
struct Login {
    child: Child,
    /// For the browser.
    address: String,
    told: String,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Login {
    fn of(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).spawn().expect("the relay's binary");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut login = Self { child, address: String::new(), told: String::new(), stderr };
        login.await_text("platform.text.com/console/\n");
        let address = login.told.lines().find(|line| line.contains("response_type=code")).expect("an address");
        login.address = address.trim().to_owned();
        login
    }

    /// Reads until this was told.
    fn await_text(&mut self, text: &str) {
        let from = self.told.len();
        while !self.told[from..].contains(text) {
            assert_ne!(self.stderr.read_line(&mut self.told).expect("a line"), 0, "{}", self.told);
        }
    }

    fn paste(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().expect("a pipe"), "{line}").expect("pasted");
    }

    fn end(mut self) -> Output {
        self.stderr.read_to_string(&mut self.told).expect("text");
        let output = self.child.wait_with_output().expect("an end");
        Output { stderr: self.told.into_bytes(), ..output }
    }
}

/// Without the ends of its lines.
fn unwrapped(bytes: &[u8]) -> String {
    text(bytes).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const ALL: [&str; 3] = ["webhooks.configuration:rw", "webhooks.state:rw", "chats--all:ro"];

#[test]
fn a_login_a_status_and_a_logout() {
    let scene =
        Scene::new(Some(CLIENT_SECRET), &ALL, json!({ "code_encoded_twice": true, "legacy": { "3.6": "2027-01-01" } }));
    // All that the relay and its libraries can log.
    let trace = |arguments: &[&str]| {
        let mut command = scene.auth(arguments);
        command.env("LIVECHAT_RELAY__LOG__FILTER", "trace");
        command
    };
    let login = Login::of(trace(&["login", "--json"]));
    // Someone else's login does not end this one, and nothing of it is shown.
    let forged = scene.visit(&format!("http://localhost:{}/?code=%3Cb%3Eforged&state=%3Cb%3Eforged", scene.port));
    assert!(
        forged.status == 400 && forged.body.contains("not the login") && !forged.body.contains("forged"),
        "{forged:?}"
    );
    assert_eq!(scene.visit(&format!("http://localhost:{}/favicon.ico", scene.port)).status, 404);

    let location = scene.livechat.authorize(&login.address);
    let page = scene.visit(&location);
    assert!(page.status == 200 && page.body.contains("logged in"), "{page:?}");
    assert_eq!(page.header("cache-control"), Some("no-store"));
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'none'")));
    let output = login.end();
    assert!(output.status.success(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&told["app"], &told["account_id"], &told["organization_id"]),
        (&json!("shop"), &json!(ACCOUNT), &json!(ORGANIZATION))
    );
    assert_eq!(std::fs::metadata(scene.tokens()).expect("there").permissions().mode() & 0o777, 0o600);

    let (code, state) = (parameter(&location, "code"), parameter(&location, "state"));
    let logged = text(&output.stderr);
    assert!(logged.contains("LiveChat has answered method=POST path=\"/v2/token\" status=200"), "{logged}");
    assert!(!logged.contains(code), "{logged}");
    // It is in the address for the browser, and nowhere else.
    assert_eq!(logged.matches(state).count(), 1, "{logged}");

    let (plain, as_json) = (scene.run(&["status"]), scene.run(&["status", "--json", "--app", "shop"]));
    let traced = trace(&["status"]).output().expect("the relay's binary");
    assert!(
        text(&traced.stderr).contains("LiveChat has answered method=GET path=\"/v2/info\" status=200"),
        "{traced:?}"
    );
    assert!(plain.status.success() && as_json.status.success(), "{plain:?} {as_json:?}");
    let shown = text(&plain.stdout);
    for expected in [ACCOUNT, ORGANIZATION, "chats--all:ro", "3.6; legacy since 2027-01-01", "nothing is missing"] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    let status: Value = serde_json::from_slice(&as_json.stdout).expect("JSON");
    assert_eq!(
        (&status["missing"], &status["legacy"], &status["credential"]),
        (&json!([]), &json!("2027-01-01"), &json!("oauth"))
    );
    std::fs::set_permissions(scene.tokens(), std::fs::Permissions::from_mode(0o644)).expect("changed");
    let exposed = scene.run(&["status"]);
    assert!(text(&exposed.stdout).contains("others can read"), "{exposed:?}");
    let [access, refresh] = scene.secrets();
    for output in [&output, &plain, &as_json, &traced, &exposed] {
        let all = text(&output.stdout) + &text(&output.stderr);
        assert!(![&*access, &*refresh, CLIENT_SECRET].iter().any(|secret| all.contains(secret)), "{all}");
    }

    let out = trace(&["logout"]).output().expect("the relay's binary");
    assert!(![&*access, &*refresh].iter().any(|secret| text(&out.stderr).contains(secret)), "{out:?}");
    assert!(out.status.success() && text(&out.stdout).contains("revoked"), "{out:?}");
    assert!(!scene.tokens().exists());
    let strange = scene.livechat.call_as(
        &format!("Bearer {access}"),
        "/v3.6/configuration/action/list_webhooks",
        json!({ "owner_client_id": CLIENT }),
    );
    assert!(strange.body.contains("authentication"), "{strange:?}");
    let again = scene.run(&["logout"]);
    let status = scene.run(&["status"]);
    // In the same words; but one has what it wanted, and the other has not.
    let missing = format!("the app shop is not logged in: {} does not exist", scene.tokens().display());
    assert!(again.status.success() && unwrapped(&again.stdout).contains(&missing), "{again:?}");
    assert!(status.status.code() == Some(1) && unwrapped(&status.stderr).contains(&missing), "{status:?}");
    let next = format!("`livechat-relay auth login --app shop -c {}`", scene.configuration().display());
    assert!(text(&status.stderr).contains(&next), "{status:?}");
}

#[test]
fn processes_that_refresh_at_once_lose_no_token_that_is_good_for_once() {
    // Tokens that end within a minute are refreshed at each use.
    let scene = Scene::new(None, &ALL, json!({ "token_lifetime": 30 }));
    scene.log_in();
    let [first, _] = scene.secrets();
    for _ in 0..2 {
        let children: Vec<_> = (0..4).map(|_| scene.auth(&["status"]).spawn().expect("the relay's binary")).collect();
        for child in children {
            let output = child.wait_with_output().expect("an end");
            assert!(output.status.success(), "{output:?}");
        }
    }
    let [last, _] = scene.secrets();
    assert_ne!(first, last);
    let refused = scene.livechat.requests("token").iter().filter(|request| request["status"] != 200).count();
    assert_eq!(refused, 0);
}

#[test]
fn a_token_that_was_revoked_is_told_with_what_to_do() {
    let scene = Scene::new(Some(CLIENT_SECRET), &ALL[..1], json!({}));
    scene.log_in();
    let status = scene.run(&["status"]);
    let shown = text(&status.stdout);
    assert!(status.status.success() && shown.contains("missing       chats--all:ro, for backfill"), "{shown}");
    let [access, _] = scene.secrets();
    let revoke =
        format!("DELETE /v2/token HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {access}\r\nconnection: close\r\n\r\n");
    assert_eq!(http::raw(scene.livechat.address, revoke).expect("an answer").status, 200);
    let status = scene.run(&["status"]);
    assert!(status.status.code() == Some(1) && text(&status.stderr).contains("log in again"), "{status:?}");
}

#[test]
fn a_second_login_ends_the_tokens_of_the_first_or_says_that_it_could_not() {
    let scene = Scene::new(Some(CLIENT_SECRET), &ALL, json!({}));
    let list = |access: &str| {
        let body = json!({ "owner_client_id": CLIENT });
        scene.livechat.call_as(&format!("Bearer {access}"), "/v3.6/configuration/action/list_webhooks", body).status
    };
    assert!(!scene.log_in().contains("has tokens"));
    let [first, _] = scene.secrets();
    let told = scene.log_in();
    assert!(!told.contains("may still be valid"), "{told}");
    let former =
        format!("has tokens of the account {ACCOUNT} of the organization {ORGANIZATION}. This login replaces them");
    assert!(unwrapped(told.as_bytes()).contains(&former) && !told.contains(&first), "{told}");
    let [second, _] = scene.secrets();
    assert_eq!([list(&first), list(&second)], [401, 200]);

    scene.livechat.fault(json!({ "method": "revoke", "times": 0, "error": "server_error", "status": 500 }));
    let told = scene.log_in();
    let [third, _] = scene.secrets();
    let said = unwrapped(told.as_bytes());
    assert!(said.contains("login before this one may still be valid") && !told.contains(&second), "{told}");
    assert_eq!([list(&second), list(&third)], [200, 200]);
}

#[test]
fn a_code_may_be_pasted_where_no_browser_can_come() {
    let scene = Scene::new(Some(CLIENT_SECRET), &ALL, json!({}));
    for (is_whole, is_right) in [(true, true), (false, true), (true, false)] {
        let mut login = scene.begin(&["login", "--paste"]);
        let location = scene.livechat.authorize(&login.address);
        let code = parameter(&location, "code");
        let pasted = match (is_whole, is_right) {
            (true, true) => location.clone(),
            (true, false) => location.replace("state=", "state=x"),
            (false, _) => code.to_owned(),
        };
        login.paste(&pasted);
        drop(login.child.stdin.take());
        let output = login.end();
        assert_eq!(output.status.success(), is_right, "{output:?}");
        if !is_right {
            assert!(text(&output.stderr).contains("another login"), "{output:?}");
        }
    }
}

#[test]
fn what_is_pasted_and_is_no_address_of_the_login_is_asked_for_again_some_times() {
    let scene = Scene::new(Some(CLIENT_SECRET), &ALL, json!({}));
    let mut login = scene.begin(&["login", "--paste"]);
    let location = scene.livechat.authorize(&login.address);
    for junk in ["https://www.example.com/?code=x&state=y", "two words", ""] {
        login.paste(junk);
        login.await_text(&format!("http://localhost:{}/?", scene.port)); // where the line is wrapped depends on the port
    }
    login.paste(&location);
    let output = login.end();
    assert!(output.status.success() && scene.tokens().exists(), "{output:?}");

    let mut login = scene.begin(&["login", "--paste"]);
    for _ in 0..5 {
        login.paste("two words");
    }
    let output = login.end();
    assert!(
        output.status.code() == Some(1) && text(&output.stderr).contains("no code in it; log in again"),
        "{output:?}"
    );
}

#[test]
fn an_error_without_the_state_of_the_login_is_told_at_once_and_ends_nothing() {
    let scene = Scene::new(Some(CLIENT_SECRET), &ALL, json!({}));
    let mut login = scene.begin(&["login"]);
    for _ in 0..2 {
        let page = scene.visit(&format!("http://localhost:{}/?error=access_denied", scene.port));
        assert!(page.status == 400 && page.body.contains("LiveChat has reported an error"), "{page:?}");
    }
    login.await_text("came back without the state");
    assert_eq!(scene.visit(&scene.livechat.authorize(&login.address)).status, 200);
    let output = login.end();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stderr).matches("came back without").count(), 1, "{output:?}");
}

#[test]
fn a_code_that_cannot_be_read_is_told_at_once_and_ends_nothing() {
    let scene = Scene::new(Some(CLIENT_SECRET), &ALL, json!({}));
    let mut login = scene.begin(&["login"]);
    for _ in 0..2 {
        let page = scene.visit(&format!("http://localhost:{}/?code=one&code=two", scene.port));
        assert!(page.status == 400 && !page.body.contains("two"), "{page:?}");
    }
    login.await_text("a code that cannot be read");
    // A text for people is no part of what counts, however it is written.
    let location = scene.livechat.authorize(&login.address) + "&text=100%&text=%ff";
    assert_eq!(scene.visit(&location).status, 200);
    let output = login.end();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stderr).matches("a code that cannot be read").count(), 1, "{output:?}");
}

#[test]
fn a_logout_that_a_proxy_answers_revokes_nothing_and_keeps_the_file() {
    let scene = Scene::new(Some(CLIENT_SECRET), &ALL, json!({}));
    scene.log_in();
    scene.livechat.fault(json!({ "method": "revoke", "times": 0, "answer": "html", "status": 401 }));
    let output = scene.run(&["logout"]);
    let told = unwrapped(&output.stderr);
    assert!(output.status.code() == Some(1) && told.contains("the tokens are not revoked"), "{output:?}");
    assert!(told.contains("what answers is not LiveChat"), "{output:?}");
    assert!(scene.tokens().exists());

    scene.livechat.delete("faults");
    let output = scene.run(&["logout"]);
    assert!(output.status.success() && !scene.tokens().exists(), "{output:?}");
}

#[test]
fn a_refresh_that_ctrl_c_meets_half_way_comes_to_its_file_before_the_process_ends() {
    // A public client: the old refresh token is good for once.
    let scene = Scene::new(None, &ALL, json!({ "token_lifetime": 30 }));
    scene.log_in();
    let [_, old] = scene.secrets();
    scene.livechat.delete("requests");
    scene.livechat.fault(json!({ "method": "token", "when": "after", "delay": 5 }));
    let child = scene.auth(&["status"]).spawn().expect("the relay's binary");
    await_that("the tokens are refreshed", || scene.livechat.requests("token").len() == 1);
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).expect("a process of ours");
    let output = child.wait_with_output().expect("an end");
    assert!(output.status.code().is_some(), "the signal itself has ended it: {output:?}");
    let [_, new] = scene.secrets();
    assert_ne!(old, new);
    let status = scene.run(&["status"]);
    assert!(status.status.success(), "{status:?}");
}

fn parameter<'a>(address: &'a str, name: &str) -> &'a str {
    let (_, rest) = address.split_once(&format!("{name}=")).expect("a parameter");
    rest.split('&').next().expect("a value")
}

#[test]
fn a_refusal_ends_the_login_on_the_page_and_in_the_terminal() {
    let scene = Scene::new(Some(CLIENT_SECRET), &ALL, json!({}));
    let login = scene.begin(&["login"]);
    let state = parameter(&login.address, "state");
    let page = scene.visit(&format!("http://localhost:{}/?error=access_denied&state={state}", scene.port));
    assert!(page.status == 400 && !page.body.contains("access_denied"), "{page:?}");
    let output = login.end();
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("access was refused"), "{output:?}");
    assert!(!scene.tokens().exists());

    // A code of another client, or a used one.
    let login = scene.begin(&["login"]);
    let state = parameter(&login.address, "state");
    let page = scene.visit(&format!("http://localhost:{}/?code=dal%3Aused&state={state}", scene.port));
    assert!(page.status == 400 && page.body.contains("terminal says why"), "{page:?}");
    let output = login.end();
    let told = text(&output.stderr);
    assert!(
        output.status.code() == Some(1) && told.contains("unauthorized_client") && told.contains("start again"),
        "{told}"
    );
    assert!(!told.contains("used&") && !told.contains("dal:used"), "{told}");
}

#[test]
fn what_would_spoil_a_login_is_found_before_a_person_is_asked() {
    let scene = Scene::new(Some(CLIENT_SECRET), &ALL, json!({}));
    let other = TcpListener::bind(("127.0.0.1", scene.port)).expect("the port");
    let output = scene.run(&["login"]);
    let told = text(&output.stderr);
    assert!(output.status.code() == Some(1) && told.contains("login_port") && told.contains("--paste"), "{told}");
    drop(other);

    std::fs::create_dir(scene.directory.path().join("tokens.json.new")).expect("in its place");
    let output = scene.run(&["login"]);
    let told = text(&output.stderr);
    assert!(output.status.code() == Some(1) && told.contains("tokens.json.new cannot be written"), "{told}");
    assert!(!told.contains("response_type"), "{told}");

    scene.configure("");
    let output = scene.run(&["login"]);
    assert!(output.status.code() == Some(64) && text(&output.stderr).contains("set tokens"), "{output:?}");
}

#[test]
fn a_personal_token_is_tried_because_livechat_does_not_tell_its_scopes() {
    for (scopes, missing) in [(&ALL[..], 0), (&ALL[1..], 1)] {
        let scene = Scene::new(Some(CLIENT_SECRET), scopes, json!({}));
        scene.configure(&format!("account_id = \"{ACCOUNT}\"\npersonal_access_token = {{ value = \"{TOKEN}\" }}"));
        let output = scene.run(&["status", "--json"]);
        assert!(output.status.success(), "{output:?}");
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(status["missing"].as_array().map(Vec::len), Some(missing), "{status}");
        assert_eq!((&status["account_id"], &status["scopes"]), (&json!(ACCOUNT), &Value::Null));
        assert!(status["notes"][0].as_str().is_some_and(|note| note.contains("2 billed calls")), "{status}");
        assert!(!text(&output.stdout).contains(TOKEN));
        let logout = scene.run(&["logout"]);
        assert!(
            logout.status.code() == Some(64) && text(&logout.stderr).contains("personal-access-tokens"),
            "{logout:?}"
        );
    }
}
