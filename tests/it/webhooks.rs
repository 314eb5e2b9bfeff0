//! `webhooks` against a simulated LiveChat: what is shown, how commands end, and that no secret is in any of it.

use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::relay::SECRET;
use crate::support::simulator::{self, CLIENT, CLIENT_SECRET, PUBLIC_URL, Simulator, TOKEN};

/// A relay's configuration for a simulated LiveChat, and its commands.
struct Operator {
    livechat: Simulator,
    configuration: tempfile::NamedTempFile,
}

impl Operator {
    /// With these members of `[apps.livechat]`.
    fn new(livechat: &str) -> Self {
        let operator =
            Self { livechat: Simulator::start(), configuration: tempfile::NamedTempFile::new().expect("a file") };
        operator.configure(&simulator::apps(livechat));
        operator
    }

    fn configure(&self, apps: &str) {
        let url = &self.livechat.url;
        let livechat = format!("livechat.api = \"{url}\"\nlivechat.accounts = \"{url}\"\nlivechat.attempts_max = 1");
        std::fs::write(self.configuration.path(), format!("apps = {apps}\n{livechat}\n")).expect("written");
    }

    /// Runs `webhooks …` without a terminal; exit code, and what was printed. No secret is in it.
    fn run(&self, arguments: &str) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_livechat-relay"));
        command.arg("webhooks").args(arguments.split(' ')).arg("--config").arg(self.configuration.path());
        let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("the relay's binary");
        let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
        for secret in [SECRET, TOKEN, CLIENT_SECRET, simulator::BASIC, "typed by hand"] {
            assert!(!stdout.contains(secret) && !stderr.contains(secret), "{arguments}: {stdout}{stderr}");
        }
        (status.code().expect("an end without a signal"), stdout, stderr)
    }

    /// Runs a command that succeeds; what it printed.
    fn done(&self, arguments: &str) -> String {
        let (code, stdout, stderr) = self.run(arguments);
        assert_eq!(code, 0, "{arguments}: {stdout}{stderr}");
        stdout
    }

    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.done(&format!("{arguments} --json"))).expect("JSON")
    }

    /// Registers a webhook as a person would in Developer Console.
    fn by_hand(&self, action: &str, url: &str, more: Value) -> String {
        let mut body = json!({ "action": action, "url": url, "secret_key": "typed by hand", "owner_client_id": CLIENT, "type": "license" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let answer = self.livechat.call("register_webhook", body);
        let answer: Value = serde_json::from_str(&answer.body).expect("JSON");
        answer["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    fn actions(&self) -> Vec<String> {
        let actions =
            self.livechat.registrations().into_iter().map(|one| one["action"].as_str().expect("a text").to_owned());
        let mut actions: Vec<_> = actions.collect();
        actions.sort();
        actions
    }
}

fn own() -> String {
    format!("{PUBLIC_URL}/webhooks/default")
}

#[test]
fn a_plan_compares_and_changes_nothing() {
    let operator = Operator::new(
        "webhooks = [{ actions = \"all\" }, { actions = \"incoming_event\", filters = { author_type = \"customer\" } }]",
    );
    let id = operator.by_hand("incoming_chat", &own(), json!({}));
    operator.by_hand("incoming_event", &own(), json!({ "description": "by hand" }));
    let (code, text, _) = operator.run("plan --exit-code");
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("filters: none → { author_type = \"customer\" }"), "{text}");
    assert!(text.contains("Plan: 37 to register, 1 to unregister, 1 as wanted."), "{text}");
    let plan = operator.json("plan");
    assert_eq!(plan["unchanged"][0]["id"], id.as_str());
    assert_eq!(
        (plan["register"].as_array().map(Vec::len), &plan["unregister"][0]["reason"]),
        (Some(37), &json!("replaced"))
    );
    assert_eq!(operator.actions(), ["incoming_chat", "incoming_event"]);
    operator.configure(&simulator::apps("webhooks = [{ actions = [\"incoming_chat\", \"incoming_event\"] }]"));
    let (code, text, _) = operator.run("plan --exit-code");
    assert!(code == 0 && text.contains("Nothing to do: 2 as wanted."), "a description alone is no difference: {text}");
}

#[test]
fn what_was_registered_by_hand_is_listed_and_adopted_without_its_secret_key() {
    let operator = Operator::new("");
    operator
        .livechat
        .switch(json!({ "secret_in_listing": true, "additional_data_in_listing": true, "unknown_members": true }));
    operator.by_hand(
        "incoming_chat",
        &own(),
        json!({ "additional_data": ["chat_properties"], "description": "for the CRM" }),
    );
    operator.by_hand("routing_status_set", &own(), json!({ "filters": { "source_type": ["system"] } }));
    operator.by_hand("chat_deactivated", "https://crm.example.com/hook", json!({}));
    let listing = operator.done("list");
    for part in [
        "3 webhooks registered",
        "https://crm.example.com/hook  (not as configured)",
        "additional_data: chat_properties",
        "for the CRM",
    ] {
        assert!(listing.contains(part), "{part}: {listing}");
    }
    let listed = operator.json("list");
    assert_eq!(listed.as_array().map(Vec::len), Some(3));
    assert!(listed[0].get("secret_key").is_none(), "{listed}");
    let adopted = operator.done("adopt");
    assert!(adopted.contains("1 of the same Client ID are left out"), "{adopted}");
    let (_, webhooks) = adopted.split_once("webhooks = ").expect("the key");
    operator.configure(&simulator::apps(&format!("webhooks = {webhooks}")));
    let (code, plan, _) = operator.run("plan --exit-code");
    assert!(code == 0 && plan.contains("Nothing to do: 2 as wanted, 1 left alone."), "{plan}");
}

#[test]
fn names_shows_what_livechat_offers_and_the_relay_does_not_know() {
    let operator = Operator::new("");
    let text = operator.done("names");
    assert!(text.starts_with("LiveChat's API 3.6 offers 38 webhooks") && !text.contains("unknown to"), "{text}");
    operator.livechat.switch(json!({ "extra_actions": ["mood_changed"] }));
    let text = operator.done("names");
    let line = text.lines().find(|line| line.contains("mood_changed")).expect("its line");
    assert!(line.contains("unknown to this version of the relay"), "{text}");
    let names = operator.json("names");
    let mood =
        names.as_array().expect("a list").iter().find(|named| named["action"] == "mood_changed").expect("its entry");
    assert_eq!((&mood["offered"], &mood["known"]), (&json!(true), &json!(false)));
    operator.by_hand("mood_changed", &own(), json!({}));
    let plan = operator.json("plan");
    assert_eq!(
        (&plan["foreign"][0]["action"], plan["unregister"].as_array().map(Vec::len)),
        (&json!("mood_changed"), Some(0))
    );
}

#[test]
fn webhooks_are_disabled_and_enabled_for_the_license_and_a_plan_says_so() {
    let operator = Operator::new("webhooks = [{ actions = \"bots\" }]");
    assert_eq!(operator.json("state")["license_webhooks_enabled"], true);
    let (code, _, asked) = operator.run("disable");
    assert!(code == 64 && asked.contains("add --yes"), "{asked}");
    assert!(operator.done("disable --yes").starts_with("disabled: "));
    let again = operator.done("disable"); // there is nothing to ask
    assert!(again.starts_with("disabled: ") && again.contains("They were disabled before."), "{again}");
    operator.by_hand("bot_created", &own(), json!({}));
    operator.configure(&simulator::apps("webhooks = [{ actions = \"bot_created\" }]"));
    let (code, text, _) = operator.run("plan --exit-code");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        code == 2 && words.contains("Nothing to register or unregister: 1 as wanted. But LiveChat sends none"),
        "{text}"
    );
    assert!(words.contains("`livechat-relay webhooks enable -c "), "{text}");
    assert_eq!(operator.json("state")["license_webhooks_enabled"], false);
    assert!(operator.done("plan").contains("Warning: LiveChat sends no webhooks of this app"));
    assert!(operator.done("enable").starts_with("enabled: "));
    let enabled = operator.livechat.requests("enable_license_webhooks").len();
    assert!(operator.done("enable").contains("They were enabled before."));
    assert_eq!((enabled, operator.livechat.requests("enable_license_webhooks").len()), (1, 1), "it is read first");
    operator.livechat.post("uninstall", json!({}));
    operator.livechat.switch(json!({ "not_installed_is_not_found": true }));
    assert!(operator.done("plan").contains("it is not installed"));
    let (code, _, why) = operator.run("state");
    assert!(code == 1 && why.contains("Private installation"), "{why}");
}

