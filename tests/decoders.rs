//! Every kind of picture file against Pillow, by checksums of its pixels (`vision/record_decoders.py`), and what a file may cost.
//!
//! `QFORMER_DECODERS=FILE` names a larger set that the script made.

use qformer::vision::{self, Photo, Resampling, Turn};
use safetensors::SafeTensors;
use std::collections::BTreeMap;

const FILES: &[u8] = include_bytes!("vision/decoders.safetensors");

/// Width, height, checksum of the pixels, and of the picture at 61 x 47; `None` where Pillow refuses the file.
type Recorded = BTreeMap<String, Option<[u32; 4]>>;

fn recorded(file: &[u8]) -> Recorded {
    let (_, header) = SafeTensors::read_metadata(file).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["pillow"]).unwrap()
}

fn differs(name: &str, bytes: &[u8], want: Option<[u32; 4]>) -> Option<String> {
    let ours = Photo::new(bytes, name, Turn::AsStored).and_then(|photo| {
        let picture = photo.picture()?;
        let small = photo.resized(&photo.whole(), 61, 47, Resampling::Exact)?;
        let size = [picture.width as u32, picture.height as u32];
        Ok([size[0], size[1], crc32fast::hash(&picture.rgb), crc32fast::hash(&small.rgb)])
    });
    match (ours, want) {
        (Ok(ours), Some(want)) if ours == want => None,
        (Err(_), None) => None,
        (Ok(ours), want) => Some(format!("{name}: {ours:?}, Pillow {want:?}")),
        (Err(e), Some(_)) => Some(e.to_string()),
    }
}

fn compare(file: &[u8]) -> usize {
    let recorded = recorded(file);
    let tensors = SafeTensors::deserialize(file).unwrap();
    let wrong: Vec<String> = (recorded.iter())
        .filter_map(|(name, want)| differs(name, tensors.tensor(name).unwrap().data(), *want))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), recorded.len(), wrong.join("\n"));
    recorded.len()
}

#[test]
fn every_kind_of_file_gives_pillows_pixels() {
    assert!(compare(FILES) > 180);
    if let Some(path) = std::env::var_os("QFORMER_DECODERS") {
        let count = compare(&std::fs::read(&path).unwrap());
        println!("{count} files of {} agree", path.display());
    }
}

/// A checksum must be able to differ.
#[test]
fn one_other_pixel_is_noticed() {
    let (file, recorded) = (SafeTensors::deserialize(FILES).unwrap(), recorded(FILES));
    let mut bytes = file.tensor("plain24-0.bmp").unwrap().data().to_vec();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    assert!(differs("plain24-0.bmp", &bytes, recorded["plain24-0.bmp"]).is_some());
}

fn jpegs() -> Vec<(String, Vec<u8>)> {
    let file = SafeTensors::deserialize(FILES).unwrap();
    let names = file.names().into_iter().filter(|n| n.ends_with(".jpg") && n.starts_with("17x33"));
    names.map(|n| (n.to_string(), file.tensor(n).unwrap().data().to_vec())).collect()
}

/// Also with an end marker put behind the cut, as some programs repair such files. (A progressive file may end after any
/// scan, and arithmetic coding leaves zeros at its end out: those cannot be told from whole ones.)
#[test]
fn a_jpeg_cut_anywhere_is_refused() {
    for (name, bytes) in jpegs() {
        // The marker of a frame that is baseline and coded by Huffman.
        let repaired = bytes.windows(2).any(|w| matches!(w, [0xFF, 0xC0 | 0xC1]));
        for end in 0..bytes.len() - 2 {
            let refused = |tail: &[u8]| {
                let cut = [&bytes[..end], tail].concat();
                vision::decode(&cut, &name, Turn::AsStored).is_err()
            };
            assert!(refused(&[]), "{name} cut at {end} of {}", bytes.len());
            assert!(!repaired || refused(&[0xFF, 0xD9]), "{name} cut at {end} of {} and ended", bytes.len());
        }
    }
}

#[test]
fn a_lost_restart_marker_is_refused() {
    let all = jpegs();
    let (name, bytes) = all.iter().find(|(n, _)| n == "17x33-restart.jpg").unwrap();
    let markers: Vec<usize> =
        (0..bytes.len() - 1).filter(|&i| bytes[i] == 0xFF && (0xD0..=0xD7).contains(&bytes[i + 1])).collect();
    assert!(markers.len() > 2);
    for at in markers {
        let lost = [&bytes[..at], &bytes[at + 2..]].concat();
        let refused =
            vision::decode(&lost, name, Turn::AsStored).expect_err("a marker is missing").to_string();
        assert!(refused.contains(name.as_str()), "{refused}");
    }
}

/// A PNG of one bit a pixel, all black: a few kilobytes of any size.
fn black(width: u32, height: u32) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![0; width.div_ceil(8) as usize * height as usize]).unwrap();
    writer.finish().unwrap();
    file
}

