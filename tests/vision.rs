//! Pictures against what Pillow 11 and torchvision made of them (`vision/record_pillow.py`), and pictures that mean harm.

use qformer::vision::{self, Augment, Crop, Normalise, Operation, Picture, RandAugment, Resampling, Turn};
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::BTreeMap;

const CASES: &[u8] = include_bytes!("vision/cases.safetensors");

fn cases() -> SafeTensors<'static> {
    SafeTensors::deserialize(CASES).unwrap()
}

fn metadata(key: &str) -> Vec<Value> {
    let (_, header) = SafeTensors::read_metadata(CASES).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()[key]).unwrap()
}

fn number(v: &Value, key: &str) -> usize {
    v[key].as_u64().unwrap() as usize
}

fn recorded(name: &str) -> Picture {
    let file = cases();
    let view = file.tensor(name).unwrap();
    let &[height, width, 3] = view.shape() else { panic!("{name} {:?}", view.shape()) };
    Picture::new(width, height, view.data().to_vec()).unwrap()
}

fn compare(name: &str, ours: &Picture, theirs: &Picture) {
    assert_eq!((ours.width, ours.height), (theirs.width, theirs.height), "{name}");
    assert!(ours.rgb == theirs.rgb, "{name}");
}

#[test]
fn every_kind_of_file_decodes_as_pillow_does() {
    let file = cases();
    let names: Vec<&str> = file.names().into_iter().filter_map(|n| n.strip_prefix("file.")).collect();
    assert!(names.len() >= 60, "{} files", names.len());
    for name in names {
        let bytes = file.tensor(&format!("file.{name}")).unwrap().data();
        let ours = vision::decode(bytes, name, Turn::AsStored).unwrap_or_else(|e| panic!("{name}: {e}"));
        compare(name, &ours, &recorded(&format!("rgb.{name}")));
        let upright = format!("upright.{name}");
        if file.tensor(&upright).is_ok() {
            compare(name, &vision::decode(bytes, name, Turn::Upright).unwrap(), &recorded(&upright));
        }
    }
}

#[test]
fn resizing_equals_pillow_to_the_byte_and_the_fast_path_is_near() {
    for (k, crop) in metadata("resize").iter().enumerate() {
        let (input, output) = (recorded(&format!("resize.{k}.in")), recorded(&format!("resize.{k}.out")));
        let crop = Crop {
            left: number(crop, "left"),
            top: number(crop, "top"),
            width: number(crop, "width"),
            height: number(crop, "height"),
            flip: false,
        };
        let run = |how| vision::resize_crop(&input, &crop, output.width, output.height, how).unwrap();
        assert_eq!(run(Resampling::Exact).rgb, output.rgb, "case {k}");
        let most = run(Resampling::Fast).rgb.iter().zip(&output.rgb).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most <= Some(2), "case {k}: the fast path is {most:?} away");
    }
}

#[test]
fn random_crops_are_torchvisions_given_torchs_numbers() {
    for (i, case) in metadata("crops").iter().enumerate() {
        let mut words = case["words"].as_array().unwrap().iter().map(|w| w.as_u64().unwrap() as u32);
        let scale = (case["scale"][0].as_f64().unwrap(), case["scale"][1].as_f64().unwrap());
        let augment = Augment { scale, ..Augment::default() };
        let (width, height) = (number(case, "width"), number(case, "height"));
        let crop = vision::random_crop(width, height, &augment, || words.next().unwrap()).unwrap();
        let want = Crop {
            left: number(case, "left"),
            top: number(case, "top"),
            width: number(case, "crop_width"),
            height: number(case, "crop_height"),
            flip: case["flip"].as_bool().unwrap(),
        };
        assert_eq!(crop, want, "case {i}");
    }
}

#[test]
fn randaugments_operations_give_opencvs_pixels() {
    const FILE: &[u8] = include_bytes!("vision/randaugment.safetensors");
    let (_, header) = SafeTensors::read_metadata(FILE).unwrap();
    let recorded: BTreeMap<String, u32> =
        serde_json::from_str(&header.metadata().as_ref().unwrap()["opencv"]).unwrap();
    let file = SafeTensors::deserialize(FILE).unwrap();
    assert!(recorded.len() > 100);
    let mut wrong = Vec::new();
    for (name, want) in &recorded {
        let [picture, operation, magnitude] = name.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{name}")
        };
        let view = file.tensor(picture).unwrap();
        let mut picture = Picture::new(view.shape()[1], view.shape()[0], view.data().to_vec()).unwrap();
        let operation = Operation::ALL.into_iter().find(|o| o.name() == operation).unwrap();
        operation.apply(&mut picture, magnitude.parse().unwrap());
        if crc32fast::hash(&picture.rgb) != *want {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), recorded.len());
}

