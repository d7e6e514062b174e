//! Tensors and operations

use crate::tiny::error;
use qformer::ops::{self, Heads, Options, Segment, Segments, Targets, Weight};
use qformer::tensor::{DType, Dropout, Stream, Tape, Tensor};
use std::ops::Range;
use std::sync::Arc;

fn t(sizes: &[usize]) -> Tensor {
    Tensor::zeros(DType::F64, sizes)
}

fn single(sizes: &[usize]) -> Tensor {
    Tensor::zeros(DType::F32, sizes)
}

fn tracked(sizes: &[usize]) -> Tensor {
    Tape::new().leaf(&t(sizes), 0)
}

#[test]
fn tensors() {
    let of = |n: usize, sizes: &[usize]| error(Tensor::new(vec![0f32; n], sizes));
    assert_eq!(of(5, &[2, 3]), "tensor: shape: expected at most 4 axes with 5 elements, got [2, 3]");
    assert_eq!(
        of(1, &[1, 1, 1, 1, 1]),
        "tensor: shape: expected at most 4 axes with 1 elements, got [1, 1, 1, 1, 1]"
    );
    assert_eq!(
        of(0, &[1 << 33, 1 << 33]),
        "tensor: shape: expected at most 4 axes with 0 elements, got [8589934592, 8589934592]"
    );
    assert_eq!(
        error(t(&[2, 3]).reshape(&[4])),
        "reshape: shape: expected at most 4 axes with 6 elements, got [4]"
    );
    assert_eq!(
        error(t(&[2]).reshape(&[2, 1, 1, 1, 1])),
        "reshape: shape: expected at most 4 axes with 2 elements, got [2, 1, 1, 1, 1]"
    );
    let slice = |range: Range<usize>| error(t(&[3, 2]).slice_rows(range));
    assert_eq!(slice(1..4), "slice_rows: range: expected within 0..3, got 1..4");
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 2..1;
    assert_eq!(slice(reversed), "slice_rows: range: expected within 0..3, got 2..1");
}

#[test]
fn element_wise_operations() {
    assert_eq!(error(ops::add(&t(&[2, 3]), &t(&[3, 2]))), "add: b: expected [2, 3], got [3, 2]");
    assert_eq!(error(ops::add(&t(&[6]), &t(&[2, 3]))), "add: b: expected [6], got [2, 3]");
    assert_eq!(error(ops::add(&t(&[2]), &single(&[2]))), "add: b: expected f64, got f32");
    for bad in [f64::NAN, f64::INFINITY] {
        assert_eq!(
            error(ops::scale(&t(&[2]), bad)),
            format!("scale: factor: expected a finite number, got {bad}")
        );
    }
    assert_eq!(error(ops::divide(&t(&[2]), &t(&[2]))), "divide: divisor: expected one number, got [2]");
    assert_eq!(error(ops::divide(&t(&[2]), &single(&[]))), "divide: divisor: expected f64, got f32");
    for p in [1.0f32, -0.1, f32::NAN, 2.0] {
        let drop = Some(Dropout { p, stream: Stream { seed: 0, step: 0, site: 0 } });
        assert_eq!(error(ops::dropout(&t(&[2]), drop)), format!("dropout: p: expected 0 <= p < 1, got {p}"));
    }
}

