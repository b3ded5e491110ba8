//! Drives a plan: what is cached stays, what is pending runs, what was killed resumes.
