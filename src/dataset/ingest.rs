//! Turns the items of a source into samples, in parallel and in order, a bounded chunk at a time.

use rayon::prelude::*;

use super::{DataError, Item, OnError, ReadSummary, Sample, Skipped, SplitName};

/// Limits of a chunk, which ends at whichever is reached first. Together they bound memory for images of any size.
const CHUNK_ITEMS: usize = 1024;
const CHUNK_BYTES: u64 = 32 << 20;

/// Number of failures that an error lists one by one.
const NAMED: usize = 10;

/// Receives the items of a source from `read`, in their order.
pub(super) struct Sink<'a> {
    /// Number of items at the start to pass over, since an earlier reading has handled them.
    pub from: u64,
    pub take: &'a mut dyn FnMut(Item) -> anyhow::Result<()>,
}

/// Runs `work` on each item and passes the results to `sink`, in the order of the items.
///
/// Each item comes with its approximate size in bytes. If `work` fails, `on_error` decides what to do; an `Err` of the iterator
/// itself always ends the reading. With [`OnError::Fail`], the remaining items are still checked after the first failure, so that
/// one pass counts all bad images. A split without any sample left is an error.
pub(super) fn ingest<T: Send>(
    split: SplitName,
    on_error: OnError,
    items: impl IntoIterator<Item = Result<(u64, T), DataError>>,
    work: impl Fn(T) -> Result<Sample, Skipped> + Sync,
    sink: &mut Sink,
) -> anyhow::Result<ReadSummary> {
    let mut items = items.into_iter();
    let mut summary = ReadSummary::default();
    let mut passed = 0u64;
    for item in items.by_ref().take(usize::try_from(sink.from)?) {
        item?;
    }
    loop {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while chunk.len() < CHUNK_ITEMS && bytes < CHUNK_BYTES {
            let Some(item) = items.next() else { break };
            let (size, item) = item?;
            bytes += size;
            chunk.push(item);
        }
        if chunk.is_empty() {
            break;
        }
        let done: Vec<_> = chunk.into_par_iter().map(&work).collect();
        for result in done {
            match result {
                // With `OnError::Fail`, no samples are passed on after the first failure.
                Ok(_) if on_error == OnError::Fail && !summary.skipped.is_empty() => {}
                Ok(sample) => {
                    passed += 1;
                    (sink.take)(Item::Sample(sample))?;
                }
                Err(skipped) => {
                    if on_error == OnError::Skip {
                        (sink.take)(Item::Skipped(&skipped))?;
                    }
                    summary.skipped.push(skipped);
                }
            }
        }
    }
    if on_error == OnError::Fail {
        failures(split, &summary.skipped)?;
    }
    match (passed + sink.from, summary.skipped.first()) {
        (0, None) => Err(DataError::NoImages { split }.into()),
        (0, Some(Skipped { name, reason, .. })) => {
            let (name, reason) = (name.clone(), reason.clone());
            Err(DataError::AllSkipped { split, count: summary.skipped.len(), name, reason }.into())
        }
        _ => Ok(summary),
    }
}

/// Returns an error that counts all failures and names the first ones, if there are any.
fn failures(split: SplitName, failed: &[Skipped]) -> Result<(), DataError> {
    let first = match failed {
        [] => return Ok(()),
        [Skipped { name, reason, .. }] => {
            return Err(DataError::Image { name: name.clone(), reason: reason.clone() });
        }
        _ => failed.iter().take(NAMED).map(|Skipped { name, reason, .. }| format!("\n  `{name}`: {reason}")),
    };
    let more = if failed.len() > NAMED { "\n  …" } else { "" };
    Err(DataError::Images { split, count: failed.len(), first: first.collect::<String>() + more })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(count: u64, on_error: OnError, bad: impl Fn(u64) -> bool + Sync) -> anyhow::Result<(Vec<i64>, ReadSummary)> {
        run_from(0, count, on_error, bad)
    }

    fn run_from(
        from: u64,
        count: u64,
        on_error: OnError,
        bad: impl Fn(u64) -> bool + Sync,
    ) -> anyhow::Result<(Vec<i64>, ReadSummary)> {
        let mut labels = Vec::new();
        let work = |i: u64| match bad(i) {
            true => Err(Skipped { name: format!("image {i}"), kind: "JPEG".into(), reason: "odd".into() }),
            false => Ok(Sample { bytes: vec![], path: None, label: Some(i as i64) }),
        };
        let mut take = |item: Item| {
            if let Item::Sample(sample) = item {
                labels.push(sample.label.unwrap());
            }
            Ok(())
        };
        let mut sink = Sink { from, take: &mut take };
        let summary = ingest(SplitName::Train, on_error, (0..count).map(|i| Ok((1, i))), work, &mut sink)?;
        Ok((labels, summary))
    }

    #[test]
    fn what_an_earlier_reading_handed_on_is_not_looked_at() {
        let bad = |i| {
            assert!(i >= 1500, "{i} was looked at");
            i % 1000 == 7
        };
        let (labels, summary) = run_from(1500, 3000, OnError::Skip, bad).unwrap();
        assert_eq!(labels, (1500..3000).filter(|i| i % 1000 != 7).collect::<Vec<_>>());
        assert_eq!(summary.skipped.len(), 1);
        assert_eq!(run_from(3000, 3000, OnError::Fail, bad).unwrap(), (vec![], ReadSummary::default()));
    }

    #[test]
    fn order_holds_across_chunks_and_skipped_items_are_listed() {
        let (labels, summary) = run(3000, OnError::Skip, |i| i % 1000 == 7).unwrap();
        let expected: Vec<i64> = (0..3000).filter(|i| i % 1000 != 7).collect();
        assert_eq!(labels, expected);
        assert_eq!(
            summary.skipped.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
            ["image 7", "image 1007", "image 2007"]
        );
    }

    #[test]
    fn failures_name_the_first_bad_image_or_the_empty_split() {
        let message = |r: anyhow::Result<_>| format!("{}", r.map(|_| ()).unwrap_err());
        assert_eq!(
            message(run(100, OnError::Fail, |i| i == 41)),
            "cannot read image `image 41`: odd (`data.on_error: skip` leaves such images out)"
        );
        let all = message(run(3000, OnError::Fail, |i| i > 40));
        assert!(all.starts_with("cannot read 2959 images of data.train (`data.on_error: skip`"), "{all}");
        assert!(all.contains("\n  `image 41`: odd\n  `image 42`: odd\n"), "{all}");
        assert!(all.ends_with("\n  `image 50`: odd\n  …"), "{all}");
        assert_eq!(message(run(0, OnError::Fail, |_| false)), "data.train: no images");
        assert_eq!(
            message(run(3, OnError::Skip, |_| true)),
            "data.train: all 3 images were skipped; the first one was `image 0`: odd"
        );
    }

    #[test]
    fn an_error_of_the_sink_ends_the_reading() {
        let mut seen = 0;
        let work = |_| Ok(Sample { bytes: vec![], path: None, label: None });
        let mut take = |_: Item| {
            seen += 1;
            anyhow::ensure!(seen < 10, "stop");
            Ok(())
        };
        let mut sink = Sink { from: 0, take: &mut take };
        let result = ingest(SplitName::Test, OnError::Fail, (0..5000).map(|i| Ok((1, i))), work, &mut sink);
        assert_eq!((result.unwrap_err().to_string().as_str(), seen), ("stop", 10));
    }
}
