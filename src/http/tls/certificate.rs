//! A certificate with its key, read from PEM: for whom it is, until when, and what is wrong with the files, each with the remedy.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Certificates that end sooner than this are warned of.
const SOON_DAYS: i64 = 14;

const DAY_SECONDS: i64 = 24 * 3600;

/// A chain of certificates, the server's own first, and its key.
#[derive(Debug)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    /// Where it is from: a file's path, or the ACME directory.
    pub source: String,
    /// The DNS names and IP addresses that it is for, in lower case. Clients look at nothing else.
    pub names: Vec<String>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// Which of the two files is wrong, and why: what follows the file's name in a sentence.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    Certificate(String),
    Key(String),
}

impl Certificate {
    /// Reads a chain and its key. Both may stand in one file.
    ///
    /// # Errors
    /// What is wrong with which file, and what to do. No text has any of a file's content.
    pub fn read(source: &str, chain: &[u8], key: &[u8]) -> Result<Self, Wrong> {
        let chain = certificates(chain).map_err(Wrong::Certificate)?;
        let key = signing_key(key)?;
        let read = |der: &CertificateDer<'_>| {
            let unreadable = |e| Wrong::Certificate(format!("has a certificate that cannot be read: {e}"));
            X509Certificate::from_der(der).map(|(_, leaf)| described(&leaf)).map_err(unreadable)
        };
        let (names, [not_before, not_after]) = read(&chain[0])?;
        let fits = |chain: Vec<CertificateDer<'static>>| {
            let certified = CertifiedKey::new(chain, Arc::clone(&key));
            certified.keys_match().map(|()| certified)
        };
        let is_later = || chain[1..].iter().any(|other| fits(vec![other.clone()]).is_ok());
        let certified = match fits(chain.clone()) {
            Ok(certified) => certified,
            Err(_) if is_later() => {
                return Err(Wrong::Certificate(
                    "does not begin with the certificate that belongs to the key; put that one first, then those of its issuers"
                        .to_owned(),
                ));
            }
            Err(_) => {
                let first = names.first().map(|name| format!(" for {name}")).unwrap_or_default();
                return Err(Wrong::Key(format!(
                    "does not belong to the certificate{first}; use both from the same issue or renewal"
                )));
            }
        };
        Ok(Self { key: Arc::new(certified), source: source.to_owned(), names, not_before, not_after })
    }

    /// Whether it is for this name, given in lower case; `*.example.com` is for one label more.
    pub fn covers(&self, name: &str) -> bool {
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|own| own == name || (own.strip_prefix("*.").is_some_and(|own| parent == Some(own))))
    }

    /// What it is called in metrics and the log.
    pub fn name(&self) -> &str {
        let file = || self.source.rsplit('/').next().unwrap_or_default();
        self.names.first().map_or_else(file, String::as_str)
    }

    /// Whole days until it ends; less than 0 when it has.
    pub fn days_left(&self, now: Timestamp) -> i64 {
        (self.not_after.as_second() - now.as_second()).div_euclid(DAY_SECONDS)
    }

    /// The days that are left, as people say it.
    pub fn time_left(&self, now: Timestamp) -> String {
        match self.days_left(now) {
            1 => "1 day".to_owned(),
            days => format!("{days} days"),
        }
    }

    /// When two thirds of its life are over: then it is to be renewed.
    pub fn renewal_due(&self) -> Timestamp {
        let [begin, end] = [self.not_before, self.not_after].map(Timestamp::as_second);
        Timestamp::from_second(begin + (end - begin) / 3 * 2).unwrap_or(self.not_before) // between two that are valid
    }

    /// Whether clients refuse it at this time.
    pub fn is_invalid(&self, now: Timestamp) -> bool {
        now < self.not_before || now > self.not_after
    }

    /// Why clients refuse it, or soon will, if so.
    pub fn warning(&self, now: Timestamp) -> Option<String> {
        let Self { not_before, not_after, .. } = self;
        let days = self.days_left(now);
        match () {
            () if now > *not_after => Some(format!("expired on {not_after}: clients refuse it; renew it")),
            () if now < *not_before => {
                Some(format!("is not valid before {not_before}: clients refuse it until then; is the clock right?"))
            }
            () if days < SOON_DAYS => Some(format!("expires in {}, on {not_after}; renew it", self.time_left(now))),
            () if self.names.is_empty() => Some(
                "has no subjectAltName: clients refuse it; have it issued for the DNS name that they use".to_owned(),
            ),
            () => None,
        }
    }
}

/// The certificates of a PEM file: at least one.
///
/// # Errors
/// There is none; the remedy.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) if pem.trim_ascii().is_empty() => Err("is empty".to_owned()),
        Ok(_) if has(pem, "PRIVATE KEY-----") => {
            Err("has a private key and no certificate; are certificate and key swapped?".to_owned())
        }
        Ok(_) => {
            Err("has no certificate in PEM; from DER: openssl x509 -inform der -in FILE -out fullchain.pem".to_owned())
        }
        Err(e) => Err(format!("is not readable as PEM: {e}")),
    }
}

