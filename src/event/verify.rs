//! [`Delivery`] → [`Verified`]: compares the secret key with the app's keys, and looks whether it is valid at the time of receipt.
//! Nothing after this step has the secret key.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use super::actions::APP_INSTALLED;
use super::normalize::{Author, Origin};
use super::receive::{Webhook, receive_app_webhook};
use super::{Delivery, Rejection, json};

/// The secret keys of an app. There are several while a key is being changed: that takes a new registration at LiveChat,
/// and until the old one is removed, webhooks arrive with both keys.
#[derive(Clone, Default)]
pub struct Keyring {
    keys: Vec<Key>,
}

/// A secret key. Only its digest is kept, so that the key cannot leak from here.
#[derive(Clone)]
pub struct Key {
    name: String,
    digest: [u8; 32],
    validity: Validity,
    usage: Arc<Usage>,
}

/// When a key verifies webhooks: from `not_before` on, and no longer from `not_after` on; where a date is absent, without an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Validity {
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
}

impl Validity {
    pub fn covers(&self, time: Timestamp) -> bool {
        self.not_before.is_none_or(|from| from <= time) && self.not_after.is_none_or(|until| time < until)
    }
}

/// What is counted of a key. It outlives the keyring: see [`Keyring::inherit`].
#[derive(Default)]
struct Usage {
    uses: AtomicU64,
    /// Milliseconds since 1970; 0: never.
    last_ms: AtomicI64,
}

impl Keyring {
    /// A keyring of named keys that are always valid. One without keys verifies nothing.
    pub fn new<'k>(keys: impl IntoIterator<Item = (String, &'k SecretString)>) -> Self {
        Self::dated(keys.into_iter().map(|(name, secret)| (name, secret, Validity::default())))
    }

    /// As [`Keyring::new`], of keys that are valid for a time.
    pub fn dated<'k>(keys: impl IntoIterator<Item = (String, &'k SecretString, Validity)>) -> Self {
        let key = |(name, secret, validity): (String, &SecretString, Validity)| Key {
            name,
            digest: digest(secret.expose_secret()),
            validity,
            usage: Arc::default(),
        };
        Self { keys: keys.into_iter().map(key).collect() }
    }

    /// The keys, in the order in which they were given.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// Goes on with what `former` has counted of the keys that both have, by their names.
    pub fn inherit(&mut self, former: &Self) {
        for key in &mut self.keys {
            if let Some(same) = former.keys.iter().find(|same| same.name == key.name) {
                key.usage = Arc::clone(&same.usage);
            }
        }
    }

    /// The first time, from one time to another, at which no key is valid.
    pub fn uncovered(&self, from: Timestamp, to: Timestamp) -> Option<Timestamp> {
        // A gap begins at the start, or where a key ends.
        let ends = self.keys.iter().filter_map(|key| key.validity.not_after).filter(|end| (from..=to).contains(end));
        let is_uncovered = |time: &Timestamp| !self.keys.iter().any(|key| key.validity.covers(*time));
        ends.chain([from]).filter(is_uncovered).min()
    }

    /// Whether a text is one of the keys, wherever it stands: then it may not be shown.
    pub fn has(&self, text: &str) -> bool {
        find(self.keys.iter(), &digest(text)).is_some()
    }

    /// The key that equals `delivered`, if it is valid at `now`.
    fn find_valid(&self, delivered: &str, now: Timestamp) -> Result<&Key, Unverified<'_>> {
        let delivered = digest(delivered);
        let key = find(self.keys.iter(), &delivered).map(|i| &self.keys[i]);
        let rejection = match key.map(|key| (key, key.validity)) {
            Some((key, validity)) if validity.covers(now) => return Ok(key),
            Some((_, Validity { not_before: Some(from), .. })) if now < from => Rejection::NotYetValid,
            Some(_) => Rejection::Expired,
            None => Rejection::Unauthorized,
        };
        Err(Unverified { rejection, key, delivered })
    }
}

