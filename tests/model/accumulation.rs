//! A step over several micro-batches.

use crate::objective::{Parts, Setup, apart, compare, contrast, length, targets};
use crate::tiny;
use qformer::group::Group;
use qformer::model::{Batch, Image, Negatives, Profile, Sampling, sites};
use qformer::nn::{DropoutPlan, Pass};
use qformer::tensor::{DType, Gradients};
use qformer::train::step::StepPlan;

/// Micro-batches of two and of three captions; the first of each has the same image id.
fn micro_batches(profile: Profile, seed: u64) -> [Setup; 2] {
    [2usize, 3].map(|n| {
        let setup = Setup::new(tiny::config(), false, profile);
        let config = setup.model.config.clone();
        let (image, text) = (tiny::pictures(&config, n, seed, DType::F64), tiny::captions(&config, n, seed));
        let negatives = Negatives { image: vec![0; n], text: vec![0; n] };
        Setup { image, text, ids: (0..n).map(|i| (i * n) as i64).collect(), negatives, ..setup }
    })
}

/// A step over two micro-batches of different sizes: contrastive negatives from both, or each for itself.
fn check_accumulation(joint: bool, profile: Profile) {
    const SCALE: f64 = 8.0;
    let sizes = (tiny::config().num_query, tiny::config().embed_dim);
    let mut micro = (5..)
        .map(|seed| micro_batches(profile, seed))
        .find(|m| apart(&stack(&m.each_ref().map(|m| m.parts(&m.values))), sizes))
        .unwrap();
    let (model, params) = (&micro[0].model, micro[0].params(&micro[0].values));
    let batches: Vec<Batch> = micro
        .iter()
        .map(|m| Batch { image: Image::Pixels(m.image.clone()), text: &m.text, image_id: Some(&m.ids) })
        .collect();
    let plan = StepPlan { profile, drop: None, seed: 6, step: 2, scale: SCALE };
    let mut grads = Gradients::new();
    let losses = if joint {
        model.step_joint(&params, &batches, plan, &mut grads).unwrap()
    } else {
        model.step_separate(&params, &batches, plan, &mut grads).unwrap()
    };
    let losses = losses.losses().unwrap();
    // The negatives that each micro-batch drew.
    let draw = |k: usize| {
        let sampling = Sampling::Draw { seed: 6, step: 2, site: sites::micro_batch(k) };
        model.stage1(&Pass::inference(&params), &batches[k], profile, sampling, None).unwrap().negatives
    };
    let negatives = [draw(0), draw(1)];
    for (m, n) in micro.iter_mut().zip(negatives) {
        m.negatives = n;
    }
    let ids: Vec<i64> = micro.iter().flat_map(|m| m.ids.clone()).collect();
    let objective = |now: &[Parts; 2], held: &[Parts; 2]| {
        let rest = now.iter().map(|p| p.itm + p.lm).sum::<f64>() / 2.0;
        if joint {
            return contrast(&stack(now), &stack(held), &targets(&ids, profile), sizes) + rest;
        }
        let own = (0..2).map(|k| contrast(&now[k], &held[k], &micro[k].targets(), sizes));
        own.sum::<f64>() / 2.0 + rest
    };
    let parts = |values: &[Vec<f64>]| [0, 1].map(|k| micro[k].parts(values));
    let held = parts(&micro[0].values);
    let total = objective(&held, &held);
    assert!((losses.losses[0] - total).abs() < 1e-12 * total, "{} is not {total}", losses.losses[0]);
    let sum: f64 = losses.losses[1..].iter().sum();
    assert!((losses.losses[0] - sum).abs() < 1e-12 * total);
    compare(&micro[0], &grads, 1, |values| SCALE * objective(&parts(values), &held));
}

/// Features of both, one after the other.
fn stack(parts: &[Parts]) -> Parts {
    Parts {
        image: parts.iter().flat_map(|p| p.image.clone()).collect(),
        text: parts.iter().flat_map(|p| p.text.clone()).collect(),
        temp: parts[0].temp,
        itm: 0.0,
        lm: 0.0,
    }
}

