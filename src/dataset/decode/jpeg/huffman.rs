//! Reads the bits of a scan and decodes its Huffman codes.

/// The error for entropy-coded data that end early or contain an invalid code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage;

impl From<Damage> for String {
    fn from(Damage: Damage) -> String {
        "damaged JPEG (its image data are broken or end early)".into()
    }
}

/// Codes of at most this many bits are decoded by a single table lookup.
const LOOK: u32 = 10;

/// A table of codes of 1 to 16 bits.
#[derive(Clone, Debug)]
pub struct Codes {
    symbols: Vec<u8>,
    /// By code length - 1: one more than the largest code of this length, and the offset from a code to its index in `symbols`.
    by_length: [(i32, i32); 16],
    /// Lookup table, indexed by the next [`LOOK`] bits.
    looks: Box<[Look; 1 << LOOK]>,
}

/// A decoded code, packed into 32 bits. 0 means that no code of at most [`LOOK`] bits matches. Otherwise it has four bytes, from
/// the lowest: bits of the code and its value together, bits of the code, bits of the value, and the number of zeros before the
/// value.
#[derive(Clone, Copy, Debug, Default)]
struct Look(u32);

impl Look {
    #[inline(always)]
    fn new(length: u32, symbol: u8) -> Look {
        let (zeros, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        Look((length + size) | (length << 8) | (size << 16) | (zeros << 24))
    }

    #[inline(always)]
    fn both(self) -> u32 {
        self.0 & 0xff
    }

    #[inline(always)]
    fn length(self) -> u32 {
        (self.0 >> 8) & 0xff
    }

    #[inline(always)]
    fn size(self) -> u32 {
        (self.0 >> 16) & 0xff
    }

    #[inline(always)]
    fn zeros(self) -> usize {
        (self.0 >> 24) as usize
    }
}

impl Codes {
    /// Builds the table from the number of codes of each length, and their symbols. Fails if the counts are impossible or do not
    /// match the symbols.
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Codes, Damage> {
        let (mut code, mut place) = (0i32, 0i32);
        let mut by_length = [(0, 0); 16];
        let mut looks = Box::new([Look::default(); 1 << LOOK]);
        for ((length, entry), &count) in (1..).zip(&mut by_length).zip(counts) {
            *entry = (code + i32::from(count), place - code);
            if code + i32::from(count) > 1 << length {
                return Err(Damage);
            }
            let of_length = symbols.get(place as usize..place as usize + usize::from(count)).ok_or(Damage)?;
            if length <= LOOK {
                // Fills all entries whose index starts with the code.
                let room = looks.chunks_exact_mut(1 << (LOOK - length)).skip(code as usize);
                room.zip(of_length).for_each(|(looks, &symbol)| looks.fill(Look::new(length, symbol)));
            }
            code = (code + i32::from(count)) << 1;
            place += i32::from(count);
        }
        if place as usize != symbols.len() {
            return Err(Damage);
        }
        Ok(Codes { symbols: symbols.to_vec(), by_length, looks })
    }

    /// Decodes the code at the upper end of `held`, of which at least 16 bits must be valid.
    #[inline(always)]
    fn look(&self, held: u64) -> Result<Look, Damage> {
        let look = self.looks[(held >> (64 - LOOK)) as usize];
        if look.0 == 0 { self.long(held) } else { Ok(look) }
    }

    /// Decodes a code of more than [`LOOK`] bits.
    #[cold]
    #[inline(never)]
    fn long(&self, held: u64) -> Result<Look, Damage> {
        for (length, &(end, offset)) in (1..).zip(&self.by_length).skip(LOOK as usize) {
            let code = (held >> (64 - length)) as i32;
            if code < end {
                let symbol = self.symbols.get((code + offset) as usize).ok_or(Damage)?;
                return Ok(Look::new(length, *symbol));
            }
        }
        Err(Damage)
    }
}

/// The signed number in the uppermost `size` bits (at most 16), in JPEG's encoding: a number that starts with bit 0 is negative.
#[inline(always)]
fn signed(held: u64, size: u32) -> i32 {
    let number = (held >> 1 >> (63 - size)) as i32;
    let positive = (held as i64 >> 63) as i32;
    number + (!positive & (1 - (1 << size)))
}

/// The image data of a scan from one marker to the next, without the zeros that are stuffed behind every 0xFF.
pub struct Stretch<'a> {
    file: &'a [u8],
    /// Offset in the file of the marker behind the stretch, or the end of the file.
    end: usize,
    /// A buffer of the file's length plus that of `BEYOND`. It holds the data, followed by the bytes that a read beyond the end
    /// sees.
    bytes: Vec<u8>,
    /// Length of the data in `bytes`.
    length: usize,
}

impl<'a> Stretch<'a> {
    /// The bytes that a read beyond the end sees.
    const BEYOND: [u8; 8] = [0; 8];

