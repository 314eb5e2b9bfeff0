//! The simulated LiveChat: what is registered there is delivered, by LiveChat's rules.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::support::http;
use crate::support::mock::Mock;
use crate::support::relay::{SECRET, await_that, free_address};
use crate::support::simulator::{BASIC, CLIENT, CLIENT_SECRET, ORGANIZATION, PUBLIC_URL, Simulator};
use crate::support::tls::{self, Authority};

/// Registers a webhook for an action, and answers its id.
fn register(livechat: &Simulator, action: &str, filters: serde_json::Value) -> String {
    let url = format!("{PUBLIC_URL}/webhooks/default");
    let answer = livechat.call(
        "register_webhook",
        json!({"owner_client_id": CLIENT, "action": action, "type": "license", "url": url, "secret_key": SECRET, "filters": filters}),
    );
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    answer["id"].as_str().expect("an id").to_owned()
}

fn error_type(answer: &http::Answer) -> String {
    let body: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    body["error"]["type"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_registered_webhook_is_delivered_to_the_relay_and_is_on_its_topic() {
    let mock = Mock::start();
    let relay = mock.relay(&[]);
    let livechat = Simulator::start();
    livechat.route_to(relay.webhooks);
    let id = register(&livechat, "incoming_chat", json!({}));
    let chat = livechat.post("chats", json!({"text": "Is anyone there?"}));
    assert_eq!(chat["deliveries"], 1);
    await_that("it is answered", || livechat.report()["answered"] == 1);

    let messages = mock.read("livechat.incoming_chat");
    assert_eq!(messages.len(), 1);
    let event: serde_json::Value = serde_json::from_slice(&messages[0].value).expect("JSON");
    assert_eq!(event["chatid"], chat["chat_id"]);
    assert_eq!(event["organizationid"], ORGANIZATION);
    assert_eq!(event["webhookid"], id.as_str());
    assert!(event["data"].to_string().contains("Is anyone there?") && !event.to_string().contains(SECRET));
}

#[test]
fn what_is_not_answered_200_is_tried_again_with_the_same_bytes_and_then_given_up() {
    let receiver = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let livechat = Simulator::start_with(&["--time-scale", "0.002"]);
    livechat.route_to(receiver.local_addr().expect("an address"));
    register(&livechat, "incoming_chat", json!({}));
    livechat.post("chats", json!({}));
    let mut bodies: Vec<_> = [503, 500, 200].map(|status| take(&receiver, status)).into();
    await_that("it is answered", || livechat.report()["answered"] == 1);
    assert_eq!(livechat.report()["failed"], 2);

    livechat.post("chats", json!({}));
    let given_up = [204, 302, 404, 503].map(|status| take(&receiver, status));
    await_that("it is given up", || livechat.report()["dropped"] == 1);
    let report = livechat.report();
    let statuses: Vec<_> =
        report["deliveries"][1]["attempts"].as_array().expect("attempts").iter().map(|a| &a["status"]).collect();
    assert_eq!((statuses, &report["pending"]), (vec![&json!(204), &json!(302), &json!(404), &json!(503)], &json!(0)));
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "the bytes of the attempts differ");
    assert!(given_up.iter().all(|body| *body == given_up[0] && *body != bodies[0]));
}

#[test]
fn connections_are_used_again_where_that_is_on_and_an_answer_has_its_time() {
    let receiver = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let livechat = Simulator::start();
    livechat.route_to(receiver.local_addr().expect("an address"));
    register(&livechat, "incoming_chat", json!({}));
    let happen = || livechat.post("chats", json!({}));
    let answer = |stream: &mut TcpStream| {
        http::read_request(stream).expect("a webhook");
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").expect("sent");
    };
    let accept = || {
        let (stream, _) = receiver.accept().expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        stream
    };
    happen();
    let mut kept = accept();
    for n in [1, 2] {
        answer(&mut kept);
        await_that("it is answered", || livechat.report()["answered"] == n);
        happen();
    }
    answer(&mut kept);
    livechat.switch(json!({"keep_alive": false}));
    happen();
    answer(&mut accept());
    await_that("it is answered", || livechat.report()["answered"] == 4);

    livechat.switch(json!({"delivery_timeout": 0.1, "delivery_attempts": [0]}));
    happen();
    let _silent = accept();
    await_that("it is given up", || livechat.report()["dropped"] == 1);
    let attempts = &livechat.report()["deliveries"][4]["attempts"];
    assert!(attempts[0]["status"].is_null() && attempts[0]["error"].is_string(), "{attempts}");
}

/// Takes the next webhook, and answers it so; its body.
fn take(receiver: &TcpListener, status: u16) -> String {
    let (mut stream, _) = receiver.accept().expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    let request = http::read_request(&mut stream).expect("a webhook");
    let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).expect("sent");
    request
}

