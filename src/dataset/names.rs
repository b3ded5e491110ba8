//! Turns names of files and classes into text. Different names stay different, but two Unicode forms of one name become equal.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use unicode_normalization::{UnicodeNormalization, is_nfc};

/// A file's name as text. Bytes that are no UTF-8 are written as `\xE9`, so that different names stay different.
pub fn of_file(name: &OsStr) -> String {
    match name.to_str() {
        Some(name) => name.to_owned(),
        None => {
            let mut text = String::new();
            for chunk in name.as_bytes().utf8_chunks() {
                text += chunk.valid();
                chunk.invalid().iter().for_each(|byte| text += &format!("\\x{byte:02X}"));
            }
            text
        }
    }
}

/// A class's name in the composed form (NFC): `Ä` may be one character or two, by the system that wrote it.
pub fn composed(name: &str) -> String {
    if is_nfc(name) { name.to_owned() } else { name.nfc().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_apart_and_their_forms_come_together() {
        let [e, grave] = [b"caf\xe9".as_slice(), b"caf\xe8"].map(|name| of_file(OsStr::from_bytes(name)));
        assert_eq!((e.as_str(), grave.as_str()), ("caf\\xE9", "caf\\xE8"));
        assert_eq!(of_file(OsStr::new("café")), "café");
        assert_eq!(composed("A\u{308}pfel"), "Äpfel");
        assert_eq!(composed("Äpfel"), "Äpfel");
    }
}
