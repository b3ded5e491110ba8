//! Reads the first directory of a TIFF or BigTIFF.

use std::ops::Range;

/// The error for a file whose structure contradicts itself.
pub const STRUCTURE: &str = "damaged TIFF (its directory contradicts itself)";

/// The fields of a directory. Fields whose values lie outside the file are left out.
#[derive(Debug)]
pub struct Directory<'a> {
    pub bytes: &'a [u8],
    pub little: bool,
    /// Tag, type, and byte range of the values.
    fields: Vec<(u16, u16, Range<usize>)>,
}

/// Reads a number of at most 8 bytes.
pub fn number(bytes: &[u8], little: bool) -> u64 {
    let add = |sum: u64, &byte: &u8| sum << 8 | u64::from(byte);
    if little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
}

impl<'a> Directory<'a> {
    pub fn of(bytes: &'a [u8]) -> Result<Directory<'a>, String> {
        let little = bytes.first() == Some(&b'I');
        let read = |at: usize, count: usize| {
            let found = bytes.get(at..at.checked_add(count)?)?;
            Some(number(found, little))
        };
        let big = read(2, 2) == Some(43);
        // Sizes in bytes of an offset or a count of values, of the count of fields, and of a field.
        let (wide, counted, field) = if big { (8, 8, 20) } else { (4, 2, 12) };
        let place = |at: usize, count: usize| read(at, count).and_then(|number| usize::try_from(number).ok());
        let start = place(if big { 8 } else { 4 }, wide).ok_or(STRUCTURE)?;
        let count = place(start, counted).ok_or(STRUCTURE)?;
        let mut fields = Vec::new();
        for at in (0..count).map_while(|i| i.checked_mul(field)?.checked_add(start + counted)) {
            let (Some(tag), Some(kind), Some(count)) = (read(at, 2), read(at + 2, 2), place(at + 4, wide)) else {
                break;
            };
            let Some(length) = count.checked_mul(size_of(kind as u16)) else { continue };
            let value = at + 4 + wide;
            let from = if length <= wide { Some(value) } else { place(value, wide) };
            let values = from.and_then(|from| Some(from..from.checked_add(length)?));
            if let Some(values) = values.filter(|values| values.end <= bytes.len()) {
                fields.push((tag as u16, kind as u16, values));
            }
        }
        Ok(Directory { bytes, little, fields })
    }

    /// The bytes of a field's values.
    pub fn raw(&self, tag: u16) -> Option<&'a [u8]> {
        self.fields.iter().find(|field| field.0 == tag).map(|(.., place)| &self.bytes[place.clone()])
    }

    /// The whole numbers of a field; empty if the field is missing.
    pub fn numbers(&self, tag: u16) -> Vec<u64> {
        let Some((_, kind, place)) = self.fields.iter().find(|field| field.0 == tag) else { return vec![] };
        self.bytes[place.clone()].chunks_exact(size_of(*kind)).map(|value| number(value, self.little)).collect()
    }

    /// The first number of a field, or `default` if the field is missing.
    pub fn first(&self, tag: u16, default: u64) -> u64 {
        self.numbers(tag).first().copied().unwrap_or(default)
    }
}

/// Size in bytes of a value of this type.
fn size_of(kind: u16) -> usize {
    match kind {
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16..=18 => 8,
        _ => 1,
    }
}
