//! Work for a GPU on the shapes of BLIP-2's stage 1, with the bytes and operations it cannot do without: what `qformer
//! bench kernels` and `cargo bench` time.
//!
//! Bytes are those of one trip of every operand that is read and every result that is written; operations are the 2mnk of
//! matmuls (attention: of the keys a row sees). A backward is timed alone, behind a forward that is not. Between two runs
//! the L2 cache is overwritten.

use crate::Result;
use crate::ops::{self, Gelu, Heads, Options, Segment, Segments, Targets, Weight};
use crate::tensor::{Device, Dropout, Gpu, Gradients, Storage, Stream, Tape, Tensor};
use std::sync::Arc;

/// Larger than any L2 cache.
const FLUSH: usize = 256 << 20;

/// Sizes of the model and of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub batch: usize,
    /// Image tokens, width, heads and MLP of the image encoder.
    pub tokens: usize,
    pub vit: usize,
    pub vit_heads: usize,
    pub vit_mlp: usize,
    /// Width, heads, feed-forward and queries of the Q-Former.
    pub hidden: usize,
    pub heads: usize,
    pub ffn: usize,
    pub queries: usize,
    pub vocab: usize,
    /// Tokens of a caption.
    pub text: usize,
}

impl Sizes {
    /// BLIP-2 with ViT-g.
    pub fn full(batch: usize) -> Sizes {
        Sizes {
            batch,
            tokens: 257,
            vit: 1408,
            vit_heads: 16,
            vit_mlp: 6144,
            hidden: 768,
            heads: 12,
            ffn: 3072,
            queries: 32,
            vocab: 32_001,
            text: 16,
        }
    }

    /// Those head sizes, little of everything: for the emulator.
    pub fn tiny() -> Sizes {
        Sizes {
            batch: 1,
            tokens: 17,
            vit: 176,
            vit_heads: 2,
            vit_mlp: 64,
            hidden: 128,
            heads: 2,
            ffn: 64,
            queries: 8,
            vocab: 101,
            text: 5,
        }
    }
}

/// One thing to time.
pub struct Work {
    pub name: String,
    pub bytes: usize,
    pub flops: usize,
    run: Box<dyn FnMut() -> Result<f64>>,
}

impl Work {
    /// Seconds of one run.
    pub fn seconds(&mut self) -> Result<f64> {
        (self.run)()
    }
}

struct Bench {
    gpu: Gpu,
    storage: Storage,
    flush: Option<crate::tensor::Array>,
    works: Vec<Work>,
}

/// Numbers about as large as activations are.
fn noise(device: &Device, storage: Storage, sizes: &[usize], seed: u64) -> Result<Tensor> {
    let stream = Stream { seed, step: 0, site: 0 };
    let n: usize = sizes.iter().product();
    // Few enough to draw quickly; repeated, since no kernel looks at values.
    let some: Vec<f32> = (0..n.min(1 << 16) as u64).map(|i| stream.normal(i) as f32).collect();
    let values = some.iter().copied().cycle().take(n).collect::<Vec<f32>>();
    Tensor::new(values, sizes)?.to(device, storage)
}

impl Bench {
    fn tensor(&self, storage: Storage, sizes: &[usize], seed: u64) -> Result<Tensor> {
        noise(&Device::Gpu(self.gpu.clone()), storage, sizes, seed)
    }

    fn half(&self, sizes: &[usize], seed: u64) -> Result<Tensor> {
        self.tensor(self.storage, sizes, seed)
    }

    fn flush(flush: Option<&crate::tensor::Array>) -> Result<()> {
        flush.map_or(Ok(()), crate::tensor::Array::zero)
    }

    fn forward(&mut self, name: &str, bytes: usize, flops: usize, f: impl Fn() -> Result<Tensor> + 'static) {
        let (gpu, flush) = (self.gpu.clone(), self.flush.clone());
        let run = move || {
            Bench::flush(flush.as_ref())?;
            gpu.seconds(|| f().map(drop))
        };
        self.works.push(Work { name: name.into(), bytes, flops, run: Box::new(run) });
    }

