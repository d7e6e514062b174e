//! Pictures as a model sees them. Every picture's features are computed alone: a picture gets the same numbers, bit for bit, in
//! any batch.

use super::Pretrained;
use crate::Result;
use crate::data::Image;
use crate::model::Images;
use crate::nn::Pass;
use crate::tensor::Tensor;
use crate::vision::{self, Photo, Resampling, Turn};

/// A picture as the model sees it.
pub struct Seen {
    /// [1,3,S,S]
    pub pixels: Tensor,
    /// Of the pixels: tells pictures apart where numbers are drawn, wherever the file lies.
    pub identity: u32,
}

/// Decodes and resizes a picture.
pub fn see(model: &Pretrained, image: &Image) -> Result<Seen> {
    seen(model, &image.photo(turn(model))?)
}

/// How the model sees a picture that a camera marked as turned.
pub fn turn(model: &Pretrained) -> Turn {
    Turn::upright(model.model.config.exif_orientation)
}

/// Resizes a picture that is decoded.
pub fn seen(model: &Pretrained, photo: &Photo) -> Result<Seen> {
    Seen::of(model, &resized(model, photo)?)
}

/// A picture at the size the model sees it in.
pub fn resized(model: &Pretrained, photo: &Photo) -> Result<vision::Picture> {
    let side = model.model.config.image_size;
    photo.resized(&photo.whole(), side, side, Resampling::Exact)
}

impl Seen {
    /// Of a picture at the model's size.
    pub fn of(model: &Pretrained, picture: &vision::Picture) -> Result<Seen> {
        Ok(Seen { pixels: model.pixels(std::slice::from_ref(picture))?, identity: identity_of(picture) })
    }
}

fn identity_of(picture: &vision::Picture) -> u32 {
    let mut hash = blake3::Hasher::new();
    hash.update(&(picture.width as u64).to_le_bytes()).update(&picture.rgb);
    let [a, b, c, d, ..] = *hash.finalize().as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The features of pictures, each computed alone.
pub fn look(model: &Pretrained, seen: &[&Seen]) -> Result<Vec<Images>> {
    let pass = Pass::inference(&model.params);
    seen.iter().map(|s| model.model.image_features(&pass, &s.pixels)).collect()
}

#[cfg(test)]
mod tests {
    use super::{identity_of, vision::Picture};

    #[test]
    fn equal_pixels_and_no_others_have_one_identity() {
        let picture = |w, h, rgb: [u8; 12]| identity_of(&Picture::new(w, h, rgb.to_vec()).unwrap());
        let mut rgb = [7; 12];
        let first = picture(2, 2, rgb);
        assert_eq!(first, picture(2, 2, rgb));
        assert_ne!(first, picture(4, 1, rgb));
        rgb[11] = 8;
        assert_ne!(first, picture(2, 2, rgb));
    }
}
