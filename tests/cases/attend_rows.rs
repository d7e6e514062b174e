//! Attention of single rows over listed key rows: y_r = sum over l in lists[r] of softmax(scale q_r k_l) v_l, head by head

use super::harness::{DRAWS, Rng, STORAGES, device, distance, floats, t, there, unit_roundoff};
use qformer::ops;
use qformer::tensor::Tensor;

struct Rows {
    heads: usize,
    /// Query heads of a key head.
    group: usize,
    d: usize,
    lists: Vec<Vec<u32>>,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    scale: f64,
}

fn draw(rng: &mut Rng) -> Rows {
    let (key_heads, d) = (rng.pick(&[1, 2, 3]), rng.pick(&[1, 3, 8, 17, 33, 144]));
    let group = rng.pick(&[1, 1, 2, 3]);
    let heads = key_heads * group;
    let (r, n) = (rng.pick(&[0, 1, 2, 5, 9]), rng.pick(&[1, 2, 7, 40]));
    let lists = (0..r).map(|_| {
        let len = rng.pick(&[0, 1, 2, 5, 16, 37]);
        rng.ids(len, n)
    });
    let lists = lists.collect();
    let [q, k, v] = [(r, heads), (n, key_heads), (n, key_heads)].map(|(rows, h)| rng.values(rows * h * d));
    Rows { heads, group, d, lists, q, k, v, scale: (d as f64).powf(-0.5) }
}

impl Rows {
    fn define(&self) -> Vec<f64> {
        let (h, d) = (self.heads, self.d);
        let (c, kc) = (h * d, h / self.group * d);
        let mut y = vec![0.0; self.q.len()];
        for (r, list) in self.lists.iter().enumerate() {
            for head in 0..h {
                let dot = |l: u32| {
                    (0..d)
                        .map(|j| {
                            self.q[r * c + head * d + j] * self.k[l as usize * kc + head / self.group * d + j]
                        })
                        .sum::<f64>()
                };
                let e: Vec<f64> = list.iter().map(|l| (self.scale * dot(*l)).exp()).collect();
                let total: f64 = e.iter().sum();
                for (e, l) in e.iter().zip(list) {
                    for j in 0..d {
                        y[r * c + head * d + j] +=
                            e / total * self.v[*l as usize * kc + head / self.group * d + j];
                    }
                }
            }
        }
        y
    }
}

impl Rows {
    /// In every storage, from values as it holds them: sums of 300 keys and of 144 columns, in f32, and in 16 bits a few
    /// roundings of terms of up to 5.
    fn on_kernels(&self) {
        let Some(device) = device() else { return };
        let (c, lists) = (self.heads * self.d, ops::Lists::new(self.lists.clone()));
        for storage in STORAGES {
            let kc = c / self.group;
            let there = |x: &[f64], c: usize| there(device, storage, x, &[x.len() / c, c]);
            let x = [there(&self.q, c), there(&self.k, kc), there(&self.v, kc)];
            let [q, k, v] = x.each_ref().map(|x| x.to_f64().unwrap());
            let want = Rows { q, k, v, lists: self.lists.clone(), ..*self }.define();
            let y = ops::attend_rows(x.each_ref(), &lists, self.heads, self.scale).unwrap();
            assert_eq!(y.shape().sizes(), [self.lists.len(), c]);
            let far = distance(&y.to_f64().unwrap(), &want);
            let bound = 444.0 * 25.0 * 2f64.powi(-24) + 8.0 * 5.0 * unit_roundoff(storage);
            assert!(far <= bound, "{storage:?}, {} keys: off by {far:e}", self.k.len() / kc);
        }
    }
}

#[test]
fn equals_its_definition_and_ignores_the_other_rows() {
    for n in 0..DRAWS {
        let case = draw(&mut Rng::new(n));
        let (c, rows) = (case.heads * case.d, case.lists.len());
        let kc = c / case.group;
        let double = |x: &[f64], c: usize| t(x, &[x.len() / c, c]);
        let y = ops::attend_rows(
            [&double(&case.q, c), &double(&case.k, kc), &double(&case.v, kc)],
            &ops::Lists::new(case.lists.clone()),
            case.heads,
            case.scale,
        );
        let y = y.unwrap();
        assert_eq!(y.shape().sizes(), [rows, c]);
        assert!(distance(&y.to_f64().unwrap(), &case.define()) < 1e-13, "draw {n}");
        let single = |x: &[f64], c: usize| Tensor::new(floats::<f32>(x), &[x.len() / c, c]).unwrap();
        let (q, k, v) = (single(&case.q, c), single(&case.k, kc), single(&case.v, kc));
        let all =
            ops::attend_rows([&q, &k, &v], &ops::Lists::new(case.lists.clone()), case.heads, case.scale)
                .unwrap();
        // Sums of 37 keys and of 144 products, each off by its length times 2^-24 of terms of at most 5 * 5.
        assert!(
            distance(&all.to_f64().unwrap(), &case.define()) < 181.0 * 25.0 / f64::from(1 << 24),
            "draw {n}"
        );
        for i in 0..rows {
            let q = q.slice_rows(i..i + 1).unwrap();
            let alone = ops::attend_rows(
                [&q, &k, &v],
                &ops::Lists::new(vec![case.lists[i].clone()]),
                case.heads,
                case.scale,
            )
            .unwrap();
            assert_eq!(alone.data::<f32>(), &all.data::<f32>()[i * c..(i + 1) * c], "row {i} of draw {n}");
        }
        if n.is_multiple_of(4) {
            case.on_kernels();
        }
    }
}

/// The beams of two pictures, several rounds of keys, and heads that fill no warp.
#[test]
fn beams_on_kernels() {
    let beams = || [(0..32).chain([40, 41]).collect(), (0..32).chain([40, 42]).collect(), vec![7], vec![]];
    for (n, (keys, heads, d, lists)) in (0..).zip([
        (50, 3, 64, beams().to_vec()),
        (50, 2, 13, beams().to_vec()),
        (300, 1, 128, vec![(0..300).rev().collect()]),
        (1, 1, 8, vec![vec![0]]),
        (40, 2, 88, vec![(0..40).collect(), vec![3, 39]]),
        (20, 2, 65, vec![(0..19).collect(), vec![3]]),
    ]) {
        let rng = &mut Rng::new(n);
        let [q, k, v] = [lists.len(), keys, keys].map(|rows| rng.values(rows * heads * d));
        Rows { heads, group: 1, d, lists, q, k, v, scale: (d as f64).powf(-0.5) }.on_kernels();
    }
}

#[test]
fn large_scores_are_stable_and_nothing_to_see_is_zero() {
    let (q, k, v) = (t(&[1000.0, 1000.0], &[2, 1]), t(&[1.0, 2.0], &[2, 1]), t(&[5.0, 7.0], &[2, 1]));
    let y = ops::attend_rows([&q, &k, &v], &ops::Lists::new(vec![vec![0, 1], vec![]]), 1, 1.0)
        .unwrap()
        .to_f64()
        .unwrap();
    assert_eq!(y, [7.0, 0.0]);
}