    /// `f` gets its inputs tracked.
    fn backward(
        &mut self,
        name: &str,
        (bytes, flops): (usize, usize),
        inputs: Vec<Tensor>,
        f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    ) {
        let (gpu, flush) = (self.gpu.clone(), self.flush.clone());
        let run = move || {
            let tape = Tape::new();
            let tracked: Vec<Tensor> = inputs.iter().enumerate().map(|(i, t)| tape.leaf(t, i)).collect();
            let y = f(&tracked)?;
            let seed = y.detach();
            Bench::flush(flush.as_ref())?;
            let mut grads = Gradients::new();
            let times = gpu.profile(|| tape.backward_from(&[(&y, seed.clone())], &mut grads))?;
            // Leaves have gradients in f32; in a step activations are no leaves.
            let own = times.iter().filter(|(name, _)| !name.starts_with("cast_"));
            Ok(own.map(|(_, seconds)| seconds).sum())
        };
        self.works.push(Work { name: name.into(), bytes, flops, run: Box::new(run) });
    }
}

/// Bytes of a matrix.
fn of(storage: Storage, rows: usize, columns: usize) -> usize {
    rows * columns * storage.bytes()
}

fn each(count: usize, rows: usize) -> Vec<std::ops::Range<usize>> {
    (0..count).map(|i| i * rows..(i + 1) * rows).collect()
}

/// Everything, in the order of a step.
pub fn works(gpu: &Gpu, storage: Storage, s: Sizes, flush: bool) -> Result<Vec<Work>> {
    let flush = if flush { Some(gpu.array("bench", Storage::U8, FLUSH)?) } else { None };
    let mut b = Bench { gpu: gpu.clone(), storage, flush, works: Vec::new() };
    copies(&mut b, s)?;
    matmuls(&mut b, s)?;
    norms(&mut b, s)?;
    attentions(&mut b, s)?;
    losses(&mut b, s)?;
    product_with_gelu(&mut b, s)?;
    Ok(b.works)
}

fn copies(b: &mut Bench, s: Sizes) -> Result<()> {
    let x = b.tensor(Storage::F32, &[s.batch * s.tokens, s.vit], 1)?;
    let (name, bytes) = (format!("copy {}", x.shape()), 2 * of(Storage::F32, s.batch * s.tokens, s.vit));
    b.forward(&name, bytes, 0, move || {
        let a = x.array().map(|a| a.duplicate("bench")).transpose()?;
        a.map_or_else(|| Ok(x.clone()), |a| Tensor::of_array(a, x.shape().sizes()))
    });
    Ok(())
}

fn matmuls(b: &mut Bench, s: Sizes) -> Result<()> {
    let (rows, t) = (s.batch * s.tokens, b.storage);
    let shapes = [
        ("qkv", rows, 3 * s.vit, s.vit),
        ("fc1", rows, s.vit_mlp, s.vit),
        ("fc2", rows, s.vit, s.vit_mlp),
        ("Q-Former dense", s.batch * 3 * s.queries, s.hidden, s.hidden),
        ("Q-Former ffn", s.batch * 3 * s.queries, s.ffn, s.hidden),
        ("LM head", s.batch * (s.text - 1), s.vocab, s.hidden),
    ];
    for (name, m, n, k) in shapes {
        let (x, w, bias) = (b.half(&[m, k], 2)?, b.half(&[n, k], 3)?, b.half(&[n], 4)?);
        let bytes = of(t, m, k) + of(t, n, k) + of(t, m, n);
        b.forward(&format!("matmul {name} [{m}, {k}] x [{k}, {n}]"), bytes, 2 * m * n * k, move || {
            ops::linear(&x, Weight::Dense(&w, Some(&bias)), Options::default())
        });
    }
    let (x, bytes) = (b.half(&[rows, s.vit_mlp], 5)?, 2 * of(t, rows, s.vit_mlp));
    b.forward(&format!("gelu {}", x.shape()), bytes, 0, move || ops::gelu(&x));
    Ok(())
}

/// The last one: a library that has none ends the list.
fn product_with_gelu(b: &mut Bench, s: Sizes) -> Result<()> {
    let ((m, n, k), t) = ((s.batch * s.tokens, s.vit_mlp, s.vit), b.storage);
    let (x, w, bias) = (b.half(&[m, k], 2)?, b.half(&[n, k], 3)?, b.half(&[n], 4)?);
    let bytes = of(t, m, k) + of(t, n, k) + of(t, m, n);
    b.forward(&format!("matmul fc1 [{m}, {k}] x [{k}, {n}] + gelu, tanh"), bytes, 2 * m * n * k, move || {
        ops::linear(&x, Weight::Dense(&w, Some(&bias)), Options::gelu(Gelu::Tanh))
    });
    Ok(())
}

