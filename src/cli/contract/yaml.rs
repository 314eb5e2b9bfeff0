//! JSON as YAML that people can read: as much of YAML as that takes. Texts are quoted as in JSON, which is YAML, too.

use serde_json::Value;

/// A document with a newline at its end.
pub fn text(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text
}

/// Lines of an object or a list at `indent`; each ends with a newline.
fn write(value: &Value, indent: usize, to: &mut String) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            to.push_str(&" ".repeat(indent));
            to.push_str(&key(name));
            to.push(':');
            after(value, indent + 2, to);
        }),
        Value::Array(items) => items.iter().for_each(|item| {
            let mut lines = String::new();
            after(item, indent + 2, &mut lines);
            to.push_str(&" ".repeat(indent));
            to.push_str("- ");
            to.push_str(lines.trim_start());
        }),
        scalar => after(scalar, indent, to),
    }
}

/// What stands after `name:` or `-`: on the same line where it is short enough, else below.
fn after(value: &Value, indent: usize, to: &mut String) {
    let is_nested = match value {
        Value::Object(members) => !members.is_empty(),
        Value::Array(items) => items.iter().any(|item| item.is_object() || item.is_array()),
        _ => false,
    };
    if is_nested {
        to.push('\n');
        write(value, indent, to);
    } else {
        to.push_str(&format!(" {value}\n"));
    }
}

fn key(name: &str) -> String {
    let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_$.-/".contains(&b));
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '$');
    let is_word = matches!(name, "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n"); // not texts to YAML
    if is_plain && begins && !is_word { name.to_owned() } else { Value::from(name).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_lists_and_texts_become_the_yaml_that_means_the_same() {
        let json = serde_json::json!({
            "a": { "$ref": "#/b", "true": "yes: \"no\"", "8": [] },
            "list": [{ "x": 1, "ys": [[2]] }, "z"],
            "short": ["p", "q"],
            "void": {},
        });
        let yaml = concat!(
            "a:\n  $ref: \"#/b\"\n  \"8\": []\n  \"true\": \"yes: \\\"no\\\"\"\n",
            "list:\n  - x: 1\n    ys:\n      - [2]\n  - \"z\"\n",
            "short: [\"p\",\"q\"]\n",
            "void: {}\n"
        );
        assert_eq!(text(&json), yaml);
    }
}
