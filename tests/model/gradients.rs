//! The gradient of every parameter against differences, and which parameters are reached.

use crate::objective::{Setup, apart, compare, length};
use crate::tiny;
use qformer::model::{Batch, Config, Image, Profile, Sampling};
use qformer::nn::{DropoutPlan, Pass};
use qformer::tensor::{DType, Gradients, Tape, Tensor};

fn check_every_parameter(config: Config, train_vit: bool, profile: Profile) {
    let sizes = (config.num_query, config.embed_dim);
    let of_seed = |seed| {
        let setup = Setup::of_seed(config.clone(), train_vit, profile, seed);
        let held = setup.parts(&setup.values);
        apart(&held, sizes).then_some((setup, held))
    };
    let (setup, held) = (5..).find_map(of_seed).unwrap();
    let (grads, loss) = setup.gradients();
    // The same function: with all rows or those that a loss reads, and with the contrastive loss written out.
    let written = setup.objective(&setup.values, &held);
    assert!((loss - written).abs() < 1e-12 * loss, "{loss} is not {written}");
    compare(&setup, &grads, 3, |values| setup.objective(values, &held));
}

#[test]
fn every_gradient_with_a_trained_image_encoder() {
    check_every_parameter(tiny::config(), true, Profile::LavisDiagonal);
}

#[test]
fn every_gradient_with_image_ids() {
    check_every_parameter(Config { cross_freq: 1, ..tiny::config() }, true, Profile::LavisImageId);
}

/// Behind a frozen image encoder, ln_vision and the keys are one operation: its gradients, and those alone, differ in
/// how they are computed.
#[test]
fn every_gradient_with_a_frozen_image_encoder() {
    check_every_parameter(tiny::config(), false, Profile::LavisDiagonal);
}

/// Under dropout the trace (all rows) draws other masks than the step; matching and captioning need none.
#[test]
fn every_gradient_under_dropout() {
    let setup = Setup::new(tiny::config(), true, Profile::LavisDiagonal);
    let drop = Some(DropoutPlan { p: 0.2, seed: 9, step: 4 });
    let params = setup.params(&setup.values);
    let (tape, mut grads) = (Tape::new(), Gradients::new());
    let out = setup.run(&Pass::training(&params, &tape, drop), None);
    let one = || Tensor::new(vec![1f64], &[]).unwrap();
    tape.backward_from(&[(&out.itm, one()), (&out.lm, one())], &mut grads).unwrap();
    let dropped = [setup.parts(&setup.values).itm, setup.parts(&setup.values).lm];
    assert!(
        dropped[0] != out.itm.item().unwrap() && dropped[1] != out.lm.item().unwrap(),
        "dropout changed nothing"
    );
    compare(&setup, &grads, 0, |values| {
        let params = setup.params(values);
        let out = setup.run(&Pass::untracked(&params, drop), None);
        out.itm.item().unwrap() + out.lm.item().unwrap()
    });
}

/// A picture that goes past both branches of the last block leaves it as it entered; the others' branches are the larger.
/// Where none is dropped, the gradients are those of differences as anywhere.
#[test]
fn drop_path_leaves_pictures_out_of_a_branch() {
    let config = Config { vit_depth: 2, ..tiny::config() };
    let (mut model, params) = tiny::model(config.clone(), true, DType::F64);
    model.set_drop_path(0.5);
    let images = tiny::pictures(&config, 40, 5, DType::F64);
    let blocks = |pass: &Pass| {
        let mut each = Vec::new();
        model.vit_tokens(pass, &images, |_, x| each.push(x.to_f64().unwrap())).unwrap();
        each
    };
    let (tape, plan) = (Tape::new(), DropoutPlan { p: 0.0, seed: 3, step: 1 });
    let dropped = blocks(&Pass::training(&params, &tape, Some(plan)));
    assert_eq!(dropped, blocks(&Pass::untracked(&params, Some(plan))), "another draw of the same step");
    let whole = blocks(&Pass::inference(&params));
    assert_eq!(dropped[0], whole[0], "the first block drops nothing");
    let of = config.image_tokens() * config.vit_width;
    let pictures = |x: &[f64]| x.chunks(of).map(<[f64]>::to_vec).collect::<Vec<_>>();
    let ends = [&dropped[0], &dropped[1], &whole[1]].map(|x| pictures(x));
    let past = (0..40).filter(|i| ends[0][*i] == ends[1][*i]).count();
    // A quarter of 40, four deviations (2.7) either way.
    assert!((1..=21).contains(&past), "{past} of 40 pictures past both branches");
    assert!((0..40).all(|i| ends[1][i] != ends[2][i]), "a branch of a picture at its own size");
}

/// The true gradient of a key bias is 0: softmax ignores a constant.
fn is_key_bias(name: &str) -> bool {
    name.ends_with("attention.self.key.bias")
}

#[test]
fn every_trained_parameter_is_reached_and_no_frozen_one() {
    for (train_vit, dtype) in [(false, DType::F32), (true, DType::F64)] {
        let config = tiny::config();
        let (model, params) = tiny::model(config.clone(), train_vit, dtype);
        let (image, text) = (tiny::pictures(&config, 3, 5, dtype), tiny::captions(&config, 3, 5));
        let (tape, mut grads) = (Tape::new(), Gradients::new());
        let batch = Batch { image: Image::Pixels(image.clone()), text: &text, image_id: None };
        let sampling = Sampling::Draw { seed: 1, step: 1, site: 0 };
        let pass = Pass::training(&params, &tape, Some(DropoutPlan { p: 0.1, seed: 1, step: 1 }));
        let out = model.stage1(&pass, &batch, Profile::LavisDiagonal, sampling, None).unwrap();
        tape.backward(&out.loss, 1.0, &mut grads).unwrap();
        for (id, spec, value) in params.iter() {
            let grad = grads.get(id.0);
            assert_eq!(grad.is_some(), spec.trained, "{}: trained {}", spec.name, spec.trained);
            assert_eq!(spec.trained, train_vit || !spec.name.starts_with("visual_encoder."), "{}", spec.name);
            let Some(grad) = grad else { continue };
            assert_eq!((grad.len(), grad.dtype()), (value.len(), dtype), "{}", spec.name);
            let all: Vec<f64> = match grad {
                qformer::tensor::Buffer::F32(g) => g.iter().map(|x| f64::from(*x)).collect(),
                qformer::tensor::Buffer::F64(g) => g.clone(),
                qformer::tensor::Buffer::Gpu(_) => panic!("no GPU here"),
            };
            assert!(all.iter().all(|x| x.is_finite()), "{}", spec.name);
            let rounding = if dtype == DType::F32 { 1e-6 } else { 1e-15 };
            assert_eq!(length(&all) > rounding, !is_key_bias(&spec.name), "{}: {}", spec.name, length(&all));
        }
        assert!(grads.keys().all(|k| k < params.len()));
        assert!(params.iter().all(|(id, spec, _)| pass.param(id).tracked() == spec.trained));
        assert!(pass.tracks() && !Pass::inference(&params).tracks());
    }
}
