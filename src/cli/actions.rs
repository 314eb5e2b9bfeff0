//! `actions`: the catalogue, as a table for people and as JSON for programs.

use std::collections::BTreeMap;

use anstyle::Style;
use serde::Serialize;

use super::{Failure, contract, print as styles};
use crate::config::nearest;
use crate::event::actions::{self, ACTIONS, Action, Identity, Slot};
use crate::event::route::UNLISTED;

/// What the default configuration puts before an action's name.
pub const TOPIC_PREFIX: &str = "livechat.";

/// The attributes of which the first that an event has is its key, where the action has no key of its own, or the payload lacks it.
pub const KEY_OF_ALL: [&str; 3] = ["organizationid", "licenseid", "app"];

#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Print an event of this action as it is on Kafka
    #[arg(long, value_name = "ACTION", conflicts_with = "json")]
    example: Option<String>,
}

/// An action under its current name, in words of the envelope.
#[derive(Serialize)]
pub struct Listed {
    pub action: &'static str,
    pub older_names: Vec<&'static str>,
    /// By default.
    pub topic: String,
    /// The first of these attributes that an event has is its key; without any, one of [`KEY_OF_ALL`] is.
    pub key: Vec<&'static str>,
    pub identity: Derivation,
    /// Where the payload tells when it happened; the first that is there counts.
    pub time: Vec<String>,
    /// Where in `data` each attribute comes from; the first that is there counts.
    pub attributes: BTreeMap<&'static str, Vec<String>>,
}

/// Where an event's id comes from.
#[derive(Serialize)]
#[serde(tag = "strength", content = "attributes", rename_all = "lowercase")]
pub enum Derivation {
    /// From the organization or license, the action and these attributes.
    Strong(Vec<&'static str>),
    /// From nowhere: each delivery gets a new one.
    Weak,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(action) = &arguments.example {
        let text = contract::example(action).ok_or_else(|| no_example(action))?;
        return styles::out(format_args!("{}", text.trim_end()));
    }
    let listed: Vec<_> = listed().collect();
    if arguments.json {
        let json = serde_json::to_value(listed).map_err(Failure::failed)?;
        styles::out(format_args!("{json:#}"))
    } else {
        let columns = styles::columns().unwrap_or(WIDE);
        styles::out(format_args!("{}", table(&listed, columns).trim_end_matches('\n')))
    }
}

fn no_example(action: &str) -> Failure {
    Failure::Usage(match (actions::find(action), nearest(action, actions::names().chain(contract::app_names()))) {
        _ if action == UNLISTED => {
            format!("`{UNLISTED}` stands for actions that the relay does not know: there is no example")
        }
        (Some(known), _) => format!("`{action}` is an older name of `{0}`: use --example {0}", known.name),
        (None, Some(meant)) => format!("`{action}` is no action of LiveChat; did you mean `{meant}`?"),
        (None, None) => format!("`{action}` is no action of LiveChat; `livechat-relay actions` lists them"),
    })
}

/// Every action in the catalogue's order, and last what stands for those that it does not know.
pub fn listed() -> impl Iterator<Item = Listed> {
    actions::names().chain([UNLISTED]).map(Listed::of)
}

impl Listed {
    /// The entries of this name as one: under an older name a payload can have another shape.
    fn of(name: &'static str) -> Self {
        let entries: Vec<&Action> = ACTIONS.iter().filter(|entry| entry.name == name).collect();
        let mut listed = Self {
            action: name,
            older_names: entries.iter().flat_map(|entry| entry.older).copied().collect(),
            topic: format!("{TOPIC_PREFIX}{name}"),
            key: entries.iter().flat_map(|entry| entry.key).map(|&slot| attribute(slot)).collect(),
            identity: entries.first().map_or(Derivation::Weak, |entry| Derivation::of(entry.identity)),
            time: Vec::new(),
            attributes: BTreeMap::new(),
        };
        for &(slot, path) in entries.iter().flat_map(|entry| entry.pointers) {
            let pointer = format!("/payload/{}", path.join("/"));
            match slot {
                Slot::Time | Slot::UnixTime => listed.time.push(pointer),
                Slot::EventType => {} // no attribute: it proves who wrote an event
                _ => listed.attributes.entry(attribute(slot)).or_default().push(pointer),
            }
        }
        listed
    }
}

impl Derivation {
    fn of(identity: Identity) -> Self {
        match identity {
            Identity::Strong(slots) => Self::Strong(slots.iter().map(|&slot| attribute(slot)).collect()),
            Identity::Weak => Self::Weak,
        }
    }
}

/// What the envelope calls a slot.
fn attribute(slot: Slot) -> &'static str {
    Slot::ATTRIBUTES.iter().find(|(known, _)| *known == slot).map_or("time", |(_, name)| name)
}