#[test]
fn only_what_is_named_or_comes_to_the_relay_is_unregistered() {
    let operator = Operator::new("");
    let others = operator.by_hand("incoming_chat", "https://crm.example.com/hook", json!({}));
    let old = operator.by_hand("incoming_event", &format!("{PUBLIC_URL}/webhooks/of-before"), json!({}));
    operator.by_hand("thread_tagged", &own(), json!({}));
    operator.by_hand("thread_untagged", &own(), json!({}));
    let (code, _, why) = operator.run("unregister");
    assert!(code == 64 && why.contains("`livechat-relay webhooks unregister --all -c "), "{why}");
    let (code, _, why) = operator.run("unregister no-such-id");
    assert!(code == 1 && why.contains("no-such-id is not registered for the Client ID of the app default"), "{why}");
    let (code, shown, why) = operator.run(&format!("unregister {old}"));
    assert!(code == 64 && shown.contains(&old) && why.contains("Unregister 1 webhook?"), "{shown}{why}");
    assert_eq!(operator.actions().len(), 4);
    assert!(operator.done(&format!("unregister {old} --yes")).contains("1 webhook unregistered"));
    // The second of two cannot be removed: what was done is said.
    operator
        .livechat
        .fault(json!({ "method": "unregister_webhook", "skip": 1, "when": "before", "error": "authorization" }));
    let (code, _, why) = operator.run("unregister --all --yes");
    assert!(code == 1 && why.contains("1 of 2 are unregistered, 1 are not"), "{why}");
    assert_eq!(operator.json("unregister --all --yes")["unregistered"].as_array().map(Vec::len), Some(1));
    assert_eq!(operator.actions(), ["incoming_chat"]);
    operator.done(&format!("unregister {others} --yes"));
    assert_eq!(operator.done("list").lines().nth(1), Some("0 webhooks registered"));
    let (code, stdout, _) = operator.run("unregister --all");
    assert!(code == 0 && stdout.starts_with("nothing that comes to this relay"), "there is nothing to ask: {stdout}");
}