/// The first key of a PEM file that is not encrypted.
fn signing_key(pem: &[u8]) -> Result<Arc<dyn rustls::sign::SigningKey>, Wrong> {
    let is_encrypted = has(pem, "ENCRYPTED");
    let found = PrivateKeyDer::pem_slice_iter(pem).next().transpose();
    let wrong = |why: &str| Wrong::Key(why.to_owned());
    let key = match found {
        // Also a PKCS #1 key with "Proc-Type: 4,ENCRYPTED".
        _ if is_encrypted => {
            return Err(wrong("is encrypted; decrypt it: openssl pkey -in FILE -out key.pem"));
        }
        Ok(Some(key)) => key,
        Ok(None) if pem.trim_ascii().is_empty() => return Err(wrong("is empty")),
        Ok(None) if has(pem, "CERTIFICATE-----") => {
            return Err(wrong("has a certificate and no private key; are certificate and key swapped?"));
        }
        Ok(None) => {
            return Err(wrong("has no private key in PEM; from DER: openssl pkey -inform der -in FILE -out key.pem"));
        }
        Err(_) => return Err(wrong("is not readable as PEM")), // the parser's text might show a line of the key
    };
    any_supported_type(&key).map_err(|_| {
        wrong("is of a kind that is not supported; use RSA of 2048 bits or more, ECDSA P-256 or P-384, or Ed25519")
    })
}

fn has(pem: &[u8], word: &str) -> bool {
    pem.windows(word.len()).any(|part| part == word.as_bytes())
}

/// The names in subjectAltName, and from when until when the certificate is valid.
fn described(leaf: &X509Certificate<'_>) -> (Vec<String>, [Timestamp; 2]) {
    let alternatives = leaf.subject_alternative_name().ok().flatten();
    let names = alternatives.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    });
    let validity = leaf.validity();
    let time = |time: &x509_parser::time::ASN1Time, bound| Timestamp::from_second(time.timestamp()).unwrap_or(bound);
    let validity = [time(&validity.not_before, Timestamp::MIN), time(&validity.not_after, Timestamp::MAX)];
    (names.collect(), validity)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
pub mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    /// A certificate for these names and its key, in PEM.
    pub fn issue(names: &[&str]) -> (String, String) {
        issue_with(names, |_| {})
    }

    /// The same, with parameters of its own.
    pub fn issue_with(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    }

    fn read(chain: &str, key: &str) -> Result<Certificate, Wrong> {
        Certificate::read("/etc/relay/fullchain.pem", chain.as_bytes(), key.as_bytes())
    }

    #[test]
    fn a_certificate_says_for_whom_it_is_and_until_when() {
        let (chain, key) = issue_with(&["Hooks.example.com", "*.example.org", "192.0.2.1"], |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2026, 4, 1));
        });
        let certificate = read(&chain, &key).expect("a certificate");
        assert_eq!(certificate.names, ["hooks.example.com", "*.example.org", "192.0.2.1"]);
        assert_eq!(certificate.name(), "hooks.example.com");
        for (name, is_covered) in [
            ("hooks.example.com", true),
            ("x.hooks.example.com", false),
            ("a.example.org", true),
            ("a.b.example.org", false),
            ("example.org", false),
        ] {
            assert_eq!(certificate.covers(name), is_covered, "{name}");
        }
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        assert_eq!(certificate.renewal_due(), at("2026-03-02T00:00:00Z"));
        for (now, warning) in [
            ("2025-12-31T00:00:00Z", "is not valid before 2026-01-01T00:00:00Z"),
            ("2026-03-19T00:00:00Z", "expires in 13 days, on 2026-04-01T00:00:00Z"),
            ("2026-04-02T00:00:00Z", "expired on 2026-04-01T00:00:00Z"),
        ] {
            let found = certificate.warning(at(now)).expect("a warning");
            assert!(found.starts_with(warning), "{found}");
        }
        assert_eq!(certificate.warning(at("2026-03-18T00:00:00Z")), None);
        let (nameless, key) = issue(&[]);
        let nameless = read(&nameless, &key).expect("a certificate");
        assert!(nameless.warning(Timestamp::now()).expect("a warning").starts_with("has no subjectAltName"));
        assert_eq!(nameless.name(), "fullchain.pem");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_remedy() {
        let [(chain, key), (other, other_key)] = [issue(&["one.example"]), issue(&["two.example"])];
        let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let pkcs1 = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        let broken = format!("{}\n", &chain[..chain.len() / 2]);
        for (chain, key, is_key, why) in [
            ("", key.as_str(), false, "is empty"),
            (" \n", &key, false, "is empty"),
            (&key, &key, false, "has a private key and no certificate; are certificate and key swapped?"),
            ("MIIB", &key, false, "has no certificate in PEM; from DER: openssl x509 -inform der"),
            (&broken, &key, false, "is not readable as PEM"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                &key,
                false,
                "has a certificate that cannot be read",
            ),
            (&(other.clone() + &chain), &key, false, "does not begin with the certificate that belongs to the key"),
            (&chain, "", true, "is empty"),
            (&chain, &chain, true, "has a certificate and no private key; are certificate and key swapped?"),
            (&chain, &encrypted, true, "is encrypted; decrypt it: openssl pkey -in FILE -out key.pem"),
            (&chain, pkcs1, true, "is encrypted; decrypt it"),
            (&chain, "MIIB", true, "has no private key in PEM; from DER"),
            (
                &chain,
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
                true,
                "is of a kind that is not supported",
            ),
            (&chain, "-----BEGIN PRIVATE KEY-----\nhunter2!\n", true, "is not readable as PEM"),
            (&chain, &other_key, true, "does not belong to the certificate for one.example"),
        ] {
            let (found_key, found) = match read(chain, key).expect_err("a mistake") {
                Wrong::Certificate(why) => (false, why),
                Wrong::Key(why) => (true, why),
            };
            assert!(found_key == is_key && found.starts_with(why), "{found}, not {why}");
            assert!(!found.contains("hunter2"), "{found}");
        }
        assert!(read(&(chain.clone() + &other), &key).is_ok(), "issuers follow");
        let both = key.clone() + &chain;
        assert!(read(&both, &both).is_ok(), "one file may have both");
    }
}
