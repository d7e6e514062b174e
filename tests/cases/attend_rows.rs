//! Attention of single rows over listed key rows: y_r = sum over l in lists[r] of softmax(scale q_r k_l) v_l, head by head

use super::harness::{DRAWS, Rng, device, distance, floats, t};
use qformer::ops;
use qformer::tensor::{Storage, Tensor};

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
        let Some(device) = device().filter(|_| n.is_multiple_of(4)) else { continue };
        let [q, k, v] = [&q, &k, &v].map(|x| x.to(device, Storage::F32).unwrap());
        let lists = ops::Lists::new(case.lists.clone());
        let there = ops::attend_rows([&q, &k, &v], &lists, case.heads, case.scale).unwrap();
        assert_eq!(there.shape().sizes(), [rows, c]);
        assert!(
            distance(&there.to_f64().unwrap(), &case.define()) < 181.0 * 25.0 / f64::from(1 << 24),
            "draw {n}"
        );
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