#[test]
fn a_large_picture_is_resized_without_being_held_and_refused_whole() {
    let file = black(65_500, 2_700);
    let photo = Photo::new(&file, "wide.png", Turn::AsStored).unwrap();
    for how in [Resampling::Exact, Resampling::Fast] {
        let small = photo.resized(&photo.whole(), 30, 20, how).unwrap();
        assert!(small.rgb.iter().all(|v| *v == 0) && small.rgb.len() == 1800);
    }
    assert_eq!(photo.size(), (65_500, 2_700));
    let refused = photo.picture().expect_err("531 MB").to_string();
    assert!(refused.contains("wide.png") && refused.contains("256 MiB"), "{refused}");
    for (width, height, limit) in [(65_501, 1, "65500"), (1, 65_501, "65500"), (60_000, 3_000, "178956970")] {
        let file = black(width, height);
        let Err(refused) = Photo::new(&file, "large.png", Turn::AsStored) else {
            panic!("{width} x {height}")
        };
        assert!(refused.to_string().contains(limit), "{refused}");
    }
}

/// The lowest bit of each first.
#[derive(Default)]
struct Bits(Vec<bool>);

impl Bits {
    fn write(&mut self, value: u32, count: u32) -> &mut Bits {
        self.0.extend((0..count).map(|i| value >> i & 1 == 1));
        self
    }

    /// A code of 256 symbols of 8 bits, or of one symbol.
    fn eight_bits(&mut self, most: bool) -> &mut Bits {
        self.write(0, 1).write(15, 4);
        for length_of in [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
            self.write(u32::from(length_of == 8), 3);
        }
        if most { self.write(1, 1).write(3, 3).write(254, 8) } else { self.write(0, 1) }
    }

    fn one_symbol(&mut self) -> &mut Bits {
        self.write(1, 1).write(0, 1).write(1, 1).write(0, 8)
    }
}

/// Of 1,024 x 1,024 pixels, each block of 4 x 4 with codes of its own: libwebp would keep 1.3 GB of tables.
#[test]
fn a_webp_that_asks_for_many_tables_is_refused_before_it_is_decoded() {
    let mut bits = Bits::default();
    bits.write(0x2F, 8).write(1023, 14).write(1023, 14).write(0, 4);
    bits.write(0, 1).write(0, 1).write(1, 1).write(0, 3); // no transform, no cache, groups in blocks of 4
    bits.write(0, 1).eight_bits(true).eight_bits(false).one_symbol().one_symbol().one_symbol();
    for number in 0..65_536u32 {
        let [low, high, ..] = number.to_le_bytes();
        bits.write(low.reverse_bits().into(), 8).write(high.reverse_bits().into(), 8);
    }
    bits.write(0, 32).write(0, 32);
    let mut data: Vec<u8> =
        bits.0.chunks(8).map(|b| b.iter().rev().fold(0, |n, bit| n << 1 | u8::from(*bit))).collect();
    data.resize(data.len().next_multiple_of(2), 0);
    let length = data.len() as u32;
    let mut file = [b"RIFF", &(length + 12).to_le_bytes()[..], b"WEBPVP8L", &length.to_le_bytes()].concat();
    file.extend(data);
    let Err(refused) = Photo::new(&file, "tables.webp", Turn::AsStored) else { panic!("not refused") };
    let refused = refused.to_string();
    assert!(refused.contains("tables.webp") && refused.contains("256 MiB"), "{refused}");
}

/// Every way a camera can be held: the picture as Pillow turns it, and its thumbnail, which is turned after it is made small.
#[test]
fn a_turned_picture_is_seen_upright() {
    let base = vision::encode_png(3, 2, &(0..18).map(|v| v * 10).collect::<Vec<u8>>()).unwrap();
    let stored = vision::decode(&base, "stored.png", Turn::AsStored).unwrap();
    // Stored it is abc, def; these are the turned pictures row by row, and their widths.
    let upright = [
        (1, 3, "abcdef"),
        (2, 3, "cbafed"),
        (3, 3, "fedcba"),
        (4, 3, "defabc"),
        (5, 2, "adbecf"),
        (6, 2, "daebfc"),
        (7, 2, "fcebda"),
        (8, 2, "cfbead"),
    ];
    for (orientation, width, pixels) in upright {
        let exif =
            [b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", &[orientation][..], &[0, 0, 0, 0, 0, 0]]
                .concat();
        let crc = crc32fast::hash(&[b"eXIf", &exif[..]].concat());
        let chunk = [&(exif.len() as u32).to_be_bytes()[..], b"eXIf", &exif, &crc.to_be_bytes()].concat();
        let file = [&base[..33], &chunk, &base[33..]].concat();
        let photo = Photo::new(&file, "turned.png", Turn::Upright).unwrap();
        let picture = photo.picture().unwrap();
        assert_eq!((picture.width, photo.size().0), (width, width), "{orientation}");
        let letters: String = picture.rgb.iter().step_by(3).map(|v| char::from(b'a' + v / 30)).collect();
        assert_eq!(letters, pixels, "{orientation}");
        assert_eq!(photo.small(3).unwrap(), picture, "{orientation}");
        let resized = photo.resized(&photo.whole(), 5, 4, Resampling::Exact).unwrap();
        assert_eq!(resized, vision::resize(&picture, 5, 4).unwrap(), "{orientation}");
        assert_eq!(vision::decode(&file, "turned.png", Turn::AsStored).unwrap(), stored, "{orientation}");
    }
}
