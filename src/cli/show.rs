//! Sizes and notes for people.

use std::io::Write;

use crate::{
    artifact::{RunRecord, Store},
    report,
};

/// `312 B`, `4.1 kB`, `23.0 MB`: powers of 1000, as disks are sold and `df -H` prints them.
pub fn bytes(count: f64) -> String {
    let mut value = count;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.95 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// `1 artifact`, `2 artifacts`.
pub fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Says on stderr that a run has no results, where it has none.
pub fn note_unfinished(store: &Store, record: &RunRecord) -> std::io::Result<()> {
    if record.unfinished.is_none() {
        return Ok(());
    }
    writeln!(std::io::stderr(), "note: {} has no results: {}", record.run, report::state(store, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_suits_them() {
        for (size, text) in
            [(0.0, "0 B"), (999.0, "999 B"), (1000.0, "1.0 kB"), (4_100_000.0, "4.1 MB"), (2.5e12, "2.5 TB")]
        {
            assert_eq!(bytes(size), text);
        }
        assert_eq!((count(1, "run").as_str(), count(0, "run").as_str()), ("1 run", "0 runs"));
    }
}
