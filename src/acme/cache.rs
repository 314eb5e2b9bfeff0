//! The directory that keeps the ACME account and the certificate: for the relay's user alone, each file replaced as a whole, and a lock that
//! one relay has.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use sha2::{Digest as _, Sha256};

use super::Config;

/// The files of one account and of one set of domains: a changed directory, contact or domain has others.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: PathBuf,
    account: PathBuf,
    certificate: PathBuf,
    lock: PathBuf,
}

/// Held until it is dropped, or the process ends.
pub struct Lock(#[expect(dead_code, reason = "an open file holds the lock")] File);

impl Cache {
    pub fn new(config: &Config) -> Self {
        let account = digest(&config.directory, &config.contact);
        let certificate = digest(&config.directory, &config.domains);
        Self {
            directory: config.cache.clone(),
            account: config.cache.join(format!("account-{account}.json")),
            certificate: config.cache.join(format!("certificate-{certificate}.pem")),
            lock: config.cache.join(format!("certificate-{certificate}.lock")),
        }
    }

    /// What the certificate's source is called.
    pub fn source(&self) -> String {
        self.certificate.display().to_string()
    }

    /// Whether the directory, or where it is to be made, can be written, without making it.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self) -> Result<(), String> {
        let directory = std::path::absolute(&self.directory).map_err(|e| cannot(&self.directory, "used", &e))?;
        let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(&directory);
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        rustix::fs::access(existing, access).map_err(|e| cannot(existing, "written", &e.into()))
    }

    /// The lock of this certificate; `None` where another relay has it. Makes the directory.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn lock(&self) -> Result<Option<Lock>, String> {
        let lock = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&self.lock)?;
            match file.try_lock() {
                Ok(()) => Ok(Some(Lock(file))),
                Err(TryLockError::WouldBlock) => Ok(None),
                Err(TryLockError::Error(error)) => Err(error),
            }
        };
        lock().map_err(|e| cannot(&self.lock, "written", &e))
    }

    /// Key and chain, where they are kept.
    ///
    /// # Errors
    /// They exist, and cannot be read.
    pub fn certificate(&self) -> Result<Option<Vec<u8>>, String> {
        read(&self.certificate)
    }

    /// # Errors
    /// The directory cannot be written.
    pub fn keep_certificate(&self, pem: &[u8]) -> Result<(), String> {
        replace(&self.certificate, pem)
    }

    /// # Errors
    /// It exists, and cannot be read, or is none.
    pub fn account(&self) -> Result<Option<AccountCredentials>, String> {
        let Some(json) = read(&self.account)? else { return Ok(None) };
        let unusable =
            |_| format!("{} is damaged; remove it, and the next order makes a new account", self.account.display());
        serde_json::from_slice(&json).map(Some).map_err(unusable)
    }

    /// # Errors
    /// The directory cannot be written.
    pub fn keep_account(&self, credentials: &AccountCredentials) -> Result<(), String> {
        let json = serde_json::to_vec(credentials).map_err(|e| e.to_string())?;
        replace(&self.account, &json)
    }

    /// # Errors
    /// The directory cannot be written.
    pub fn forget_account(&self) -> Result<(), String> {
        std::fs::remove_file(&self.account).map_err(|e| cannot(&self.account, "removed", &e))
    }
}

/// Which files belong to these.
fn digest(directory: &str, names: &[String]) -> String {
    let mut names: Vec<_> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    let digest = Sha256::digest(format!("{directory}\n{}", names.join("\n")));
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn cannot(path: &Path, what: &str, error: &io::Error) -> String {
    format!("{} cannot be {what}: {error}; see server.tls.acme.cache", path.display())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(cannot(path, "read", &e)),
    }
}

/// A crash leaves the old file or the new one.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let new = path.with_extension("new");
    let replace = || {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    replace().map_err(|e| cannot(path, "written", &e))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn cache(directory: &Path, domain: &str) -> Cache {
        let seconds = std::time::Duration::from_secs;
        Cache::new(&Config {
            domains: vec![domain.to_owned()],
            contact: Vec::new(),
            directory: "https://authority.example/directory".to_owned(),
            cache: directory.join("acme"),
            roots: None,
            order_timeout: seconds(1),
            retry_min: seconds(1),
            retry_max: seconds(1),
        })
    }

    #[test]
    fn one_relay_has_the_lock_and_all_read_what_it_keeps() {
        let directory = tempfile::tempdir().expect("a directory");
        let [one, other] = [(); 2].map(|()| cache(directory.path(), "one.example"));
        assert_eq!(one.certificate(), Ok(None));
        let lock = one.lock().expect("a directory").expect("the lock");
        assert!(other.lock().expect("a directory").is_none());
        one.keep_certificate(b"first").expect("kept");
        one.keep_certificate(b"second").expect("kept");
        assert_eq!(other.certificate(), Ok(Some(b"second".to_vec())));
        assert_eq!(cache(directory.path(), "another.example").certificate(), Ok(None));
        drop(lock);
        assert!(other.lock().expect("a directory").is_some());
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!([mode(&one.directory), mode(&one.certificate), mode(&one.lock)], [0o700, 0o600, 0o600]);
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_missing() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = cache(directory.path(), "one.example");
        cache.lock().expect("a directory");
        std::fs::create_dir(&cache.certificate).expect("a directory in its place");
        let why = cache.certificate().expect_err("no file");
        assert!(why.contains("cannot be read") && why.ends_with("see server.tls.acme.cache"), "{why}");
        assert!(cache.keep_certificate(b"new").is_err());
        std::fs::write(&cache.account, "{").expect("written");
        assert!(cache.account().err().expect("no JSON").contains("is damaged; remove it"));
    }
}