/// Which of the keys has the digest. Compares with every key even after a match, so that the time shows neither the length of a key nor its
/// position.
fn find<'k>(keys: impl Iterator<Item = &'k Key>, delivered: &[u8; 32]) -> Option<usize> {
    let mut found = u64::MAX;
    for (i, key) in keys.enumerate() {
        found.conditional_assign(&(i as u64), key.digest.ct_eq(delivered));
    }
    usize::try_from(found).ok().filter(|found| *found != usize::MAX)
}

impl Key {
    /// The name that it has in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Counts a webhook that this key has verified.
    pub fn count_use(&self, now: Timestamp) {
        self.usage.uses.fetch_add(1, Ordering::Relaxed);
        self.usage.last_ms.fetch_max(now.as_millisecond(), Ordering::Relaxed);
    }

    /// How many webhooks this key has verified.
    pub fn uses(&self) -> u64 {
        self.usage.uses.load(Ordering::Relaxed)
    }

    /// When it has verified the last one, in milliseconds since 1970; 0: it has verified none.
    pub fn last_use_ms(&self) -> i64 {
        self.usage.last_ms.load(Ordering::Relaxed)
    }
}

/// Why a webhook is not verified. All of it but the answer is for the operator: a stranger must not learn that a key is one.
pub struct Unverified<'k> {
    pub rejection: Rejection,
    /// The key that it has, where that is not valid at the time.
    pub key: Option<&'k Key>,
    /// The digest of the key that was delivered.
    delivered: [u8; 32],
}

/// So many keys of all apps a wrong key is compared with at most: it bounds what a stranger's webhook can cost.
const COMPARED_MAX: usize = 4096;

impl<'k> Unverified<'k> {
    /// The reason, and the key that was delivered with the name of its app, where it is one of `all` keys. `app` is the one that the path
    /// names, if there is such an app. The comparisons are the same for all reasons, so that the time tells a stranger none of them.
    pub fn diagnose(
        self,
        app: Option<&'k str>,
        all: impl Iterator<Item = (&'k str, &'k Key)>,
    ) -> (Rejection, Option<(&'k str, &'k Key)>) {
        let all: Vec<_> = all.take(COMPARED_MAX).collect();
        let found = find(all.iter().map(|(_, key)| *key), &self.delivered).map(|i| all[i]);
        match (app, self.rejection, self.key) {
            (None, ..) => (Rejection::UnknownApp, found),
            (Some(app), rejection, Some(key)) => (rejection, Some((app, key))),
            (Some(_), Rejection::Unauthorized, None) if found.is_some() => (Rejection::OtherApp, found),
            (Some(_), rejection, None) => (rejection, None),
        }
    }
}

impl From<Rejection> for Unverified<'_> {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, key: None, delivered: digest("") }
    }
}

/// A secret that is only compared, such as the token that a client of the admin listener has to know. As of a key, only its digest is kept.
#[derive(Clone)]
pub struct Token([u8; 32]);

/// In constant time.
impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Token {}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    pub fn new(secret: &SecretString) -> Self {
        Self(digest(secret.expose_secret()))
    }

    /// Compares in constant time.
    pub fn equals(&self, delivered: &str) -> bool {
        self.0.ct_eq(&digest(delivered)).into()
    }
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// A webhook whose sender knows a secret key of the app, or the token of App Webhooks; or one that the relay has made itself, as of an
/// installation that LiveChat has confirmed. Only this file makes one. It does not contain the key.
pub struct Verified<'a>(Webhook<'a>);

impl<'a> Verified<'a> {
    /// A webhook that the relay has made of what it trusts: of an event inside a verified webhook, or of LiveChat's archive.
    pub(crate) fn made(delivery: Delivery<'a>, origin: Origin, author: Option<Author>) -> Self {
        Self(Webhook { origin, author, ..delivery.webhook })
    }

    pub(super) fn webhook(&self) -> &Webhook<'a> {
        &self.0
    }

    pub(super) fn into_webhook(self) -> Webhook<'a> {
        self.0
    }
}

