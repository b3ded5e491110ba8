//! Bits of a scan, and the codes that they spell.

/// Entropy data that end early or hold an invalid code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage;

impl From<Damage> for String {
    fn from(Damage: Damage) -> String {
        "damaged JPEG (its image data are broken or end early)".into()
    }
}

/// Codes of at most this many bits are found by one look, and a value behind its code if both fit.
const LOOK: u32 = 10;

/// A table of codes of 1 to 16 bits.
#[derive(Clone, Debug)]
pub struct Codes {
    symbols: Vec<u8>,
    /// By length - 1: one beyond its largest code, and what to add to a code for its place in `symbols`.
    by_length: [(i32, i32); 16],
    /// By the next [`LOOK`] bits.
    looks: Box<[Look; 1 << LOOK]>,
}

/// What the next bits begin with: 0 where the code is longer than them; else, from the lowest bit on, 8 bits of length of the code
/// and of the value if that is known, 8 bits of symbol, 16 bits of signed value, which is 0 if it is not known.
#[derive(Clone, Copy, Debug, Default)]
struct Look(u32);

impl Look {
    fn new(length: u32, symbol: u8, value: i16) -> Look {
        Look(length | u32::from(symbol) << 8 | u32::from(value as u16) << 16)
    }

    #[inline(always)]
    fn length(self) -> u32 {
        self.0 & 0xff
    }

    #[inline(always)]
    fn symbol(self) -> u8 {
        (self.0 >> 8) as u8
    }

    #[inline(always)]
    fn value(self) -> i16 {
        (self.0 >> 16) as i16
    }
}

impl Codes {
    /// From how many codes there are of each length, and their symbols.
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
                // All looks that begin with the code.
                let room = looks.chunks_exact_mut(1 << (LOOK - length)).skip(code as usize);
                for (looks, &symbol) in room.zip(of_length) {
                    for (rest, look) in looks.iter_mut().enumerate() {
                        *look = known(length, symbol, rest as u32);
                    }
                }
            }
            code = (code + i32::from(count)) << 1;
            place += i32::from(count);
        }
        if place as usize != symbols.len() {
            return Err(Damage);
        }
        Ok(Codes { symbols: symbols.to_vec(), by_length, looks })
    }
}

/// What is known from a code of `length` bits and the bits behind it, `rest`.
fn known(length: u32, symbol: u8, rest: u32) -> Look {
    let (size, left) = (u32::from(symbol & 15), LOOK - length);
    if size == 0 || size > left {
        return Look::new(length, symbol, 0);
    }
    Look::new(length + size, symbol, signed(u64::from(rest) << (64 - left), size) as i16)
}

/// The signed number that the uppermost `size` bits, at most 16, are: one that begins with 0 is negative.
#[inline(always)]
fn signed(held: u64, size: u32) -> i32 {
    let number = (held >> 1 >> (63 - size)) as i32;
    let positive = (held as i64 >> 63) as i32;
    number + (!positive & (1 - (1 << size)))
}

/// Reads a scan's bits; a zero after 0xFF is stuffing, anything else a marker, at which the bits end.
///
/// Behind the end come zeros; [`Bits::check`] finds that they were read.
#[derive(Clone, Copy)]
pub struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The uppermost `count` bits are the next; what else is in it will come again.
    held: u64,
    count: u32,
    /// How many of all bits so far were made up.
    lacking: u32,
}

impl<'a> Bits<'a> {
    /// Bits of `bytes` from `at`.
    pub fn new(bytes: &'a [u8], at: usize) -> Bits<'a> {
        Bits { bytes, at, held: 0, count: 0, lacking: 0 }
    }

    /// Where bytes were not looked at yet; no marker lies before it.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Whether all bits that were read were there.
    #[inline(always)]
    pub fn check(&self) -> Result<(), Damage> {
        if self.lacking > self.count { Err(Damage) } else { Ok(()) }
    }

    /// Makes `self.count` at least `wanted`, at most 56.
    #[inline(always)]
    fn need(&mut self, wanted: u32) {
        if self.count >= wanted {
            return;
        }
        const ONES: u64 = u64::from_ne_bytes([1; 8]);
        let eight = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk);
        let word = eight.map_or(u64::MAX, |&eight| u64::from_be_bytes(eight));
        // No byte is 0xFF: the complement has no byte of zero.
        if (!word).wrapping_sub(ONES) & word & (ONES << 7) == 0 {
            self.held |= word >> self.count;
            self.at += ((63 - self.count) >> 3) as usize;
            self.count |= 56;
        } else {
            // By value, so that the bits may stay in registers.
            *self = self.with_bytes();
        }
    }

