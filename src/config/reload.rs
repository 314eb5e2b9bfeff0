//! A running process reads its configuration again: what it can apply is in the new [`Config`], what needs a restart keeps its running
//! value there and is named, and a mistake leaves all as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::mem::take;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use toml::Value;

use super::flat::Values;
use super::read::Reader;
use super::{Config, Mistakes, Need, build};

/// When a key takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Reload,
    Restart,
}

/// Every key, or the table that it is in. A test holds it against `config/default.toml`, so that each new key is decided on.
const EFFECTS: [(&str, Effect); 59] = {
    use Effect::{Reload, Restart};
    [
        // A socket is bound once.
        ("server.listen", Restart),
        ("server.backlog", Restart),
        ("admin.listen", Restart),
        ("server.plain_listen", Restart),
        ("admin.probes_listen", Restart),
        // One task orders, with one cache.
        ("server.tls.acme", Restart),
        ("control", Restart),
        // librdkafka takes its configuration when a client is made; the largest record follows the largest body.
        ("kafka", Restart),
        ("server.body_bytes_max", Restart),
        // The dead letters' topic, which replay and control socket know.
        ("topics.prefix", Restart),
        ("spool", Restart),
        ("log.format", Restart),
        ("server.body_timeout", Reload),
        ("server.header_bytes_max", Reload),
        ("server.header_timeout", Reload),
        ("server.keepalive_timeout", Reload),
        ("server.write_timeout", Reload),
        ("server.connections_max", Reload),
        ("server.eviction_grace", Reload),
        ("server.streams_max", Reload),
        ("server.window_bytes", Reload),
        ("server.bytes_in_flight_max", Reload),
        ("server.large_bytes_in_flight_max", Reload),
        ("server.response_deadline", Reload),
        ("server.retry_after", Reload),
        ("server.drain_delay", Reload),
        ("server.drain_timeout", Reload),
        ("server.linger_timeout", Reload),
        ("admin.connections_max", Reload),
        ("admin.streams_max", Reload),
        ("admin.connection_timeout", Reload),
        ("topics.create", Reload),
        ("topics.partitions", Reload),
        ("topics.replication", Reload),
        ("topics.check_interval", Reload),
        ("topics.settings", Reload),
        ("topics.actions", Reload),
        ("topics.key", Reload),
        ("topics.key_secret", Reload),
        ("retries.window", Reload),
        ("retries.entries_max", Reload),
        ("events.initial", Reload),
        ("events.mode", Reload),
        ("log.filter", Reload),
        ("log.temporary_max", Reload),
        ("reload.check_interval", Reload),
        ("reload.timeout", Reload),
        ("server.tls", Reload),
        ("server.client_address", Reload),
        ("server.trusted_proxies", Reload),
        ("server.proxy_header_bytes_max", Reload),
        ("server.client_networks", Reload),
        ("server.failed_verifications", Reload),
        ("admin.tls", Reload),
        ("admin.token", Reload),
        ("rules", Reload),
        ("app_webhooks", Reload),
        ("apps", Reload),
        ("livechat", Reload),
    ]
};

/// Whether a key is this one, or in this table.
fn is_of(key: &str, table: &str) -> bool {
    key.strip_prefix(table).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn effect(key: &str) -> Option<Effect> {
    EFFECTS.iter().find(|(table, _)| is_of(key, table)).map(|(_, effect)| *effect)
}

/// Whether a running process keeps the value that it has, whatever else has changed.
fn needs_restart(key: &str) -> bool {
    effect(key) != Some(Effect::Reload)
}

const SERVER_TLS: &str = "server.tls";
const ADMIN_TLS: &str = "admin.tls";

/// What a running process keeps: what needs a restart, and the whole table of a listener that would begin or cease to speak TLS. Ports
/// and ACME, which belong to such a change, wait for a restart, too: a half of it would lose all webhooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    server_tls: bool,
    admin_tls: bool,
}

impl Kept {
    fn new(running: &Config, new: &Config) -> Self {
        let differs = |tls: fn(&Config) -> bool| tls(running) != tls(new);
        Self {
            server_tls: differs(|config| config.server.listener.tls.is_some()),
            admin_tls: differs(|config| config.admin.tls.is_some()),
        }
    }

    pub fn has(self, key: &str) -> bool {
        needs_restart(key) || self.table(key).is_some()
    }