/// Checks the secret key; also returns which of the app's keys it is.
///
/// # Errors
/// [`Rejection::NoSecretKey`] when `secret_key` is missing or not a string, [`Rejection::Unauthorized`] when it is not one of the keys;
/// [`Rejection::Expired`] or [`Rejection::NotYetValid`] when it is one that is not valid at `now`.
pub fn verify<'a, 'k>(
    delivery: Delivery<'a>,
    keyring: &'k Keyring,
    now: Timestamp,
) -> Result<(Verified<'a>, &'k Key), Unverified<'k>> {
    let secret_key = delivery.secret_key.and_then(json::string).ok_or(Rejection::NoSecretKey)?;
    let key = keyring.find_valid(&secret_key, now)?;
    Ok((Verified(delivery.webhook), key))
}

/// Checks the token in the path that an App Webhook was sent to, then reads its body, which has no secret key.
///
/// # Errors
/// As [`verify`]; another [`Rejection`] when the body is not a JSON object with an `event` and a `payload`, or has a member twice.
pub fn verify_app_webhook<'a, 'k>(
    token: &str,
    body: &'a [u8],
    keyring: &'k Keyring,
    now: Timestamp,
) -> Result<(Verified<'a>, &'k Key), Unverified<'k>> {
    let key = keyring.find_valid(token, now)?;
    Ok((Verified(receive_app_webhook(body)?), key))
}

/// Reads an installation, which the relay has written itself after LiveChat has exchanged its code. It has the shape of an App Webhook, with
/// the `event` `installed`.
///
/// # Errors
/// As of [`verify_app_webhook`]'s body.
pub fn confirmed_installation(body: &[u8]) -> Result<Verified<'_>, Rejection> {
    Ok(Verified(Webhook { action: Some(&APP_INSTALLED), ..receive_app_webhook(body)? }))
}

#[cfg(test)]
mod tests {
    use super::super::receive::receive;
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn ring(keys: &[(&str, &str)]) -> Keyring {
        let keys: Vec<_> = keys.iter().map(|(name, key)| (name.to_string(), SecretString::from(*key))).collect();
        Keyring::new(keys.iter().map(|(name, key)| (name.clone(), key)))
    }

    fn check(body: &str, keyring: &Keyring) -> Option<(String, String)> {
        let delivery = receive(body.as_bytes()).expect("well-formed");
        let (verified, key) = verify(delivery, keyring, NOW).ok()?;
        Some((verified.into_webhook().data.concat(), key.name().to_owned()))
    }

