//! Decoding: a caption depends on its image alone, and arguments that make no sense are refused.
//! That it is what transformers' `generate` gives is shown by the recorded cases (`tests/parity.rs`).

use qformer::model::{Config, GenerateOptions, Hypothesis, Images, Model};
use qformer::nn::{Params, Pass};
use qformer::tensor::{DType, Stream, Tensor};

fn setup() -> (Model, Params) {
    let config = Config { max_pos: 24, ..Config::tiny() };
    let (model, specs) = Model::new(config, false).unwrap();
    let mut params = Params::random(specs, DType::F32, 5).unwrap();
    // Weights as they begin make all words equally likely: spread them, so that captions differ.
    for i in 0..params.len() {
        let id = qformer::nn::Id(i);
        if params.specs()[i].shape.len() > 1 {
            params.get_mut(id).data_mut::<f32>().unwrap().iter_mut().for_each(|x| *x *= 12.0);
        }
    }
    (model, params)
}

fn pictures(model: &Model, n: usize) -> Tensor {
    let side = model.config.image_size;
    let noise = Stream { seed: 9, step: 0, site: 1 };
    let values = (0..(n * 3 * side * side) as u64).map(|i| noise.normal(i)).collect::<Vec<_>>();
    Tensor::of(DType::F32, &values, &[n, 3, side, side]).unwrap()
}

fn images(model: &Model, params: &Params, all: &Tensor, which: &[usize]) -> Images {
    let n = all.len() / all.shape().sizes()[0];
    let side = model.config.image_size;
    let data = all.data::<f32>();
    let picked: Vec<f32> = which.iter().flat_map(|i| data[i * n..(i + 1) * n].to_vec()).collect();
    let image = Tensor::new(picked, &[which.len(), 3, side, side]).unwrap();
    model.image_features(&Pass::inference(params), &image).unwrap()
}

/// Captions of images 0..7, computed in batches of `size`.
fn captions(
    model: &Model,
    params: &Params,
    all: &Tensor,
    o: &GenerateOptions,
    size: usize,
) -> Vec<Vec<Hypothesis>> {
    let order: Vec<usize> = (0..7).collect();
    let mut found = Vec::new();
    for batch in order.chunks(size) {
        let identities: Vec<u32> = batch.iter().map(|i| *i as u32).collect();
        found.extend(model.generate(params, &images(model, params, all, batch), o, &identities).unwrap());
    }
    found
}

#[test]
fn a_caption_does_not_depend_on_its_batch() {
    let (model, params) = setup();
    let all = pictures(&model, 7);
    let beams = |num_beams, num_return_sequences| GenerateOptions {
        num_beams,
        num_return_sequences,
        max_length: 14,
        min_length: 3,
        ..GenerateOptions::default()
    };
    let sampled = GenerateOptions { do_sample: true, seed: 3, top_p: 0.95, ..beams(1, 3) };
    for options in [beams(1, 1), beams(3, 1), beams(5, 2), sampled] {
        let alone = captions(&model, &params, &all, &options, 1);
        let different: std::collections::HashSet<_> = alone.iter().map(|h| h[0].ids.clone()).collect();
        assert!(different.len() > 1, "all captions are the same: nothing is tested");
        for size in [2, 7] {
            assert_eq!(
                captions(&model, &params, &all, &options, size),
                alone,
                "batches of {size}, {options:?}"
            );
        }
    }
}

/// Captions of different lengths, the shorter one first.
#[test]
fn logits_of_a_caption_do_not_depend_on_the_others() {
    let (model, params) = setup();
    let all = pictures(&model, 2);
    let bos = model.config.bos();
    let captions = [vec![bos, 9], vec![bos, 5, 6, 7]];
    let logits = |which: &[usize], captions: &[Vec<u32>]| {
        model.caption_logits(&params, &images(&model, &params, &all, which), captions).unwrap()
    };
    let together = logits(&[0, 1], &captions);
    assert_eq!(together[0], logits(&[0], &captions[..1])[0]);
    assert_eq!(together[1], logits(&[1], &captions[1..])[0]);
    assert!(together.iter().zip(&captions).all(|(l, ids)| l.len() == ids.len()));
    assert!(together.iter().flatten().all(|l| l.len() == model.config.vocab));
}

