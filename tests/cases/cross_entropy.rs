//! The mean over counted rows of -sum target log softmax(x)

use super::harness::{
    Case, Input, Rng, STORAGES, device, distance, gradient_of, on_kernels, places, prove, t, there,
};
use qformer::device::Real;
use qformer::ops::{Options, Targets, Weight};
use qformer::tensor::{DType, Gpu, Gradients, Storage, Tape, Tensor};
use qformer::{Result, ops};

#[derive(Debug)]
enum Want {
    Classes(Vec<Option<u32>>, f64),
    Soft(Vec<f64>),
}

#[derive(Debug)]
struct CrossEntropy {
    r: usize,
    v: usize,
    x: Vec<f64>,
    want: Want,
}

fn draw(rng: &mut Rng) -> CrossEntropy {
    let (r, v) = (rng.rows(), rng.pick(&[1, 2, 3, 5, 7, 15, 16, 17, 33, 101]));
    let want = match rng.below(4) {
        0 => {
            // Not a distribution, for the gradient's sum(target): rounded, since the harness does not round it.
            Want::Soft(rng.values(r * v).iter().map(|x| f64::from(x.abs() as f32)).collect())
        }
        kind => {
            let ignored = rng.pick(&[1usize, 3, 100]);
            let class = |rng: &mut Rng| (!rng.one_in(ignored) || kind == 3).then(|| rng.below(v) as u32);
            let classes = (0..r).map(|_| class(rng)).collect();
            Want::Classes(classes, rng.pick(&[0.0, 0.1, 0.1, 0.5, 1.0]))
        }
    };
    CrossEntropy { r, v, x: rng.values(r * v).iter().map(|x| 2.0 * x).collect(), want }
}

impl CrossEntropy {
    /// Row i's target, or None if it is ignored.
    fn target<T: Real>(&self, i: usize) -> Option<Vec<T>> {
        match &self.want {
            Want::Soft(t) => Some(t[i * self.v..(i + 1) * self.v].iter().map(|t| T::of(*t)).collect()),
            Want::Classes(classes, s) => {
                let even = s / self.v as f64;
                let share = |j: usize, class: usize| if j == class { 1.0 - s + even } else { even };
                classes[i].map(|c| (0..self.v).map(|j| T::of(share(j, c as usize))).collect())
            }
        }
    }
}

