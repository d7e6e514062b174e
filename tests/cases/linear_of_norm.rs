//! x = LayerNorm(branch + stream), y = x weight^T + bias: the bits of the norm and of the batch-invariant layer, one after the other

use super::harness::{Rng, STORAGES, device, there};
use qformer::Result;
use qformer::device::Device;
use qformer::ops::{self, Cache, Gelu, Normed, Options, Weight, linear_of_norm};
use qformer::tensor::{DType, Storage, Tensor};

/// Rows: one, several, a whole tile, and more than go with the norm. Columns: whole pieces and not, all that a warp has, and more.
const SIZES: [[usize; 3]; 9] = [
    [0, 3, 8],
    [1, 1, 1],
    [3, 13, 24],
    [5, 9, 61],
    [16, 17, 768],
    [2, 8, 760],
    [17, 5, 64],
    [3, 4, 769],
    [40, 3, 776],
];
const EPS: f64 = 1e-12;

struct Drawn {
    branch: Tensor,
    stream: Tensor,
    norm: [Tensor; 2],
    layers: [[Tensor; 2]; 3],
}

impl Drawn {
    fn new(device: &Device, storage: Storage, [r, n, k]: [usize; 3], rng: &mut Rng) -> Drawn {
        let mut matrix = |r: usize, k: usize| there(device, storage, &rng.values(r * k), &[r, k]);
        let (branch, stream) = (matrix(r, k), matrix(r, k));
        let weights = [0, 1, 2].map(|_| matrix(n, k));
        let mut row = |storage, n: usize| there(device, storage, &rng.values(n), &[n]);
        let norm = [row(Storage::F32, k), row(Storage::F32, k)];
        let layers = weights.map(|w| [w, row(storage, n)]);
        Drawn { branch, stream, norm, layers }
    }

    fn norm(&self, stream: bool) -> Normed<'_> {
        let [weight, bias] = &self.norm;
        let stream = stream.then_some(&self.stream);
        Normed { branch: &self.branch, stream, weight, bias, eps: EPS, storage: None }
    }

    /// The norm by its own kernel.
    fn rows(&self, stream: bool) -> Tensor {
        let [w, b] = &self.norm;
        match stream {
            true => ops::residual_norm(&self.branch, &self.stream, w, b, EPS, None).unwrap().0,
            false => ops::layer_norm(&self.branch, w, b, EPS).unwrap(),
        }
    }
}

fn bits(x: &Tensor) -> Vec<u64> {
    x.to_f64().unwrap().iter().map(|x| x.to_bits()).collect()
}

fn each(mut f: impl FnMut(Drawn, [usize; 3], bool, &str)) {
    let cpu = Device::Cpu;
    let on_kernels = device().into_iter().flat_map(|d| STORAGES.map(|s| (d, s)));
    for (device, storage) in on_kernels.chain([(&cpu, Storage::F32)]) {
        for (i, sizes) in SIZES.into_iter().enumerate() {
            for stream in [false, true] {
                let drawn = Drawn::new(device, storage, sizes, &mut Rng::new(i as u32));
                f(drawn, sizes, stream, &format!("{sizes:?} {storage:?} on {device:?}, stream {stream}"));
            }
        }
    }
}

#[test]
fn a_norm_and_its_layer_have_the_bits_of_both() {
    each(|drawn, _, stream, about| {
        let [weight, bias] = &drawn.layers[0];
        for (bias, gelu) in [(Some(bias), None), (None, None), (Some(bias), Some(Gelu::Exact))] {
            let options = || Options { gelu, ..Options::batch_invariant() };
            let (x, y) = linear_of_norm(drawn.norm(stream), Weight::Dense(weight, bias), options()).unwrap();
            let rows = drawn.rows(stream);
            let want = ops::linear(&rows, Weight::Dense(weight, bias), options()).unwrap();
            assert_eq!(bits(&x), bits(&rows), "x of {about}");
            assert_eq!(bits(&y), bits(&want), "y of {about}");
        }
    });
}

#[test]
fn queries_and_caches_of_a_norm_have_the_bits_of_both() {
    each(|drawn, [r, n, _], stream, about| {
        let layers = drawn.layers.each_ref().map(|[w, b]| [w, b]);
        let run = |rows: Option<&Tensor>| -> Result<[Tensor; 3]> {
            let past = Tensor::zeros(DType::F32, &[1, n]).like(&drawn.branch)?;
            let mut caches = [ops::with_room(&past, 2 + r)?, ops::with_room(&past, 2 + r)?];
            let [keys, values] = &mut caches;
            let cache = Some(Cache { tensors: [keys, values], at: 1 });
            let options = Options { cache, ..Options::batch_invariant() };
            let q = match rows {
                Some(rows) => ops::linear(rows, Weight::Beside(layers), options)?,
                None => linear_of_norm(drawn.norm(stream), Weight::Beside(layers), options)?.1,
            };
            let [keys, values] = caches;
            Ok([q, keys.slice_rows(1..1 + r)?, values.slice_rows(1..1 + r)?])
        };
        let (own, apart) = (run(None).unwrap(), run(Some(&drawn.rows(stream))).unwrap());
        for (own, apart) in own.iter().zip(&apart) {
            assert_eq!(bits(own), bits(apart), "{about}");
        }
    });
}

/// One kernel where there is one tile of rows, and else two.
#[test]
fn a_tile_of_rows_is_one_kernel() {
    let device = Device::open("plan").unwrap();
    let Device::Gpu(gpu) = &device else { panic!("a CPU") };
    for ([r, n, k], kernels) in [([16, 5, 768], 1), ([1, 5, 8], 1), ([17, 5, 768], 2), ([3, 5, 769], 2)] {
        let drawn = Drawn::new(&device, Storage::F16, [r, n, k], &mut Rng::new(1));
        let [weight, bias] = &drawn.layers[0];
        gpu.take_counts();
        linear_of_norm(drawn.norm(true), Weight::Dense(weight, Some(bias)), Options::batch_invariant())
            .unwrap();
        assert_eq!(gpu.take_counts().launched(), kernels, "{r} rows of {k}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let drawn = Drawn::new(&Device::Cpu, Storage::F32, [2, 3, 4], &mut Rng::new(1));
    let [weight, bias] = &drawn.layers[0];
    let said = |norm: Normed, options: Options| {
        linear_of_norm(norm, Weight::Dense(weight, Some(bias)), options).unwrap_err().to_string()
    };
    let norm = Normed { weight: bias, ..drawn.norm(true) };
    assert_eq!(said(norm, Options::batch_invariant()), "layer_norm: weight: expected [4], got [3]");
    let norm = Normed { stream: Some(weight), ..drawn.norm(true) };
    assert_eq!(said(norm, Options::batch_invariant()), "layer_norm: residual: expected [2, 4], got [3, 4]");
}
