//! Reading numbers off bytes that nobody vouches for: every step is checked, and an error says where it stopped.

/// What is wrong with a file, as a clause that follows "expected ..., got".
pub type Found<T> = Result<T, String>;

/// A place in little-endian bytes.
#[derive(Clone)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn take(&mut self, n: usize, what: &str) -> Found<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(format!("{} bytes left at offset {} where {what} takes {n}", self.left(), self.at));
        };
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Found<[u8; N]> {
        let taken = self.take(N, what)?;
        <[u8; N]>::try_from(taken).map_err(|_| format!("too few bytes for {what}"))
    }

    pub fn u8(&mut self, what: &str) -> Found<u8> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    pub fn u16(&mut self, what: &str) -> Found<u16> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub fn u32(&mut self, what: &str) -> Found<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &str) -> Found<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of items of `size` bytes each that must still be there, then their bytes.
    pub fn list(&mut self, count: u64, size: usize, what: &str) -> Found<&'a [u8]> {
        let bytes = usize::try_from(count).ok().and_then(|n| n.checked_mul(size));
        let Some(bytes) = bytes else {
            return Err(format!("{count} items of {what} at offset {}", self.at));
        };
        self.take(bytes, what)
    }
}

/// The little-endian numbers of a list that [`Cursor::list`] gave.
pub fn u32s(bytes: &[u8]) -> impl ExactSizeIterator<Item = u32> + '_ {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

pub fn u16s(bytes: &[u8]) -> impl ExactSizeIterator<Item = u16> + '_ {
    bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}
