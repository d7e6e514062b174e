//! Negatives drawn by their weights: the same on every device.

use super::harness::{Rng, device, places, t};
use qformer::ops;
use qformer::tensor::{Storage, Stream, Tensor};

fn draw(rng: &mut Rng) -> (usize, Tensor, Option<Vec<i64>>) {
    let n = rng.pick(&[2, 3, 7, 31, 32, 33, 65, 128]);
    let sim: Vec<f32> = rng.values(n * n).iter().map(|x| 3.0 * *x as f32).collect();
    // The last row's id is its own, so that every row has something to draw from.
    let ids =
        rng.one_in(2).then(|| (0..n).map(|i| if i + 1 == n { -1 } else { rng.below(3) as i64 }).collect());
    (n, Tensor::new(sim, &[n, n]).unwrap(), ids)
}

/// softmax + 1e-4 without the diagonal; with ids, softmax over the others: torch's, written out.
#[test]
fn weights_are_their_definition() {
    for seed in 0..64 {
        let (n, sim, ids) = draw(&mut Rng::new(seed));
        let (values, found) = (sim.to_f64().unwrap(), ops::negative_weights(&sim, ids.as_deref()).unwrap());
        for i in 0..n {
            let same = |j: usize| ids.as_ref().is_some_and(|ids| ids[i] == ids[j]);
            let score = |j: usize| if same(j) { -10000.0 } else { values[i * n + j] };
            let total: f64 = (0..n).map(|j| score(j).exp()).sum();
            for j in 0..n {
                let soft = score(j).exp() / total;
                let want = if ids.is_some() {
                    soft
                } else if i == j {
                    0.0
                } else {
                    soft + 1e-4
                };
                assert!((found[i * n + j] - want).abs() < 1e-12, "draw {seed} row {i} column {j}");
            }
        }
    }
}

#[test]
fn the_kernel_draws_what_the_definition_does() {
    let Some(device) = device() else { return };
    for seed in 0..64 {
        let (n, sim, ids) = draw(&mut Rng::new(seed));
        let stream = Stream { seed: u64::from(seed) << 30, step: seed, site: 5 };
        let there = sim.to(device, Storage::F32).unwrap();
        let [a, b] = [&sim, &there].map(|s| ops::sample_negatives(s, ids.as_deref(), stream).unwrap());
        assert_eq!(a, b, "draw {seed}");
        for (i, pick) in a.iter().enumerate() {
            assert!((*pick as usize) < n && *pick as usize != i, "draw {seed}: row {i} picks {pick}");
        }
    }
}

#[test]
fn rows_without_a_negative_are_refused() {
    let stream = Stream { seed: 1, step: 1, site: 1 };
    let said = |sim: Tensor, ids: Option<&[i64]>| {
        ops::sample_negatives(&sim, ids, stream).map_or_else(|e| e.to_string(), |_| "no error".into())
    };
    let alone = "stage 1: batch: expected a negative for every caption, got none to draw from; use a batch of at least 2 \
                 different images";
    assert_eq!(said(t(&[0.5], &[1, 1]), None), alone);
    assert_eq!(said(t(&[0.5; 4], &[2, 2]), None), "no error");
    for place in places() {
        let there = |x: &[f64], n: usize| super::harness::there(place, Storage::F32, x, &[n, n]);
        assert_eq!(said(there(&[0.5], 1), None), alone, "{place:?}");
        let nan = said(there(&[f64::NAN; 4], 2), None);
        assert_eq!(nan, "stage 1: expected finite similarities, got NaN", "{place:?}");
    }
}