    #[test]
    fn any_key_of_the_ring_verifies_and_is_named() {
        let keyring = ring(&[("old", "k1"), ("new", "k2")]);
        let body = |key: &str| format!(r#"{{"secret_key":"{key}","action":"a","payload":{{}}}}"#);
        assert_eq!(check(&body("k1"), &keyring).expect("verified").1, "old");
        assert_eq!(check(&body("k2"), &keyring).expect("verified").1, "new");
        assert_eq!(check(&body("\\u006b2"), &keyring).expect("the same key, escaped").1, "new");
        for wrong in ["k3", "", "k", "k11", "K1", "k1\\u0000", "\\ud800"] {
            assert!(check(&body(wrong), &keyring).is_none(), "{wrong}");
        }
        assert!(check(&body("k1"), &ring(&[])).is_none(), "an empty ring verifies nothing");
    }

    #[test]
    fn each_key_counts_its_own_uses() {
        // Names are for people: keys of two apps may share one, and so could an app's own.
        let rings = [ring(&[("path", "k1"), ("path", "k2")]), ring(&[("path", "k2")])];
        let body = br#"{"secret_key":"k2","action":"a","payload":{}}"#;
        for _ in 0..3 {
            let (_, key) = verify(receive(body).expect("well-formed"), &rings[0], NOW).ok().expect("verified");
            key.count_use(NOW);
        }
        let app_webhook = verify_app_webhook("k2", br#"{"event":"e","payload":{}}"#, &rings[1], NOW);
        app_webhook.ok().expect("verified").1.count_use(NOW);
        let uses = rings.iter().flat_map(Keyring::keys).map(Key::uses);
        assert_eq!(uses.collect::<Vec<_>>(), [0, 3, 1]);
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn dated(keys: &[(&str, Option<i64>, Option<i64>)]) -> Keyring {
        let secrets: Vec<_> = keys.iter().map(|(name, ..)| SecretString::from(*name)).collect();
        let validity =
            |from: Option<i64>, until: Option<i64>| Validity { not_before: from.map(at), not_after: until.map(at) };
        let keys = keys.iter().zip(&secrets);
        Keyring::dated(keys.map(|((name, from, until), secret)| (name.to_string(), secret, validity(*from, *until))))
    }

    #[test]
    fn a_key_verifies_from_its_first_moment_to_its_last_and_a_stranger_cannot_tell_it_from_a_wrong_one() {
        let keyring = dated(&[("old", None, Some(100)), ("new", Some(50), Some(200)), ("always", None, None)]);
        let verified = |key: &str, second: i64| {
            let body = format!(r#"{{"secret_key":"{key}","action":"a","payload":{{}}}}"#);
            match verify(receive(body.as_bytes()).expect("well-formed"), &keyring, at(second)) {
                Ok((_, key)) => Ok(key.name().to_owned()),
                Err(Unverified { rejection, key, .. }) => Err((rejection, key.map(|key| key.name().to_owned()))),
            }
        };
        let [expired, not_yet] = [Rejection::Expired, Rejection::NotYetValid]
            .map(|rejection| move |key: &str| Err((rejection, Some(key.to_owned()))));
        for (key, second, expected) in [
            ("old", -1, Ok("old".to_owned())),
            ("old", 99, Ok("old".to_owned())),
            ("old", 100, expired("old")),
            ("new", 49, not_yet("new")),
            ("new", 50, Ok("new".to_owned())),
            ("new", 199, Ok("new".to_owned())),
            ("new", 200, expired("new")),
            ("always", 1_000_000, Ok("always".to_owned())),
            ("wrong", 75, Err((Rejection::Unauthorized, None))),
        ] {
            assert_eq!(verified(key, second), expected, "{key} at {second}");
        }
    }

    #[test]
    fn the_operator_is_told_why_a_key_is_refused_and_the_sender_is_told_the_same_for_all_reasons() {
        let east = dated(&[("east-old", None, Some(100)), ("east-next", Some(200), None), ("east", None, None)]);
        let west = dated(&[("west", None, Some(100))]);
        let all = || {
            [("east", &east), ("west", &west)]
                .into_iter()
                .flat_map(|(app, ring)| ring.keys().map(move |key| (app, key)))
        };
        let unknown = ring(&[("", "no-one-has-it")]);
        let why = |app: Option<&'static str>, member: &str| {
            let body = format!(r#"{{{member}"action":"a","payload":{{}}}}"#);
            let ring = app.map_or(&unknown, |app| if app == "east" { &east } else { &west });
            let unverified =
                verify(receive(body.as_bytes()).expect("well-formed"), ring, at(150)).err().expect("refused");
            let (rejection, key) = unverified.diagnose(app, all());
            assert_eq!(rejection.answer(), (401, "unauthorized\n"));
            (rejection.label(), key.map(|(app, key)| format!("{app}/{}", key.name())))
        };
        let key = |text: &str| Some(text.to_owned());
        for (app, member, expected) in [
            (Some("east"), r#""secret_key":"wrong","#, ("unauthorized", None)),
            (Some("east"), "", ("no_secret_key", None)),
            (Some("east"), r#""secret_key":7,"#, ("no_secret_key", None)),
            (Some("east"), r#""secret_key":"east-old","#, ("expired", key("east/east-old"))),
            (Some("east"), r#""secret_key":"east-next","#, ("not_yet_valid", key("east/east-next"))),
            (Some("east"), r#""secret_key":"west","#, ("key_of_another_app", key("west/west"))),
            (Some("west"), r#""secret_key":"east","#, ("key_of_another_app", key("east/east"))),
            (None, r#""secret_key":"east","#, ("unknown_app", key("east/east"))),
            (None, r#""secret_key":"wrong","#, ("unknown_app", None)),
            (None, "", ("unknown_app", None)),
        ] {
            assert_eq!(why(app, member), expected, "{app:?} {member}");
        }
    }

    #[test]
    fn a_time_without_a_valid_key_is_found() {
        let two = dated(&[("old", None, Some(100)), ("new", Some(50), Some(200))]);
        let gap = dated(&[("old", None, Some(100)), ("new", Some(101), None)]);
        for (keyring, from, to, uncovered) in [
            (&two, 0, 199, None),
            (&two, 0, 200, Some(200)),
            (&two, 300, 400, Some(300)),
            (&gap, 0, 99, None),
            (&gap, 0, 1000, Some(100)),
            (&gap, 101, 1000, None),
            (&dated(&[("always", None, None), ("old", None, Some(5))]), 0, 1000, None),
            (&dated(&[]), 7, 7, Some(7)),
        ] {
            assert_eq!(keyring.uncovered(at(from), at(to)), uncovered.map(at), "{from} to {to}");
        }
    }

    #[test]
    fn what_was_counted_of_a_key_is_counted_on_by_the_next_keyring_that_has_it() {
        let former = ring(&[("old", "k1"), ("kept", "k2")]);
        former.keys().for_each(|key| key.count_use(at(5)));
        let mut next = ring(&[("kept", "k2"), ("new", "k3")]);
        next.inherit(&former);
        former.keys[1].count_use(at(4)); // by a request that is still under way
        let counted = next.keys().map(|key| (key.name(), key.uses(), key.last_use_ms()));
        assert_eq!(counted.collect::<Vec<_>>(), [("kept", 2, 5000), ("new", 0, 0)]);
    }

    #[test]
    fn an_app_webhook_is_verified_by_its_token_before_its_body_is_read() {
        let keyring = ring(&[("path", "token")]);
        let why = |token: &str, body: &str| {
            verify_app_webhook(token, body.as_bytes(), &keyring, NOW).err().map(|unverified| unverified.rejection)
        };
        assert_eq!(why("token", r#"{"event":"x","payload":{}}"#), None);
        for token in ["", "toke", "tokens", "TOKEN"] {
            assert_eq!(why(token, r#"{"event":"x","payload":{}}"#), Some(Rejection::Unauthorized), "{token}");
            assert_eq!(why(token, "no JSON"), Some(Rejection::Unauthorized), "{token}");
        }
        assert_eq!(why("token", "no JSON"), Some(Rejection::NotJson));
        assert_eq!(why("token", r#"{"payload":{}}"#), Some(Rejection::NoAction));
        assert_eq!(why("token", r#"{"event":"x"}"#), Some(Rejection::NoPayload));
        assert_eq!(why("token", r#"{"event":"x","payload":{},"event":"x"}"#), Some(Rejection::MemberTwice));
    }

    #[test]
    fn a_key_that_is_no_string_or_missing_is_refused() {
        let keyring = ring(&[("only", "1")]);
        for key in ["1", "null", "[\"1\"]", "{}", "true"] {
            assert!(
                check(&format!(r#"{{"secret_key":{key},"action":"a","payload":{{}}}}"#), &keyring).is_none(),
                "{key}"
            );
        }
        assert!(check(r#"{"action":"a","payload":{"secret_key":"1"}}"#, &keyring).is_none());
    }

    #[test]
    fn what_is_left_is_the_object_without_the_key_byte_for_byte() {
        let keyring = ring(&[("only", "k")]);
        for (body, data) in [
            (r#"{"secret_key":"k","action":"a","payload":{}}"#, r#"{"action":"a","payload":{}}"#),
            (r#"{"action":"a","secret_key":"k","payload":{}}"#, r#"{"action":"a","payload":{}}"#),
            (r#"{"action":"a","payload":{},"secret_key":"k"}"#, r#"{"action":"a","payload":{}}"#),
            (
                r#" { "action" : "a" , "secret_key" : "k" , "payload" : [ 1 ] } "#,
                r#"{ "action" : "a" , "payload" : [ 1 ] }"#,
            ),
            (r#"{ "action" : "a" , "payload":{ } , "secret_key" : "k" }"#, r#"{ "action" : "a" , "payload":{ } }"#),
            (r#"{"secret\u005fkey":"k","action":"a","payload":{}}"#, r#"{"action":"a","payload":{}}"#),
        ] {
            assert_eq!(check(body, &keyring).expect("verified").0, data);
        }
    }
}
