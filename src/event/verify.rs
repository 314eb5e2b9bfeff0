//! [`Delivery`] → [`Verified`]: the secret key is compared with every key of the app, and is gone from then on.

use std::borrow::Cow;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};

use super::actions::Action;
use super::pointers::Found;
use super::{Delivery, Rejection, json};

/// The active secret keys of an app, by name. Several, because the only way to change the key of a LiveChat webhook is
/// to register it anew, and meanwhile both keys arrive. Keeps digests, so that no key can leak from here.
pub struct Keyring {
    keys: Vec<Key>,
}

struct Key {
    name: String,
    digest: [u8; 32],
}

impl Keyring {
    /// A ring of named keys. An empty ring verifies nothing: it stands for the unknown app.
    pub fn new<'k>(keys: impl IntoIterator<Item = (String, &'k SecretString)>) -> Self {
        let key = |(name, secret): (String, &SecretString)| Key { name, digest: digest(secret.expose_secret()) };
        Self { keys: keys.into_iter().map(key).collect() }
    }

    /// The names of the keys, by their places.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.name.as_str())
    }

    /// Whether `delivered` is one of the keys.
    pub fn fits(&self, delivered: &str) -> bool {
        self.find(delivered).is_some()
    }

    /// The place in the ring of the key that fits. Compares with every key, whether one has matched or not, and digests rather
    /// than texts: neither a key's length nor its place shows in the time that this takes.
    fn find(&self, delivered: &str) -> Option<usize> {
        let delivered = digest(delivered);
        let mut found = u64::MAX;
        for (place, key) in self.keys.iter().enumerate() {
            found.conditional_assign(&(place as u64), key.digest.ct_eq(&delivered));
        }
        usize::try_from(found).ok().filter(|place| *place < self.keys.len())
    }
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// A webhook whose sender knew a secret key of the app. [`verify`] is its only maker; the key is no part of it.
pub struct Verified<'a> {
    /// The delivered object without its secret key: the bytes before and after it.
    pub(super) data: [&'a str; 2],
    pub(super) action: Cow<'a, str>,
    pub(super) known: Option<&'static Action>,
    pub(super) payload: &'a str,
    pub(super) found: Found<'a>,
    pub(super) webhook_id: Option<&'a str>,
    pub(super) organization_id: Option<&'a str>,
    pub(super) license_id: Option<&'a str>,
    pub(super) additional_data: Option<&'a str>,
}

/// Checks the secret key; answers the place of the key that fitted, too, as [`Keyring::names`] has it.
///
/// # Errors
/// [`Rejection::Unauthorized`] when the key is missing, no string, or none of the ring's.
pub fn verify<'a>(delivery: Delivery<'a>, keyring: &Keyring) -> Result<(Verified<'a>, usize), Rejection> {
    let (secret, cut) = delivery.secret.ok_or(Rejection::Unauthorized)?;
    let secret = json::string(secret).ok_or(Rejection::Unauthorized)?;
    let key = keyring.find(&secret).ok_or(Rejection::Unauthorized)?;
    let verified = Verified {
        data: [&delivery.body[..cut.start], &delivery.body[cut.end..]],
        action: delivery.action,
        known: delivery.known,
        payload: delivery.payload,
        found: delivery.found,
        webhook_id: delivery.webhook_id,
        organization_id: delivery.organization_id,
        license_id: delivery.license_id,
        additional_data: delivery.additional_data,
    };
    Ok((verified, key))
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
        Some((verified.data.concat(), keyring.names().nth(key)?.to_owned()))
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
