//! [`Delivery`] → [`Verified`]: compares the secret key with the app's keys. Nothing after this step has the secret key.

use std::sync::atomic::{AtomicU64, Ordering};

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use super::receive::{Webhook, receive_app_webhook};
use super::{Delivery, Rejection, json};

/// The active secret keys of an app. There are several while a key is being changed: that takes a new registration at LiveChat,
/// and until the old one is removed, webhooks arrive with both keys.
pub struct Keyring {
    keys: Vec<Key>,
}

/// A secret key. Only its digest is kept, so that the key cannot leak from here.
pub struct Key {
    name: String,
    digest: [u8; 32],
    uses: AtomicU64,
}

impl Keyring {
    /// A keyring of named keys. One without keys verifies nothing.
    pub fn new<'k>(keys: impl IntoIterator<Item = (String, &'k SecretString)>) -> Self {
        let key = |(name, secret): (String, &SecretString)| Key {
            name,
            digest: digest(secret.expose_secret()),
            uses: AtomicU64::new(0),
        };
        Self { keys: keys.into_iter().map(key).collect() }
    }

    /// The keys, in the order in which they were given.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// Whether a text is one of the keys, wherever it stands: then it may not be shown.
    pub fn has(&self, text: &str) -> bool {
        self.find(text).is_some()
    }

    /// The key that equals `delivered`. Compares digests, and with every key even after a match, so that the time shows neither
    /// the length of a key nor its position.
    fn find(&self, delivered: &str) -> Option<&Key> {
        let delivered = digest(delivered);
        let mut found = u64::MAX;
        for (i, key) in self.keys.iter().enumerate() {
            found.conditional_assign(&(i as u64), key.digest.ct_eq(&delivered));
        }
        self.keys.get(usize::try_from(found).ok()?)
    }
}

impl Key {
    /// The name that it has in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts a webhook that this key has verified.
    pub fn count_use(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    /// How many webhooks this key has verified.
    pub fn uses(&self) -> u64 {
        self.uses.load(Ordering::Relaxed)
    }
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// A webhook whose sender knows a secret key of the app, or the token of App Webhooks. Only this file makes one. It does not contain the
/// key.
pub struct Verified<'a>(Webhook<'a>);

impl<'a> Verified<'a> {
    pub(super) fn into_webhook(self) -> Webhook<'a> {
        self.0
    }
}

/// Checks the secret key; also returns which of the app's keys it is.
///
/// # Errors
/// [`Rejection::Unauthorized`] when `secret_key` is missing, not a string, or not one of the keys.
pub fn verify<'a, 'k>(delivery: Delivery<'a>, keyring: &'k Keyring) -> Result<(Verified<'a>, &'k Key), Rejection> {
    let secret_key = delivery.secret_key.and_then(json::string).ok_or(Rejection::Unauthorized)?;
    let key = keyring.find(&secret_key).ok_or(Rejection::Unauthorized)?;
    Ok((Verified(delivery.webhook), key))
}

/// Checks the token in the path that an App Webhook was sent to, then reads its body, which has no secret key.
///
/// # Errors
/// [`Rejection::Unauthorized`] when the token is not one of the keys; another [`Rejection`] when the body is not a JSON object
/// with an `event` and a `payload`, or has a member twice.
pub fn verify_app_webhook<'a, 'k>(
    token: &str,
    body: &'a [u8],
    keyring: &'k Keyring,
) -> Result<(Verified<'a>, &'k Key), Rejection> {
    let key = keyring.find(token).ok_or(Rejection::Unauthorized)?;
    Ok((Verified(receive_app_webhook(body)?), key))
}

#[cfg(test)]
mod tests {
    use super::super::receive::receive;
    use super::*;

    fn ring(keys: &[(&str, &str)]) -> Keyring {
        let keys: Vec<_> = keys.iter().map(|(name, key)| (name.to_string(), SecretString::from(*key))).collect();
        Keyring::new(keys.iter().map(|(name, key)| (name.clone(), key)))
    }

    fn check(body: &str, keyring: &Keyring) -> Option<(String, String)> {
        let delivery = receive(body.as_bytes()).expect("well-formed");
        let (verified, key) = verify(delivery, keyring).ok()?;
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
            verify(receive(body).expect("well-formed"), &rings[0]).expect("verified").1.count_use();
        }
        verify_app_webhook("k2", br#"{"event":"e","payload":{}}"#, &rings[1]).expect("verified").1.count_use();
        let uses = rings.iter().flat_map(Keyring::keys).map(Key::uses);
        assert_eq!(uses.collect::<Vec<_>>(), [0, 3, 1]);
    }

    #[test]
    fn an_app_webhook_is_verified_by_its_token_before_its_body_is_read() {
        let keyring = ring(&[("path", "token")]);
        let why = |token: &str, body: &str| verify_app_webhook(token, body.as_bytes(), &keyring).err();
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
