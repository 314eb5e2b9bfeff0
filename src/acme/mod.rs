//! A certificate from an authority (ACME, RFC 8555): ordered when there is none, renewed when two thirds of its life are over, kept in a
//! directory. The authority's challenge comes to the webhook listener (TLS-ALPN-01, RFC 8737).

pub mod cache;
mod client;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use jiff::Timestamp;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::http::tls::{Certificate, Issued};
use crate::metrics::Metrics;
use cache::{Cache, Lock};
use client::Client;

/// `[server.tls.acme]`.
#[derive(Clone, Debug)]
pub struct Config {
    pub domains: Vec<String>,
    /// URLs, such as `mailto:ops@example.com`.
    pub contact: Vec<String>,
    pub directory: String,
    pub cache: PathBuf,
    /// What the authority's own certificate is verified with, if not the roots that browsers have.
    pub roots: Option<Arc<RootCertStore>>,
    pub order_timeout: Duration,
    pub retry_min: Duration,
    pub retry_max: Duration,
}

/// The authority's challenge comes to this port and no other (RFC 8737).
pub const PORT: u16 = 443;

/// How often the cache is looked at: another relay may have renewed the certificate in it.
const POLL: Duration = Duration::from_secs(10);

/// Where a renewal fails because the disk hangs.
const NO_ANSWER: &str = "the cache does not answer: does the file system of server.tls.acme.cache?";

/// It would be ordered again and again.
const ALREADY_DUE: &str = "the certificate that was issued is already due for renewal: is the clock right?";

/// From here on it takes an operator.
const URGENT_DAYS: i64 = 14;

/// Keeps the certificate of these domains valid.
pub struct Acme {
    config: Config,
    cache: Cache,
    issued: Arc<Issued>,
    metrics: Arc<Metrics>,
    /// Held until the end: of all relays with this cache one orders.
    lock: Option<Lock>,
    /// What was said last of who orders, so that it is said once.
    is_other_ordering: bool,
    /// Work on the cache that has not ended. No other begins before it has.
    late: Option<JoinHandle<()>>,
    /// The damaged certificate that was said of last.
    damaged: Option<[u8; 32]>,
    /// Orders that have failed since the last one that did not.
    failures: u32,
    retry_at: Instant,
}

impl Acme {
    pub fn new(config: Config, issued: Arc<Issued>, metrics: Arc<Metrics>) -> Self {
        let cache = Cache::new(&config);
        let (lock, is_other_ordering, failures, retry_at) = (None, false, 0, Instant::now());
        let (late, damaged) = (None, None);
        Self { config, cache, issued, metrics, lock, is_other_ordering, late, damaged, failures, retry_at }
    }

    /// Where the certificate is, and the challenges.
    pub fn issued(&self) -> Arc<Issued> {
        Arc::clone(&self.issued)
    }

    /// Serves the certificate of the cache, so that a restart has one from the first handshake on. A disk that hangs is not waited for.
    pub async fn begin(&mut self) {
        let _ = timeout(Duration::from_secs(2), self.take_from_cache()).await; // `run` looks again, and says what is wrong
    }

    /// Never ends.
    pub async fn run(mut self) {
        loop {
            let pause = self.step().await;
            sleep(pause).await;
        }
    }

    /// Does what is due; how long nothing else is.
    async fn step(&mut self) -> Duration {
        let cached = self.take_from_cache().await;
        let until_retry = self.retry_at.saturating_duration_since(Instant::now());
        let pause = self.until_due().max(until_retry);
        if !pause.is_zero() {
            return pause.min(POLL);
        }
        let locked = match cached {
            Ok(()) => self.take_lock().await,
            Err(why) => Err(why),
        };
        match locked {
            Ok(true) => {}
            Ok(false) => return POLL,
            // What could not be kept would be ordered again and again, until the authority takes no more.
            Err(why) => {
                self.failed(&why, None);
                return Duration::ZERO;
            }
        }
        // The relay that had the lock before may have renewed it.
        if let Err(why) = self.take_from_cache().await {
            self.failed(&why, None);
            return Duration::ZERO;
        }
        if !self.until_due().is_zero() {
            return Duration::ZERO;
        }
        let client = Client::new(self.config.roots.clone());
        let ordered = timeout(self.config.order_timeout, self.order(&client)).await;
        self.issued.end_challenges();
        match ordered.unwrap_or_else(|_| Err(format!("not done within {:?}", self.config.order_timeout))) {
            Ok(pem) => self.take_issued(pem).await,
            Err(why) => self.failed(&why, client.retry_after()),
        }
        Duration::ZERO
    }