#[test]
fn only_what_passes_the_filters_is_delivered() {
    let livechat = Simulator::start();
    livechat.route_to(free_address());
    let customers = register(&livechat, "incoming_event", json!({"author_type": "customer"}));
    let own_chats = register(&livechat, "incoming_event", json!({"only_my_chats": true}));
    let by_system = register(&livechat, "incoming_event", json!({"source_type": ["system"]}));
    let begin = |told| livechat.post("chats", told)["chat_id"].as_str().expect("a chat").to_owned();
    let (own, other) = (begin(json!({"client_id": CLIENT})), begin(json!({})));
    let sent = |chat: &str, told| {
        let event = livechat.post(&format!("chats/{chat}/message"), told);
        let report = livechat.report();
        let of_event =
            report["deliveries"].as_array().expect("a list").iter().filter(|d| d["event_id"] == event["event_id"]);
        of_event.map(|delivery| delivery["webhook_id"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(sent(&own, json!({"author": "customer"})), [&*customers, &own_chats]);
    assert_eq!(sent(&own, json!({"author": "agent"})), [&*own_chats]);
    assert_eq!(sent(&other, json!({"author": "customer"})), [&*customers]);
    assert_eq!(sent(&other, json!({"author": "agent", "source": "system"})), [&*by_system]);
    assert!(sent(&other, json!({"author": "agent"})).is_empty());
}

#[test]
fn a_fourth_registration_of_an_action_is_refused_until_one_is_gone() {
    let livechat = Simulator::start();
    let ids = [(); 3].map(|()| register(&livechat, "incoming_chat", json!({})));
    let wanted = json!({"owner_client_id": CLIENT, "action": "incoming_chat", "type": "license", "url": PUBLIC_URL, "secret_key": "k"});
    let fourth = livechat.call("register_webhook", wanted.clone());
    assert_eq!((fourth.status, error_type(&fourth).as_str()), (422, "limit_reached"));

    let unregister = json!({"owner_client_id": CLIENT, "id": ids[0]});
    assert_eq!(livechat.call("unregister_webhook", unregister.clone()).status, 200);
    assert_eq!(error_type(&livechat.call("unregister_webhook", unregister)), "not_found");
    assert_eq!(livechat.call("register_webhook", wanted).status, 200);
}

#[test]
fn a_change_is_listed_and_delivered_after_its_lag() {
    let livechat = Simulator::start_with(&["--propagation", "1h"]);
    livechat.route_to(free_address());
    let id = register(&livechat, "incoming_chat", json!({}));
    let listed = || livechat.call("list_webhooks", json!({"owner_client_id": CLIENT})).body;
    let deliveries = || livechat.post("chats", json!({}))["deliveries"].clone();
    assert_eq!((listed().as_str(), deliveries()), ("[]", json!(0)));
    livechat.switch(json!({"listing_lag": 0, "delivery_lag": 0}));
    assert!(listed().contains(&id));
    assert_eq!(deliveries(), 1);

    assert_eq!(livechat.delete("switches")["delivery_lag"], 3600.0, "as at the start");
    livechat.switch(json!({"listing_lag": 0}));
    livechat.call("unregister_webhook", json!({"owner_client_id": CLIENT, "id": id}));
    assert_eq!((listed().as_str(), deliveries()), ("[]", json!(1)));
}

#[test]
fn nothing_is_delivered_where_the_app_is_disabled_or_not_installed() {
    let livechat = Simulator::start();
    livechat.route_to(free_address());
    register(&livechat, "incoming_chat", json!({}));
    let deliveries = || livechat.post("chats", json!({}))["deliveries"].clone();
    let state = || livechat.call("get_license_webhooks_state", json!({"owner_client_id": CLIENT})).body;
    livechat.call("disable_license_webhooks", json!({"owner_client_id": CLIENT}));
    assert_eq!((deliveries(), state().as_str()), (json!(0), r#"{"license_webhooks_enabled":false}"#));
    livechat.post("install", json!({}));
    assert_eq!(deliveries(), 0, "disabling survives an installation");
    livechat.call("enable_license_webhooks", json!({"owner_client_id": CLIENT}));
    assert_eq!((deliveries(), state().as_str()), (json!(1), r#"{"license_webhooks_enabled":true}"#));
    livechat.post("uninstall", json!({}));
    assert_eq!((deliveries(), state().as_str()), (json!(0), r#"{"license_webhooks_enabled":false}"#));
}

#[test]
fn an_app_is_authorized_by_a_browser_and_its_token_calls() {
    let livechat = Simulator::start();
    let redirect = "http://localhost:7413/callback";
    let to =
        livechat.authorize(&format!("/?response_type=code&client_id={CLIENT}&redirect_uri={redirect}&state=s%20t"));
    let (code, state) = to.strip_prefix(&format!("{redirect}?code=")).and_then(|q| q.split_once('&')).expect("a code");
    assert_eq!(state, "state=s%20t");
    let form = json!({"grant_type": "authorization_code", "client_id": CLIENT, "client_secret": CLIENT_SECRET,
        "redirect_uri": redirect, "code": code.replace("%3A", ":")});
    let token = || http::post_to(livechat.address, "/v2/token", form.to_string());
    let issued: serde_json::Value = serde_json::from_str(&token().body).expect("JSON");
    let bearer = format!("Bearer {}", issued["access_token"].as_str().expect("a token"));
    let list =
        || livechat.call_as(&bearer, "/v3.6/configuration/action/list_webhooks", json!({"owner_client_id": CLIENT}));
    assert_eq!(list().status, 200);
    assert_eq!(token().status, 401, "a code is for one use");

    let request =
        format!("DELETE /v2/token HTTP/1.1\r\nhost: x\r\nauthorization: {bearer}\r\nconnection: close\r\n\r\n");
    assert_eq!(http::raw(livechat.address, request).expect("an answer").status, 200);
    assert_eq!((list().status, error_type(&list()).as_str()), (401, "authentication"));
}

#[test]
fn a_fault_is_met_before_or_after_the_call_acts_and_is_over() {
    let livechat = Simulator::start();
    let wanted = json!({"owner_client_id": CLIENT, "action": "incoming_chat", "type": "license", "url": PUBLIC_URL, "secret_key": "k"});
    livechat.fault(json!({"method": "register_webhook", "error": "internal"}));
    assert_eq!(error_type(&livechat.call("register_webhook", wanted.clone())), "internal");
    assert_eq!(livechat.registrations().len(), 0);
    livechat.fault(json!({"method": "register_webhook", "when": "after", "answer": "html", "status": 504}));
    let lost = livechat.call("register_webhook", wanted.clone());
    assert!(lost.status == 504 && lost.body.contains("<h1>"), "{lost:?}");
    assert_eq!(livechat.registrations().len(), 1);
    livechat.fault(json!({"method": "*", "answer": "close"}));
    let headers = "connection: close\r\n";
    let path = "/v3.6/configuration/action/list_webhook_names";
    assert!(http::raw(livechat.address, http::request(path, headers, "{}")).is_none());
    assert_eq!(livechat.call("register_webhook", wanted).status, 200);
    let statuses: Vec<_> =
        livechat.requests("register_webhook").into_iter().map(|called| called["status"].clone()).collect();
    assert_eq!(statuses, [500, 504, 200]);
    assert_eq!(livechat.get("state")["billed"], 2, "all but status 500");
}

#[test]
fn archives_have_the_chats_that_happened_page_by_page() {
    let livechat = Simulator::start();
    let chats: Vec<_> = (1..=5)
        .map(|hour| {
            let at = format!("2026-11-01T0{hour}:00:00Z");
            let chat = livechat.post("chats", json!({"at": at, "deliver": false}))["chat_id"].clone();
            let id = chat.as_str().expect("an id");
            livechat.post(
                &format!("chats/{id}/message"),
                json!({"text": format!("at {hour}"), "at": at, "deliver": false}),
            );
            livechat.post(&format!("chats/{id}/end"), json!({"at": at, "deliver": false}));
            chat
        })
        .collect();
    let call = |body| {
        let answer = livechat.call_as(&format!("Basic {BASIC}"), "/v3.6/agent/action/list_archives", body);
        serde_json::from_str::<serde_json::Value>(&answer.body).expect("JSON")
    };
    let from = "2026-11-01T02:00:00.000000+00:00";
    let mut page =
        call(json!({"filters": {"from": from, "to": "2026-11-01T05:00:00.000000Z"}, "sort_order": "asc", "limit": 3}));
    assert_eq!(page["found_chats"], 4);
    let mut found = page["chats"].as_array().expect("chats").clone();
    page = call(json!({"page_id": page["next_page_id"]}));
    found.extend(page["chats"].as_array().expect("chats").clone());
    assert!(page.get("next_page_id").is_none());
    assert_eq!(found.iter().map(|chat| chat["id"].clone()).collect::<Vec<_>>(), chats[1..]);
    let events = found[0]["thread"]["events"].as_array().expect("events");
    assert_eq!(events.last().expect("an event")["text"], "at 2");

    let both = call(json!({"page_id": "x", "limit": 3}));
    assert_eq!(both["error"]["type"], "validation");
}

#[test]
fn a_web_page_cannot_drive_it() {
    let livechat = Simulator::start();
    let request = http::request("/_simulate/chats", "origin: https://elsewhere.example\r\nconnection: close\r\n", "{}");
    assert_eq!(http::raw(livechat.address, request).expect("an answer").status, 403);
    assert_eq!(livechat.report()["happened"], 0);
}

#[test]
fn its_help_has_its_own_address_and_every_switch() {
    let livechat = Simulator::start();
    let help = http::get(livechat.address, "/_simulate/").body;
    assert!(help.contains(&format!("{}/_simulate/faults", livechat.url)) && !help.contains("{url}"), "{help}");
    let switches = livechat.get("switches");
    for switch in switches.as_object().expect("an object").keys() {
        assert!(help.contains(&format!("\n{switch} = ")) || help.contains(&format!("\n# {switch} = ")), "{switch}");
    }
}

#[test]
fn it_listens_on_loopback_only_and_ends_by_ctrl_c() {
    let refused = Command::new(env!("CARGO_BIN_EXE_livechat-relay"))
        .args(["simulate", "--listen", "0.0.0.0:0"])
        .output()
        .expect("the binary");
    assert_eq!(refused.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--allow-remote"), "{refused:?}");

    assert_eq!(Simulator::start().interrupt(), Some(0));
}

#[test]
fn all_of_the_traffic_is_delivered_and_each_event_is_on_its_topic() {
    let mock = Mock::start();
    let relay = mock.relay(&[]);
    let livechat = Simulator::start_with(&["--time-scale", "0.01"]);
    livechat.route_to(relay.webhooks);
    for action in ["incoming_chat", "incoming_event", "chat_deactivated"] {
        register(&livechat, action, json!({}));
    }
    let busy = livechat.post("traffic", json!({"rate": 500, "seconds": 0.6}));
    assert_eq!(busy["happenings"], 300);
    await_that("all of it has happened", || livechat.report()["happened"] == 300);
    await_that("all is delivered", || livechat.report()["pending"] == 0);

    let report = livechat.report();
    assert_eq!((&report["answered"], &report["dropped"]), (&report["sent"], &json!(0)));
    let mut sent: Vec<_> =
        report["deliveries"].as_array().expect("a list").iter().filter_map(|d| d["event_id"].as_str()).collect();
    let events = mock.read("livechat.incoming_event");
    let events =
        events.iter().map(|message| serde_json::from_slice::<serde_json::Value>(&message.value).expect("JSON"));
    let mut published: Vec<_> = events.map(|event| event["eventid"].as_str().expect("an id").to_owned()).collect();
    sent.sort_unstable();
    published.sort_unstable();
    assert!(sent.len() > 50 && sent == published, "{} sent, {} published", sent.len(), published.len());
}

#[test]
fn both_sides_may_speak_tls() {
    let mock = Mock::start();
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::new(directory.path());
    let files = authority.issue("server", &["localhost"]);
    let [certificate, key, ca] =
        [&files.certificate, &files.key, &authority.ca()].map(|path| path.display().to_string());
    let certificates = format!("[{{ certificate = {certificate:?}, key = {key:?} }}]");
    let relay = mock.relay(&[("server.tls.certificates", &certificates)]);
    let route = format!("{PUBLIC_URL}=https://localhost:{}", relay.webhooks.port());
    let arguments = ["--certificate", &certificate, "--key", &key, "--ca", &ca, "--route", &route];
    let livechat = Simulator::start_with(&arguments);
    let post = |path: &str, authorization: &str, body: serde_json::Value| {
        let headers = format!("{authorization}connection: close\r\n");
        let request = http::request(path, &headers, body.to_string());
        let answer = tls::raw(&authority.client(), livechat.address, "localhost", request).expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    };
    let url = format!("{PUBLIC_URL}/webhooks/default");
    let wanted = json!({"owner_client_id": CLIENT, "action": "incoming_chat", "type": "license", "url": url, "secret_key": SECRET});
    post("/v3.6/configuration/action/register_webhook", &format!("authorization: Basic {BASIC}\r\n"), wanted);
    post("/_simulate/chats", "", json!({}));
    await_that("it is on the topic", || mock.read("livechat.incoming_chat").len() == 1);
}

#[test]
fn what_it_prints_at_the_start_is_a_configuration_for_the_relay() {
    let relay = env!("CARGO_BIN_EXE_livechat-relay");
    let mut simulator = Command::new(relay)
        .args([
            "simulate",
            "--listen",
            "127.0.0.1:0",
            "--public-url",
            "http://localhost:9000/",
            "--propagation",
            "1500ms",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary");
    let lines = BufReader::new(simulator.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let mut printed = lines.skip_while(|line| line != "[server]");
    let mut configuration = String::new();
    for line in printed.by_ref() {
        configuration.push_str(&format!("{line}\n"));
        if line.starts_with("webhooks = ") {
            break;
        }
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), &configuration).expect("written");
    let listed =
        Command::new(relay).args(["webhooks", "list", "--config"]).arg(file.path()).output().expect("the binary");
    simulator.kill().and_then(|()| simulator.wait()).expect("a process of ours");
    for line in ["listen = \"127.0.0.1:9000\"", "propagation = \"1s 500ms\"", "public_url = \"http://localhost:9000\""]
    {
        assert!(configuration.lines().any(|printed| printed == line), "{line} in {configuration}");
    }
    assert!(listed.status.success(), "{configuration}{listed:?}");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("0 webhooks registered"), "{listed:?}");
}