    /// The table that is kept as a whole.
    fn table(self, key: &str) -> Option<&'static str> {
        let tables = [(SERVER_TLS, self.server_tls), (ADMIN_TLS, self.admin_tls)];
        tables.into_iter().find(|(table, is_kept)| *is_kept && is_of(key, table)).map(|(table, _)| table)
    }
}

/// Where a configuration was read from, and digests of all that stood there: no secret stands in them.
#[derive(Default)]
pub struct Sources {
    pub file: Option<PathBuf>,
    pub environment: BTreeMap<OsString, OsString>,
    pub digests: Digests,
    /// The values that a running process keeps, or may have to.
    kept: Values,
}

type Digest = [u8; 32];

/// By key, and, for what stands in a file that the key names, the file's path. Equal where nothing has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digests(BTreeMap<(String, PathBuf), Digest>);

impl Sources {
    pub fn new(
        file: Option<PathBuf>,
        environment: BTreeMap<OsString, OsString>,
        values: &Values,
        files: BTreeMap<(String, PathBuf), Digest>,
    ) -> Self {
        let mut digests: BTreeMap<_, _> =
            files.into_iter().map(|((key, path), digest)| ((named(&key, values), path), digest)).collect();
        let mut orders: BTreeMap<&str, String> = BTreeMap::new();
        for (key, value) in values {
            digests.insert((named(key, values), PathBuf::new()), digest(value.to_string().as_bytes()));
            if let Some((array, _)) = key.strip_suffix("].name").and_then(|element| element.rsplit_once('[')) {
                orders.entry(array).or_default().push_str(&format!("{value}\n"));
            }
        }
        for (array, names) in orders {
            digests.insert((named(array, values), PathBuf::new()), digest(names.as_bytes()));
        }
        let kept = values.iter().filter(|(key, _)| Kept { server_tls: true, admin_tls: true }.has(key));
        let kept = kept.map(|(key, value)| (key.clone(), value.clone())).collect();
        Self { file, environment, digests: Digests(digests), kept }
    }

    /// Where a secret stands, for people: the file, where it was read, else the key that says where.
    pub fn place(&self, key: &str) -> Option<String> {
        let is_place = |(of, _): &&(String, PathBuf)| of.strip_prefix(key).is_some_and(|rest| !rest.contains('['));
        let places: Vec<_> = self.digests.0.keys().filter(is_place).collect();
        let file = places.iter().find(|(_, path)| !path.as_os_str().is_empty());
        file.map(|(_, path)| format!("the file {}", path.display())).or_else(|| Some(places.first()?.0.clone()))
    }

