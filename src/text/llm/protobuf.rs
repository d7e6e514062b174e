//! The fields of a protobuf message, one after the other. Lengths are checked against the bytes that are there, and
//! nothing is copied.
//!
//! wire format: a message is a list of (varint: number << 3 | type, value); type 0 a varint, 1 eight bytes, 2 a varint
//! length and so many bytes (text, or a message inside), 5 four bytes. Types 3 and 4 (groups) are refused.

use crate::text::cursor::{Cursor, Found};

/// A field's value as it is written; what it means depends on the field.
#[derive(Debug, PartialEq)]
pub enum Value<'a> {
    Varint(u64),
    Eight,
    Bytes(&'a [u8]),
    Four(u32),
}

/// Iterates over (field number, value); ends after the first error.
pub struct Fields<'a> {
    cursor: Cursor<'a>,
}

impl<'a> Fields<'a> {
    pub fn of(message: &'a [u8]) -> Self {
        Fields { cursor: Cursor::new(message) }
    }

    fn field(&mut self) -> Found<(u64, Value<'a>)> {
        let key = varint(&mut self.cursor)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut self.cursor)?),
            1 => {
                self.cursor.take(8, "a number of eight bytes")?;
                Value::Eight
            }
            2 => {
                let length = varint(&mut self.cursor)?;
                Value::Bytes(self.cursor.list(length, 1, "a field")?)
            }
            5 => Value::Four(self.cursor.u32("a number of four bytes")?),
            other => return Err(format!("a field of type {other}")),
        };
        Ok((key >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Found<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.cursor.left() == 0 {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.cursor = Cursor::new(&[]);
        }
        Some(field)
    }
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn varint(cursor: &mut Cursor) -> Found<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = cursor.u8("a varint")?;
        number |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err("a varint of more than ten bytes".into())
}

impl<'a> Value<'a> {
    pub fn number(&self, what: &str) -> Found<u64> {
        match self {
            Value::Varint(number) => Ok(*number),
            other => Err(format!("{what} as {}", other.kind())),
        }
    }

    pub fn flag(&self, what: &str) -> Found<bool> {
        Ok(self.number(what)? != 0)
    }

    pub fn float(&self, what: &str) -> Found<f32> {
        match self {
            Value::Four(bits) => Ok(f32::from_bits(*bits)),
            other => Err(format!("{what} as {}", other.kind())),
        }
    }

    pub fn bytes(&self, what: &str) -> Found<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            other => Err(format!("{what} as {}", other.kind())),
        }
    }

    pub fn text(&self, what: &str) -> Found<&'a str> {
        std::str::from_utf8(self.bytes(what)?).map_err(|_| format!("{what} that is not UTF-8"))
    }

    fn kind(&self) -> &'static str {
        match self {
            Value::Varint(_) => "a varint",
            Value::Eight => "eight bytes",
            Value::Bytes(_) => "text or a message",
            Value::Four(_) => "four bytes",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_type() {
        // The encodings in protobuf's documentation: field 1 = 150, field 2 = "testing".
        let message = b"\x08\x96\x01\x12\x07testing\x1d\x00\x00\x80\x3f\x21\x01\x02\x03\x04\x05\x06\x07\x08";
        let fields: Vec<_> = Fields::of(message).collect::<Found<_>>().unwrap();
        assert_eq!(fields[0], (1, Value::Varint(150)));
        assert_eq!(fields[1].1.text("").unwrap(), "testing");
        assert_eq!(fields[2].1.float("").unwrap(), 1.0);
        assert_eq!(fields[3], (4, Value::Eight));
        assert!(fields[0].1.text("the name").unwrap_err().contains("the name"));
    }

    #[test]
    fn broken_messages_end() {
        let long = [0xFF; 11];
        for broken in
            [&b"\x08"[..], b"\x12\x05test", b"\x0b", b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", &long]
        {
            let fields: Vec<_> = Fields::of(broken).collect();
            assert!(matches!(fields[..], [Err(_)]), "{broken:?}");
        }
    }
}
