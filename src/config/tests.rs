//! Configurations, right and wrong, as an operator would write them.