    /// The stretch of `file` that starts at `start`. `memory` is reused as its buffer.
    pub fn new(file: &'a [u8], start: usize, memory: Vec<u8>) -> Stretch<'a> {
        let mut stretch = Stretch { file, end: start, bytes: memory, length: 0 };
        stretch.bytes.resize(file.len() + Self::BEYOND.len(), 0);
        stretch.read();
        stretch
    }

    /// Offset in the file of the marker behind the stretch.
    pub fn end(&self) -> usize {
        self.end
    }

    /// A reader at the first bit.
    pub fn bits(&self) -> Bits<'_> {
        Bits { bytes: &self.bytes[..self.length + Self::BEYOND.len()], at: 0, held: 0, count: 0 }
    }

    /// Returns the buffer for reuse.
    pub fn into_memory(self) -> Vec<u8> {
        self.bytes
    }

    /// Moves to the data behind the restart marker of this number, which must come next. `left` is the number of unread bits
    /// before it.
    pub fn restart(&mut self, number: u32, left: usize) -> Result<(), Damage> {
        // So many unread bits are no padding of the last byte: the file has more data than the units before the marker need.
        if left >= 64 {
            return Err(Damage);
        }
        while self.file.get(self.end..self.end + 2) == Some(&[0xff, 0xff]) {
            self.end += 1;
        }
        if self.file.get(self.end..self.end + 2) != Some(&[0xff, 0xd0 + (number % 8) as u8]) {
            return Err(Damage);
        }
        self.end += 2;
        self.read();
        Ok(())
    }

    /// Reads the data between `self.end` and the next marker.
    fn read(&mut self) {
        const ONES: u64 = u64::from_ne_bytes([1; 8]);
        let (mut from, mut to) = (self.end, 0);
        loop {
            // Copies eight bytes at a time, and keeps those before the first 0xFF.
            if let Some(eight) = self.file.get(from..).and_then(<[u8]>::first_chunk::<8>) {
                self.bytes[to..to + 8].copy_from_slice(eight);
                // A byte 0xFF is zero in the complement. This test for zero bytes may also mark bytes above the first one, but
                // its lowest mark is right.
                let other = !u64::from_le_bytes(*eight);
                let zeros = other.wrapping_sub(ONES) & !other & (ONES << 7);
                let plain = zeros.trailing_zeros() as usize / 8;
                (from, to) = (from + plain, to + plain);
                if zeros == 0 {
                    continue;
                }
            }
            self.bytes[to] = match self.file.get(from..) {
                Some([0xff, 0, ..]) => {
                    from += 2;
                    0xff
                }
                Some([byte, ..]) if *byte != 0xff => {
                    from += 1;
                    *byte
                }
                _ => break,
            };
            to += 1;
        }
        (self.end, self.length) = (from, to);
        self.bytes[to..to + Self::BEYOND.len()].copy_from_slice(&Self::BEYOND);
    }
}

/// Reads the bits of a stretch. Behind its end it reads zeros; [`Bits::check`] reports that.
#[derive(Clone, Copy)]
pub struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The uppermost `count` bits are the next ones. Bits below them may be set already; `fill` will set them to the same values
    /// again.
    held: u64,
    count: u32,
}

impl Bits<'_> {
    /// The number of unread bits; 0 if more bits were read than exist.
    #[inline(always)]
    pub fn left(&self) -> usize {
        (8 * (self.bytes.len() - Stretch::BEYOND.len()) + self.count as usize).saturating_sub(8 * self.at)
    }

    /// Fails if more bits were read than exist.
    #[inline(always)]
    pub fn check(&self) -> Result<(), Damage> {
        let there = 8 * (self.bytes.len() - Stretch::BEYOND.len());
        if 8 * self.at > there + self.count as usize { Err(Damage) } else { Ok(()) }
    }

    /// Loads bytes until `self.count` is at least 56.
    #[inline(always)]
    fn fill(&mut self) {
        let eight = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk);
        self.held |= eight.map_or(0, |&eight| u64::from_be_bytes(eight)) >> self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    #[inline(always)]
    fn skip(&mut self, count: u32) {
        self.held <<= count;
        self.count -= count;
    }

    /// The next bit.
    #[inline(always)]
    pub fn bit(&mut self) -> bool {
        self.number(1) == 1
    }

    /// The next `count` bits, at most 16, as a number.
    #[inline(always)]
    pub fn number(&mut self, count: u8) -> u32 {
        if self.count < 16 {
            self.fill();
        }
        let number = self.held >> 1 >> (63 - u32::from(count));
        self.skip(u32::from(count));
        number as u32
    }

    /// Reads the next code and the value behind it. Returns the number of zeros before the value, its number of bits, and the
    /// value.
    #[inline(always)]
    pub fn value(&mut self, codes: &Codes) -> Result<(usize, u32, i32), Damage> {
        // A code and a value have at most 31 bits together. Filling always, without a branch, avoids branches that the CPU would
        // predict badly.
        self.fill();
        let look = codes.look(self.held)?;
        let value = signed(self.held << look.length(), look.size());
        self.skip(look.both());
        Ok((look.zeros(), look.size(), value))
    }

    /// Reads only the next code, and returns the two halves of its symbol.
    #[inline(always)]
    pub fn symbol(&mut self, codes: &Codes) -> Result<(usize, u32), Damage> {
        self.fill();
        let look = codes.look(self.held)?;
        self.skip(look.length());
        Ok((look.zeros(), look.size()))
    }
}