    /// How long the certificate is good for before it is to be renewed.
    fn until_due(&self) -> Duration {
        let due =
            self.issued.certificate().map(|certificate| certificate.renewal_due().duration_since(Timestamp::now()));
        due.and_then(|due| Duration::try_from(due).ok()).unwrap_or_default()
    }

    /// Serves the certificate in the cache, where it is another one than that which is served.
    async fn take_from_cache(&mut self) -> Result<(), String> {
        let Some(pem) = self.on_disk(Cache::certificate).await? else { return Ok(()) };
        let certificate = match Certificate::read(&self.cache.source(), &pem, &pem) {
            Ok(certificate) => certificate,
            Err(wrong) => {
                let damaged = Some(Sha256::digest(&pem).into());
                if self.damaged != damaged {
                    tracing::warn!(?wrong, "the certificate in the ACME cache is damaged and is ignored");
                }
                self.damaged = damaged;
                return Ok(());
            }
        };
        let is_new = self.issued.certificate().is_none_or(|served| served.not_after < certificate.not_after);
        if is_new {
            let (name, not_after) = (certificate.name(), certificate.not_after);
            tracing::info!(name, %not_after, "TLS certificate loaded from the ACME cache");
            self.issued.replace(Arc::new(certificate));
            if !self.until_due().is_zero() {
                self.succeeded();
            }
        }
        Ok(())
    }

    /// Whether this relay is the one that orders.
    async fn take_lock(&mut self) -> Result<bool, String> {
        if self.lock.is_none() {
            self.lock = self.on_disk(Cache::lock).await?;
        }
        let is_other_ordering = self.lock.is_none();
        if is_other_ordering && !self.is_other_ordering {
            let cache = self.config.cache.display();
            tracing::info!(%cache, "another relay with this ACME cache orders the certificate: this one loads it from the cache");
        }
        self.is_other_ordering = is_other_ordering;
        Ok(!is_other_ordering)
    }

    /// Serves a certificate that was just issued, and keeps it. One that cannot be saved is served until the relay ends.
    async fn take_issued(&mut self, pem: String) {
        match Certificate::read(&self.cache.source(), pem.as_bytes(), pem.as_bytes()) {
            Ok(certificate) => {
                let (name, not_after) = (certificate.name(), certificate.not_after);
                tracing::info!(name, %not_after, "TLS certificate issued");
                self.issued.replace(Arc::new(certificate));
            }
            Err(wrong) => {
                return self.failed(&format!("the certificate that was issued cannot be used: {wrong:?}"), None);
            }
        }
        if self.until_due().is_zero() {
            self.failed(ALREADY_DUE, None);
        } else {
            self.metrics.acme_orders.with_label_values(&["issued"]).inc();
            self.succeeded();
        }
        if let Err(why) = self.on_disk(move |cache| cache.keep_certificate(pem.as_bytes())).await {
            tracing::error!(why, "the TLS certificate cannot be saved: the next start orders another one");
        }
    }

    fn succeeded(&mut self) {
        (self.failures, self.retry_at) = (0, Instant::now() + self.config.retry_min);
        self.metrics.acme_failures.set(0);
    }

    /// Says why there is no new certificate, how urgent that is, and when the next order is.
    fn failed(&mut self, why: &str, retry_after: Option<Duration>) {
        let pause = pause(&self.config, self.failures, retry_after);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Instant::now() + pause;
        self.metrics.acme_orders.with_label_values(&["failed"]).inc();
        self.metrics.acme_failures.set(self.failures.into());
        let (domains, failures) = (self.config.domains.join(", "), self.failures);
        let Some(certificate) = self.issued.certificate() else {
            let meanwhile = "no TLS certificate was issued: handshakes fail until there is one";
            return tracing::error!(domains, why, failures, next_order_in = ?pause, "{meanwhile}");
        };
        let not_after = certificate.not_after;
        let days_left = certificate.days_left(Timestamp::now());
        if days_left < URGENT_DAYS {
            tracing::error!(domains, why, failures, %not_after, days_left, next_order_in = ?pause, "the TLS certificate expires soon and was not renewed");
        } else {
            tracing::warn!(domains, why, failures, %not_after, days_left, next_order_in = ?pause, "the TLS certificate was not renewed: the old one stays in use");
        }
    }

