//! The decoders that are written in C: libjpeg (through `jpeg.c`, where its jumps stay) and libwebp. All of this room's
//! `unsafe` is here.

use std::ffi::{CStr, c_char, c_int, c_long, c_uchar, c_uint};
use std::marker::PhantomData;
use std::ptr::NonNull;

use libwebp_sys as webp;
use mozjpeg_sys as _; // linked, and called through jpeg.c

#[repr(C)]
struct Reader {
    private: [u8; 0],
}

unsafe extern "C" {
    fn qformer_jpeg_open(
        data: *const c_uchar,
        length: usize,
        width: c_uint,
        height: c_uint,
        channels: c_int,
        memory: c_long,
        text: *mut c_char,
        room: usize,
    ) -> *mut Reader;
    fn qformer_jpeg_row(reader: *mut Reader, row: *mut c_uchar, text: *mut c_char, room: usize) -> c_int;
    fn qformer_jpeg_close(reader: *mut Reader);
    fn qformer_jpeg_write(
        rgb: *const c_uchar,
        width: c_uint,
        height: c_uint,
        quality: c_int,
        length: *mut usize,
        text: *mut c_char,
        room: usize,
    ) -> *mut c_uchar;
    fn qformer_jpeg_free(file: *mut c_uchar);
}

/// What libjpeg says of an error; empty before there is one.
struct Why([c_char; 200]);

impl Why {
    fn new() -> Why {
        Why([0; 200])
    }

    fn text(&self) -> String {
        // SAFETY: jpeg.c ends what it writes with a zero within the room, and zeros were here before.
        unsafe { CStr::from_ptr(self.0.as_ptr()) }.to_string_lossy().into_owned()
    }
}

/// The rows of a JPEG file.
pub struct Jpeg<'a> {
    reader: NonNull<Reader>,
    row: usize,
    file: PhantomData<&'a [u8]>,
}

impl<'a> Jpeg<'a> {
    /// `channels` a pixel: 1 grey, 3 RGB, 4 CMYK as stored. `memory` bounds the coefficients that must be kept.
    pub fn open(
        file: &'a [u8],
        (width, height): (usize, usize),
        channels: usize,
        memory: usize,
    ) -> Result<Jpeg<'a>, String> {
        let number = |n: usize| c_uint::try_from(n).map_err(|e| e.to_string());
        let memory = c_long::try_from(memory).map_err(|e| e.to_string())?;
        let (w, h, mut why) = (number(width)?, number(height)?, Why::new());
        let (text, room) = (why.0.as_mut_ptr(), why.0.len());
        // SAFETY: `file` outlives the reader by its lifetime; `text` has `room` bytes.
        let reader = unsafe {
            qformer_jpeg_open(file.as_ptr(), file.len(), w, h, channels as c_int, memory, text, room)
        };
        match NonNull::new(reader) {
            Some(reader) => Ok(Jpeg { reader, row: width * channels, file: PhantomData }),
            None => Err(why.text()),
        }
    }

    /// The next row, `width * channels` bytes; to be called once for each and no more after an error.
    pub fn row(&mut self, row: &mut [u8]) -> Result<(), String> {
        if row.len() != self.row {
            return Err(format!("a row of {} bytes for one of {}", row.len(), self.row));
        }
        let mut why = Why::new();
        let (text, room) = (why.0.as_mut_ptr(), why.0.len());
        // SAFETY: the reader is open, libjpeg was asked for rows of exactly this length, `text` has `room` bytes.
        match unsafe { qformer_jpeg_row(self.reader.as_ptr(), row.as_mut_ptr(), text, room) } {
            0 => Err(why.text()),
            _ => Ok(()),
        }
    }
}

impl Drop for Jpeg<'_> {
    fn drop(&mut self) {
        // SAFETY: opened by qformer_jpeg_open and closed only here.
        unsafe { qformer_jpeg_close(self.reader.as_ptr()) }
    }
}