    /// With as many bytes more as there is room for, one by one.
    #[cold]
    #[inline(never)]
    fn with_bytes(mut self) -> Bits<'a> {
        while self.count < 56 {
            let byte = match self.bytes.get(self.at..) {
                Some([0xff, 0, ..]) => {
                    self.at += 2;
                    0xff
                }
                Some([byte, ..]) if *byte != 0xff => {
                    self.at += 1;
                    *byte
                }
                _ => {
                    self.lacking += 8;
                    0
                }
            };
            self.held |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
        self
    }

    #[inline(always)]
    fn skip(&mut self, count: u32) {
        self.held <<= count;
        self.count -= count;
    }

    /// The next bit.
    #[inline(always)]
    pub fn bit(&mut self) -> bool {
        self.need(1);
        let bit = self.held >> 63 == 1;
        self.skip(1);
        bit
    }

    /// The next `count` bits, at most 16, as a number.
    #[inline(always)]
    pub fn number(&mut self, count: u8) -> u32 {
        self.need(16);
        let number = self.held >> 1 >> (63 - u32::from(count));
        self.skip(u32::from(count));
        number as u32
    }

    /// The next code and the value behind it: how many zeros are before it, of how many bits it is, itself.
    #[inline(always)]
    pub fn value(&mut self, codes: &Codes) -> Result<(usize, u8, i32), Damage> {
        // A code and a value have 31 bits at most.
        self.need(32);
        let look = codes.looks[(self.held >> (64 - LOOK)) as usize];
        let symbol = look.symbol();
        if look.value() != 0 {
            self.skip(look.length());
            return Ok((usize::from(symbol >> 4), symbol & 15, i32::from(look.value())));
        }
        let symbol = if look.length() > 0 {
            self.skip(look.length());
            symbol
        } else {
            self.long(codes)?
        };
        let size = u32::from(symbol & 15);
        let value = signed(self.held, size);
        self.skip(size);
        Ok((usize::from(symbol >> 4), symbol & 15, value))
    }

    /// The symbol of the next code.
    #[inline(always)]
    pub fn symbol(&mut self, codes: &Codes) -> Result<u8, Damage> {
        self.need(16);
        let look = codes.looks[(self.held >> (64 - LOOK)) as usize];
        if look.length() == 0 {
            return self.long(codes);
        }
        let value = if look.value() != 0 { u32::from(look.symbol() & 15) } else { 0 };
        self.skip(look.length() - value);
        Ok(look.symbol())
    }

    /// The symbol of a code of more than [`LOOK`] bits; 16 bits are held.
    #[inline(always)]
    fn long(&mut self, codes: &Codes) -> Result<u8, Damage> {
        for (length, &(end, offset)) in (1..).zip(&codes.by_length).skip(LOOK as usize) {
            let code = (self.held >> (64 - length)) as i32;
            if code < end {
                self.skip(length);
                return codes.symbols.get((code + offset) as usize).copied().ok_or(Damage);
            }
        }
        Err(Damage)
    }

    /// Goes beyond the restart marker of this number, which must come next.
    pub fn restart(&mut self, number: u32) -> Result<(), Damage> {
        (self.held, self.count, self.lacking) = (0, 0, 0);
        while self.bytes.get(self.at..self.at + 2) == Some(&[0xff, 0xff]) {
            self.at += 1;
        }
        if self.bytes.get(self.at..self.at + 2) != Some(&[0xff, 0xd0 + (number % 8) as u8]) {
            return Err(Damage);
        }
        self.at += 2;
        Ok(())
    }
}
