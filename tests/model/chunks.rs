//! Pictures that the CPU computes together have the bits of each computed alone.

use crate::tiny;
use qformer::model::{Config, Images, Model};
use qformer::nn::{Params, Pass, Value};
use qformer::tensor::{DType, HalfMatrix, Tensor};
use std::sync::Arc;

fn bits(images: &Images) -> Vec<u64> {
    let keys = images.keys.iter().flatten().flat_map(|(k, v)| [k, v]);
    let tensors = [&images.embeds, &images.proj].into_iter().chain(keys);
    tensors.flat_map(|t| t.to_f64().unwrap()).map(f64::to_bits).collect()
}

/// The frozen image encoder's matrices in half precision, as a CPU holds them.
fn halved(model: &Model, params: Params) -> Params {
    let mut all = params.iter().map(|(id, spec, t)| (params.specs()[id.0].clone(), spec.dense, t.clone()));
    let specs = params.specs().to_vec();
    assert!(!model.trains_vit());
    Params::of_values(specs, |spec| {
        let (_, dense, value) = all.next().unwrap();
        let &[rows, columns] = &spec.shape[..] else { return Ok(Value::Tensor(value)) };
        if spec.trained || !dense {
            return Ok(Value::Tensor(value));
        }
        let half = value.to_f32().unwrap().into_iter().flat_map(|x| half::f16::from_f32(x).to_le_bytes());
        Ok(Value::Half(HalfMatrix::new(Arc::new(half.collect::<Vec<u8>>()), rows, columns)?))
    })
    .unwrap()
}

/// 21 pictures are more than a chunk; sums of more than 512 terms, of fewer and of more than 64 rows and columns.
#[test]
fn pictures_together_have_the_bits_of_each_alone() {
    let small = tiny::config();
    let sizes = [
        (small.clone(), 21),
        // 82 tokens, and matmuls whose sums are taken in several parts.
        (
            Config {
                image_size: 36,
                vit_mlp: 1500,
                vit_width: 72,
                hidden: 80,
                embed_dim: 70,
                ffn: 96,
                num_query: 5,
                ..small.clone()
            },
            5,
        ),
        // 5 tokens and long sums, for which they are not computed together.
        (Config { vit_mlp: 1500, vit_depth: 1, ..small.clone() }, 3),
        (Config { ffn: 1500, layers: 1, ..small.clone() }, 3),
        (Config { num_query: 1, ..small.clone() }, 3),
        (Config { patch_size: 8, ..small }, 3),
    ];
    for (config, n) in sizes {
        for (dtype, half) in [(DType::F32, false), (DType::F64, false), (DType::F32, true)] {
            let (model, params) = tiny::model(config.clone(), false, dtype);
            let params = if half { halved(&model, params) } else { params };
            let pass = Pass::inference(&params);
            let image = tiny::pictures(&config, n, 5, dtype);
            let together = model.image_features(&pass, &image).unwrap().each().unwrap();
            let size = image.len() / n;
            let pixels = image.reshape(&[n, size]).unwrap();
            for (i, seen) in together.iter().enumerate() {
                let own: Tensor = pixels.slice_rows(i..i + 1).unwrap();
                let own = own.reshape(&[1, 3, config.image_size, config.image_size]).unwrap();
                let alone = model.image_features_alone(&pass, &own).unwrap();
                assert!(bits(seen) == bits(&alone), "picture {i} of {n}, {dtype}, {config:?}");
            }
        }
    }
}