fn norms(b: &mut Bench, s: Sizes) -> Result<()> {
    let (rows, t, c) = (s.batch * s.tokens, b.storage, s.vit);
    let affine = |b: &Bench, c: usize| -> Result<[Tensor; 2]> {
        Ok([b.tensor(Storage::F32, &[c], 6)?, b.tensor(Storage::F32, &[c], 7)?])
    };
    let ([w, bias], x) = (affine(b, c)?, b.half(&[rows, c], 8)?);
    b.forward(&format!("layer_norm {}", x.shape()), 2 * of(t, rows, c), 0, move || {
        ops::layer_norm(&x, &w, &bias, 1e-6)
    });
    let ([w, bias], x) = (affine(b, c)?, b.half(&[rows, c], 8)?);
    let stream = b.tensor(Storage::F32, &[rows, c], 9)?;
    let bytes = 2 * of(t, rows, c) + 2 * of(Storage::F32, rows, c);
    b.forward(&format!("f32 stream + layer_norm {}", x.shape()), bytes, 0, move || {
        Ok(ops::residual_norm(&x, &stream, &w, &bias, 1e-6, None)?.0)
    });
    let (rows, c) = (s.batch * 3 * (s.queries + s.text), s.hidden);
    let drop = Dropout { p: 0.1, stream: Stream { seed: 1, step: 1, site: 1 } };
    let ([w, bias], x, residual) = (affine(b, c)?, b.half(&[rows, c], 10)?, b.half(&[rows, c], 11)?);
    b.forward(&format!("dropout + add + layer_norm {}", x.shape()), 4 * of(t, rows, c), 0, move || {
        Ok(ops::residual_norm(&x, &residual, &w, &bias, 1e-12, Some(drop))?.0)
    });
    let inputs = vec![
        b.half(&[rows, c], 10)?,
        b.half(&[rows, c], 11)?,
        affine(b, c)?[0].clone(),
        affine(b, c)?[1].clone(),
    ];
    b.backward(
        &format!("dropout + add + layer_norm [{rows}, {c}], backward"),
        (4 * of(t, rows, c), 0),
        inputs,
        move |x| Ok(ops::residual_norm(&x[0], &x[1], &x[2], &x[3], 1e-12, Some(drop))?.0),
    );
    Ok(())
}

/// Keys that all query rows see together.
fn seen(list: &[Segment]) -> usize {
    list.iter().map(|s| s.q.len() * (s.a.len() + s.b.len())).sum()
}

fn attentions(b: &mut Bench, s: Sizes) -> Result<()> {
    let vit: Vec<Segment> = each(s.batch, s.tokens)
        .into_iter()
        .map(|r| Segment { q: r.clone(), a: r, b: 0..0, causal: false })
        .collect();
    attention(b, "image", vit, (s.vit_heads, s.vit), None)?;
    // A query pass and three pairs look at the same image.
    let cross: Vec<Segment> = (0..4 * s.batch)
        .zip(each(4 * s.batch, s.queries))
        .map(|(i, q)| {
            let a = i % s.batch * s.tokens..(i % s.batch + 1) * s.tokens;
            Segment { q, a, b: 0..0, causal: false }
        })
        .collect();
    let drop = Some(Dropout { p: 0.1, stream: Stream { seed: 1, step: 1, site: 2 } });
    attention(b, "cross", cross, (s.heads, s.hidden), drop)?;
    // Pairs: queries and text see each other.
    let texts = 3 * s.batch * s.queries;
    let own: Vec<Segment> = each(3 * s.batch, s.queries)
        .into_iter()
        .zip(each(3 * s.batch, s.text))
        .flat_map(|(a, t)| {
            let t = texts + t.start..texts + t.end;
            let part = |q| Segment { q, a: a.clone(), b: t.clone(), causal: false };
            [part(a.clone()), part(t.clone())]
        })
        .collect();
    attention(b, "pairs", own, (s.heads, s.hidden), drop)
}

