//! Writes the curves and scores of a run as an event file of TensorBoard. Records are framed as in TFRecord. Each is a protobuf
//! message `Event` with a wall time, a step and scalars; only the protobuf encoding of these fields is implemented.

use std::collections::BTreeMap;

use super::{Run, artifacts::Training};
use crate::{
    artifact::Store,
    tables::{
        METRICS, POSITIVENESS, TIMING, Table,
        column::{Holds, SECONDS, STEP},
    },
};

/// Tables of a pretrain artifact with at most one row per step.
const TABLES: [Table; 3] = [METRICS, POSITIVENESS, TIMING];

/// The bytes of the file: every metric of every step as `train/NAME`, and the scores of the run at the last step. Times count
/// back from the end of the run, by the durations of the steps; for a run without results, forward from its start.
///
/// # Errors
/// When the pretraining of the run is missing, damaged or unreadable.
pub fn render(store: &Store, run: &Run) -> anyhow::Result<Vec<u8>> {
    let training = Training::of(store, run)?;
    // Scalars by step.
    let mut scalars: BTreeMap<i64, Vec<(String, f64)>> = BTreeMap::new();
    for table in TABLES {
        let rows = training.table(table)?;
        let steps = rows.integers(STEP)?;
        for column in table.columns.iter().filter(|column| column.holds == Holds::Real) {
            for (step, value) in steps.iter().zip(rows.reals(*column)?) {
                if let (Some(step), Some(value)) = (step, value) {
                    scalars.entry(*step).or_default().push((format!("train/{}", column.name), value));
                }
            }
        }
    }
    let seconds = training.table(TIMING)?.reals(SECONDS)?;
    let total: f64 = seconds.iter().flatten().sum();
    let is_finished = run.record.unfinished.is_none();
    let mut time = run.record.created as f64 - if is_finished { total } else { 0.0 };
    let mut file = Vec::new();
    frame(&version(time), &mut file);
    for (i, (step, values)) in scalars.iter().enumerate() {
        time += seconds.get(i).copied().flatten().unwrap_or(0.0);
        frame(&event(time, *step, values), &mut file);
    }
    if !is_finished {
        return Ok(file);
    }
    let scores = run.record.metrics.iter().filter(|(name, _)| !name.starts_with("train/"));
    let scores: Vec<_> = scores.filter_map(|(name, value)| Some((name.clone(), (*value)?))).collect();
    let last = scalars.keys().next_back().copied().unwrap_or(0);
    frame(&event(run.record.created as f64, last, &scores), &mut file);
    Ok(file)
}

/// Length, checksum of the length, message, checksum of the message.
fn frame(message: &[u8], file: &mut Vec<u8>) {
    let length = (message.len() as u64).to_le_bytes();
    file.extend(length);
    file.extend(masked_checksum(&length).to_le_bytes());
    file.extend(message);
    file.extend(masked_checksum(message).to_le_bytes());
}

/// The checksum of TFRecord: CRC-32C, rotated and shifted by a constant.
fn masked_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The first event of a file.
fn version(time: f64) -> Vec<u8> {
    let mut message = field_of_time(time);
    bytes(3, b"brain.Event:2", &mut message);
    message
}

fn event(time: f64, step: i64, values: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (name, value) in values {
        let mut scalar = Vec::new();
        bytes(1, name.as_bytes(), &mut scalar);
        scalar.push(2 << 3 | 5); // 32 bits
        scalar.extend((*value as f32).to_le_bytes());
        bytes(1, &scalar, &mut summary);
    }
    let mut message = field_of_time(time);
    message.push(2 << 3); // varint
    varint(step as u64, &mut message);
    bytes(5, &summary, &mut message);
    message
}

fn field_of_time(time: f64) -> Vec<u8> {
    let mut message = vec![1 << 3 | 1]; // 64 bits
    message.extend(time.to_le_bytes());
    message
}

/// A field of text, bytes or a message.
fn bytes(field: u8, content: &[u8], message: &mut Vec<u8>) {
    message.push(field << 3 | 2);
    varint(content.len() as u64, message);
    message.extend(content);
}

fn varint(mut value: u64, message: &mut Vec<u8>) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_as_many_bytes_as_they_need() {
        let mut message = Vec::new();
        [0, 127, 128, 300].into_iter().for_each(|value| varint(value, &mut message));
        assert_eq!(message, [0, 127, 0x80, 1, 0xac, 2]);
    }

    #[test]
    fn a_frame_carries_its_length_and_two_checksums() {
        let mut file = Vec::new();
        frame(b"abc", &mut file);
        assert_eq!(file[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((&file[12..15], file.len()), (&b"abc"[..], 19));
        // The check value of CRC-32C.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }
}
