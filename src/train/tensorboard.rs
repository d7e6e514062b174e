//! Scalars in TensorBoard's own file format, which its web page reads.
//!
//!   file    events.out.tfevents.SECONDS.qformer.PID: records one after another
//!   record  length u64 | masked crc32c(length) u32 | bytes | masked crc32c(bytes) u32, little-endian (TFRecord)
//!   bytes   a protobuf Event { wall_time double = 1, step int64 = 2, file_version string = 3, summary = 5,
//!           session_log = 7 };  Summary { value = 1 { tag string = 1, simple_value float = 2 } };  SessionLog { status = 1 }
//!   masked  rotate_right(crc, 15) + 0xa282ead8
//!
//! A resumed run begins a new file with SessionLog START, so that TensorBoard drops what an earlier process wrote
//! for the same steps.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// A file of events being written, each whole or not at all.
pub struct Events {
    file: File,
    /// Length of the file up to the last whole record.
    whole: u64,
}

impl Events {
    /// A new file in this folder; `step` is the first step to come.
    pub fn create(folder: &Path, step: u64, wall_time: f64) -> io::Result<Events> {
        let name = format!("events.out.tfevents.{}.qformer.{}", wall_time as u64, std::process::id());
        let file = OpenOptions::new().create(true).append(true).open(folder.join(name))?;
        let whole = file.metadata()?.len();
        let mut events = Events { file, whole };
        events.append(&record(&event(wall_time, None, &bytes_field(3, b"brain.Event:2"))))?;
        events.append(&record(&event(wall_time, Some(step), &bytes_field(7, &[0x08, 0x01]))))?;
        Ok(events)
    }

    /// Numbers of one step under their tags.
    pub fn scalars(&mut self, step: u64, wall_time: f64, values: &[(&str, f64)]) -> io::Result<()> {
        let summary: Vec<u8> = values.iter().flat_map(|(tag, v)| bytes_field(1, &value(tag, *v))).collect();
        self.append(&record(&event(wall_time, Some(step), &bytes_field(5, &summary))))
    }

    /// A record that did not fit on the disk is taken back.
    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(record);
        match written {
            Ok(()) => self.whole += record.len() as u64,
            Err(_) => self.file.set_len(self.whole)?,
        }
        written
    }
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = length.to_vec();
    out.extend(masked(crc32c(&length)).to_le_bytes());
    out.extend(data);
    out.extend(masked(crc32c(data)).to_le_bytes());
    out
}

fn event(wall_time: f64, step: Option<u64>, rest: &[u8]) -> Vec<u8> {
    let mut out = vec![0x09]; // field 1, 8 bytes
    out.extend(wall_time.to_le_bytes());
    if let Some(step) = step {
        out.push(0x10); // field 2, varint
        out.extend(varint(step));
    }
    out.extend(rest);
    out
}

fn value(tag: &str, v: f64) -> Vec<u8> {
    let mut out = bytes_field(1, tag.as_bytes());
    out.push(0x15); // field 2, 4 bytes
    out.extend((v as f32).to_le_bytes());
    out
}

fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    out.extend(varint(bytes.len() as u64));
    out.extend(bytes);
    out
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a few hundred bytes a step.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, b| (0..8).fold(crc ^ u32::from(*b), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4.
    #[test]
    fn crc32c_known_answers() {
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46DD_794E);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The bytes that the Python package tensorboard 2.21 writes for the same events.
    #[test]
    fn records_are_tensorboards_bytes() {
        let version = record(&event(1_700_000_000.25, None, &bytes_field(3, b"brain.Event:2")));
        assert_eq!(hex(&version), VERSION);
        let summary: Vec<u8> = [("loss/total", 1.5), ("猫", -0.1)]
            .iter()
            .flat_map(|(tag, v)| bytes_field(1, &value(tag, *v)))
            .collect();
        assert_eq!(hex(&record(&event(1_700_000_000.25, Some(300), &bytes_field(5, &summary)))), SCALARS);
        let start = record(&event(1_700_000_000.25, Some(12345), &bytes_field(7, &[0x08, 0x01])));
        assert_eq!(hex(&start), START);
    }

    const VERSION: &str = "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9";
    const SCALARS: &str = "2d000000000000003c418afb0900001040fc54d94110ac022a1f0a110a0a6c6f73732f746f74616c15\
                           0000c03f0a0a0a03e78cab15cdccccbdebf136c3";
    const START: &str = "100000000000000095fbfe180900001040fc54d94110b9603a0208018fbd6939";
}
