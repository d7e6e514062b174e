//! Pictures as a model sees them. They go through the image encoder in chunks of one size ([`crate::tensor::Chunk`]): a picture
//! gets the same numbers, bit for bit, beside any others.

use super::Pretrained;
use crate::data::Image;
use crate::model::Images;
use crate::nn::Pass;
use crate::ops;
use crate::tensor::Tensor;
use crate::vision::{self, Normalise, Orientation, Photo, Resampling, Turn};
use crate::{Error, Result};

/// A picture as the model sees it.
pub struct Seen {
    /// `[S, S, 3]`
    pub rgb: Vec<u8>,
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

/// A photo that was opened upright, as the model sees it, and what turns that upright again.
pub fn as_seen<'a>(model: &Pretrained, upright: Photo<'a>) -> (Photo<'a>, Orientation) {
    match turn(model) {
        Turn::Upright => (upright, Orientation::UPRIGHT),
        Turn::AsStored => {
            let orientation = upright.orientation();
            (upright.as_stored(), orientation)
        }
    }
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
        let side = model.model.config.image_size;
        if (picture.width, picture.height) != (side, side) {
            let got = format!("{} x {}", picture.width, picture.height);
            return Err(Error::argument("picture", "size", format!("{side} x {side}"), got));
        }
        Ok(Seen { rgb: picture.rgb.clone(), identity: identity_of(picture) })
    }
}

fn identity_of(picture: &vision::Picture) -> u32 {
    let mut hash = blake3::Hasher::new();
    hash.update(&(picture.width as u64).to_le_bytes()).update(&picture.rgb);
    let [a, b, c, d, ..] = *hash.finalize().as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The features of pictures, one by one; of each the same beside any others.
pub fn look(model: &Pretrained, seen: &[&Seen]) -> Result<Vec<Images>> {
    if seen.is_empty() {
        return Ok(Vec::new());
    }
    model.model.image_features(&Pass::inference(&model.params), &planes(model, seen)?)?.each()
}

/// The features of a picture that is all there is: as fast as the device can. On a GPU its last bits may be others than
/// [`look`]'s.
pub fn look_alone(model: &Pretrained, seen: &Seen) -> Result<Images> {
    model.model.image_features_alone(&Pass::inference(&model.params), &planes(model, &[seen])?)
}

/// Normalised planes `[B,3,S,S]` where the model is.
pub fn planes(model: &Pretrained, seen: &[&Seen]) -> Result<Tensor> {
    let Normalise { mean, std } = Normalise::default();
    let bytes: Vec<u8> = seen.iter().flat_map(|s| s.rgb.iter().copied()).collect();
    ops::pixel_planes(model.params.device(), &bytes, model.model.config.image_size, mean, std)
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