/// LAVIS draws each operation equally often and applies half of them. At its level Brightness and Sharpness change nothing, as
/// Identity; nor do AutoContrast and Equalize change the red of this picture, which has every value once. So three of four draws
/// leave it as it is, and both of 1,125 pictures of 2,000, with a standard deviation of 22.
#[test]
fn randaugment_draws_every_operation_and_applies_half() {
    let whole = Picture::new(16, 16, (0..=255).flat_map(|v| [v, 255 - v, v / 2]).collect()).unwrap();
    let mut unchanged = 0;
    for i in 0..2000 {
        let draws = qformer::data::random::Draws::new(7, [1, 2, i]);
        let (mut picture, mut n) = (whole.clone(), 0);
        RandAugment::default().apply(&mut picture, || {
            n += 1;
            draws.unit(n)
        });
        assert_eq!(n, 6);
        unchanged += u32::from(picture.rgb.iter().step_by(3).eq(whole.rgb.iter().step_by(3)));
    }
    assert!((1015..1235).contains(&unchanged), "{unchanged}");
}

#[test]
fn normalising_follows_its_formula_in_f32() {
    let picture = Picture::new(2, 1, vec![0, 128, 255, 10, 20, 30]).unwrap();
    let n = Normalise::default();
    let planes = n.planes(&picture).unwrap();
    for (c, plane) in planes.chunks(2).enumerate() {
        for (x, value) in plane.iter().enumerate() {
            let pixel = f32::from(picture.rgb[x * 3 + c]);
            assert_eq!(value.to_bits(), ((pixel / 255.0 - n.mean[c]) / n.std[c]).to_bits());
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error_or_the_whole_picture() {
    let file = cases();
    for name in file.names().into_iter().filter_map(|n| n.strip_prefix("file.")) {
        let bytes = file.tensor(&format!("file.{name}")).unwrap().data();
        let whole = vision::decode(bytes, name, Turn::AsStored).unwrap();
        for end in 0..bytes.len() {
            if let Ok(cut) = vision::decode(&bytes[..end], name, Turn::AsStored) {
                // Bytes behind the pixels (a trailer, the later frames of an animation) may be missing.
                assert_eq!(cut, whole, "{name} cut at {end} of {}", bytes.len());
            }
        }
    }
}

#[test]
fn a_flipped_byte_never_panics() {
    let file = cases();
    for name in file.names().into_iter().filter_map(|n| n.strip_prefix("file.")) {
        let mut bytes = file.tensor(&format!("file.{name}")).unwrap().data().to_vec();
        for at in 0..bytes.len() {
            bytes[at] ^= 0xFF;
            let _ = vision::decode(&bytes, name, Turn::Upright);
            bytes[at] ^= 0xFF;
        }
    }
}

fn refusal(bytes: &[u8], name: &str) -> String {
    vision::decode(bytes, name, Turn::AsStored).expect_err(name).to_string()
}

/// A JPEG's header for a picture of this size, without any pixels.
fn empty_jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut jpeg = vec![0xFF, 0xD8, 0xFF, 0xDB, 0, 67, 0];
    jpeg.extend([16; 64]);
    let [[h1, h0], [w1, w0]] = [height.to_be_bytes(), width.to_be_bytes()];
    jpeg.extend([0xFF, 0xC0, 0, 11, 8, h1, h0, w1, w0, 1, 1, 0x11, 0]);
    jpeg.extend([0xFF, 0xC4, 0, 20, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    jpeg.extend([0xFF, 0xC4, 0, 20, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    jpeg.extend([0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, 0, 0xFF, 0xD9]);
    jpeg
}

fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut ihdr = b"IHDR".to_vec();
    ihdr.extend(width.to_be_bytes());
    ihdr.extend(height.to_be_bytes());
    ihdr.extend([8, 2, 0, 0, 0]);
    let crc = !ihdr.iter().fold(!0u32, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 })
    });
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(ihdr);
    png.extend(crc.to_be_bytes());
    png
}

#[test]
fn what_is_no_picture_or_too_large_is_refused_by_name_and_reason() {
    assert!(refusal(&empty_jpeg(512, 512), "empty.jpg").contains("empty.jpg"));
    for (bytes, name) in [
        (empty_jpeg(65535, 65535), "huge.jpg"),
        (png_header(65535, 65535), "huge.png"),
        (png_header(1 << 31, 4), "wide.png"),
    ] {
        let text = refusal(&bytes, name);
        assert!(text.contains(name) && text.contains("65500"), "{text}");
    }
    let text = refusal(&png_header(16000, 16000), "many.png");
    assert!(text.contains("many.png") && text.contains("178956970"), "{text}");
    let text = refusal(b"<!DOCTYPE html><html>404</html>", "page.jpg");
    assert!(text.contains("page.jpg") && text.contains("JPEG"), "{text}");
    assert!(refusal(b"", "nothing.png").contains("nothing.png"));
    let missing = vision::load("no/such/picture.jpg", Turn::AsStored).expect_err("missing").to_string();
    assert!(missing.contains("no/such/picture.jpg"), "{missing}");
}

#[test]
fn buffers_that_do_not_fit_their_size_are_refused() {
    assert!(Picture::new(2, 2, vec![0; 11]).is_err());
    assert!(Picture::new(0, 2, vec![]).is_err());
    let picture = Picture::new(4, 4, vec![7; 48]).unwrap();
    let outside = Crop { top: 2, left: 0, height: 3, width: 4, flip: false };
    assert!(vision::resize_crop(&picture, &outside, 2, 2, Resampling::Exact).is_err());
    assert!(vision::resize(&picture, 0, 2).is_err());
    assert!(Normalise::default().write(&picture, &mut [0.0; 47]).is_err());
}
