//! PyTorch's own test inputs, and layers of transformers' BLIP-2 with the sizes of its tests, with what PyTorch makes of them in f64
//! (tests/samples/record.py): results and gradients.

use super::harness::{distance, gradient_of};
use qformer::nn::{Builder, Init, Params};
use qformer::ops::{self, Heads, Options, Segment, Segments, Targets, Weight};
use qformer::tensor::{Buffer, DType, Gradients, Tensor};
use qformer::train::optimizer::{AdamW, Hyper};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::Path;

/// f64 on both sides: sums of a few hundred terms in another order.
const CLOSE: f64 = 1e-11;

struct Sample<'a> {
    number: usize,
    options: &'a Value,
    file: &'a SafeTensors<'a>,
}

/// A dense layer of a weight and a bias that follow each other.
fn dense(x: &Tensor, w: &[Tensor]) -> qformer::Result<Tensor> {
    ops::linear(x, Weight::Dense(&w[0], Some(&w[1])), Options::default())
}

impl Sample<'_> {
    fn find(&self, name: &str) -> Option<Tensor> {
        let view = self.file.tensor(&format!("{}.{name}", self.number)).ok()?;
        let values: Vec<f64> =
            view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
        Some(Tensor::of(DType::F64, &values, view.shape()).unwrap())
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.find(name).unwrap_or_else(|| panic!("{name} of {}", self.options))
    }

    fn size(&self, key: &str) -> usize {
        self.options[key].as_u64().unwrap_or_else(|| panic!("{key} of {}", self.options)) as usize
    }

    fn number(&self, key: &str) -> f64 {
        self.options[key].as_f64().unwrap_or_else(|| panic!("{key} of {}", self.options))
    }

    fn numbers(&self, key: &str) -> Vec<f64> {
        self.options[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    }

    /// The operation's result and its gradients, beside the recorded ones.
    fn compare(&self, f: impl Fn(&[Tensor]) -> qformer::Result<Tensor>) {
        let leaves: Vec<Tensor> = (0..self.size("inputs")).map(|i| self.tensor(&format!("x{i}"))).collect();
        let dy = self.tensor("dy").to_f64().unwrap();
        let (y, grads) = gradient_of(&leaves.iter().collect::<Vec<_>>(), &dy, f);
        assert!(distance(&y, &self.tensor("y").to_f64().unwrap()) <= CLOSE, "y of {}", self.options);
        for (i, grad) in grads.iter().enumerate() {
            let want = self.find(&format!("dx{i}")).map(|t| t.to_f64().unwrap()).unwrap_or_default();
            let got = grad.clone().unwrap_or_else(|| vec![0.0; want.len()]);
            assert!(distance(&got, &want) <= CLOSE, "gradient {i} of {}", self.options);
        }
    }

    fn attention(&self) {
        let [batch, heads, rows, keys] = ["batch", "heads", "rows", "keys"].map(|key| self.size(key));
        let causal = self.options["causal"].as_bool().unwrap();
        let segment = |i: usize| {
            let all = i * keys..(i + 1) * keys;
            // A causal row sees the keys up to its own place, an other one all of them.
            let (a, b) = if causal { (0..0, all) } else { (all, 0..0) };
            Segment { q: i * rows..(i + 1) * rows, a, b, causal }
        };
        let segments = Segments::new((0..batch).map(segment).collect(), batch * rows, batch * keys).unwrap();
        self.compare(|x| {
            let parts = [0, 1, 2].map(|i| Heads { tensor: &x[i], column: 0 });
            ops::attention(parts, &segments, heads, self.number("scale"), None)
        });
    }

    /// Every row of a sample sees all keys of the same sample.
    fn segments(&self, keys: &str) -> std::sync::Arc<Segments> {
        let [batch, rows, keys] = ["batch", "rows", keys].map(|key| self.size(key));
        let segment = |i: usize| Segment {
            q: i * rows..(i + 1) * rows,
            a: i * keys..(i + 1) * keys,
            b: 0..0,
            causal: false,
        };
        Segments::new((0..batch).map(segment).collect(), batch * rows, batch * keys).unwrap()
    }

    /// LayerNorm(x + dense(attention(x, to))): weights and biases of query, key, value, dense and norm.
    fn sublayer(&self, x: &Tensor, to: &Tensor, w: &[Tensor], keys: &str) -> qformer::Result<Tensor> {
        let [q, k, v] = [(x, 0), (to, 2), (to, 4)].map(|(x, i)| dense(x, &w[i..]));
        let (q, k, v) = (q?, k?, v?);
        let parts = [&q, &k, &v].map(|tensor| Heads { tensor, column: 0 });
        let y = ops::attention(parts, &self.segments(keys), self.size("heads"), 8f64.powf(-0.5), None)?;
        ops::layer_norm(&ops::add(x, &dense(&y, &w[6..])?)?, &w[8], &w[9], self.number("eps"))
    }

    fn qformer_layer(&self) {
        self.compare(|x| {
            let y = self.sublayer(&x[0], &x[0], &x[2..12], "rows")?;
            let y = self.sublayer(&y, &x[1], &x[12..22], "keys")?;
            let z = dense(&ops::gelu(&dense(&y, &x[22..])?)?, &x[24..])?;
            ops::layer_norm(&ops::add(&y, &z)?, &x[26], &x[27], self.number("eps"))
        });
    }

    fn encoder_layer(&self) {
        self.compare(|x| {
            let n = ops::layer_norm(&x[0], &x[1], &x[2], self.number("eps"))?;
            let qkv = dense(&n, &x[3..])?;
            let parts = [0, 32, 64].map(|column| Heads { tensor: &qkv, column });
            let y = ops::attention(parts, &self.segments("rows"), self.size("heads"), 8f64.powf(-0.5), None)?;
            let y = ops::add(&x[0], &dense(&y, &x[5..])?)?;
            let n = ops::layer_norm(&y, &x[7], &x[8], self.number("eps"))?;
            ops::add(&y, &dense(&ops::gelu(&dense(&n, &x[9..])?)?, &x[11..])?)
        });
    }

    fn cross_entropy(&self) {
        if let Some(classes) = self.options["classes"].as_array() {
            let classes: Vec<Option<u32>> = classes.iter().map(|c| c.as_u64().map(|c| c as u32)).collect();
            let smoothing = self.number("smoothing");
            return self.compare(|x| ops::cross_entropy(&x[0], Targets::Classes(&classes, smoothing)));
        }
        let soft = Tensor::of(DType::F64, &self.numbers("soft"), self.tensor("x0").shape().sizes()).unwrap();
        self.compare(|x| ops::cross_entropy(&x[0], Targets::Soft(&soft)));
    }

    fn adamw(&self) {
        let start = self.tensor("x0");
        let shape = start.shape().sizes().to_vec();
        let mut builder = Builder::default();
        builder.trained(true);
        builder.param("w", &shape, Init::Constant(0.0));
        let spec = builder.specs.remove(0);
        let mut params = Params::new(vec![spec], |_| Ok(self.tensor("x0"))).unwrap();
        let betas = self.numbers("betas");
        let hyper = Hyper {
            betas: [betas[0], betas[1]],
            eps: self.number("eps"),
            weight_decay: self.number("weight_decay"),
            ..Hyper::default()
        };
        let mut optimizer = AdamW::new(&params, hyper).unwrap();
        for grad in self.tensor("dy").to_f64().unwrap().chunks(start.len()) {
            let mut grads = Gradients::new();
            let mut g = Buffer::zeros(DType::F64, grad.len());
            g.slice_mut::<f64>().copy_from_slice(grad);
            grads.add(0, g).unwrap();
            optimizer.step(&mut params, &mut grads, self.number("lr"), 1.0).unwrap();
        }
        let (_, _, value) = params.iter().next().unwrap();
        assert!(
            distance(&value.to_f64().unwrap(), &self.tensor("y").to_f64().unwrap()) <= CLOSE,
            "{}",
            self.options
        );
    }

    fn run(&self) {
        match self.options["op"].as_str().unwrap() {
            "linear" => {
                self.compare(|x| ops::linear(&x[0], Weight::Dense(&x[1], x.get(2)), Options::default()))
            }
            "layer_norm" => self.compare(|x| ops::layer_norm(&x[0], &x[1], &x[2], self.number("eps"))),
            "qformer_layer" => self.qformer_layer(),
            "encoder_layer" => self.encoder_layer(),
            "gelu" => self.compare(|x| ops::gelu(&x[0])),
            "attention" => self.attention(),
            "cross_entropy" => self.cross_entropy(),
            "embedding" => {
                let ids: Vec<u32> = self.numbers("ids").iter().map(|id| *id as u32).collect();
                let padding = self.options["padding"].as_u64().map(|p| p as u32);
                self.compare(|x| ops::embedding(&x[0], &ids, padding));
            }
            "adamw" => self.adamw(),
            other => panic!("{other}: no operation of ours"),
        }
    }
}

#[test]
fn pytorchs_own_samples() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples/samples.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let list: Vec<Value> = serde_json::from_str(&header.metadata().as_ref().unwrap()["samples"]).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (number, options) in list.iter().enumerate() {
        Sample { number, options, file: &file }.run();
    }
    let of = |op: &str| list.iter().filter(|s| s["op"] == op).count();
    assert!(of("adamw") > 200 && of("linear") > 10 && of("attention") > 5 && of("cross_entropy") > 5);
    assert!(of("qformer_layer") > 1 && of("encoder_layer") > 1);
}