const NONE: &str = "–";

/// So many columns the whole table has at most.
const WIDE: usize = 120;

/// Not wider than `columns`, if these are 80 or more: the older names and the times are only in the wide table.
fn table(listed: &[Listed], columns: usize) -> String {
    let (dim, bold, is_wide) = (styles::DIM, styles::BOLD, columns >= WIDE);
    let mut text = String::new();
    let mut line = |style: Style, soft: Style, cells: [&str; 5]| {
        let [action, older, key, time, identity] = cells;
        let last = if identity == FRESH { soft } else { style };
        text += &format!("{style}{action:<31}{style:#}  ");
        if is_wide {
            text += &format!("{soft}{older:<30}{soft:#}  {style}{key:<17}  {time:<10}{style:#}  ");
        } else {
            text += &format!("{style}{key:<17}{style:#}  ");
        }
        text += &format!("{last}{identity}{last:#}\n");
    };
    line(bold, bold, ["ACTION", "OLDER NAMES", "KEY", "TIME", "IDENTITY"]);
    for l in listed {
        let time = l.time.first().and_then(|pointer| pointer.rsplit('/').next());
        let identity = match &l.identity {
            Derivation::Strong(attributes) => attributes.join(" "),
            Derivation::Weak => FRESH.to_owned(),
        };
        let key = if l.key.is_empty() { KEY_OF_ALL[0].to_owned() } else { l.key.join(" ") };
        let older = if l.older_names.is_empty() { NONE.to_owned() } else { l.older_names.join(" ") };
        line(Style::new(), dim, [l.action, &older, &key, time.unwrap_or(NONE), &identity]);
    }
    let time = if is_wide {
        "Time: the member of the payload that tells when it happened; else there is only the time of receipt."
            .to_owned()
    } else {
        format!("A terminal of {WIDE} columns shows older names and times, too, and --json shows all.")
    };
    let legend = [
        format!("The topic is {TOPIC_PREFIX}<action> by default; `{UNLISTED}` stands for actions that are not listed."),
        format!("Key: the first of these attributes that the event has, else {}.", KEY_OF_ALL.join(", else ")),
        format!(
            "Identity: the id is derived from these, the action and the organization; {FRESH}: each delivery has its own id."
        ),
        time,
    ];
    text.push('\n');
    for sentence in legend {
        text += &format!("{}\n", styles::wrapped(&sentence, 0));
    }
    text
}

const FRESH: &str = "fresh";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_action_within_the_columns_of_the_terminal() {
        let listed: Vec<_> = listed().collect();
        for columns in [80, 119, 120] {
            let text = anstream::adapter::strip_str(&table(&listed, columns)).to_string();
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
            let starts_a_line = |name: &str| text.lines().any(|line| line.split(' ').next() == Some(name));
            assert!(actions::names().chain([UNLISTED]).all(starts_a_line), "{text}");
            assert_eq!(text.contains("customer_created"), columns == 120, "{text}");
        }
    }

    #[test]
    fn the_topics_are_those_of_the_default_configuration() {
        assert!(crate::config::DEFAULTS.contains(&format!("prefix = \"{TOPIC_PREFIX}\"")));
    }

    #[test]
    fn an_example_that_is_not_there_has_a_hint() {
        for (action, hint) in [
            ("incoming_evnt", "did you mean `incoming_event`?"),
            ("thread_closed", "use --example chat_deactivated"),
            ("xyz", "`livechat-relay actions` lists them"),
            (UNLISTED, "actions that the relay does not know"),
        ] {
            let arguments = Arguments { json: false, example: Some(action.to_owned()) };
            let refused = run(&arguments).expect_err(action);
            assert!(matches!(&refused, Failure::Usage(why) if why.contains(hint)), "{refused}");
        }
    }

    #[test]
    fn an_action_with_two_shapes_is_listed_once_with_both() {
        let granted = Listed::of("chat_access_granted");
        assert_eq!((granted.key, granted.older_names), (vec!["chatid", "resourceid"], vec!["access_granted"]));
        assert_eq!(granted.attributes["resourceid"], ["/payload/id"]);
    }
}