fn attention(
    b: &mut Bench,
    name: &str,
    list: Vec<Segment>,
    (heads, c): (usize, usize),
    drop: Option<Dropout>,
) -> Result<()> {
    let last = |f: &dyn Fn(&Segment) -> usize| list.iter().map(f).max().unwrap_or(0);
    let (rq, rk) = (last(&|s| s.q.end), last(&|s| s.a.end.max(s.b.end)));
    let flops = 4 * seen(&list) * c;
    let t = b.storage;
    let bytes = 2 * of(t, rq, c) + 2 * of(t, rk, c);
    let segments: Arc<Segments> = Segments::new(list, rq, rk)?;
    let scale = ((c / heads) as f64).powf(-0.5);
    let about = format!("attention {name} q [{rq}, {c}] k [{rk}, {c}] heads {heads}");
    let inputs = vec![b.half(&[rq, c], 12)?, b.half(&[rk, c], 13)?, b.half(&[rk, c], 14)?];
    let run = move |x: &[Tensor]| {
        let heads_of = [0, 1, 2].map(|i| Heads { tensor: &x[i], column: 0 });
        ops::attention(heads_of, &segments, heads, scale, drop)
    };
    let (forward, constants) = (run.clone(), inputs.clone());
    b.forward(&about, bytes, flops, move || forward(&constants));
    // Five matmuls of the size of the forward's two; q, k, v, y and dy in, three gradients out.
    let bytes = 4 * of(t, rq, c) + 4 * of(t, rk, c);
    b.backward(&format!("{about}, backward"), (bytes, flops * 5 / 2), inputs, run);
    Ok(())
}

fn losses(b: &mut Bench, s: Sizes) -> Result<()> {
    let (rows, v, t) = (s.batch * (s.text - 1), s.vocab, b.storage);
    let classes: Vec<Option<u32>> = (0..rows).map(|i| Some((i * 7 % v) as u32)).collect();
    let x = b.half(&[rows, v], 15)?;
    let target = classes.clone();
    b.forward(&format!("cross_entropy {}", x.shape()), of(t, rows, v), 0, move || {
        ops::cross_entropy(&x, Targets::Classes(&target, 0.1))
    });
    let inputs = vec![b.half(&[rows, v], 15)?];
    b.backward(
        &format!("cross_entropy [{rows}, {v}], backward"),
        (2 * of(t, rows, v), 0),
        inputs,
        move |x| ops::cross_entropy(&x[0], Targets::Classes(&classes, 0.1)),
    );
    let e = 256.min(s.hidden);
    let (a, texts) = (b.half(&[s.batch * s.queries, e], 16)?, b.half(&[s.batch, e], 17)?);
    let (bytes, q) = (of(t, s.batch * s.queries, e) + of(t, s.batch, e), s.queries);
    let flops = 2 * s.batch * s.batch * s.queries * e;
    b.forward(&format!("max_similarity {} {}", a.shape(), texts.shape()), bytes, flops, move || {
        ops::max_similarity(&a, &texts, q)
    });
    Ok(())
}

/// Operations per second of one large matmul.
pub fn matmul_rate(gpu: &Gpu, storage: Storage, n: usize) -> Result<f64> {
    let device = Device::Gpu(gpu.clone());
    let (x, w) = (noise(&device, storage, &[n, n], 1)?, noise(&device, storage, &[n, n], 2)?);
    let matmul = || ops::linear(&x, Weight::Dense(&w, None), Options::default()).map(drop);
    let best = best(|| gpu.seconds(matmul))?;
    Ok(2.0 * (n * n * n) as f64 / best)
}

/// Bytes per second of a copy within the device, read and written.
pub fn copy_rate(gpu: &Gpu, bytes: usize) -> Result<f64> {
    let (from, to) = (gpu.zeros("bench", Storage::U8, bytes)?, gpu.array("bench", Storage::U8, bytes)?);
    let best = best(|| gpu.seconds(|| to.copy_from(&from)))?;
    Ok(2.0 * bytes as f64 / best)
}

fn best(mut f: impl FnMut() -> Result<f64>) -> Result<f64> {
    (0..5).try_fold(f64::INFINITY, |best, _| Ok(best.min(f()?)))
}