    /// Works on the cache for as long as until the next look at most: its disk may hang, and then holds one thread and no more.
    async fn on_disk<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&Cache) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let until = Instant::now() + POLL;
        if let Some(late) = &mut self.late {
            let _ = timeout_at(until, late).await.map_err(|_| NO_ANSWER)?; // what it has found may be old
        }
        let (cache, (answer, answered)) = (self.cache.clone(), oneshot::channel());
        // Noted before it is awaited: `begin` does not wait for all of it.
        self.late = Some(spawn_blocking(move || drop(answer.send(work(&cache)))));
        let answered = timeout_at(until, answered).await.map_err(|_| NO_ANSWER)?;
        self.late = None;
        answered.map_err(|_| "the work on the cache has panicked".to_owned())?
    }

    /// Orders a certificate: its key and its chain in PEM.
    async fn order(&self, client: &Client) -> Result<String, String> {
        let account = self.account(client).await?;
        let identifiers: Vec<_> = self.config.domains.iter().cloned().map(Identifier::Dns).collect();
        let mut order = match account.new_order(&NewOrder::new(&identifiers)).await {
            Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_SUCH_ACCOUNT) => {
                let cache = self.cache.clone();
                blocking(move || cache.forget_account()).await?;
                return Err(format!("{}; the next order begins with a new account", said(&Error::Api(problem))));
            }
            order => order.map_err(|e| said(&e))?,
        };
        self.prove(&mut order).await?;
        let patience = RetryPolicy::new().timeout(self.config.order_timeout);
        let ready = order.poll_ready(&patience).await;
        if !matches!(ready, Ok(OrderStatus::Ready)) {
            let refusal = refusal(&mut order).await;
            return Err(
                refusal.unwrap_or_else(|| ready.map_or_else(|e| said(&e), |status| format!("the order is {status:?}")))
            );
        }
        let key = order.finalize().await.map_err(|e| said(&e))?;
        let chain = order.poll_certificate(&patience).await.map_err(|e| said(&e))?;
        Ok(key + &chain)
    }

    /// The account in the cache, or a new one.
    async fn account(&self, client: &Client) -> Result<Account, String> {
        let cache = self.cache.clone();
        let builder = Account::builder_with_http(Box::new(client.clone()));
        if let Some(credentials) = blocking(move || cache.account()).await? {
            return builder.from_credentials(credentials).await.map_err(|e| said(&e));
        }
        let contact: Vec<_> = self.config.contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) =
            builder.create(&new, self.config.directory.clone(), None).await.map_err(|e| said(&e))?;
        let cache = self.cache.clone();
        blocking(move || cache.keep_account(&credentials)).await?;
        tracing::info!(directory = self.config.directory, id = account.id(), "ACME account created");
        Ok(account)
    }

    /// Sees to it that the listener answers the challenges, and tells the authority.
    async fn prove(&self, order: &mut Order) -> Result<(), String> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(|e| said(&e))?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
            let mut challenge = challenge.ok_or("the authority does not offer the challenge TLS-ALPN-01")?;
            let domain = challenge.identifier().to_string();
            let proof = proof(&domain, challenge.key_authorization().digest().as_ref())?;
            self.issued.challenge(domain, proof);
            challenge.set_ready().await.map_err(|e| said(&e))?;
        }
        Ok(())
    }
}

/// The authority has lost the account, as one for trials does now and then.
const NO_SUCH_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// The certificate in the cache, if there is one that can be read.
///
/// # Errors
/// The cache cannot be used by this user.
pub fn cached(config: &Config) -> Result<Option<Certificate>, String> {
    let cache = Cache::new(config);
    cache.check()?;
    let pem = cache.certificate()?;
    Ok(pem.and_then(|pem| Certificate::read(&cache.source(), &pem, &pem).ok()))
}

/// How long after one more failure the next order waits.
fn pause(config: &Config, failures: u32, retry_after: Option<Duration>) -> Duration {
    let doubled = config.retry_min.saturating_mul(2_u32.saturating_pow(failures));
    doubled.min(config.retry_max).max(retry_after.unwrap_or_default())
}

/// The certificate that proves to the authority that this listener is the domain's.
fn proof(domain: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    let make = || -> Result<_, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([domain.to_owned()])?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        Ok((params.self_signed(&key)?, key))
    };
    let (certificate, key) = make().map_err(|e| format!("the challenge's certificate cannot be made: {e}"))?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = any_supported_type(&key).map_err(|e| format!("the challenge's key cannot be used: {e}"))?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
}

/// Why the authority does not accept the order: what it says of each challenge.
async fn refusal(order: &mut Order) -> Option<String> {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { continue };
        let errors = state.challenges.iter().filter_map(|challenge| challenge.error.clone());
        reasons.extend(errors.map(|problem| said(&Error::Api(problem))));
    }
    let hint = "does port 443 of the domain reach this listener?";
    (!reasons.is_empty()).then(|| format!("{}; {hint}", reasons.join("; ")))
}

