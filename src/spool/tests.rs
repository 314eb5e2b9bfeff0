//! The store under faults, and the whole spool against a model.
