//! What LiveChat's documents leave open, as switches, and faults that calls meet. Both can be set while the simulator runs.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Each switch, what it is for, and how it is at first.
pub const SWITCHES: &str = include_str!("switches.toml");

/// Those of `switches.toml`, which explains them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Switches {
    pub versions: BTreeSet<String>,
    pub legacy: BTreeMap<String, String>,
    pub deprecation: BTreeMap<String, String>,
    pub statuses: BTreeMap<String, u16>,
    pub empty_success: bool,
    pub unknown_members: bool,
    pub strict_region: bool,
    pub rate_limit: Option<RateLimit>,
    pub secret_in_listing: bool,
    pub additional_data_in_listing: bool,
    pub null_list: bool,
    pub no_filters: NoFilters,
    pub already_exists: bool,
    pub extra_actions: BTreeSet<String>,
    pub not_installed_is_not_found: bool,
    pub listing_lag: f64,
    pub delivery_lag: f64,
    pub skip_consent: bool,
    pub redirect_refusal: bool,
    pub state: StateEcho,
    pub region_prefix: bool,
    pub code_encoded_twice: bool,
    pub code_lifetime: f64,
    pub token_lifetime: f64,
    pub no_refresh_token: bool,
    pub v1_errors: bool,
    pub running_threads: bool,
    pub restricted_access: Option<String>,
    pub delivery_timeout: f64,
    pub delivery_attempts: Vec<f64>,
    pub time_scale: f64,
    pub keep_alive: bool,
    pub delivery_jitter: f64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub calls: usize,
    pub seconds: f64,
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
        toml::from_str(SWITCHES).expect("it is compiled in, and a unit test reads it")
    }
}

/// Those of a setup, which names only some.
pub fn named<'de, D: Deserializer<'de>>(named: D) -> Result<Switches, D::Error> {
    let mut switches = Switches::default();
    switches.set(&Value::deserialize(named)?).map_err(D::Error::custom)?;
    Ok(switches)
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
    fn the_switches_at_first_are_within_their_bounds() {
        let mut switches = Switches::default();
        assert_eq!(switches.set(&json!({})), Ok(()));
        assert_eq!(switches.delivery_attempts, [0.0, 5.0, 20.0, 50.0]);
    }

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
