//! SHA-256 in hexadecimal.

use std::{fs::File, io, io::Read, path::Path};

use sha2::{Digest, Sha256};

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)] as char, DIGITS[usize::from(b & 15)] as char]).collect()
}

/// Hash of some bytes.
pub fn bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Hash of a file's bytes, read in pieces of 256 KiB; `seen` is called with the length of each piece.
pub fn file(path: &Path, mut seen: impl FnMut(u64)) -> io::Result<String> {
    let whole = file_while(path, |length| {
        seen(length);
        true
    })?;
    whole.ok_or_else(|| io::ErrorKind::Interrupted.into())
}

/// Like [`file()`], but stops with None when `goes_on`, which is called with the length of each piece, returns false.
pub fn file_while(path: &Path, mut goes_on: impl FnMut(u64) -> bool) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some(hex(&hasher.finalize()))),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                if !goes_on(n as u64) {
                    return Ok(None);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_hashes_like_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let data: Vec<u8> = (0..700_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
        std::fs::write(&path, &data).unwrap();
        let mut seen = 0;
        assert_eq!(file(&path, |n| seen += n).unwrap(), bytes(&data));
        assert_eq!(seen, 700_000);
        // The example of FIPS 180-4.
        assert_eq!(bytes(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
