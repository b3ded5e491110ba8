//! Content-addressed store: tables, manifests, checkpoints, locks.
