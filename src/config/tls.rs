//! `[server.tls]`, `[server.tls.acme]` and `[admin.tls]`: the certificates, where they come from, and what is wrong with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::pki_types::DnsName;

use super::read::Reader;
use super::{MILLISECOND, SECOND};
use crate::acme;
use crate::http::tls::certificate::{Certificate, Wrong, certificates};
use crate::http::tls::{Config, Limits};

const ACME: &str = "server.tls.acme";

/// The TLS of the webhook listener, and how its certificate is ordered. Without certificates and without ACME there is none.
pub fn server(r: &mut Reader) -> (Option<Config>, Option<acme::Config>, Limits) {
    let limits = Limits {
        handshake_timeout: r.time("server.tls.handshake_timeout", 10 * MILLISECOND..=60 * SECOND),
        handshakes_max: r.number("server.tls.handshakes_max", 1..=100_000),
    };
    let count = r.count(
        "server.tls.certificates",
        "certificates = [{ certificate = \"fullchain.pem\", key = \"key.pem\" }]",
        None,
    );
    let files = (0..count).filter_map(|n| certificate(r, &format!("server.tls.certificates[{n}]"))).collect();
    let acme = acme(r);
    let is_on = count > 0 || acme.is_some();
    let config = Config { certificates: files, client_roots: None, limits };
    (is_on.then_some(config), acme, limits)
}

/// The TLS of the admin listener, if it has any.
pub fn admin(r: &mut Reader, limits: Limits) -> Option<Config> {
    let is_on = ["certificate", "key", "client_ca"].into_iter().any(|name| r.has(&format!("admin.tls.{name}")));
    let certificate = certificate_of(r, "admin.tls", is_on);
    let client_roots = r.optional_text("admin.tls.client_ca").and_then(|path| roots(r, "admin.tls.client_ca", &path));
    is_on.then(|| Config {
        certificates: certificate.into_iter().collect(),
        client_roots: client_roots.map(Arc::new),
        limits,
    })
}

fn certificate(r: &mut Reader, table: &str) -> Option<Arc<Certificate>> {
    certificate_of(r, table, true)
}

/// The pair of files that a table names.
fn certificate_of(r: &mut Reader, table: &str, is_needed: bool) -> Option<Arc<Certificate>> {
    let names = ["certificate", "key"].map(|name| format!("{table}.{name}"));
    let [chain, key] = names.each_ref().map(|name| r.optional_text(name));
    for (name, path) in names.iter().zip([&chain, &key]) {
        if path.is_none() && is_needed && !r.has(name) {
            r.mistake(name, "is missing: certificate and key are both required; both may name the same file");
        }
    }
    let (chain, key) = (chain?, key?);
    let contents = [(&names[0], &chain), (&names[1], &key)].map(|(name, path)| r.bytes_of(name, Path::new(path)));
    let [Some(chain_pem), Some(key_pem)] = contents else { return None };
    match Certificate::read(&chain, &chain_pem, &key_pem) {
        Ok(certificate) => {
            // A relay that did not start for it would drain no spool, and would not take the renewed one by itself.
            if let Some(warning) = certificate.warning(Timestamp::now()) {
                r.warn(&names[0], &format!("{chain} {warning}"));
            }
            Some(Arc::new(certificate))
        }
        Err(Wrong::Certificate(why)) => {
            r.mistake(&names[0], &format!("{chain} {why}"));
            None
        }
        Err(Wrong::Key(why)) => {
            r.mistake(&names[1], &format!("{key} {why}"));
            None
        }
    }
}

/// The authorities of a PEM file.
pub fn roots(r: &mut Reader, key: &str, path: &str) -> Option<RootCertStore> {
    let pem = r.bytes_of(key, Path::new(path))?;
    let roots = certificates(&pem).and_then(|found| {
        let mut roots = RootCertStore::empty();
        let added = found.into_iter().try_for_each(|root| roots.add(root));
        added.map(|()| roots).map_err(|e| format!("has a certificate that cannot be read: {e}"))
    });
    roots.map_err(|why| r.mistake(key, &format!("{path} {why}"))).ok()
}

/// Looks at every key, whether ACME is on or not.
fn acme(r: &mut Reader) -> Option<acme::Config> {
    let key = |name: &str| format!("{ACME}.{name}");
    let domains = r.optional_texts(&key("domains")).unwrap_or_default();
    let is_on = r.has(&key("domains"));
    let domains: Vec<_> = domains.into_iter().map(|domain| domain.trim_end_matches('.').to_ascii_lowercase()).collect();
    for domain in &domains {
        if domain.starts_with("*.") {
            r.mistake(
                &key("domains"),
                "has a wildcard, which the challenge TLS-ALPN-01 does not support; list each domain",
            );
        } else if DnsName::try_from(domain.as_str()).is_err() || domain.parse::<std::net::IpAddr>().is_ok() {
            r.mistake(&key("domains"), "must be DNS names, such as \"hooks.example.com\"");
        }
    }
    let cache = r.optional_text(&key("cache")).filter(|path| !path.is_empty()).map(PathBuf::from);
    if is_on && cache.is_none() {
        let why = "is missing: it stores the account and the certificate; name a directory on persistent storage, such as \"/var/lib/livechat-relay/acme\"";
        r.mistake(&key("cache"), why);
    }
    let ca = r.optional_text(&key("ca"));
    let roots = ca.and_then(|path| roots(r, &key("ca"), &path)).map(Arc::new);
    let config = acme::Config {
        domains,
        contact: r.optional_texts(&key("contact")).into_iter().flatten().map(contact).collect(),
        directory: r.text_that(&key("directory"), "a URL that begins with https://", |url| url.starts_with("https://")),
        cache: cache.unwrap_or_default(),
        roots,
        order_timeout: r.time(&key("order_timeout"), SECOND..=3600 * SECOND),
        retry_min: r.time(&key("retry_min"), SECOND..=24 * 3600 * SECOND),
        retry_max: r.time(&key("retry_max"), SECOND..=Duration::from_secs(7 * 24 * 3600)),
    };
    if config.retry_max < config.retry_min {
        r.mistake(&key("retry_max"), "is less than server.tls.acme.retry_min");
    }
    is_on.then_some(config)
}