#[test]
fn rows_and_tables() {
    assert_eq!(
        error(ops::embedding(&t(&[5, 2]), &[4, 5], None)),
        "embedding: ids: expected ids below 5, got 5; use the vocabulary that belongs to this model"
    );
    assert_eq!(
        error(ops::embedding(&t(&[5]), &[0], None)),
        "embedding: table: expected [entries, width], got [5]"
    );
    assert_eq!(
        error(ops::gather_rows(&t(&[3, 2]), &[2, 3])),
        "gather_rows: index: expected rows 0..3, got 3"
    );
    assert_eq!(error(ops::concat_rows(&[])), "concat_rows: parts: expected at least one, got none");
    assert_eq!(
        error(ops::concat_rows(&[&t(&[3, 2]), &t(&[3, 3])])),
        "concat_rows: part: expected 2 columns, got [3, 3]"
    );
    assert_eq!(
        error(ops::concat_rows(&[&t(&[3, 2]), &single(&[3, 2])])),
        "concat_rows: part: expected f64, got f32"
    );
    assert_eq!(
        error(ops::mean_rows(&t(&[6, 2]), 4)),
        "mean_rows: group: expected a divisor of 6 rows, got 4"
    );
    assert_eq!(
        error(ops::mean_rows(&t(&[6, 2]), 0)),
        "mean_rows: group: expected a divisor of 6 rows, got 0"
    );
    let similarity = |a: &[usize], b: &Tensor, q| error(ops::max_similarity(&t(a), b, q));
    assert_eq!(similarity(&[6, 2], &t(&[3, 2]), 4), "max_similarity: q: expected a divisor of 6 rows, got 4");
    assert_eq!(similarity(&[6, 2], &t(&[3, 2]), 0), "max_similarity: q: expected a divisor of 6 rows, got 0");
    assert_eq!(similarity(&[6, 2], &t(&[3, 5]), 3), "max_similarity: b: expected 2 columns, got [3, 5]");
    assert_eq!(similarity(&[6, 2], &single(&[3, 2]), 3), "max_similarity: b: expected f64, got f32");
}

#[test]
fn norms_and_products() {
    let norm = |w: &Tensor, b: &Tensor, eps| error(ops::layer_norm(&t(&[2, 3]), w, b, eps));
    assert_eq!(norm(&t(&[2]), &t(&[3]), 0.1), "layer_norm: weight: expected [3], got [2]");
    assert_eq!(norm(&t(&[3]), &t(&[3, 1]), 0.1), "layer_norm: bias: expected [3], got [3, 1]");
    assert_eq!(norm(&single(&[3]), &t(&[3]), 0.1), "layer_norm: weight: expected f64, got f32");
    assert_eq!(norm(&t(&[3]), &single(&[3]), 0.1), "layer_norm: bias: expected f64, got f32");
    for eps in [f64::NAN, f64::INFINITY, -1e-9] {
        let want = format!("layer_norm: eps: expected a finite number, at least 0, got {eps}");
        assert_eq!(norm(&t(&[3]), &t(&[3]), eps), want);
        assert_eq!(error(ops::normalize_rows(&t(&[2, 3]), eps)), want);
    }
    let no_gradient = "expected constants, got a tracked tensor; detach it: this operation has no gradient";
    assert_eq!(
        error(ops::normalize_rows(&tracked(&[2, 3]), 0.1)),
        format!("normalize_rows: inputs: {no_gradient}")
    );

    let few_rows = |x: &Tensor, w: &Tensor, b: Option<&Tensor>| {
        ops::linear(x, Weight::Dense(w, b), Options::batch_invariant())
    };
    let linear = |w: &Tensor, b: Option<&Tensor>| {
        let said = error(ops::linear(&t(&[4, 3]), Weight::Dense(w, b), Options::default()));
        assert_eq!(said, error(few_rows(&t(&[4, 3]), w, b)));
        said
    };
    assert_eq!(linear(&t(&[3]), None), "linear: weight: expected [out, in], got [3]");
    assert_eq!(linear(&t(&[5, 2]), None), "linear: weight: expected [5, 3] for x [4, 3], got [5, 2]");
    assert_eq!(linear(&t(&[5, 3]), Some(&t(&[3]))), "linear: bias: expected [5], got [3]");
    assert_eq!(linear(&single(&[5, 3]), None), "linear: weight: expected f64, got f32");
    assert_eq!(linear(&t(&[5, 3]), Some(&single(&[5]))), "linear: bias: expected f64, got f32");
    for (x, w) in [(tracked(&[4, 3]), t(&[5, 3])), (t(&[4, 3]), tracked(&[5, 3]))] {
        assert_eq!(error(few_rows(&x, &w, None)), format!("linear: inputs: {no_gradient}"));
    }
    let exact = few_rows(&t(&[4, 3]), &t(&[5, 3]), Some(&tracked(&[5])));
    assert_eq!(error(exact), format!("linear: inputs: {no_gradient}"));

    let fused = |n: &Tensor, shapes: [&[usize]; 4]| {
        let [g, b, w, wb] = shapes.map(t);
        error(ops::linear(n, Weight::AfterNorm { norm: [&g, &b], layer: [&w, &wb] }, Options::default()))
    };
    let n = t(&[4, 3]);
    assert_eq!(fused(&n, [&[2], &[3], &[5, 3], &[5]]), "norm_linear: gamma: expected [3], got [2]");
    assert_eq!(fused(&n, [&[3], &[1], &[5, 3], &[5]]), "norm_linear: beta: expected [3], got [1]");
    assert_eq!(fused(&n, [&[3], &[3], &[5, 2], &[5]]), "norm_linear: weight: expected [5, 3], got [5, 2]");
    assert_eq!(fused(&n, [&[3], &[3], &[5, 3], &[4]]), "norm_linear: bias: expected [5], got [4]");
    assert_eq!(
        fused(&single(&[4, 3]), [&[3], &[3], &[5, 3], &[5]]),
        "norm_linear: gamma: expected f32, got f64"
    );
    assert_eq!(
        fused(&tracked(&[4, 3]), [&[3], &[3], &[5, 3], &[5]]),
        "norm_linear: n: expected a constant, got a tracked tensor; use layer_norm and linear"
    );
}

