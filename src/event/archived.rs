//! An event that was made of LiveChat's archive: the body that LiveChat would have sent.

use serde::{Deserialize, Serialize};

use super::receive::receive;
use super::{Author, Origin, Rejection, Verified};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archived {
    /// As a webhook's, without a secret key.
    pub body: String,
    /// Who wrote the event, where the archive proves it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub author: Option<Author>,
}

impl Archived {
    /// # Errors
    /// The body is no webhook.
    pub fn webhook(&self) -> Result<Verified<'_>, Rejection> {
        Ok(Verified::made(receive(self.body.as_bytes())?, Origin::Backfill, self.author))
    }
}
