//! An experiment becomes a stage graph with keys and explanations.