#[test]
fn patches() {
    let patch = |image: &Tensor, shapes: [&[usize]; 4]| {
        let [w, b, cls, pos] = shapes.map(t);
        error(ops::patch_embed(image, &w, &b, &cls, &pos))
    };
    let (w, b, cls, pos): (&[usize], &[usize], &[usize], &[usize]) =
        (&[5, 3, 2, 2], &[5], &[1, 1, 5], &[1, 5, 5]);
    let said = |image: &[usize]| patch(&t(image), [w, b, cls, pos]);
    assert_eq!(said(&[3, 4, 4]), "patch_embed: image: expected [batch, 3, size, size], got [3, 4, 4]");
    assert_eq!(
        patch(&t(&[1, 3, 4, 4]), [&[5, 12], b, cls, pos]),
        "patch_embed: weight: expected [width, 3, patch, patch], got [5, 12]"
    );
    let square = "patch_embed: image: expected a square of at least 2 pixels with 3 channels";
    assert_eq!(said(&[1, 3, 4, 5]), format!("{square}, got [1, 3, 4, 5]"));
    assert_eq!(said(&[1, 4, 4, 4]), format!("{square}, got [1, 4, 4, 4]"));
    assert_eq!(said(&[1, 3, 1, 1]), format!("{square}, got [1, 3, 1, 1]"));
    let image = t(&[1, 3, 4, 4]);
    assert_eq!(
        patch(&image, [&[5, 3, 2, 3], b, cls, pos]),
        "patch_embed: weight: expected square patches of at least 1 pixel, got [5, 3, 2, 3]"
    );
    assert_eq!(
        patch(&image, [&[5, 3, 0, 0], b, cls, pos]),
        "patch_embed: weight: expected square patches of at least 1 pixel, got [5, 3, 0, 0]"
    );
    assert_eq!(patch(&image, [w, &[4], cls, pos]), "patch_embed: bias: expected [5], got [4]");
    assert_eq!(patch(&image, [w, b, &[1, 5], pos]), "patch_embed: cls_token: expected [1, 1, 5], got [1, 5]");
    assert_eq!(
        patch(&image, [w, b, cls, &[1, 4, 5]]),
        "patch_embed: pos_embed: expected [1, 5, 5], got [1, 4, 5]"
    );
    assert_eq!(patch(&single(&[1, 3, 4, 4]), [w, b, cls, pos]), "patch_embed: weight: expected f32, got f64");
    assert_eq!(
        patch(&tracked(&[1, 3, 4, 4]), [w, b, cls, pos]),
        "patch_embed: image: expected a constant, got a tracked tensor"
    );
}