    /// New values, but what is kept as it is here.
    fn keeping(&self, kept: Kept, new: &Values) -> Values {
        let live = new.iter().filter(|(key, _)| !kept.has(key));
        let kept = self.kept.iter().filter(|(key, _)| kept.has(key));
        live.chain(kept).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

pub fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// The key with the names of array elements instead of their numbers, where they have one: `apps[sales].secret_keys[2026-11].file`. So what
/// is inserted before them does not change it.
fn named(key: &str, values: &Values) -> String {
    let (mut named, mut from) = (String::new(), 0);
    for (close, _) in key.match_indices(']') {
        let Some(open) = key[..close].rfind('[').filter(|open| *open >= from) else { continue };
        let name = values.get(&format!("{}.name", &key[..=close])).and_then(Value::as_str);
        named.push_str(&key[from..=open]);
        named.push_str(name.unwrap_or(&key[open + 1..close]));
        named.push(']');
        from = close + 1;
    }
    named + &key[from..]
}

impl Digests {
    /// The keys that differ, sorted; of an element of an array that only one of the two has, the element alone.
    pub fn differences(&self, other: &Self) -> BTreeSet<String> {
        let has = |digests: &Self, key: &str| digests.0.contains_key(&(key.to_owned(), PathBuf::new()));
        let shortened = |key: &str| {
            let elements = key.match_indices(']').map(|(close, _)| &key[..=close]);
            let is_of_one = |element: &&str| {
                let name = format!("{element}.name");
                has(self, &name) != has(other, &name)
            };
            elements.into_iter().find(is_of_one).unwrap_or(key).to_owned()
        };
        let keys: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let differ = keys.into_iter().filter(|key| self.0.get(key) != other.0.get(key));
        let mut found: BTreeSet<String> = differ.map(|(key, _)| shortened(key)).collect();
        // The order of an array is said only where nothing else of it has changed.
        let all = found.clone();
        found.retain(|key| !all.iter().any(|more| more.strip_prefix(key).is_some_and(|rest| rest.starts_with('['))));
        found
    }

    /// These, but what is kept as it is in `running`.
    fn keeping(self, kept: Kept, running: &Self) -> Self {
        let live = self.0.into_iter().filter(|((key, _), _)| !kept.has(key));
        let kept = running.0.iter().filter(|((key, _), _)| kept.has(key));
        Self(live.chain(kept.map(|(key, digest)| (key.clone(), *digest))).collect())
    }
}

/// A configuration that was read again.
pub struct Reloaded {
    /// What the process is to run with.
    pub config: Config,
    /// The keys that differ from those of the running process and that it can apply.
    pub changed: Vec<String>,
    /// The keys that differ, and need a restart.
    pub needs_restart: Vec<String>,
    /// All that was found, what needs a restart included.
    pub found: Digests,
}

impl Config {
    /// The warnings that `former` did not have.
    pub fn new_warnings(&self, former: &Self) -> Vec<String> {
        self.warnings.iter().filter(|warning| !former.warnings.contains(warning)).cloned().collect()
    }

    /// Reads the sources of this configuration again. Blocks for as long as their file systems do.
    ///
    /// # Errors
    /// [`Mistakes`], as at a start, or because what is new does not agree with what only a restart changes.
    pub fn reload(&self) -> Result<Reloaded, Mistakes> {
        let Sources { file, environment, digests, .. } = &self.sources;
        let reader = Reader::new(file.as_deref(), environment.clone(), Need::Everything)?;
        let (values, origins) = (reader.values().clone(), reader.origins().clone());
        let mut config = Self::read(reader)?;
        if let (Some(name), 1, true) =
            (self.policy.apps.keys().next(), self.policy.apps.len(), config.policy.has_several_apps())
        {
            let why = format!("webhooks at /webhooks are answered 404 from now on; register /webhooks/{name}");
            config.warnings.push(format!("apps: there are several now: {why}"));
        }
        let found = config.sources.digests.clone();
        let differences = digests.differences(&found);
        if differences.is_empty() {
            return Ok(Reloaded { config, changed: Vec::new(), needs_restart: Vec::new(), found });
        }
        let values = |kept| self.sources.keeping(kept, &values);
        let reader = |values, need| Reader::of_values(values, origins.clone(), environment.clone(), need);
        // Whether there is TLS depends on what is kept, too: ACME.
        let kept = Kept::new(self, &build(&mut reader(values(Kept::default()), Need::Settings)));
        let (mut needs_restart, changed): (Vec<_>, Vec<_>) = differences.into_iter().partition(|key| kept.has(key));
        let whole_table = |key: &mut String| *key = kept.table(key).map_or_else(|| take(key), str::to_owned);
        needs_restart.iter_mut().for_each(whole_table);
        needs_restart.dedup(); // they are sorted
        if needs_restart.is_empty() {
            return Ok(Reloaded { config, changed, needs_restart, found });
        }
        let live = Self::read(reader(values(kept), Need::Live(kept)));
        let mut live = live.map_err(|mistakes| mistakes.before_restart(&needs_restart))?;
        live.sources.digests = live.sources.digests.keeping(kept, digests);
        if kept.server_tls {
            live.server.listener.tls.clone_from(&self.server.listener.tls);
        }
        if kept.admin_tls {
            live.admin.tls.clone_from(&self.admin.tls);
        }
        let config = Self { kafka: self.kafka.clone(), warnings: config.warnings, ..live };
        Ok(Reloaded { config, changed, needs_restart, found })
    }
}

impl Mistakes {
    fn before_restart(self, needs_restart: &[String]) -> Self {
        let keys = needs_restart.join(", ");
        let lines = self.lines.into_iter();
        let lines = lines.map(|line| format!("{line} (only a restart changes {keys})"));
        Self { lines: lines.collect(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use secrecy::ExposeSecret as _;

    use super::super::DEFAULTS;
    use super::super::flat::flat;
    use super::*;
    use crate::http::tls::certificate;

    /// A configuration file and the secrets that it names.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().expect("a directory"));
            place.write("one", "the first secret key");
            place.write("password", "a password");
            place
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).display().to_string()
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.0.path().join(name), text).expect("written");
        }

        /// Writes a file with this text, an app `one`, and more at its end.
        fn configure(&self, more: &str) {
            let properties =
                format!("[kafka.properties]\n\"sasl.password\" = {{ file = {:?} }}", self.path("password"));
            let app =
                format!("[[apps]]\nname = \"one\"\nsecret_keys = [{{ name = \"k\", file = {:?} }}]", self.path("one"));
            self.write("relay.toml", &format!("{more}\n{properties}\n{app}\n"));
        }

        fn load(&self, environment: &[(&str, &str)]) -> Config {
            let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
            let loaded = Config::load(Some(Path::new(&self.path("relay.toml"))), environment, Need::Everything);
            loaded.unwrap_or_else(|mistakes| panic!("{mistakes}"))
        }
    }

    fn reload(config: &Config) -> Reloaded {
        config.reload().unwrap_or_else(|mistakes| panic!("{mistakes}"))
    }

    #[test]
    fn every_key_is_live_or_needs_a_restart() {
        let defaults = flat(toml::from_str(DEFAULTS).expect("TOML"));
        let absent = [
            "apps[0].secret_keys[0].file",
            "rules[0].name",
            "app_webhooks.token",
            "topics.key_secret",
            "spool.directory",
            "server.plain_listen",
            "admin.probes_listen",
            "admin.tls.certificate",
            "admin.token",
        ];
        let keys: Vec<_> = defaults.into_keys().chain(absent.map(str::to_owned)).collect();
        let undecided: Vec<_> = keys.iter().filter(|key| effect(key).is_none()).collect();
        assert!(undecided.is_empty(), "in no row of EFFECTS: {undecided:?}");
        let is_used = |table: &&(&str, Effect)| keys.iter().any(|key| key.starts_with(table.0));
        assert_eq!(EFFECTS.iter().find(|row| !is_used(row)), None, "a row of no key");
        let twice = |key: &&String| EFFECTS.iter().filter(|(table, _)| *table == key.as_str()).count() > 1;
        assert_eq!(keys.iter().find(twice), None);
        assert!(needs_restart("topics.keys") && needs_restart("of_another_version"));
    }

    #[test]
    fn the_reference_names_each_key_that_needs_a_restart_and_no_other() {
        let (_, rest) = DEFAULTS.split_once("except for these keys:").expect("the sentence");
        let (sentence, _) = rest.split_once("; and whether").expect("its end");
        let words = sentence.split(|c: char| !(c.is_ascii_alphanumeric() || "._".contains(c)));
        let named: BTreeSet<_> = words.filter(|word| !["", "and", "all", "of"].contains(word)).collect();
        let rows = EFFECTS.iter().filter(|(_, effect)| *effect == Effect::Restart).map(|(key, _)| *key);
        assert_eq!(named, rows.chain(["kafka.properties"]).collect());
    }

    #[test]
    fn a_reload_applies_what_is_live_and_names_what_needs_a_restart() {
        let place = Place::new();
        place.configure("log.filter = \"warn\"\nkafka.brokers = \"a:1\"\nserver.retry_after = \"7s\"");
        let running = place.load(&[]);
        place.configure("log.filter = \"debug\"\nkafka.brokers = \"b:1\"\nspool.directory = \"s\"");
        let new = reload(&running);
        assert_eq!(new.changed, ["log.filter", "server.retry_after"]);
        assert_eq!(new.needs_restart, ["kafka.brokers", "spool.directory"]);
        let Config { log, kafka, spool, server, .. } = &new.config;
        assert_eq!((log.filter.as_str(), kafka.brokers.as_str(), spool.is_none()), ("debug", "a:1", true));
        assert_eq!(kafka.properties[0].1.expose_secret(), "a password");
        assert_eq!(server.webhooks.retry_after, Duration::from_secs(5), "the default, as the key has gone");
        // What is not applied is found by each reload, until it is as it was.
        let again = reload(&new.config);
        assert_eq!((again.changed.len(), again.needs_restart), (0, new.needs_restart));
        assert!(again.found == new.found);
        place.configure("log.filter = \"debug\"\nkafka.brokers = \"a:1\"");
        let back = reload(&new.config);
        assert!(back.changed.is_empty() && back.needs_restart.is_empty());
        assert!(back.found == new.config.sources.digests);
    }

    #[test]
    fn whether_a_listener_has_tls_needs_a_restart_with_all_that_belongs_to_it() {
        let place = Place::new();
        let (chain, key) = certificate::tests::issue(&["hooks.example.com"]);
        place.write("chain.pem", &chain);
        place.write("key.pem", &key);
        let pair = format!("certificate = {:?}, key = {:?}", place.path("chain.pem"), place.path("key.pem"));
        let files = format!("server.tls.certificates = [{{ {pair} }}]");
        let admin = format!("admin.tls = {{ {pair} }}\nadmin.probes_listen = \"0.0.0.0:9091\"");
        let acme = "server.tls.acme = { domains = [\"hooks.example.com\"], cache = \"acme\" }".to_owned();
        let behind_proxy = "server.listen = \"127.0.0.1:8080\"".to_owned();
        let https = format!("server.listen = \"0.0.0.0:443\"\nserver.plain_listen = \"127.0.0.1:8080\"\n{files}");
        let ports = ["server.listen", "server.plain_listen"].as_slice();
        let tls_of = |config: &Config| {
            let certificates = |tls: &Option<crate::http::tls::Config>| tls.as_ref().map(|tls| tls.certificates.len());
            [certificates(&config.server.listener.tls), certificates(&config.admin.tls)]
        };
        for (before, after, also, table) in [
            (&behind_proxy, &https, ports, SERVER_TLS),
            (&https, &behind_proxy, ports, SERVER_TLS),
            (&files, &acme, &[], SERVER_TLS),
            (&acme, &files, &["server.tls.acme.cache", "server.tls.acme.domains"], ""),
            (&behind_proxy, &format!("{behind_proxy}\n{admin}"), &["admin.probes_listen"], ADMIN_TLS),
            (&admin, &String::new(), &["admin.probes_listen"], ADMIN_TLS),
        ] {
            place.configure(before);
            let running = place.load(&[]);
            place.configure(&format!("log.filter = \"debug\"\n{after}"));
            let new = reload(&running);
            let mut expected: Vec<_> = also.iter().chain([&table]).filter(|key| !key.is_empty()).collect();
            expected.sort_unstable();
            assert_eq!(new.needs_restart.iter().collect::<Vec<_>>(), expected, "{before}\n{after}");
            assert_eq!(new.config.log.filter, "debug", "what does not belong to it is applied");
            let of = [&running, &new.config]
                .map(|Config { server: s, admin: a, .. }| [(s.listener.listen, s.listener.plain), (a.listen, a.plain)]);
            assert_eq!(of[0], of[1]);
            if table.is_empty() {
                assert_eq!(tls_of(&new.config), [Some(1), None], "the files serve beside ACME");
                continue;
            }
            assert_eq!(tls_of(&new.config), tls_of(&running), "{before}\n{after}");
            let again = reload(&new.config);
            assert_eq!((again.changed.len(), again.needs_restart), (0, new.needs_restart));
            place.configure(&format!("log.filter = \"debug\"\n{before}"));
            let back = reload(&new.config);
            assert!(back.changed.is_empty() && back.needs_restart.is_empty(), "{:?}", back.changed);
        }
        // The files of before may be gone.
        place.configure(&files);
        let running = place.load(&[]);
        std::fs::remove_file(place.path("chain.pem")).expect("removed");
        place.configure(&acme);
        assert_eq!(tls_of(&reload(&running).config), [Some(1), None]);
    }

    #[test]
    fn a_second_app_warns_of_webhooks_that_name_no_app() {
        let place = Place::new();
        place.configure("");
        let running = place.load(&[]);
        place.configure(
            "[[apps]]\nname = \"two\"\nsecret_keys = [{ name = \"k\", value = \"hunter2hunter2hunter2\" }]\n",
        );
        let both = reload(&running).config;
        let warnings = both.new_warnings(&running);
        assert!(warnings.len() == 1 && warnings[0].ends_with("register /webhooks/one"), "{warnings:?}");
        assert!(reload(&both).config.new_warnings(&both).is_empty(), "it was said");
    }

    #[test]
    fn the_content_of_a_file_counts_and_comments_and_blanks_do_not() {
        let place = Place::new();
        place.configure("");
        let running = place.load(&[]);
        place.configure("# a comment\n");
        assert!(reload(&running).found == running.sources.digests);
        place.write("one", "another secret key");
        place.write("password", "another password");
        let new = reload(&running);
        assert_eq!(new.changed, ["apps[one].secret_keys[k].file"]);
        assert_eq!(new.needs_restart, ["kafka.properties.\"sasl.password\".file"]);
        assert_eq!(new.config.kafka.properties[0].1.expose_secret(), "a password");
    }

    #[test]
    fn an_app_is_told_by_its_name_wherever_it_stands() {
        let app = |name: &str| {
            format!("[[apps]]\nname = \"{name}\"\nsecret_keys = [{{ name = \"k\", value = \"the key of {name}\" }}]\n")
        };
        let place = Place::new();
        place.configure("");
        let running = place.load(&[]);
        place.configure(&app("zero"));
        let two = reload(&running);
        assert_eq!(two.changed, ["apps[zero]"]);
        let more = std::fs::read_to_string(place.path("relay.toml")).expect("a file");
        place.write("relay.toml", &format!("{}{}", more.replace(&app("zero"), ""), app("zero")));
        let moved = reload(&two.config);
        assert_eq!(moved.changed, ["apps"], "their order");
        place.write("relay.toml", &format!("{}{}", more.replace(&app("zero"), ""), app("zero").replace("the", "a")));
        assert_eq!(reload(&moved.config).changed, ["apps[zero].secret_keys[k].value"]);
        place.configure("");
        assert_eq!(reload(&moved.config).changed, ["apps[zero]"]);
    }

    #[test]
    fn a_mistake_is_said_as_at_a_start_and_so_is_what_does_not_agree_with_the_running_values() {
        let place = Place::new();
        place.configure("");
        let running = place.load(&[("LIVECHAT_RELAY__LOG__FILTER", "warn")]);
        place.configure("log.filter = \"loud\"\nserver.retry_after = \"7s\"\n[server]\nretry_after = 7");
        assert!(running.reload().is_err_and(|mistakes| !mistakes.may_pass), "no TOML");
        place.configure("server.retry_after = 7\nserver.lisen = \"x\"");
        let lines = running.reload().err().expect("mistakes").without_places();
        assert!(lines.len() == 2 && lines[0].starts_with("server.retry_after: must be a duration"), "{lines:?}");
        place.configure("server.response_deadline = \"4s\"\nkafka.publish_deadline = \"1s\"");
        let lines = running.reload().err().expect("mistakes").without_places();
        let expected =
            "server.response_deadline: is shorter than server.body_timeout and kafka.publish_deadline together";
        assert!(lines.len() == 1 && lines[0].starts_with(expected), "{lines:?}");
        assert!(lines[0].ends_with("(only a restart changes kafka.publish_deadline)"));
        std::fs::remove_file(place.path("relay.toml")).expect("removed");
        assert!(running.reload().is_err_and(|mistakes| mistakes.may_pass));
        place.configure("log.filter = \"debug\"");
        let new = reload(&running);
        assert!(new.changed.is_empty() && new.config.log.filter == "warn", "the environment goes over the file");
    }

    #[test]
    fn a_file_that_only_a_restart_reads_may_be_gone_where_it_is_not_needed_any_more() {
        let place = Place::new();
        place.write("ca.pem", "a certificate");
        let ca = |name: &str| format!("kafka.properties.\"ssl.ca.location\" = {:?}", place.path(name));
        let configure = |name: &str| {
            let app = "[[apps]]\nname = \"one\"\nsecret_keys = [{ name = \"k\", value = \"the first secret key\" }]";
            place.write("relay.toml", &format!("{}\n{app}\n", ca(name)));
        };
        configure("ca.pem");
        let running = place.load(&[]);
        place.write("ca.pem", "another certificate");
        assert_eq!(reload(&running).needs_restart, ["kafka.properties.\"ssl.ca.location\""]);
        std::fs::rename(place.path("ca.pem"), place.path("new.pem")).expect("renamed");
        assert!(running.reload().is_err(), "it is needed");
        configure("new.pem");
        assert_eq!(reload(&running).needs_restart, ["kafka.properties.\"ssl.ca.location\""]);
    }
}
