//! What LiveChat's documents leave open, as switches, and faults that calls meet. Both can be set while the simulator runs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Times are in seconds. The defaults are LiveChat's documented behaviour, or the likelier one, but for the lags, which are none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Switches {
    /// Versions of the APIs that are offered.
    pub versions: BTreeSet<String>,
    /// A version and the date of its header `Legacy`, or `Deprecation`.
    pub legacy: BTreeMap<String, String>,
    pub deprecation: BTreeMap<String, String>,
    /// The HTTP status of an `error.type` or `error`, where it is to be another one.
    pub statuses: BTreeMap<String, u16>,
    /// Methods without an answer's body answer nothing instead of `{}`.
    pub empty_success: bool,
    /// Each JSON object of a successful answer has a member that nothing documents.
    pub unknown_members: bool,
    /// A call without the right `X-Region` is misdirected.
    pub strict_region: bool,
    pub rate_limit: Option<RateLimit>,

    /// `list_webhooks` has the secret keys, and `additional_data`.
    pub secret_in_listing: bool,
    pub additional_data_in_listing: bool,
    /// `list_webhooks` answers `null` where it has nothing.
    pub null_list: bool,
    /// What stands for no filters in `list_webhooks`.
    pub no_filters: NoFilters,
    /// A second registration that equals the first is refused.
    pub already_exists: bool,
    /// `list_webhook_names` has these, too, and they can be registered.
    pub extra_actions: BTreeSet<String>,
    /// `get_license_webhooks_state` says `not_found` where the app is not installed.
    pub not_installed_is_not_found: bool,
    /// How long after a change the listing, and deliveries, are as before it. LiveChat: up to 120.
    pub listing_lag: f64,
    pub delivery_lag: f64,

    /// The consent page is skipped: the browser is redirected at once.
    pub skip_consent: bool,
    /// A user who refuses is sent to the app with `error`.
    pub redirect_refusal: bool,
    pub state: StateEcho,
    /// Codes and access tokens begin with the organization's region.
    pub region_prefix: bool,
    /// The code in the redirect is percent-encoded twice.
    pub code_encoded_twice: bool,
    pub code_lifetime: f64,
    pub token_lifetime: f64,
    /// Answers of `/v2/token` have `"refresh_token": null`.
    pub no_refresh_token: bool,
    /// Errors of accounts in the shape of version 1.
    pub v1_errors: bool,

    /// `list_archives` has running threads, too.
    pub running_threads: bool,
    /// Threads in archives have this as `restricted_access`, and no events.
    pub restricted_access: Option<String>,

    /// How long a receiver has for its answer.
    pub delivery_timeout: f64,
    /// When a delivery is tried, from its begin; each of them times `time_scale`.
    pub delivery_attempts: Vec<f64>,
    pub time_scale: f64,
    /// A connection serves more than one delivery.
    pub keep_alive: bool,
    /// Each delivery begins so much later at most, by chance, so that they overtake each other.
    pub delivery_jitter: f64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub calls: usize,
    pub seconds: f64,
    /// The header `Retry-After`.
    #[serde(default)]
    pub retry_after: Option<u64>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoFilters {
    Object,
    Absent,
    Null,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateEcho {
    Verbatim,
    Empty,
    Absent,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            versions: ["3.3", "3.4", "3.5", "3.6", "3.7"].map(str::to_owned).into(),
            legacy: BTreeMap::new(),
            deprecation: BTreeMap::new(),
            statuses: BTreeMap::new(),
            empty_success: false,
            unknown_members: false,
            strict_region: false,
            rate_limit: None,
            secret_in_listing: false,
            additional_data_in_listing: false,
            null_list: false,
            no_filters: NoFilters::Object,
            already_exists: false,
            extra_actions: BTreeSet::new(),
            not_installed_is_not_found: false,
            listing_lag: 0.0,
            delivery_lag: 0.0,
            skip_consent: false,
            redirect_refusal: false,
            state: StateEcho::Verbatim,
            region_prefix: true,
            code_encoded_twice: false,
            code_lifetime: 180.0,
            token_lifetime: 28_800.0,
            no_refresh_token: false,
            v1_errors: false,
            running_threads: false,
            restricted_access: None,
            delivery_timeout: 10.0,
            delivery_attempts: vec![0.0, 5.0, 20.0, 50.0],
            time_scale: 1.0,
            keep_alive: true,
            delivery_jitter: 0.0,
        }
    }
}

impl Switches {
    /// The longer one of the lags.
    pub fn lag_max(&self) -> f64 {
        self.listing_lag.max(self.delivery_lag)
    }

