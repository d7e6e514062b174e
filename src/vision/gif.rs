//! GIF: the first frame on a canvas, as Pillow composes it. The `gif` crate decodes to indices.
//!
//! The canvas is filled with the transparent index if the frame has one and with index 0 otherwise, and grows if the frame
//! reaches over its edge. Transparent pixels keep their colour.

use super::decode::{Facts as Kind, Header, Rows};
use super::exif::Orientation;
use super::source::Source;
use crate::Result;
use gif::{DecodeOptions, Decoder, DecodingError, MemoryLimit};

pub struct Facts {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    fill: u8,
}

fn open<'a>(source: &Source<'a>) -> Result<Decoder<&'a [u8]>> {
    let mut options = DecodeOptions::new();
    options.set_memory_limit(MemoryLimit::Unlimited); // ours are checked before the frame is allocated
    options.read_info(source.bytes).map_err(|e| source.broken("GIF", e))
}

pub fn look(source: &Source) -> Result<Header> {
    let mut decoder = open(source)?;
    let screen = (usize::from(decoder.width()), usize::from(decoder.height()));
    let Some(frame) = decoder.next_frame_info().map_err(|e| source.broken("GIF", e))? else {
        return Err(source.refuse("a GIF picture", "a GIF file without a frame"));
    };
    let facts = Facts {
        left: frame.left.into(),
        top: frame.top.into(),
        width: frame.width.into(),
        height: frame.height.into(),
        fill: frame.transparent.unwrap_or(0),
    };
    source.check_size(facts.width, facts.height, 1.0)?;
    let (width, height) = (screen.0.max(facts.left + facts.width), screen.1.max(facts.top + facts.height));
    Ok(Header { width, height, orientation: Orientation::UPRIGHT, kept: 1.0, facts: Kind::Gif(facts) })
}

pub struct GifRows {
    /// Of the frame.
    indices: Vec<u8>,
    colours: Vec<[u8; 3]>,
    facts: Facts,
    y: usize,
}

pub fn rows(source: &Source, facts: &Facts) -> Result<GifRows> {
    let refuse = |e: DecodingError| source.broken("GIF", e);
    let mut decoder = open(source)?;
    decoder.next_frame_info().map_err(refuse)?;
    let mut indices = vec![0; facts.width * facts.height];
    decoder.read_into_buffer(&mut indices).map_err(refuse)?;
    let palette = decoder.palette().map_err(refuse)?.as_chunks::<3>().0;
    let colours = (0..=255u8).map(|i| palette.get(usize::from(i)).copied().unwrap_or([0; 3])).collect();
    Ok(GifRows { indices, colours, facts: Facts { ..*facts }, y: 0 })
}

impl Rows for GifRows {
    fn next(&mut self, row: &mut [u8]) -> Result<()> {
        let pixels = row.as_chunks_mut::<3>().0;
        pixels.fill(self.colours[usize::from(self.facts.fill)]);
        if let Some(y) = self.y.checked_sub(self.facts.top).filter(|y| *y < self.facts.height) {
            let line = &self.indices[y * self.facts.width..][..self.facts.width];
            for (out, index) in pixels[self.facts.left..].iter_mut().zip(line) {
                *out = self.colours[usize::from(*index)];
            }
        }
        self.y += 1;
        Ok(())
    }
}
