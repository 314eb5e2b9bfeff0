//! Who there is at the simulated LiveChat: organizations, accounts, applications, personal access tokens. From a file, or the
//! documented ones of a start without.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::switches::{self, Switches};

/// A setup file: TOML, or JSON where its name ends so. `setup.toml` is one, with what its members are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    pub organizations: Vec<Organization>,
    pub accounts: Vec<Account>,
    pub clients: Vec<Client>,
    #[serde(default)]
    pub personal_access_tokens: Vec<PersonalAccessToken>,
    #[serde(default, deserialize_with = "switches::named")]
    pub switches: Switches,
    #[serde(default)]
    pub routes: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Organization {
    pub id: String,
    pub license_id: u64,
    pub region: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    pub id: String,
    pub organization_id: String,
    pub email: String,
    #[serde(default)]
    pub role: Role,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    #[default]
    Administrator,
    Agent,
}

/// An application.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// The owner.
    pub organization_id: String,
    /// The redirect whitelist.
    #[serde(default)]
    pub redirect_uris: Vec<String>,
    #[serde(default)]
    pub scopes: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_installation_url: Option<String>,
    /// Ids of its bots.
    #[serde(default)]
    pub bots: BTreeSet<String>,
    /// Organizations that have it installed from the start.
    #[serde(default)]
    pub installed: BTreeSet<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonalAccessToken {
    pub token: String,
    pub account_id: String,
    pub scopes: BTreeSet<String>,
}

impl Setup {
    /// That of `setup.toml`, for a relay at `public_url`: one of each, with every scope that the relay can use.
    pub fn with_relay_at(public_url: &str) -> Self {
        let text = include_str!("setup.toml").replace("{public_url}", public_url);
        toml::from_str(&text).expect("it is compiled in, and a URL has no quotes")
    }

    /// # Errors
    /// The file and what is wrong in it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let setup: Self = if is_json {
            serde_json::from_str(&text).map_err(|error| wrong(&error))?
        } else {
            toml::from_str(&text).map_err(|error| wrong(&error))?
        };
        setup.check().map_err(|why| wrong(&why))?;
        Ok(setup)
    }

    fn check(&self) -> Result<(), String> {
        let known = |id: &str| self.named_organization(Some(id)).map(|_| ());
        self.accounts.iter().try_for_each(|account| known(&account.organization_id))?;
        for client in &self.clients {
            known(&client.organization_id)?;
            client.installed.iter().try_for_each(|id| known(id))?;
        }
        let stray = self.personal_access_tokens.iter().find(|token| self.account(&token.account_id).is_none());
        stray.map_or(Ok(()), |token| Err(format!("there is no account `{}`", token.account_id)))
    }

    /// The organization of this id, or the first.
    ///
    /// # Errors
    /// There is none.
    pub fn named_organization(&self, id: Option<&str>) -> Result<&Organization, String> {
        match id {
            Some(id) => self.organization(id).ok_or_else(|| format!("there is no organization `{id}`")),
            None => self.organizations.first().ok_or_else(|| "there is no organization".to_owned()),
        }
    }

    /// Where what is for a URL really goes.
    pub fn routed(&self, url: &str) -> String {
        // One address may be written in several ways: HTTPS://Relay.example:443 is https://relay.example.
        let plain = |url: &str| Url::parse(url).map_or_else(|_| url.to_owned(), Into::into);
        let wanted = plain(url);
        let found = self.routes.iter().filter_map(|(from, to)| {
            let from = plain(from);
            let from = from.trim_end_matches('/');
            let rest = wanted.strip_prefix(from).filter(|rest| rest.is_empty() || rest.starts_with(['/', '?']))?;
            Some((from.len(), format!("{}{rest}", to.trim_end_matches('/'))))
        });
        found.max_by_key(|(length, _)| *length).map_or_else(|| url.to_owned(), |(_, routed)| routed)
    }

    pub fn organization(&self, id: &str) -> Option<&Organization> {
        self.organizations.iter().find(|organization| organization.id == id)
    }

    pub fn account(&self, id: &str) -> Option<&Account> {
        self.accounts.iter().find(|account| account.id == id)
    }

    pub fn client(&self, id: &str) -> Option<&Client> {
        self.clients.iter().find(|client| client.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setup_is_read_as_it_is_written() {
        let setup = Setup::with_relay_at("https://relay.example");
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in
            [("setup.toml", toml::to_string(&setup).unwrap()), ("setup.json", serde_json::to_string(&setup).unwrap())]
        {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            let read = Setup::read(&path).unwrap();
            assert_eq!(serde_json::to_value(read).unwrap(), serde_json::to_value(&setup).unwrap());
        }
    }

    #[test]
    fn a_setup_names_the_switches_that_differ() {
        let mut setup = serde_json::to_value(Setup::with_relay_at("https://relay.example")).unwrap();
        setup["switches"] = serde_json::json!({ "null_list": true });
        let switches = serde_json::from_value::<Setup>(setup.clone()).unwrap().switches;
        assert!(switches.null_list && switches.keep_alive);
        setup["switches"] = serde_json::json!({ "nul_list": true });
        assert!(serde_json::from_value::<Setup>(setup).is_err());
    }

    #[test]
    fn a_name_that_leads_nowhere_is_named() {
        let mut setup = Setup::with_relay_at("https://relay.example");
        setup.accounts[0].organization_id = "elsewhere".to_owned();
        assert_eq!(setup.check(), Err("there is no organization `elsewhere`".to_owned()));
    }
}