#[test]
fn the_console_is_explained_without_credentials_and_without_a_call() {
    let operator = Operator::new("");
    let app = format!(
        "[{{ name = \"default\", secret_keys = [{{ name = \"2026-11\", env = \"KEY\" }}], livechat = {{ client_id = \"{CLIENT}\", \
         public_url = \"{PUBLIC_URL}\", webhooks = [{{ actions = \"incoming_event\", filters = {{ author_type = \"customer\" }} }}] }} }}]"
    );
    operator.configure(&app);
    let text = operator.done("plan --console");
    for part in [&format!("Webhook URL: {}", own()), "the variable KEY", "incoming_event", "author type: customer"] {
        assert!(text.split_whitespace().collect::<Vec<_>>().join(" ").contains(part), "{part}: {text}");
    }
    assert_eq!(operator.livechat.get("requests"), json!([]));
    assert!(operator.done("names").contains("offers 38 webhooks"), "LiveChat wants no token for it");
    for command in ["plan", "list", "state", "adopt", "unregister --all"] {
        let (code, _, why) = operator.run(command);
        assert!(code == 1 && why.contains("personal_access_token"), "{command}: {why}");
    }
}

#[test]
fn a_refusal_is_exit_code_1_with_a_remedy_and_a_wrong_configuration_64() {
    let operator = Operator::new("webhooks = [{ actions = \"bots\" }]");
    for (fault, expected) in [
        (json!({ "error": "authentication" }), "personal access token"),
        (json!({ "error": "authorization" }), "administrator"),
        (json!({ "error": "unsupported_version" }), "api_version"),
        (json!({ "answer": "html" }), "list_webhooks"),
        (json!({ "answer": "truncated" }), "list_webhooks"),
        (json!({ "answer": "close" }), "list_webhooks"),
    ] {
        let mut fault = fault;
        fault["method"] = "list_webhooks".into();
        fault["when"] = "before".into();
        operator.livechat.fault(fault.clone());
        let (code, stdout, why) = operator.run("plan --exit-code");
        assert!(code == 1 && why.contains(expected) && stdout.is_empty(), "{fault}: {why}");
    }
    operator
        .livechat
        .fault(json!({ "method": "get_license_webhooks_state", "when": "before", "error": "authorization" }));
    let (code, stdout, why) = operator.run("plan");
    assert!(
        code == 0
            && stdout.contains("Plan: 3 to register")
            && why.contains("whether LiveChat sends webhooks is not known"),
        "{why}"
    );
    let (code, _, why) = operator.run("plan --app other");
    assert!(code == 64 && why.contains("these have: default"), "{why}");
    operator.configure(&simulator::apps("webhooks = [{ actions = \"incoming_customer\" }]"));
    let (code, _, why) = operator.run("plan");
    assert!(code == 64 && why.contains("has incoming_customer, which only LiveChat's API 3.3 to 3.5 has"), "{why}");
}