#[test]
fn accumulated_micro_batches_with_negatives_of_all() {
    check_accumulation(true, Profile::LavisDiagonal);
    check_accumulation(true, Profile::LavisImageId);
}

#[test]
fn accumulated_micro_batches_each_for_itself() {
    check_accumulation(false, Profile::LavisDiagonal);
}

/// Where captions are of one length, a world's step is that of one batch of all samples: losses, draws and gradients.
#[test]
fn a_world_is_one_large_batch() {
    for profile in [Profile::LavisDiagonal, Profile::LavisImageId] {
        let setup = Setup::new(tiny::config(), false, profile);
        let (model, params, config) = (&setup.model, setup.params(&setup.values), tiny::config());
        let (images, mut text) = (tiny::pictures(&config, 6, 9, DType::F64), tiny::captions(&config, 6, 9));
        for (i, t) in text.iter_mut().enumerate() {
            *t = vec![t[0], 5 + i as u32, 11 - i as u32, 3];
        }
        let ids = [4, 1, 1, 2, 4, 3];
        let side = config.image_size;
        let rows = images.reshape(&[6, 3 * side * side]).unwrap();
        let part = |from: usize, n: usize| {
            let image = rows.slice_rows(from..from + n).unwrap().reshape(&[n, 3, side, side]).unwrap();
            let range = from..from + n;
            Batch { image: Image::Pixels(image), text: &text[range.clone()], image_id: Some(&ids[range]) }
        };
        let plan = StepPlan { profile, drop: None, seed: 6, step: 2, scale: 2.0 };
        let [mut a, mut b] = [Gradients::new(), Gradients::new()];
        let world = [part(0, 2), part(2, 2), part(4, 2)];
        let world =
            model.step_world(&params, &world, plan, &Group::alone(), &mut a).unwrap().losses().unwrap();
        let whole = model.step_separate(&params, &[part(0, 6)], plan, &mut b).unwrap().losses().unwrap();
        for (x, y) in
            world.losses.iter().chain(&world.accuracy).zip(whole.losses.iter().chain(&whole.accuracy))
        {
            assert!((x - y).abs() < 1e-12, "{world:?} {whole:?}");
        }
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for key in b.keys() {
            let [x, y] = [&a, &b].map(|g| g.get(key).unwrap().slice::<f64>());
            let far: Vec<f64> = x.iter().zip(y).map(|(x, y)| x - y).collect();
            assert!(length(&far) <= 1e-12 * (1.0 + length(y)), "{}", setup.specs[key].name);
        }
        let uneven = model.step_world(&params, &[part(0, 2), part(2, 3)], plan, &Group::alone(), &mut a);
        assert!(uneven.is_err_and(|e| e.to_string().contains("as many samples in each")));
    }
}

