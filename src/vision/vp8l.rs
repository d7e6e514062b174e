//! How many groups of prefix codes a lossless WebP stream uses, read without decoding its pixels.
//!
//! libwebp keeps tables of up to 20 kB for each group; a stream of 200 kB can ask for 65,536 of them. Their numbers stand in a
//! small picture at the stream's beginning, behind the transforms' small pictures: those are decoded here, all as RFC 9649 has
//! it, and nothing behind them is looked at.

/// Bits, the lowest of each byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Option<u32> {
        let byte = *self.bytes.get(self.at / 8)?;
        let bit = byte >> (self.at % 8) & 1;
        self.at += 1;
        Some(bit.into())
    }

    fn read(&mut self, count: u32) -> Option<u32> {
        (0..count).try_fold(0, |n, i| Some(n | self.bit()? << i))
    }
}

/// A canonical prefix code: how many symbols of each length, and the symbols in the order of their codes.
struct Code {
    counts: [u32; 16],
    symbols: Vec<u32>,
}

impl Code {
    fn new(lengths: &[u8]) -> Code {
        let mut counts = [0; 16];
        let mut symbols = Vec::new();
        for length in 1..16 {
            let of = (lengths.iter().enumerate()).filter(|(_, l)| **l == length).map(|(s, _)| s as u32);
            let before = symbols.len();
            symbols.extend(of);
            counts[usize::from(length)] = (symbols.len() - before) as u32;
        }
        Code { counts, symbols }
    }