    /// Those that are named in a JSON object become what it says; the others stay.
    ///
    /// # Errors
    /// What is wrong with the object. Then nothing has changed.
    pub fn set(&mut self, named: &Value) -> Result<(), String> {
        let mut all = serde_json::to_value(&*self).map_err(|error| error.to_string())?;
        let (Some(all), Some(named)) = (all.as_object_mut(), named.as_object()) else {
            return Err("switches are a JSON object".to_owned());
        };
        all.extend(named.clone());
        let set: Self = serde_json::from_value(Value::Object(all.clone())).map_err(|error| error.to_string())?;
        let times = [
            set.listing_lag,
            set.delivery_lag,
            set.code_lifetime,
            set.token_lifetime,
            set.delivery_timeout,
            set.time_scale,
            set.delivery_jitter,
        ];
        let mut times =
            times.iter().chain(&set.delivery_attempts).chain(set.rate_limit.iter().map(|limit| &limit.seconds));
        // A day is more than anything here lasts, and no sum of it is too large for a clock.
        if !times.all(|seconds| (0.0..=86_400.0).contains(seconds)) {
            return Err("times are seconds from 0 to 86400".to_owned());
        }
        *self = set;
        Ok(())
    }
}

/// What the next calls of a method meet.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// `register_webhook`, `list_archives`, …; `token`, `revoke`, `info`, `authorize`; or `*`.
    pub method: String,
    /// How many calls pass before it begins.
    #[serde(default)]
    pub skip: u64,
    /// How many calls meet it then. 0: all, until faults are cleared.
    #[serde(default = "one")]
    pub times: u64,
    /// Whether the call acts before it fails: a webhook is registered, and the answer is lost.
    #[serde(default)]
    pub when: When,
    /// The answer is this error of LiveChat's.
    #[serde(default)]
    pub error: Option<String>,
    #[serde(default)]
    pub message: Option<String>,
    /// `error.data`, such as `{"region": "fra"}`.
    #[serde(default)]
    pub data: Option<Value>,
    /// The answer has this status.
    #[serde(default)]
    pub status: Option<u16>,
    /// Or it is no answer of LiveChat's at all.
    #[serde(default)]
    pub answer: Option<Broken>,
    /// The answer has these headers, too.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Seconds before the answer, and before the call acts where `when` says so.
    #[serde(default)]
    pub delay: f64,
}

const fn one() -> u64 {
    1
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    #[default]
    Before,
    After,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Broken {
    /// A page of HTML, as a proxy has it.
    Html,
    /// Half of the right answer.
    Truncated,
    /// A redirect to another host, `elsewhere.invalid`.
    Redirect,
    /// JSON of 10 MB.
    Large,
    /// No body.
    Empty,
    /// No answer, until the client gives up.
    Hang,
    /// The connection ends.
    Close,
}

impl Fault {
    /// # Errors
    /// What makes no sense in it.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=86_400.0).contains(&self.delay) {
            return Err("`delay` is seconds from 0 to 86400".to_owned());
        }
        if self.status.is_some_and(|status| !(200..600).contains(&status)) {
            return Err("`status` is from 200 to 599".to_owned());
        }
        if self.error.is_some() && self.answer.is_some() {
            return Err("a fault has `error` or `answer`, not both".to_owned());
        }
        Ok(())
    }

    /// Whether something stands in the answer's place, so that without `when` = `after` the call does not act.
    pub fn replaces(&self) -> bool {
        self.error.is_some() || self.answer.is_some_and(|answer| answer != Broken::Truncated)
    }
}

/// The fault that a call of `method` meets; it is counted.
pub fn next_fault(faults: &mut Vec<Fault>, method: &str) -> Option<Fault> {
    let at = faults.iter_mut().position(|fault| {
        let is_meant = fault.method == method || fault.method == "*";
        let is_early = is_meant && fault.skip > 0;
        fault.skip -= u64::from(is_early);
        is_meant && !is_early
    })?;
    let fault = faults[at].clone();
    match faults[at].times {
        0 => {}
        1 => drop(faults.remove(at)),
        _ => faults[at].times -= 1,
    }
    Some(fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn switches_that_are_not_named_stay() {
        let mut switches = Switches::default();
        switches.set(&json!({"null_list": true, "rate_limit": {"calls": 3, "seconds": 1}})).unwrap();
        switches.set(&json!({"state": "absent"})).unwrap();
        assert!(switches.null_list && switches.rate_limit.is_some_and(|limit| limit.calls == 3));
        assert!(matches!(switches.state, StateEcho::Absent));
    }

    #[test]
    fn a_wrong_switch_changes_nothing() {
        let mut switches = Switches::default();
        for wrong in
            [json!({"null_list": true, "nul_list": true}), json!({"null_list": true, "delivery_lag": -1}), json!([])]
        {
            assert!(switches.set(&wrong).is_err(), "{wrong}");
        }
        assert!(!switches.null_list);
    }

    #[test]
    fn a_fault_skips_calls_is_met_and_is_over() {
        let fault = |json| serde_json::from_value::<Fault>(json).unwrap();
        let mut faults = vec![fault(json!({"method": "token", "skip": 1, "times": 2, "error": "internal"}))];
        let met = |faults: &mut Vec<_>, method| next_fault(faults, method).is_some();
        assert!(!met(&mut faults, "info"));
        assert_eq!([(); 4].map(|()| met(&mut faults, "token")), [false, true, true, false]);

        faults.push(fault(json!({"method": "*", "times": 0, "answer": "html"})));
        assert!(met(&mut faults, "info") && met(&mut faults, "token") && met(&mut faults, "token"));
    }
}
