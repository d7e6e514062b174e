//! How negatives are drawn.

use crate::objective::Setup;
use crate::tiny;
use qformer::model::{Batch, Image, Profile, Sampling, Trace};
use qformer::nn::Pass;
use qformer::tensor::{DType, Tensor};

/// How often each negative is drawn in many steps, against its weight: softmax + 1e-4 without the diagonal, or softmax
/// over the other ids alone.
#[test]
fn negatives_are_drawn_by_their_weights() {
    const DRAWS: u32 = 3000;
    for profile in [Profile::LavisDiagonal, Profile::LavisImageId] {
        let setup = Setup::new(tiny::config(), false, profile);
        let params = setup.params(&setup.values);
        let pass = Pass::inference(&params);
        let tokens = setup.model.vit_tokens(&pass, &setup.image, |_, _| {}).unwrap();
        let batch = Batch {
            image: Image::Pixels(setup.image.clone()),
            text: &setup.text,
            image_id: Some(&setup.ids),
        };
        let mut trace = Trace::default();
        setup.run(&pass, Some(&mut trace));
        let weights = |sim: &Option<Tensor>| -> Vec<Vec<f64>> {
            let row = |(i, row): (usize, &[f64])| {
                let other = |j: usize| setup.ids[j] != setup.ids[i];
                let e: Vec<f64> = match profile {
                    Profile::LavisDiagonal => row.iter().map(|x| x.exp()).collect(),
                    Profile::LavisImageId => {
                        row.iter().enumerate().map(|(j, x)| f64::from(u8::from(other(j))) * x.exp()).collect()
                    }
                };
                let total: f64 = e.iter().sum();
                let weight = |j: usize| match profile {
                    Profile::LavisDiagonal if i == j => 0.0,
                    Profile::LavisDiagonal => e[j] / total + 1e-4,
                    Profile::LavisImageId => e[j] / total,
                };
                (0..3).map(weight).collect()
            };
            sim.as_ref().unwrap().to_f64().unwrap().chunks(3).enumerate().map(row).collect()
        };
        let want = [weights(&trace.sim_t2i), weights(&trace.sim_i2t)];
        for (w, t) in want.iter().zip([&trace.weights_t2i, &trace.weights_i2t]) {
            let far = w
                .concat()
                .iter()
                .zip(t.as_ref().unwrap().to_f64().unwrap())
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            assert!(far < 1e-12, "{w:?} {t:?}");
        }
        let mut counts = [[[0u32; 3]; 3]; 2];
        for step in 0..DRAWS {
            let sampling = Sampling::Draw { seed: 4, step, site: 0 };
            let n = setup.model.losses(&pass, &tokens, &batch, profile, sampling, None).unwrap().negatives;
            for (count, drawn) in counts.iter_mut().zip([&n.image, &n.text]) {
                for (i, j) in drawn.iter().enumerate() {
                    count[i][*j as usize] += 1;
                }
            }
        }
        for (count, want) in counts.iter().zip(&want) {
            for (count, w) in count.iter().zip(want) {
                let total: f64 = w.iter().sum();
                for (count, w) in count.iter().zip(w) {
                    let (share, p) = (f64::from(*count) / f64::from(DRAWS), w / total);
                    // Five standard deviations; what has no weight is never drawn.
                    let bound = 5.0 * (p * (1.0 - p) / f64::from(DRAWS)).sqrt();
                    assert!((share - p).abs() <= bound, "{profile:?}: drawn {share}, weight {p}");
                }
            }
        }
    }
}

/// And images and texts are not drawn by the same numbers.
#[test]
fn draws_differ_by_seed_step_and_site() {
    let setup = Setup::new(tiny::config(), false, Profile::LavisDiagonal);
    let params = setup.params(&setup.values);
    let pass = Pass::inference(&params);
    let config = &setup.model.config;
    let (image, text) = (tiny::pictures(config, 16, 1, DType::F64), tiny::captions(config, 16, 1));
    let batch = Batch { image: Image::Pixels(image.clone()), text: &text, image_id: None };
    let draw = |seed, step, site| {
        let sampling = Sampling::Draw { seed, step, site };
        setup.model.stage1(&pass, &batch, Profile::LavisDiagonal, sampling, None).unwrap().negatives
    };
    let all = [draw(1, 1, 0), draw(2, 1, 0), draw(1, 2, 0), draw(1, 1, 1 << 16)];
    for i in 0..4 {
        assert!((0..i).all(|j| all[i] != all[j]), "draw {i}");
        assert_ne!(all[i].image, all[i].text);
    }
    assert_eq!(all[0], draw(1, 1, 0));
}