/// An error with its causes, in one line.
fn said(error: &Error) -> String {
    let text = match error {
        Error::Api(problem) => {
            let detail = problem.detail.as_deref().unwrap_or("no detail");
            let kind = problem.r#type.as_deref().map(|kind| kind.rsplit(':').next().unwrap_or(kind));
            let of_each = problem.subproblems.iter().map(|sub| format!(" {sub}")).collect::<String>();
            format!("the authority says: {detail}{of_each} ({})", kind.unwrap_or("no type"))
        }
        error => error.to_string(),
    };
    // It comes from outside.
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect()
}

/// Runs what waits for a disk where it may: a part of an order, which has its timeout.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    spawn_blocking(work).await.map_err(|panic| panic.to_string())?
}

#[cfg(test)]
mod tests {
    use rcgen::date_time_ymd;

    use super::*;
    use crate::http::tls::certificate::tests::issue_with;

    /// With a cache in this directory.
    fn acme(directory: &std::path::Path) -> Acme {
        let seconds = Duration::from_secs;
        let config = Config {
            domains: vec!["hooks.example.com".to_owned()],
            contact: Vec::new(),
            directory: "https://authority.example/directory".to_owned(),
            cache: directory.to_owned(),
            roots: None,
            order_timeout: seconds(1),
            retry_min: seconds(60),
            retry_max: seconds(600),
        };
        Acme::new(config, Arc::default(), Arc::new(Metrics::new()))
    }

    /// Valid in these years.
    fn pem(from: i32, to: i32) -> String {
        let (chain, key) = issue_with(&["hooks.example.com"], |params| {
            (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        });
        key + &chain
    }

    #[tokio::test]
    async fn after_a_certificate_the_next_order_waits_and_one_that_is_due_already_is_a_failure() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut acme = acme(directory.path());
        for (to, failures, orders) in [(2021, 1, [0, 1]), (2021, 2, [0, 2]), (3000, 0, [1, 2])] {
            let before = Instant::now();
            acme.take_issued(pem(2020, to)).await;
            assert_eq!(acme.failures, failures);
            assert!(acme.retry_at >= before + acme.config.retry_min);
            let counted =
                ["issued", "failed"].map(|result| acme.metrics.acme_orders.with_label_values(&[result]).get());
            assert_eq!(counted, orders);
            assert!(acme.issued.certificate().is_some() && acme.cache.certificate().is_ok_and(|kept| kept.is_some()));
            assert!(!acme.step().await.is_zero(), "nothing is ordered now");
            assert_eq!(acme.failures, failures, "what was kept is no news");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cache_that_hangs_is_a_failure_where_a_certificate_is_due_and_holds_one_thread() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut acme = acme(directory.path());
        // No thread: while one is blocked, the paused clock stands still.
        let (go_on, hanging) = oneshot::channel::<()>();
        acme.late = Some(tokio::spawn(async move { drop(hanging.await) }));
        for failures in 1..=2 {
            acme.step().await;
            assert_eq!(acme.failures, failures);
            acme.retry_at = Instant::now();
        }
        assert_eq!(acme.on_disk(|_| Ok(())).await, Err(NO_ANSWER.to_owned()));
        drop(go_on);
        assert_eq!(acme.on_disk(|_| Ok(())).await, Ok(()));
        assert!(acme.late.is_none());
    }

    #[tokio::test]
    async fn a_damaged_certificate_in_the_cache_counts_as_none_and_is_news_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut acme = acme(directory.path());
        let mut said = Vec::new();
        for content in ["damaged", "damaged", "damaged otherwise"] {
            acme.cache.keep_certificate(content.as_bytes()).expect("kept");
            acme.take_from_cache().await.expect("as when there is none");
            said.push(acme.damaged.expect("damaged"));
        }
        assert!(said[0] == said[1] && said[1] != said[2]);
        assert!(acme.issued.certificate().is_none());
        acme.cache.keep_certificate(pem(2020, 3000).as_bytes()).expect("kept");
        acme.take_from_cache().await.expect("read");
        assert!(acme.issued.certificate().is_some());
    }

    #[test]
    fn orders_that_fail_come_less_often_and_never_sooner_than_the_authority_says() {
        let seconds = Duration::from_secs;
        let config = Config {
            domains: Vec::new(),
            contact: Vec::new(),
            directory: String::new(),
            cache: PathBuf::new(),
            roots: None,
            order_timeout: seconds(1),
            retry_min: seconds(60),
            retry_max: seconds(600),
        };
        for (failures, retry_after, expected) in [
            (0, None, 60),
            (1, None, 120),
            (3, None, 480),
            (4, None, 600),
            (u32::MAX, None, 600),
            (0, Some(3600), 3600),
            (4, Some(10), 600),
        ] {
            assert_eq!(
                pause(&config, failures, retry_after.map(seconds)),
                seconds(expected),
                "{failures} {retry_after:?}"
            );
        }
    }
}