impl Case for CrossEntropy {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&[self.r, self.v], self.x.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        match &self.want {
            Want::Classes(classes, s) => ops::cross_entropy(&x[0], Targets::Classes(classes, *s)),
            Want::Soft(soft) => {
                let soft = Tensor::of(x[0].dtype(), soft, &[self.r, self.v])?;
                ops::cross_entropy(&x[0], Targets::Soft(&soft))
            }
        }
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let (mut sum, mut counted) = (T::ZERO, 0.0);
        for i in 0..self.r {
            let Some(target) = self.target::<T>(i) else { continue };
            counted += 1.0;
            let row = &x[0][i * self.v..(i + 1) * self.v];
            let total = row.iter().fold(T::ZERO, |s, x| s + x.exp());
            for (x, t) in row.iter().zip(&target) {
                sum += *t * (total.ln() - *x);
            }
        }
        (vec![], vec![if counted == 0.0 { T::ZERO } else { sum / T::of(counted) }])
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// A Japanese BERT's vocabulary with [DEC], an English one's (3 more than a multiple of 8), ITM's two classes; the similarities
/// of a batch with targets that are not classes.
#[test]
fn vocabularies_and_batches_on_kernels() {
    let rng = &mut Rng::new(11);
    on_kernels([(4, 32001, 0.1), (2, 30523, 0.1), (7, 2, 0.0), (37, 37, -1.0)].map(|(r, v, smoothing)| {
        let want = if smoothing < 0.0 {
            Want::Soft(rng.values(r * v).iter().map(|x| f64::from(0.1 * x.abs() as f32)).collect())
        } else {
            Want::Classes((0..r).map(|i| (i % 5 != 3).then(|| rng.below(v) as u32)).collect(), smoothing)
        };
        CrossEntropy { r, v, x: rng.values(r * v).iter().map(|x| 3.0 * x).collect(), want }
    }));
}

/// What is not finite shows in the loss and in the gradient of its row alone, and not at all where the row is ignored; -inf is
/// a token that cannot be.
#[test]
fn logits_that_are_not_finite() {
    for (place, storage) in places().flat_map(|place| STORAGES.map(|s| (place, s))) {
        let loss = |x: &[f64], classes: &[Option<u32>]| {
            let (tape, mut grads) = (Tape::new(), Gradients::new());
            let x = tape.leaf(&there(place, storage, x, &[classes.len(), 40]), 0);
            let loss = ops::cross_entropy(&x, Targets::Classes(classes, 0.1)).unwrap();
            tape.backward(&loss, 1.0, &mut grads).unwrap();
            let dx = Tensor::of_buffer(grads.get(0).unwrap().clone(), &[classes.len(), 40]).unwrap();
            (loss.item().unwrap(), dx.to_f64().unwrap())
        };
        let finite = Rng::new(1).values(3 * 40);
        for bad in [f64::NAN, f64::INFINITY] {
            let mut x = finite.clone();
            (x[47], x[85]) = (bad, bad);
            let (all, dx) = loss(&x, &[Some(1), Some(2), None]);
            assert!(all.is_nan() && dx[40..80].iter().any(|v| v.is_nan()), "{bad}, {storage:?}, {place:?}");
            assert!(dx[..40].iter().all(|v| v.is_finite()) && dx[80..].iter().all(|v| *v == 0.0));
            let (rest, _) = loss(&x, &[Some(1), None, None]);
            assert!(rest.is_finite(), "{bad}, {storage:?}, {place:?}");
        }
    }
}

/// A dense layer before it, whose rows on a GPU are padded to 16 bytes.
#[derive(Debug)]
struct Vocabulary {
    loss: CrossEntropy,
    k: usize,
    weight: Vec<f64>,
    bias: Vec<f64>,
}

impl Case for Vocabulary {
    fn inputs(&self) -> Vec<Input> {
        let (r, v, k) = (self.loss.r, self.loss.v, self.k);
        let x = Input::new(&[r, k], self.loss.x.clone());
        vec![x, Input::new(&[v, k], self.weight.clone()), Input::new(&[v], self.bias.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        let Want::Classes(classes, s) = &self.loss.want else { panic!("classes are drawn") };
        let Some(gpu) = x[0].array().map(|a| a.gpu().clone()) else {
            let logits = ops::linear(&x[0], Weight::Dense(&x[1], Some(&x[2])), Options::default())?;
            return ops::cross_entropy_of(&logits, self.loss.v, Targets::Classes(classes, *s));
        };
        let wide = [1, 2].map(|i| padded(&gpu, &x[i]));
        let weight = Weight::Padded { layer: [&x[1], &x[2]], wide: wide.each_ref() };
        let logits = ops::linear(&x[0], weight, Options::default())?;
        assert_eq!(logits.rows().1, self.loss.v.next_multiple_of(8));
        ops::cross_entropy_of(&logits, self.loss.v, Targets::Classes(classes, *s))
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let (v, k) = (self.loss.v, self.k);
        let dot = |i: usize, j: usize| (0..k).fold(x[2][j], |s, l| s + x[0][i * k + l] * x[1][j * k + l]);
        let logits = (0..self.loss.r * v).map(|at| dot(at / v, at % v)).collect();
        self.loss.define::<T>(&[logits])
    }
}

/// With rows of zeros up to a multiple of 8.
fn padded(gpu: &Gpu, x: &Tensor) -> Tensor {
    let mut sizes = x.shape().sizes().to_vec();
    sizes[0] = sizes[0].next_multiple_of(8);
    let own = x.detach().array().unwrap().clone();
    let all = gpu.zeros("padded", own.storage(), sizes.iter().product()).unwrap();
    all.part(0..own.len()).unwrap().copy_from(&own).unwrap();
    Tensor::of_array(all, &sizes).unwrap()
}

#[test]
fn of_a_padded_dense_layer() {
    prove(|rng| {
        let mut loss = draw(rng);
        while matches!(loss.want, Want::Soft(_)) {
            loss = draw(rng);
        }
        let k = rng.small();
        loss.x = rng.values(loss.r * k);
        Vocabulary { weight: rng.values(loss.v * k), bias: rng.values(loss.v), loss, k }
    });
}

/// Of two classes with logits (ln 3, 0) the probabilities are 3/4 and 1/4: arithmetic.
#[test]
fn known_answers() {
    let x = t(&[3f64.ln(), 0.0, 9.0, 9.0], &[2, 2]);
    let classes = [Some(1), None];
    let loss = |s| gradient_of(&[&x], &[2.0], |x| ops::cross_entropy(&x[0], Targets::Classes(&classes, s)));
    let (y, d) = loss(0.0);
    assert!((y[0] - 4f64.ln()).abs() < 1e-15, "{y:?}");
    assert!(distance(d[0].as_deref().unwrap(), &[1.5, -1.5, 0.0, 0.0]) < 1e-15, "{d:?}");
    // Smoothing 0.2: targets 0.1 and 0.9.
    let (y, d) = loss(0.2);
    assert!((y[0] - (0.1 * (4f64 / 3.0).ln() + 0.9 * 4f64.ln())).abs() < 1e-15, "{y:?}");
    assert!(distance(d[0].as_deref().unwrap(), &[1.3, -1.3, 0.0, 0.0]) < 1e-15, "{d:?}");
}

#[test]
fn all_rows_ignored_is_no_loss_and_no_gradient() {
    let (y, d) = gradient_of(&[&t(&[1., 2.], &[1, 2])], &[1.], |x| {
        ops::cross_entropy(&x[0], Targets::Classes(&[None], 0.1))
    });
    assert_eq!((y, d), (vec![0.0], vec![Some(vec![0.0, 0.0])]));
}

/// Beyond e^709 a sum without its largest term taken out overflows.
#[test]
fn large_logits_are_stable_and_nan_propagates() {
    let loss = |x: &[f64]| {
        ops::cross_entropy(&t(x, &[1, 3]), Targets::Classes(&[Some(0)], 0.0)).unwrap().item().unwrap()
    };
    assert!((loss(&[1000.0, 1000.0, -1000.0]) - 2f64.ln()).abs() < 1e-12);
    assert!((loss(&[-1000.0, -1000.0, -1000.0]) - 3f64.ln()).abs() < 1e-12);
    assert!(loss(&[0.0, f64::NAN, 0.0]).is_nan());
}

/// Around 1e4 neighbours in f32 are 2^-10 apart: the log of the sum, added to the largest logit, would lose half of that, and every
/// probability as much. Subtracted first, logits that are exact in f32 leave only the roundings of numbers below 32: a unit
/// roundoff of 2^-24 each in the difference, its logarithm and the exponential, times 32, and as much for sums of 40.
#[test]
fn logits_near_ten_thousand_lose_nothing() {
    let (r, v) = (6, 40);
    let x: Vec<f64> = Rng::new(4).values(r * v).iter().map(|x| (4096.0 * x).round() / 1024.0).collect();
    let classes: Vec<Option<u32>> = (0..r).map(|i| (i != 3).then_some(7 * i as u32)).collect();
    let soft: Vec<f64> = (0..r * v).map(|i| (i % 5) as f64 / 8.0).collect();
    let bound = 4.0 * 32.0 / f64::from(1 << 24);
    for way in 0..3 {
        let run = |x: &Tensor| {
            let tape = Tape::new();
            let soft = Tensor::of(x.dtype(), &soft, &[r, v])?;
            let want = match way {
                0 => Targets::Classes(&classes, 0.0),
                1 => Targets::Classes(&classes, 0.1),
                _ => Targets::Soft(&soft),
            };
            let loss = ops::cross_entropy(&tape.leaf(x, 0), want)?;
            let mut grads = Gradients::new();
            tape.backward(&loss, 1.0, &mut grads)?;
            let dx = Tensor::of_buffer(grads.get(0).unwrap().clone(), &[r, v])?;
            Ok::<_, qformer::Error>((loss.item().unwrap(), dx.to_f64().unwrap()))
        };
        let (want, slopes) = run(&t(&x, &[r, v])).unwrap();
        for shift in [1e4, -1e4] {
            let moved =
                Tensor::of(DType::F32, &x.iter().map(|x| x + shift).collect::<Vec<_>>(), &[r, v]).unwrap();
            for place in places() {
                let (loss, dx) = run(&moved.to(place, Storage::F32).unwrap()).unwrap();
                // Soft targets of a row add up to 10, classes to 1.
                let most = if way == 2 { 10.0 * bound } else { bound };
                assert!((loss - want).abs() <= most, "way {way}, {shift:+e}, {place:?}: {loss} and {want}");
                assert!(
                    distance(&dx, &slopes) <= most,
                    "way {way}, {shift:+e}: {:e}",
                    distance(&dx, &slopes)
                );
            }
        }
    }
}

/// The first of equals is the answer; a row without a class counts as wrong.
#[test]
fn right_answers_are_the_first_largest() {
    let x = Tensor::new(vec![0f32, 2., 1., 1., 2., 3., 5., 0., 5., 7., 7., 7.], &[4, 3]).unwrap();
    let share = |x: &Tensor, classes: [u32; 4], counted: usize| {
        let classes: Vec<_> = (0..4).map(|i| (i < counted).then(|| classes[i])).collect();
        ops::right(x, &classes).unwrap().share().unwrap()
    };
    for x in places().map(|place| x.to(place, Storage::F32).unwrap()) {
        assert_eq!(share(&x, [1, 2, 0, 0], 4), 1.0);
        assert_eq!(share(&x, [1, 2, 2, 1], 4), 0.5);
        assert_eq!(share(&x, [1, 0, 1, 2], 4), 0.25);
        assert_eq!(share(&x, [1, 2, 0, 0], 3), 0.75);
    }
}

/// The loss of rows through a frozen head.
#[derive(Debug)]
struct HeadLoss {
    rows: usize,
    width: usize,
    vocab: usize,
    h: Vec<f64>,
    weight: Vec<f64>,
    classes: Vec<u32>,
}

fn draw_head(rng: &mut Rng) -> HeadLoss {
    let (rows, width, vocab) = (rng.rows(), rng.size(), rng.pick(&[1, 2, 7, 16, 33, 61]));
    let (h, weight) = (rng.values(rows * width), rng.values(vocab * width));
    HeadLoss { rows, width, vocab, h, weight, classes: rng.ids(rows, vocab) }
}

impl Case for HeadLoss {
    fn inputs(&self) -> Vec<Input> {
        vec![Input::new(&[self.rows, self.width], self.h.clone())]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        // As exact in f64, and what 16 bits make of it where x is in 16 bits.
        let weight =
            Tensor::of(x[0].dtype(), &self.weight, &[self.vocab, self.width]).unwrap().like(&x[0])?;
        ops::head_loss(&x[0], &weight, &self.classes)
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let mut loss = T::ZERO;
        for (row, class) in x[0].chunks(self.width).zip(&self.classes) {
            let logits: Vec<T> = (self.weight.chunks(self.width))
                .map(|w| row.iter().zip(w).fold(T::ZERO, |sum, (x, w)| sum + *x * T::of(*w)))
                .collect();
            let sum = logits.iter().fold(T::ZERO, |sum, x| sum + x.exp());
            loss += sum.ln() - logits[*class as usize];
        }
        (vec![], vec![loss / T::of(self.rows.max(1) as f64)])
    }

    /// The weight is no input, so that kernels in 16 bits would be given another one than the definition.
    fn on_gpu(&self) -> bool {
        false
    }
}

#[test]
fn head_loss_equals_its_definition_and_differences() {
    prove(draw_head);
}

/// The same as a dense layer and its loss on the GPU's kernels, in every storage, many rows at once and few.
#[test]
fn head_loss_on_the_kernels() {
    let Some(device) = device() else { return };
    let mut rng = Rng::new(91);
    for (rows, width, vocab) in [(37, 24, 61), (5, 16, 32), (1, 8, 3)] {
        let case = HeadLoss {
            rows,
            width,
            vocab,
            h: rng.values(rows * width),
            weight: rng.values(vocab * width),
            classes: rng.ids(rows, vocab),
        };
        for storage in STORAGES {
            let both = |f: &dyn Fn(&Tensor, &Tensor) -> Result<Tensor>| {
                let on = |v: &[f64], shape: &[usize]| {
                    Tensor::of(DType::F32, v, shape).unwrap().to(device, storage).unwrap()
                };
                let (tape, mut grads) = (Tape::new(), Gradients::new());
                let h = tape.leaf(&on(&case.h, &[rows, width]), 0);
                let loss = f(&h, &on(&case.weight, &[vocab, width])).unwrap();
                tape.backward(&loss, 3.0, &mut grads).unwrap();
                let g = Tensor::of_buffer(grads.get(0).unwrap().clone(), &[rows, width]).unwrap();
                (loss.item().unwrap(), g.to_f64().unwrap())
            };
            let classes: Vec<Option<u32>> = case.classes.iter().map(|c| Some(*c)).collect();
            let (a, da) = both(&|h, w| ops::head_loss(h, w, &case.classes));
            let (b, db) = both(&|h, w| {
                let logits = ops::linear(h, ops::Weight::Dense(w, None), ops::Options::default())?;
                ops::cross_entropy(&logits, Targets::Classes(&classes, 0.0))
            });
            // A few roundings of logits and of their gradients, of terms up to 5.
            let unit = match storage {
                Storage::F32 => 1e-6,
                Storage::F16 => 2f64.powi(-11),
                _ => 2f64.powi(-8),
            };
            assert!((a - b).abs() <= 8.0 * unit * (1.0 + b.abs()), "{storage:?}: {a}, {b}");
            let size = db.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            assert!(distance(&da, &db) <= 16.0 * unit * size, "{storage:?}: {}", distance(&da, &db));
        }
    }
}
