//! The update that a GPU leaves out by itself, tables that are uploaded once, rows that need no copy.

use super::{device, micro, trainer, values};
use qformer::nn::Precision;
use qformer::ops::{self, AdamWStep, AdamWTables, Parameter, Squares};
use qformer::tensor::{Buffer, Device, Gpu, Storage, Tensor};
use qformer::train::trainer::Contrast;

const BY: AdamWStep =
    AdamWStep { lr: 1e-2, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.05, step: 1, unscale: 1.0 };

fn gpu() -> Gpu {
    let Device::Gpu(gpu) = device() else { panic!("a CPU") };
    gpu
}

fn vector(gpu: &Gpu, values: &[f32]) -> Tensor {
    let there = gpu.upload("test", Storage::F32, values).unwrap();
    Tensor::of_array(there, &[values.len()]).unwrap()
}

fn scalar(gpu: &Gpu, value: f32) -> Tensor {
    vector(gpu, &[value]).reshape(&[]).unwrap()
}

/// A parameter of three numbers after a step with this gradient and this loss, and the norm.
fn stepped(tables: &mut AdamWTables, gradient: [f32; 3], loss: f32) -> (Vec<f32>, f64) {
    let gpu = gpu();
    let mut value = vector(&gpu, &[1.0, 2.0, 3.0]);
    let copy = value.to(&Device::Gpu(gpu.clone()), Storage::BF16).unwrap();
    let gradient = Buffer::Gpu(vector(&gpu, &gradient).array().unwrap());
    let [mut m, mut v] = [0, 1].map(|_| Buffer::Gpu(gpu.zeros("test", Storage::F32, 3).unwrap()));
    let squares = tables.squares(&[&gradient], Some(&scalar(&gpu, loss))).unwrap();
    assert!(matches!(squares, Squares::OnGpu(_)));
    let parameter = Parameter {
        name: "p",
        value: &mut value,
        copy: Some(&copy),
        gradient: &gradient,
        exp_avg: &mut m,
        exp_avg_sq: &mut v,
        decays: true,
        scale: 1.0,
    };
    tables.step(&mut [parameter], &BY, Some(&squares)).unwrap();
    let all = [&value, &copy].map(|t| t.to_f32().unwrap()).concat();
    let moments = [&m, &v].map(|b| b.array().unwrap().read_f32().unwrap()).concat();
    ([all, moments].concat(), squares.norm().unwrap())
}

#[test]
fn a_gpu_leaves_out_an_update_that_is_not_finite() {
    let mut tables = AdamWTables::default();
    let untouched: [f32; 12] = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let (done, norm) = stepped(&mut tables, [3.0, 0.0, 4.0], 1.5);
    assert!(norm == 5.0 && done[0] < 1.0 && done[3] < 1.0 && done[6] > 0.0, "{norm} {done:?}");
    for (gradient, loss) in [
        ([3.0, f32::NAN, 4.0], 1.5),
        ([f32::INFINITY, 0.0, 4.0], 1.5),
        ([1e30, 1e30, 0.0], 1.5), // the sum of the squares overflows
        ([3.0, 0.0, 4.0], f32::NAN),
        ([3.0, 0.0, 4.0], f32::NEG_INFINITY),
    ] {
        let (done, norm) = stepped(&mut tables, gradient, loss);
        assert!(!norm.is_finite(), "{gradient:?} {loss}");
        assert_eq!(done, untouched, "{gradient:?} {loss}");
    }
    assert_eq!(stepped(&mut tables, [3.0, 0.0, 4.0], 1.5), (done, norm));
}

/// A loss that is not finite ends training, and leaves the parameters as they were.
#[test]
fn a_step_that_is_not_finite_changes_no_parameter() {
    let mut t = trainer(&device(), Precision::BF16, Contrast::MicroBatch);
    t.step(&[micro(3)]).unwrap();
    let bias = t.params.find("vision_proj.bias").unwrap();
    let len = t.params.get(bias).len();
    t.params.set(bias, &Tensor::new(vec![f32::NAN; len], &[len]).unwrap()).unwrap();
    let bits = |t: &qformer::train::trainer::Trainer| -> Vec<u64> {
        values(&t.params).into_iter().flat_map(|(_, v)| v).map(f64::to_bits).collect()
    };
    let (before, steps) = (bits(&t), t.optimizer.steps);
    let said = t.step(&[micro(4)]).err().unwrap().to_string();
    assert!(said.contains("parameter vision_proj.bias"), "{said}");
    assert!(bits(&t) == before && t.optimizer.steps == steps && t.step == 1);
}

/// In a step, pointers are uploaded where gradients have come to lie elsewhere, lists of pieces never again.
#[test]
fn tables_are_uploaded_once() {
    let gpu = gpu();
    let (mut tables, n) = (AdamWTables::default(), 5 * 2048 + 1);
    let [a, b] = [0, 1].map(|_| Buffer::Gpu(gpu.zeros("test", Storage::F32, n).unwrap()));
    let mut uploaded = |gradient: &Buffer| {
        gpu.take_counts();
        tables.squares(&[gradient], None).unwrap();
        gpu.take_counts().uploaded
    };
    assert_eq!([uploaded(&a), uploaded(&a), uploaded(&b), uploaded(&b)], [7 * 8 + 6 * 8, 0, 7 * 8, 0]);
}

#[test]
fn neighbours_in_memory_are_put_together_without_a_copy() {
    let gpu = gpu();
    let whole = vector(&gpu, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape(&[3, 2]).unwrap();
    let row = |i: usize| whole.slice_rows(i..i + 1).unwrap();
    gpu.take_counts();
    let together = ops::concat_rows(&[&row(0), &row(1), &row(2)]).unwrap();
    let some = ops::concat_rows(&[&row(1), &row(2), &row(0)]).unwrap();
    assert_eq!(gpu.take_counts().copies, 2);
    assert_eq!(together.shape().sizes(), [3, 2]);
    assert_eq!(together.to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(some.to_f32().unwrap(), [3.0, 4.0, 5.0, 6.0, 1.0, 2.0]);
}

/// The bias of queries, keys and values is made once, and again when one of its parts is set.
#[test]
fn a_bias_that_is_made_once_follows_its_parts() {
    let mut t = trainer(&device(), Precision::F32, Contrast::MicroBatch);
    let [weight, q] = ["qkv.weight", "q_bias"]
        .map(|name| t.params.find(&format!("visual_encoder.blocks.0.attn.{name}")).unwrap());
    let w = t.params.get(q).len();
    let before = t.params.qkv_bias(weight).unwrap().to_f32().unwrap();
    assert_eq!(before[..w], t.params.get(q).to_f32().unwrap());
    assert_eq!(before[w..2 * w], vec![0.0; w]);
    t.params.set(q, &Tensor::new(vec![7f32; w], &[w]).unwrap()).unwrap();
    let after = t.params.qkv_bias(weight).unwrap().to_f32().unwrap();
    assert_eq!(after[..w], vec![7.0; w]);
    assert_eq!(after[w..], before[w..]);
}