/// Authorities want a URL.
fn contact(address: String) -> String {
    if address.starts_with("mailto:") { address } else { format!("mailto:{address}") }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use crate::config::{Config, Need};

    fn load(settings: &str) -> Result<Config, Vec<String>> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let app = "[[apps]]\nname = \"a\"\nsecret_keys = [{ name = \"k\", value = \"hunter2hunter2hunter2\" }]";
        write!(file, "{settings}\n{app}\n").expect("written");
        Config::load(Some(file.path()), [], Need::Everything).map_err(|mistakes| mistakes.without_places())
    }

    #[test]
    fn acme_says_what_it_needs_and_what_it_cannot_do() {
        let acme = |more: &str| format!("[server.tls.acme]\n{more}");
        let complete = "domains = [\"Hooks.example.com.\"]\ncontact = \"ops@example.com\"\ncache = \"/var/lib/acme\"";
        let config = load(&acme(complete)).expect("a configuration").server;
        let found = config.acme.expect("ACME");
        assert_eq!(
            (found.domains, found.contact),
            (vec!["hooks.example.com".to_owned()], vec!["mailto:ops@example.com".to_owned()])
        );
        assert!(config.listener.tls.is_some_and(|tls| tls.certificates.is_empty()));
        for (settings, mistake) in [
            ("domains = [\"hooks.example.com\"]".to_owned(), "server.tls.acme.cache: is missing"),
            (
                "domains = []\ncache = \"/a\"".to_owned(),
                "server.tls.acme.domains: must be a text in quotes, or several",
            ),
            ("domains = [\"*.example.com\"]\ncache = \"/a\"".to_owned(), "server.tls.acme.domains: has a wildcard"),
            (
                "domains = [\"https://example.com\"]\ncache = \"/a\"".to_owned(),
                "server.tls.acme.domains: must be DNS names",
            ),
            ("domains = [\"192.0.2.1\"]\ncache = \"/a\"".to_owned(), "server.tls.acme.domains: must be DNS names"),
            (
                "domains = [1]\ncache = \"/a\"".to_owned(),
                "server.tls.acme.domains: must be a text in quotes, or several",
            ),
            (
                format!("{complete}\ndirectory = \"http://a\""),
                "server.tls.acme.directory: must be a URL that begins with https://",
            ),
            (format!("{complete}\nca = \"/no/such/file\""), "server.tls.acme.ca: the file cannot be read"),
            (
                format!("{complete}\nretry_max = \"59s\""),
                "server.tls.acme.retry_max: is less than server.tls.acme.retry_min",
            ),
        ] {
            let found = load(&acme(&settings)).err().unwrap_or_default();
            assert!(found.iter().any(|line| line.starts_with(mistake)), "{mistake}: {found:#?}");
        }
    }

    #[test]
    fn listeners_have_ports_of_their_own_and_certificates_have_keys() {
        let (listen, plain) = ("server.listen = \"0.0.0.0:443\"", "server.plain_listen = \"127.0.0.1:443\"");
        let acme = "server.tls.acme = { domains = [\"a.example\"], cache = \"/a\" }";
        for (settings, mistake) in [
            (format!("{listen}\n{plain}\n{acme}"), "server.plain_listen: uses the same port as server.listen"),
            (
                "admin.probes_listen = \"127.0.0.1:8081\"".to_owned(),
                "admin.probes_listen: uses the same port as admin.listen",
            ),
            ("admin.probes_listen = 1".to_owned(), "admin.probes_listen: must be an IP address and a port, such as"),
            ("admin.tls.client_ca = \"/no\"".to_owned(), "admin.tls.certificate: is missing"),
            (
                "server.tls.certificates = [{ certificate = \"/no\" }]".to_owned(),
                "server.tls.certificates[0].key: is missing",
            ),
            ("server.tls.certificates = \"/no\"".to_owned(), "server.tls.certificates: must be an array of tables"),
        ] {
            let found = load(&settings).err().unwrap_or_default();
            assert!(found.iter().any(|line| line.starts_with(mistake)), "{mistake}: {found:#?}");
        }
        assert!(load(acme).expect("a configuration").server.listener.plain.is_none());
    }
}