#[test]
fn sampling_follows_its_seed_and_its_limits() {
    let (model, params) = setup();
    let all = pictures(&model, 7);
    let sample = |seed, top_k, temperature| {
        let o = GenerateOptions {
            max_length: 12,
            min_length: 2,
            seed,
            top_k,
            temperature,
            ..GenerateOptions::nucleus()
        };
        captions(&model, &params, &all, &o, 7)
    };
    assert_eq!(sample(1, 50, 1.0), sample(1, 50, 1.0));
    assert_ne!(sample(1, 50, 1.0), sample(2, 50, 1.0));
    // One candidate left: the most probable, as greedy search takes it.
    let greedy =
        GenerateOptions { num_beams: 1, max_length: 12, min_length: 2, ..GenerateOptions::default() };
    let greedy: Vec<_> =
        captions(&model, &params, &all, &greedy, 7).into_iter().map(|h| h[0].ids.clone()).collect();
    let ids = |all: Vec<Vec<Hypothesis>>| all.into_iter().map(|h| h[0].ids.clone()).collect::<Vec<_>>();
    assert_eq!(ids(sample(1, 1, 1.0)), greedy);
    assert_eq!(ids(sample(1, 0, 1e-4)), greedy);
}

#[test]
fn captions_keep_their_lengths_and_end_with_sep() {
    let (model, params) = setup();
    let all = pictures(&model, 7);
    let o = GenerateOptions { num_beams: 3, max_length: 9, min_length: 6, ..GenerateOptions::default() };
    for h in captions(&model, &params, &all, &o, 7).iter().flatten() {
        assert_eq!(h.ids[0], model.config.bos());
        assert!(h.ids.len() <= 9, "{:?}", h.ids);
        match h.ids.iter().position(|id| *id == qformer::model::SEP) {
            Some(at) => assert!(at == h.ids.len() - 1 && at >= 6, "{:?}", h.ids),
            None => assert_eq!(h.ids.len(), 9),
        }
        assert!(h.log_prob < 0.0 && h.score.is_finite());
    }
}

#[test]
fn senseless_arguments_are_refused_by_name() {
    let (model, params) = setup();
    let one = images(&model, &params, &pictures(&model, 1), &[0]);
    let good = GenerateOptions::default;
    let cases = [
        (GenerateOptions { num_beams: 0, ..good() }, "num_beams"),
        (GenerateOptions { num_beams: 100, ..good() }, "num_beams"),
        (GenerateOptions { max_length: 1, ..good() }, "max_length"),
        (GenerateOptions { max_length: 25, ..good() }, "max_length"),
        (GenerateOptions { min_length: 31, max_length: 20, ..good() }, "min_length"),
        (GenerateOptions { top_p: 0.0, max_length: 20, ..GenerateOptions::nucleus() }, "top_p"),
        (
            GenerateOptions { temperature: f64::NAN, max_length: 20, ..GenerateOptions::nucleus() },
            "temperature",
        ),
        (GenerateOptions { repetition_penalty: -1.0, max_length: 20, ..good() }, "repetition_penalty"),
        (GenerateOptions { length_penalty: f64::INFINITY, max_length: 20, ..good() }, "length_penalty"),
        (GenerateOptions { num_return_sequences: 4, max_length: 20, ..good() }, "num_return_sequences"),
        (GenerateOptions { do_sample: true, max_length: 20, ..good() }, "num_beams"),
    ];
    for (options, name) in cases {
        let e = model.generate(&params, &one, &options, &[0]).expect_err(name).to_string();
        assert!(e.contains("generate") && e.contains(name), "{e}");
    }
    let o = GenerateOptions { max_length: 20, ..good() };
    let e = model.generate(&params, &one, &o, &[0, 1]).expect_err("identities").to_string();
    assert!(e.contains("identities"), "{e}");
}