#[test]
fn losses() {
    let classes = |c: &[Option<u32>], s: f64| error(ops::cross_entropy(&t(&[2, 3]), Targets::Classes(c, s)));
    assert_eq!(classes(&[None], 0.0), "cross_entropy: classes: expected 2 of them, got 1");
    assert_eq!(classes(&[Some(3), None], 0.0), "cross_entropy: classes: expected below 3, got 3");
    for s in [-0.1, 1.1, f64::NAN] {
        let want = format!("cross_entropy: label smoothing: expected 0 to 1, got {s}");
        assert_eq!(classes(&[Some(0), None], s), want);
    }
    let soft = |s: &Tensor| error(ops::cross_entropy(&t(&[2, 3]), Targets::Soft(s)));
    assert_eq!(soft(&t(&[3, 2])), "cross_entropy: soft targets: expected [2, 3], got [3, 2]");
    assert_eq!(soft(&single(&[2, 3])), "cross_entropy: soft targets: expected f64, got f32");
    assert_eq!(
        soft(&tracked(&[2, 3])),
        "cross_entropy: soft targets: expected a constant, got a tracked tensor; detach it"
    );
}

fn segment(q: Range<usize>, a: Range<usize>, b: Range<usize>) -> Segment {
    Segment { q, a, b, causal: false }
}

#[test]
fn segments() {
    let said = |list: Vec<Segment>| error(Segments::new(list, 4, 70_000));
    let rows = "segments: rows: expected ranges within 4 query and 70000 key rows, got Segment";
    #[allow(clippy::reversed_empty_ranges)]
    for s in [
        segment(0..5, 0..1, 0..0),
        segment(0..1, 0..70_001, 0..0),
        segment(0..1, 0..0, 0..70_001),
        segment(2..1, 0..1, 0..0),
        segment(0..1, 2..1, 0..0),
        segment(0..1, 0..0, 2..1),
    ] {
        let got = format!("{s:?}");
        assert_eq!(said(vec![s]), format!("{}{}", rows, &got["Segment".len()..]));
    }
    let many = said(vec![segment(0..1, 0..40_000, 40_000..66_000)]);
    assert!(many.starts_with("segments: keys: expected at most 65536, got Segment"), "{many}");
    assert_eq!(said(vec![segment(0..1, 0..40_000, 40_000..65_536)]), "no error");
    let over = said(vec![segment(0..1, 0..3, 2..4)]);
    assert!(over.starts_with("segments: keys: expected a and b apart, got Segment"), "{over}");
    let over = said(vec![segment(0..1, 2..4, 0..3)]);
    assert!(over.starts_with("segments: keys: expected a and b apart, got Segment"), "{over}");
    // Neighbours are apart, and an empty range is nowhere.
    assert_eq!(said(vec![segment(0..1, 0..2, 2..4), segment(1..2, 3..3, 2..4)]), "no error");
    let twice = said(vec![segment(2..4, 0..1, 0..0), segment(0..3, 0..1, 0..0)]);
    assert!(
        twice.starts_with("segments: query rows: expected each row in one segment at most, got Segment"),
        "{twice}"
    );
    assert_eq!(
        said(vec![segment(2..4, 0..1, 0..0), segment(0..2, 0..1, 0..0), segment(3..3, 0..1, 0..0)]),
        "no error"
    );
}