/// A JPEG file of RGB pixels.
pub fn write_jpeg(rgb: &[u8], width: usize, height: usize, quality: i32) -> Result<Vec<u8>, String> {
    let number = |n: usize| c_uint::try_from(n).map_err(|e| e.to_string());
    let (w, h, mut why, mut length) = (number(width)?, number(height)?, Why::new(), 0);
    if width.checked_mul(height).and_then(|n| n.checked_mul(3)) != Some(rgb.len()) {
        return Err("another number of bytes than pixels".to_string());
    }
    let (text, room) = (why.0.as_mut_ptr(), why.0.len());
    // SAFETY: `rgb` has height rows of 3 * width bytes; `text` has `room` bytes.
    let file = unsafe { qformer_jpeg_write(rgb.as_ptr(), w, h, quality, &raw mut length, text, room) };
    if file.is_null() {
        return Err(why.text());
    }
    // SAFETY: jpeg.c gives `length` bytes, which stay until they are given back.
    let bytes = unsafe { std::slice::from_raw_parts(file, length) }.to_vec();
    // SAFETY: given by qformer_jpeg_write, not used afterwards.
    unsafe { qformer_jpeg_free(file) };
    Ok(bytes)
}

/// The first picture of a WebP file, and where on the canvas it belongs.
pub struct WebP<'a> {
    pub canvas: (usize, usize),
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
    /// Its own bytes.
    coded: &'a [u8],
}

impl<'a> WebP<'a> {
    /// `None` if this is no whole WebP file.
    pub fn first(file: &'a [u8]) -> Option<WebP<'a>> {
        let data = webp::WebPData { bytes: file.as_ptr(), size: file.len() };
        let version = webp::WEBP_DEMUX_ABI_VERSION as c_int;
        // SAFETY: `data` describes `file`, which outlives the demuxer; no state is asked for, so only whole files pass.
        let demuxer = unsafe { webp::WebPDemuxInternal(&data, 0, std::ptr::null_mut(), version) };
        if demuxer.is_null() {
            return None;
        }
        let mut frame = std::mem::MaybeUninit::<webp::WebPIterator>::zeroed();
        // SAFETY: the demuxer is open; all-zero is a valid state of the iterator, which is then filled in.
        let (found, size) = unsafe {
            let size = |what| webp::WebPDemuxGetI(demuxer, what) as usize;
            let size = (
                size(webp::WebPFormatFeature::WEBP_FF_CANVAS_WIDTH),
                size(webp::WebPFormatFeature::WEBP_FF_CANVAS_HEIGHT),
            );
            (webp::WebPDemuxGetFrame(demuxer, 1, frame.as_mut_ptr()), size)
        };
        let picture = (found != 0).then(|| {
            // SAFETY: filled in by WebPDemuxGetFrame; its fragment lies in `file`.
            let frame = unsafe { frame.assume_init_mut() };
            let coded = unsafe { std::slice::from_raw_parts(frame.fragment.bytes, frame.fragment.size) };
            let side = |n: c_int| usize::try_from(n).unwrap_or(0);
            let picture = WebP {
                canvas: size,
                left: side(frame.x_offset),
                top: side(frame.y_offset),
                width: side(frame.width),
                height: side(frame.height),
                coded,
            };
            // SAFETY: the iterator was filled in and is given back once.
            unsafe { webp::WebPDemuxReleaseIterator(frame) };
            picture
        });
        // SAFETY: made above, deleted once, and nothing of it is used afterwards.
        unsafe { webp::WebPDemuxDelete(demuxer) };
        picture
    }

    /// Writes the picture onto a canvas of RGB; false if it is broken.
    pub fn paint(&self, canvas: &mut [u8]) -> bool {
        let stride = self.canvas.0 * 3;
        let fits = self.left + self.width <= self.canvas.0 && self.top + self.height <= self.canvas.1;
        let (true, true, Ok(step)) = (fits, canvas.len() == stride * self.canvas.1, c_int::try_from(stride))
        else {
            return false;
        };
        let room = &mut canvas[self.top * stride + self.left * 3..];
        // libwebp takes rows of `width * 3` bytes, `stride` apart, and no more than it is told it has.
        // SAFETY: `coded` and `room` are what their lengths say.
        let done = unsafe {
            webp::WebPDecodeRGBInto(
                self.coded.as_ptr(),
                self.coded.len(),
                room.as_mut_ptr(),
                room.len(),
                step,
            )
        };
        !done.is_null()
    }
}
