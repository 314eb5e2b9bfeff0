//! The configuration file as JSON Schema, for editors: which keys there are, what may stand there, and what the reference says of them.
//!
//! It is made of what the relay reads, so it cannot differ from that. What several keys must agree on is not in it; `check` says that.

use serde_json::{Map, Value as Json, json};

use super::declared::{ANY, Node, declared};
use super::flat::{Values, defaults, join, json_of};
use super::reference::{Reference, reference};
use super::shape::Shape;

/// By the rules of draft 2020-12.
pub fn schema() -> Json {
    let maker = Maker { defaults: defaults(), reference: reference() };
    let mut schema = maker.node("", declared());
    schema["$id"] = "urn:livechat-relay:config".into();
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "The configuration file of livechat-relay".into();
    schema["description"] = "`livechat-relay config default` prints every key with its default and its reason.".into();
    schema
}

struct Maker {
    defaults: Values,
    reference: &'static Reference,
}

impl Maker {
    fn node(&self, key: &str, node: &Node) -> Json {
        let mut kinds = Vec::new();
        if let Some(elements) = &node.elements {
            kinds.push(json!({ "type": "array", "items": self.node(&format!("{key}[0]"), elements) }));
        }
        if node.is_secret() || node.names.is_empty() && node.elements.is_none() {
            kinds.extend(node.shape.as_ref().map(Shape::schema));
        } else if node.is_open() {
            let any = node.names.get(ANY).map(|any| self.node(&join(key, ANY), any));
            kinds.push(json!({ "type": "object", "additionalProperties": any }));
        } else if !node.names.is_empty() {
            let properties: Map<_, _> =
                node.names.iter().map(|(name, node)| (name.clone(), self.node(&join(key, name), node))).collect();
            kinds.push(json!({ "type": "object", "properties": properties, "additionalProperties": false }));
        }
        let mut schema = if kinds.len() == 1 { kinds.remove(0) } else { json!({ "anyOf": kinds }) };
        self.describe(&mut schema, key, node);
        schema
    }

    fn describe(&self, schema: &mut Json, key: &str, node: &Node) {
        let is_said = |shape: &&Shape| !matches!(shape, Shape::Array | Shape::Table) && **shape != Shape::text();
        let is_value = node.is_secret() || node.names.is_empty();
        let wanted = node.shape.as_ref().filter(is_said).filter(|_| is_value);
        let wanted = wanted.map(|shape| format!("Must be {}.", shape.wanted()));
        let said = self.reference.description(key).map(str::to_owned);
        let description = said.into_iter().chain(wanted).collect::<Vec<_>>().join("\n\n");
        if !description.is_empty() {
            schema["description"] = description.into();
        }
        if let Some(default) = self.defaults.get(key) {
            schema["default"] = json_of(default);
        }
        if let Some(example) = self.reference.example_value(key) {
            schema["examples"] = json!([json_of(example)]);
        }
    }
}
