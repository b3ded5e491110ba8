//! Artifacts become scores and comparisons.
