//! The orientation that a camera wrote into a picture file, found where Pillow finds it: EXIF tag 0x112, and if there is none,
//! `tiff:Orientation` of an XMP packet.
//!
//!   1 upright   2 mirrored   3 half a turn   4 upside down   5 transposed   6 a quarter turn clockwise makes it upright
//!   7 transposed the other way   8 a quarter turn counterclockwise

use super::Picture;
use super::source::Source;

/// One of the eight ways to turn and mirror a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orientation(u8);

impl Orientation {
    /// As it is stored.
    pub const UPRIGHT: Orientation = Orientation(1);

    fn known(number: u32) -> Option<Orientation> {
        (1..=8).contains(&number).then_some(Orientation(number as u8))
    }

    fn swaps(self) -> bool {
        self.0 >= 5
    }

    /// The size of a turned picture.
    pub fn turned(self, width: usize, height: usize) -> (usize, usize) {
        if self.swaps() { (height, width) } else { (width, height) }
    }

    /// Puts a stored row where it belongs in the turned picture; `height` is that of the stored one.
    pub fn place(self, y: usize, row: &[u8], turned: &mut [u8], height: usize) {
        let pixels = row.as_chunks::<3>().0;
        let last = (pixels.len() - 1, height - 1);
        // Of the turned picture: how many pixels a row has, and where stored pixel (x, y) goes.
        let across = if self.swaps() { height } else { pixels.len() };
        let at = |x: usize| match self.0 {
            2 => (last.0 - x, y),
            3 => (last.0 - x, last.1 - y),
            4 => (x, last.1 - y),
            5 => (y, x),
            6 => (last.1 - y, x),
            7 => (last.1 - y, last.0 - x),
            8 => (y, last.0 - x),
            _ => (x, y),
        };
        if at(0) == (0, y) && !self.swaps() {
            turned[y * row.len()..][..row.len()].copy_from_slice(row);
            return;
        }
        for (x, pixel) in pixels.iter().enumerate() {
            let (column, line) = at(x);
            turned[(line * across + column) * 3..][..3].copy_from_slice(pixel);
        }
    }

    /// The turned picture.
    pub fn apply(self, picture: Picture) -> Picture {
        if self == Orientation::UPRIGHT {
            return picture;
        }
        let (width, height) = self.turned(picture.width, picture.height);
        let mut rgb = vec![0; picture.rgb.len()];
        for (y, row) in picture.rgb.chunks_exact(picture.width * 3).enumerate() {
            self.place(y, row, &mut rgb, picture.height);
        }
        Picture { width, height, rgb }
    }
}

/// Of a TIFF structure, with or without the name before it that JPEG demands.
pub fn of_exif(bytes: &[u8]) -> Option<Orientation> {
    let tiff = bytes.strip_prefix(b"Exif\0\0").unwrap_or(bytes);
    let little = match tiff.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let number = |at: usize, count: usize| {
        let bytes = tiff.get(at..at.checked_add(count)?)?;
        let add = |n: u32, b: &u8| n << 8 | u32::from(*b);
        Some(if little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) })
    };
    let list = number(4, 4)? as usize;
    for i in 0..number(list, 2)? as usize {
        let entry = list.checked_add(2 + i * 12)?;
        if number(entry, 2)? == 0x112 {
            return match number(entry + 2, 2)? {
                1 => Orientation::known(number(entry + 8, 1)?),
                3 => Orientation::known(number(entry + 8, 2)?),
                4 => Orientation::known(number(entry + 8, 4)?),
                _ => None,
            };
        }
    }
    None
}

/// Of an XMP packet: `tiff:Orientation="6"`, or `<tiff:Orientation>6`.
pub fn of_xmp(bytes: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    let at = bytes.windows(NAME.len()).position(|w| w == NAME)?;
    let rest = &bytes[at + NAME.len()..];
    let value = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
    Orientation::known(u32::from(value.first()?.checked_sub(b'0')?))
}

/// Of a PNG file: its chunks are length, name, data and checksum.
pub fn of_png(source: &Source) -> Orientation {
    let (mut exif, mut xmp) = (None, None);
    let mut chunks = source.bytes.get(8..).unwrap_or_default();
    while let [a, b, c, d, rest @ ..] = chunks {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let (Some(name), Some(data)) = (rest.get(..4), rest.get(4..).and_then(|r| r.get(..length))) else {
            break;
        };
        match name {
            b"eXIf" => exif = exif.or(of_exif(data)),
            b"iTXt" if data.starts_with(b"XML:com.adobe.xmp\0\0") => xmp = xmp.or(of_xmp(data)),
            _ => {}
        }
        chunks = rest.get(4 + length + 4..).unwrap_or_default();
    }
    exif.or(xmp).unwrap_or(Orientation::UPRIGHT)
}
