//! What is sent: invented webhooks of LiveChat as HTTP/1.1 requests, ready for the wire; and the topics that they are for.

use std::rc::Rc;

use livechat_relay::event::actions;
use livechat_relay::samples::traffic::{Sample, Traffic};
use serde::{Deserialize, Serialize};

/// The secret key that the relay and the floor expect.
pub const SECRET_KEY: &str = "key-of-the-bench";

/// What a busy account sends most, on five topics.
pub const ACTIONS: [&str; 5] =
    ["incoming_event", "incoming_chat", "chat_deactivated", "events_marked_as_seen", "thread_tagged"];

pub const PARTITIONS: i32 = 3;

/// Which webhooks.
#[derive(Clone, Serialize, Deserialize)]
pub struct Webhooks {
    /// Another seed gives other chats, so that the relay takes nothing for a retry.
    pub seed: u64,
    pub actions: Vec<String>,
    /// Each action as often as the others, instead of LiveChat's mix. Each has a seed of its own, from `seed` on.
    pub evenly: bool,
    /// Bodies of about this many bytes, where they are shorter: a text of the payload is made longer.
    pub body_bytes: Option<usize>,
}

impl Webhooks {
    /// What a busy account sends.
    pub fn usual(seed: u64) -> Self {
        Self { seed, actions: ACTIONS.map(str::to_owned).into(), evenly: false, body_bytes: None }
    }

    /// Requests without end.
    pub fn requests(&self) -> impl Iterator<Item = Rc<[u8]>> {
        let body_bytes = self.body_bytes.unwrap_or_default();
        self.samples().map(move |sample| request(&longer(sample.body(SECRET_KEY), body_bytes)))
    }

    fn samples(&self) -> Box<dyn Iterator<Item = Sample>> {
        let traffic = |seed, actions: &[String]| Traffic::new(seed).only(actions).expect("actions of the catalogue");
        if !self.evenly {
            return Box::new(traffic(self.seed, &self.actions));
        }
        let actions = (self.seed..).zip(&self.actions);
        let mut each: Vec<_> = actions.map(|(seed, action)| traffic(seed, std::slice::from_ref(action))).collect();
        let turns = (0..each.len()).collect::<Vec<_>>().into_iter().cycle();
        Box::new(turns.map_while(move |turn| each[turn].next()))
    }
}

fn request(body: &str) -> Rc<[u8]> {
    let length = body.len();
    let head = format!(
        "POST /webhooks HTTP/1.1\r\nhost: localhost\r\nuser-agent: bench\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    (head + body).into_bytes().into()
}

/// The same event with a longer text; where it has none, its payload gets one.
fn longer(body: String, bytes: usize) -> String {
    let words = "so it goes, with \\\"quotes\\\" and words of every length ";
    let text = words.repeat(bytes.saturating_sub(body.len()) / words.len());
    match (text.is_empty(), body.contains(r#""text":""#)) {
        (true, _) => body,
        (false, true) => body.replacen(r#""text":""#, &format!(r#""text":"{text}"#), 1),
        (false, false) => body.replacen(r#""payload":{"#, &format!(r#""payload":{{"text":"{text}","#), 1),
    }
}

/// The floor's topic of an action.
pub fn floor_topic(action: &str) -> String {
    format!("floor.{action}")
}

/// The floor's topics of all actions.
pub fn floor_topics() -> Vec<String> {
    actions::names().map(floor_topic).collect()
}

/// The relay's topics.
pub fn relay_topics() -> Vec<String> {
    actions::names().chain(["unlisted", "dead-letter"]).map(|name| format!("livechat.{name}")).collect()
}
