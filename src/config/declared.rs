//! Every key that the relay reads, with what may stand there: found by reading a configuration that has one of each optional table.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::Need;
use super::flat::{PLACES, Segment, defaults, parse, segments};
use super::origins::Origins;
use super::read::Reader;
use super::shape::Shape;

/// One of each table that the defaults do not have. What is wrong in it does not matter: its keys are read all the same.
const OPTIONAL_TABLES: &str = r#"
rules = [{}]
server.tls.certificates = [{}]
kafka.properties.any = ""
topics.settings.any = ""
topics.actions.any = ""
[[apps]]
secret_keys = [{}]
livechat.install = {}
livechat.webhooks = [{}]
[[apps]]
[apps.secret_keys]
directory = ""
not_before.any = ""
not_after.any = ""
"#;

/// A key with what may stand there and below it.
#[derive(Debug, Default)]
pub struct Node {
    pub shape: Option<Shape>,
    pub names: BTreeMap<String, Node>,
    /// What each element of an array has.
    pub elements: Option<Box<Node>>,
}

/// The root of all keys.
pub fn declared() -> &'static Node {
    static DECLARED: LazyLock<Node> = LazyLock::new(|| {
        let (optional, _) = parse(OPTIONAL_TABLES, |_| false).expect("TOML, as unit tests show");
        let values = defaults().into_iter().chain(optional).collect();
        let mut reader = Reader::of_values(values, Origins::default(), BTreeMap::new(), Need::Settings);
        super::build(&mut reader);
        let mut root = Node::default();
        for (key, shape) in reader.asked() {
            let node = segments(key).into_iter().fold(&mut root, |node, segment| match segment {
                Segment::Name(name) => node.names.entry(name).or_default(),
                Segment::Index(_) => &mut **node.elements.get_or_insert_default(),
            });
            node.shape = Some(shape.clone());
        }
        root
    });
    &DECLARED
}

/// The name that stands for all names of a table whose names are not ours.
pub const ANY: &str = "any";

impl Node {
    fn find(&self, key: &[Segment]) -> Option<&Node> {
        key.iter().try_fold(self, |node, segment| match segment {
            Segment::Name(_) if node.is_open() => node.names.get(ANY),
            Segment::Name(name) => node.names.get(name),
            Segment::Index(_) => node.elements.as_deref(),
        })
    }

    /// What may stand at a key, where the relay reads it.
    pub fn shape(&self, key: &str) -> Option<&Shape> {
        self.find(&segments(key))?.shape.as_ref()
    }

    /// Whether a secret is what a key is for: the secret itself stands there, or, in a table, where it is, and maybe more, such as its name.
    pub fn has_secret(&self, key: &[Segment]) -> bool {
        self.find(key).is_some_and(Node::has_own_secret)
    }

    /// As `has_secret`, and nothing more.
    pub fn is_only_secret(&self, key: &[Segment]) -> bool {
        self.find(key).is_some_and(Node::is_secret)
    }

    /// Whether a key somewhere has this as its last name.
    pub fn has_name(&self, name: &str) -> bool {
        let mut below = self.names.values().chain(self.elements.as_deref());
        self.names.contains_key(name) || below.any(|node| node.has_name(name))
    }

    /// Whether its names are not ours.
    pub fn is_open(&self) -> bool {
        self.shape == Some(Shape::Table)
    }

    /// Whether a secret, or where it stands, is all that may stand here.
    pub fn is_secret(&self) -> bool {
        self.has_own_secret() && self.names.keys().all(|name| PLACES.contains(&name.as_str()))
    }

    fn has_own_secret(&self) -> bool {
        matches!(self.shape, Some(Shape::Secret | Shape::Property))
    }
}