    /// A code of one symbol takes no bits.
    fn symbol(&self, bits: &mut Bits) -> Option<u32> {
        if let [one] = self.symbols[..] {
            return Some(one);
        }
        let (mut code, mut first, mut index) = (0, 0, 0);
        for count in &self.counts[1..] {
            code |= bits.bit()?;
            if code < first + count {
                return self.symbols.get((index + code - first) as usize).copied();
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }

    fn read(bits: &mut Bits, alphabet: usize) -> Option<Code> {
        const ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let mut lengths = vec![0; alphabet];
        if bits.bit()? == 1 {
            let two = bits.bit()? == 1;
            let width = if bits.bit()? == 1 { 8 } else { 1 };
            *lengths.get_mut(bits.read(width)? as usize)? = 1;
            if two {
                *lengths.get_mut(bits.read(8)? as usize)? = 1;
            }
            return Some(Code::new(&lengths));
        }
        let mut of_lengths = [0; 19];
        for place in ORDER.iter().take(bits.read(4)? as usize + 4) {
            of_lengths[*place] = bits.read(3)? as u8;
        }
        let mut left = alphabet;
        if bits.bit()? == 1 {
            let width = 2 + 2 * bits.read(3)?;
            left = 2 + bits.read(width)? as usize;
        }
        let (code, mut at, mut before) = (Code::new(&of_lengths), 0, 8);
        while at < alphabet && left > 0 {
            left -= 1;
            let (length, times) = match code.symbol(bits)? {
                16 => (before, 3 + bits.read(2)? as usize),
                17 => (0, 3 + bits.read(3)? as usize),
                18 => (0, 11 + bits.read(7)? as usize),
                length => (length as u8, 1),
            };
            if length > 0 {
                before = length;
            }
            lengths.get_mut(at..at + times)?.fill(length);
            at += times;
        }
        Some(Code::new(&lengths))
    }
}

/// Where short distances point: 16 times the rows up, and 8 less the columns to the left.
const PLANES: [u8; 120] = [
    0x18, 0x07, 0x17, 0x19, 0x28, 0x06, 0x27, 0x29, 0x16, 0x1a, 0x26, 0x2a, 0x38, 0x05, 0x37, 0x39, 0x15,
    0x1b, 0x36, 0x3a, 0x25, 0x2b, 0x48, 0x04, 0x47, 0x49, 0x14, 0x1c, 0x35, 0x3b, 0x46, 0x4a, 0x24, 0x2c,
    0x58, 0x45, 0x4b, 0x34, 0x3c, 0x03, 0x57, 0x59, 0x13, 0x1d, 0x56, 0x5a, 0x23, 0x2d, 0x44, 0x4c, 0x55,
    0x5b, 0x33, 0x3d, 0x68, 0x02, 0x67, 0x69, 0x12, 0x1e, 0x66, 0x6a, 0x22, 0x2e, 0x54, 0x5c, 0x43, 0x4d,
    0x65, 0x6b, 0x32, 0x3e, 0x78, 0x01, 0x77, 0x79, 0x53, 0x5d, 0x11, 0x1f, 0x64, 0x6c, 0x42, 0x4e, 0x76,
    0x7a, 0x21, 0x2f, 0x75, 0x7b, 0x31, 0x3f, 0x63, 0x6d, 0x52, 0x5e, 0x00, 0x74, 0x7c, 0x41, 0x4f, 0x10,
    0x20, 0x62, 0x6e, 0x30, 0x73, 0x7d, 0x51, 0x5f, 0x40, 0x72, 0x7e, 0x61, 0x6f, 0x50, 0x71, 0x7f, 0x60,
    0x70,
];

/// A length or distance out of its prefix.
fn extended(bits: &mut Bits, prefix: u32) -> Option<usize> {
    if prefix < 4 {
        return Some(prefix as usize + 1);
    }
    let extra = (prefix - 2) >> 1;
    Some((((2 + (prefix & 1)) << extra) + bits.read(extra)?) as usize + 1)
}

fn distance(width: usize, code: usize) -> usize {
    match PLANES.get(code - 1) {
        Some(plane) => {
            let (up, left) = (usize::from(plane >> 4), 8 - isize::from((plane & 15) as i8));
            (up as isize * width as isize + left).max(1) as usize
        }
        None => code - PLANES.len(),
    }
}

/// The bits of a colour cache, if there is one.
fn cache_bits(bits: &mut Bits) -> Option<u32> {
    match bits.bit()? {
        0 => Some(0),
        _ => bits.read(4).filter(|b| (1..=11).contains(b)),
    }
}

/// A small picture inside the stream: one group of codes, no transforms.
fn picture(bits: &mut Bits, width: usize, height: usize) -> Option<Vec<u32>> {
    let cached = cache_bits(bits)?;
    let mut cache = vec![0u32; if cached == 0 { 0 } else { 1 << cached }];
    let green = Code::read(bits, 256 + 24 + cache.len())?;
    let rest = [256, 256, 256, 40].map(|n| Code::read(bits, n));
    let [Some(red), Some(blue), Some(alpha), Some(far)] = rest else { return None };
    let total = width.checked_mul(height)?;
    let mut pixels: Vec<u32> = Vec::with_capacity(total);
    while pixels.len() < total {
        let start = pixels.len();
        match green.symbol(bits)? {
            g @ 0..256 => {
                let [r, b] = [red.symbol(bits)?, blue.symbol(bits)?];
                pixels.push(alpha.symbol(bits)? << 24 | r << 16 | g << 8 | b);
            }
            l @ 256..280 => {
                let length = extended(bits, l - 256)?;
                let prefix = far.symbol(bits)?;
                let back = distance(width, extended(bits, prefix)?);
                for _ in 0..length.min(total - start) {
                    pixels.push(*pixels.get(pixels.len().checked_sub(back)?)?);
                }
            }
            cached => pixels.push(*cache.get(cached as usize - 280)?),
        }
        if cached > 0 {
            for pixel in &pixels[start..] {
                cache[(pixel.wrapping_mul(0x1e35_a7bd) >> (32 - cached)) as usize] = *pixel;
            }
        }
    }
    Some(pixels)
}

/// Groups of prefix codes whose tables libwebp keeps for a stream of this size, which starts behind its header. None if it
/// is broken.
pub fn groups(stream: &[u8], width: usize, height: usize) -> Option<usize> {
    let bits = &mut Bits { bytes: stream, at: 0 };
    let mut across = width;
    let part = |n: usize, shift: u32| n.div_ceil(1 << shift);
    while bits.bit()? == 1 {
        match bits.read(2)? {
            0 | 1 => {
                let shift = bits.read(3)? + 2;
                picture(bits, part(across, shift), part(height, shift))?;
            }
            2 => {}
            _ => {
                let colours = bits.read(8)? as usize + 1;
                picture(bits, colours, 1)?;
                let shift = [(2, 3), (4, 2), (16, 1)].iter().find(|(most, _)| colours <= *most);
                across = part(across, shift.map_or(0, |s| s.1));
            }
        }
    }
    cache_bits(bits)?;
    if bits.bit()? == 0 {
        return Some(1);
    }
    let shift = bits.read(3)? + 2;
    let mut numbers = picture(bits, part(across, shift), part(height, shift))?;
    numbers.iter_mut().for_each(|n| *n = *n >> 8 & 0xFFFF);
    let highest = numbers.iter().max().map_or(0, |n| *n as usize);
    if highest < 1000 && highest < across * height {
        return Some(highest + 1);
    }
    // libwebp then keeps those that occur.
    numbers.sort_unstable();
    numbers.dedup();
    Some(numbers.len())
}