#[test]
fn attention() {
    let table: Arc<Segments> = Segments::new(vec![segment(0..2, 0..3, 0..0)], 2, 3).unwrap();
    let said = |[q, k, v]: [&Tensor; 3], columns: [usize; 3], heads, scale, p: Option<f32>| {
        let drop = p.map(|p| Dropout { p, stream: Stream { seed: 0, step: 0, site: 0 } });
        let [a, b, c] = columns;
        let heads_of =
            [Heads { tensor: q, column: a }, Heads { tensor: k, column: b }, Heads { tensor: v, column: c }];
        error(ops::attention(heads_of, &table, heads, scale, drop))
    };
    let (q, k) = (t(&[2, 4]), t(&[3, 4]));
    let plain = |q: &Tensor, k: &Tensor, v: &Tensor| said([q, k, v], [0; 3], 2, 1.0, None);
    assert_eq!(plain(&q, &k, &k), "no error");
    assert_eq!(
        said([&q, &k, &k], [0; 3], 3, 1.0, None),
        "attention: heads: expected a divisor of 4 columns, got 3"
    );
    assert_eq!(
        said([&q, &k, &k], [0; 3], 0, 1.0, None),
        "attention: heads: expected a divisor of 4 columns, got 0"
    );
    assert_eq!(
        said([&q, &k, &k], [4, 0, 0], 1, 1.0, None),
        "attention: heads: expected a divisor of 0 columns, got 1"
    );
    assert_eq!(
        said([&q, &k, &k], [0, 0, 5], 2, 1.0, None),
        "attention: v: expected [3, at least 9], got [3, 4]"
    );
    assert_eq!(plain(&t(&[3, 4]), &k, &k), "attention: q: expected [2, at least 4], got [3, 4]");
    assert_eq!(plain(&q, &t(&[2, 4]), &k), "attention: k: expected [3, at least 4], got [2, 4]");
    assert_eq!(plain(&q, &k, &t(&[4, 4])), "attention: v: expected [3, at least 4], got [4, 4]");
    assert_eq!(plain(&q, &single(&[3, 4]), &k), "attention: k: expected f64, got f32");
    assert_eq!(plain(&q, &k, &single(&[3, 4])), "attention: v: expected f64, got f32");
    for scale in [f64::NAN, f64::INFINITY] {
        let want = format!("attention: scale: expected a finite number, got {scale}");
        assert_eq!(said([&q, &k, &k], [0; 3], 2, scale, None), want);
    }
    assert_eq!(said([&q, &k, &k], [0; 3], 2, 1.0, Some(1.0)), "attention: p: expected 0 <= p < 1, got 1");
}

#[test]
fn attention_of_rows() {
    let said = |q: &Tensor, k: &Tensor, v: &Tensor, lists: &[Vec<u32>], heads, scale| {
        error(ops::attend_rows([q, k, v], &ops::Lists::new(lists.to_vec()), heads, scale))
    };
    let (q, k, lists) = (t(&[2, 4]), t(&[3, 4]), [vec![0, 2], vec![]]);
    assert_eq!(said(&q, &k, &k, &lists, 2, 1.0), "no error");
    for heads in [0, 3] {
        let want = format!("attend_rows: heads: expected a divisor of 4 columns, got {heads}");
        assert_eq!(said(&q, &k, &k, &lists, heads, 1.0), want);
    }
    assert_eq!(
        said(&q, &t(&[3, 6]), &k, &lists, 2, 1.0),
        "attend_rows: k: expected heads of 2 columns, as many as divide 2, got [3, 6]"
    );
    assert_eq!(said(&q, &k, &t(&[2, 4]), &lists, 2, 1.0), "attend_rows: v: expected [3, 4], got [2, 4]");
    assert_eq!(said(&q, &k, &single(&[3, 4]), &lists, 2, 1.0), "attend_rows: v: expected f64, got f32");
    assert_eq!(
        said(&q, &k, &k, &lists[..1], 2, 1.0),
        "attend_rows: lists: expected one for each of 2 rows, got 1"
    );
    assert_eq!(
        said(&q, &k, &k, &[vec![3], vec![]], 2, 1.0),
        "attend_rows: lists: expected rows below 3, got 3"
    );
    assert_eq!(
        said(&q, &k, &k, &lists, 2, f64::NAN),
        "attend_rows: scale: expected a finite number, got NaN"
    );
    let tracked = said(&tracked(&[2, 4]), &k, &k, &lists, 2, 1.0);
    assert!(
        tracked.starts_with("attend_rows: inputs: expected constants, got a tracked tensor"),
        "{tracked}"
    );
}
