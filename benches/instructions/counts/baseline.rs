//! The committed baseline: what each case cost when it was written, and the tools that it was counted with.

use serde::{Deserialize, Serialize};

use super::Cost;

/// What counts depend on besides the code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    pub architecture: String,
    pub rustc: String,
    pub valgrind: String,
}

#[derive(Serialize, Deserialize)]
pub struct Baseline {
    pub tools: Tools,
    pub costs: Vec<Cost>,
}

impl Baseline {
    /// # Errors
    /// When the text is no baseline, or another architecture's: that has other instructions, so nothing can be compared.
    pub fn parse(text: &str, here: &Tools) -> Result<Self, String> {
        let baseline: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let there = &baseline.tools.architecture;
        if *there != here.architecture {
            return Err(format!("it was counted on {there}, and this is {}", here.architecture));
        }
        Ok(baseline)
    }

    /// What to know when the tools are others. They are compared all the same: most releases of them change little.
    pub fn other_tools(&self, here: &Tools) -> Option<String> {
        let name = |tools: &Tools| format!("{} and {}", tools.rustc, tools.valgrind);
        (self.tools != *here).then(|| {
            format!(
                "note: the baseline was counted with {}, and this is {}.\n\
                 That alone may change counts: where the commit before fails too, rewrite the baseline in a commit of its own.",
                name(&self.tools),
                name(here)
            )
        })
    }
}
