//! Pictures in chunks of one size: what becomes of one depends on no other.

use super::{device, tiny};
use qformer::model::{Config, Images, Model};
use qformer::nn::{Params, Pass, Precision};
use qformer::tensor::{DType, Tensor};

fn bits(images: &Images) -> Vec<u32> {
    let keys = images.keys.iter().flatten().flat_map(|(k, v)| [k, v]);
    let tensors = [&images.embeds, &images.proj].into_iter().chain(keys);
    tensors.flat_map(|t| t.to_f32().unwrap()).map(f32::to_bits).collect()
}

fn setup(precision: Precision) -> (Config, Model, Params) {
    let config = tiny::config();
    let (model, params) = tiny::model(config.clone(), false, DType::F32);
    (config, model, params.to(&device(), precision).unwrap())
}

/// Some of 6 pictures, in this order.
fn some(config: &Config, which: &[usize]) -> Tensor {
    let all = tiny::pictures(config, 6, 9, DType::F32);
    let size = all.len() / 6;
    let all = all.to_f32().unwrap();
    let picked = which.iter().flat_map(|i| all[i * size..(i + 1) * size].to_vec()).collect();
    Tensor::new::<f32>(picked, &[which.len(), 3, config.image_size, config.image_size]).unwrap()
}

/// Whatever stands before and behind a picture, in whatever chunk, the last of one picture among them.
#[test]
fn a_picture_does_not_depend_on_others() {
    for precision in [Precision::F32, Precision::BF16] {
        let (config, model, params) = setup(precision);
        let pass = Pass::inference(&params);
        let look = |which: &[usize]| {
            let images = model.image_features(&pass, &some(&config, which)).unwrap();
            let tokens = model.tokens_in_chunks(&pass, &some(&config, which)).unwrap().to_f32().unwrap();
            let each = tokens.len() / which.len();
            let tokens = tokens.chunks(each).map(|t| t.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
            images.each().unwrap().iter().map(bits).zip(tokens).collect::<Vec<_>>()
        };
        let all = look(&[0, 1, 2, 3, 4, 5]);
        assert_ne!(all[0], all[1]);
        for which in [&[5, 3, 1, 0, 2][..], &[4], &[2, 4], &[1, 1, 1, 1]] {
            for (seen, i) in look(which).iter().zip(which) {
                assert!(*seen == all[*i], "picture {i} among {which:?} in {}", precision.name());
            }
        }
    }
}

/// A picture that is all there is may be rounded differently: each of the roundings on its way, a dozen in a block or a layer, by
/// at most a unit in the last place, of a value that grows no larger than the largest.
#[test]
fn a_picture_alone_differs_in_its_last_bits_at_most() {
    for (precision, unit) in [(Precision::F32, f32::EPSILON), (Precision::BF16, 1.0 / 128.0)] {
        let (config, model, params) = setup(precision);
        let pass = Pass::inference(&params);
        let chunk = model.image_features(&pass, &some(&config, &[3])).unwrap();
        let alone = model.image_features_alone(&pass, &some(&config, &[3])).unwrap();
        let roundings = (12 * (config.vit_depth + config.layers)) as f32;
        for (a, b) in [(&chunk.embeds, &alone.embeds), (&chunk.proj, &alone.proj)] {
            let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
            let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
            let apart = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(apart <= roundings * unit * largest, "{apart} of {largest} in {}", precision.name());
        }
    }
}