/// Four micro-batches of a world, dropout included, by one process and by groups of two and four: gradients and losses to the bit.
#[test]
fn a_group_computes_what_one_process_does_to_the_bit() {
    for profile in [Profile::LavisDiagonal, Profile::LavisImageId] {
        let setup = Setup::new(tiny::config(), false, profile);
        let (model, params, config) = (&setup.model, setup.params(&setup.values), tiny::config());
        let (images, text) = (tiny::pictures(&config, 8, 9, DType::F64), tiny::captions(&config, 8, 9));
        let ids: Vec<i64> = vec![4, 1, 1, 2, 4, 3, 7, 2];
        let side = config.image_size;
        let rows = images.reshape(&[8, 3 * side * side]).unwrap();
        let part = |i: usize| {
            let image = rows.slice_rows(2 * i..2 * i + 2).unwrap().reshape(&[2, 3, side, side]).unwrap();
            let range = 2 * i..2 * i + 2;
            Batch { image: Image::Pixels(image), text: &text[range.clone()], image_id: Some(&ids[range]) }
        };
        let drop = Some(DropoutPlan { p: 0.1, seed: 6, step: 2 });
        let plan = StepPlan { profile, drop, seed: 6, step: 2, scale: 2.0 };
        let step = |group: &Group| {
            let each = 4 / group.size();
            let own: Vec<Batch> = (0..each).map(|i| part(group.rank() * each + i)).collect();
            let mut grads = Gradients::new();
            let unread = model.step_world(&params, &own, plan, group, &mut grads).unwrap();
            let losses = unread.read(&[]).unwrap().0;
            let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let all =
                grads.keys().map(|k| (k, bits(grads.get(k).unwrap().slice::<f64>()))).collect::<Vec<_>>();
            (all, losses.iter().map(|l| bits(l)).collect::<Vec<_>>(), group.take_traffic())
        };
        let (grads, losses, _) = step(&Group::alone());
        for size in [2, 4] {
            let groups = Group::of_threads(size, std::time::Duration::from_secs(120)).unwrap();
            let ranks: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = groups.iter().map(|group| scope.spawn(|| step(group))).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            assert!(ranks.iter().all(|r| r.0 == grads), "{size} processes");
            assert_eq!(
                ranks.iter().flat_map(|r| r.1.clone()).collect::<Vec<_>>(),
                losses,
                "{size} processes"
            );
            let received = |what: &str| ranks.iter().map(|r| r.2[what].received).sum::<u64>();
            assert!(received("exchange drawn pictures") > 0 && received("sum gradients") > 0);
        }
    }
}

/// With one micro-batch both ways are the same step, dropout and image ids included.
#[test]
fn one_micro_batch_is_the_same_either_way() {
    for profile in [Profile::LavisDiagonal, Profile::LavisImageId] {
        let setup = Setup::new(tiny::config(), false, profile);
        let params = setup.params(&setup.values);
        let drop = Some(DropoutPlan { p: 0.1, seed: 6, step: 2 });
        let plan = StepPlan { profile, drop, seed: 6, step: 2, scale: 1.0 };
        let batch = [Batch {
            image: Image::Pixels(setup.image.clone()),
            text: &setup.text,
            image_id: Some(&setup.ids),
        }];
        let [mut a, mut b] = [Gradients::new(), Gradients::new()];
        let joint = setup.model.step_joint(&params, &batch, plan, &mut a).unwrap().losses().unwrap();
        let separate = setup.model.step_separate(&params, &batch, plan, &mut b).unwrap().losses().unwrap();
        assert_eq!(joint.accuracy, separate.accuracy);
        for (x, y) in joint.losses.iter().zip(separate.losses) {
            assert!((x - y).abs() < 1e-12, "{joint:?} {separate:?}");
        }
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for key in a.keys() {
            let [x, y] = [&a, &b].map(|g| g.get(key).unwrap().slice::<f64>());
            let far: Vec<f64> = x.iter().zip(y).map(|(x, y)| x - y).collect();
            assert!(length(&far) <= 1e-12 * (1.0 + length(y)), "{}", setup.specs[key].name);
        }
    }
}

/// The same samples twice: other masks, so another loss than once.
#[test]
fn micro_batches_draw_masks_of_their_own() {
    let setup = Setup::new(tiny::config(), false, Profile::LavisDiagonal);
    let params = setup.params(&setup.values);
    let drop = Some(DropoutPlan { p: 0.3, seed: 6, step: 2 });
    let plan = StepPlan { profile: Profile::LavisDiagonal, drop, seed: 6, step: 2, scale: 1.0 };
    let captioning = |joint: bool, times: usize| {
        let batch = || Batch { image: Image::Pixels(setup.image.clone()), text: &setup.text, image_id: None };
        let (batches, grads) = ((0..times).map(|_| batch()).collect::<Vec<_>>(), &mut Gradients::new());
        let losses = match joint {
            true => setup.model.step_joint(&params, &batches, plan, grads),
            false => setup.model.step_separate(&params, &batches, plan, grads),
        };
        losses.unwrap().losses().unwrap().losses[3]
    };
    for joint in [false, true] {
        assert!((captioning(joint, 1) - captioning(joint, 2)).abs() > 1e-6, "joint: {joint}");
    }
}
