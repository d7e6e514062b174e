//! Accuracies, and the scores of retrieval.

use crate::objective::Setup;
use crate::tiny;
use qformer::model::{Profile, Trace, mean_cosine, retrieval_scores};
use qformer::nn::Pass;
use qformer::tensor::Tensor;

/// The shares of right answers, against the recorded similarities and logits.
#[test]
fn accuracies_count_the_largest() {
    let setup = Setup::new(tiny::config(), false, Profile::LavisDiagonal);
    let mut trace = Trace::default();
    let out = setup.run(&Pass::inference(&setup.params(&setup.values)), Some(&mut trace));
    let share = |t: &Option<Tensor>, class: &dyn Fn(usize) -> usize| {
        let t = t.as_ref().unwrap();
        let (rows, columns) = t.rows();
        let right = |(i, row): (usize, &[f64])| (0..columns).all(|j| j == class(i) || row[j] < row[class(i)]);
        t.to_f64().unwrap().chunks(columns).enumerate().filter(|r| right(*r)).count() as f64 / rows as f64
    };
    let want = [
        share(&trace.sim_t2i, &|i| i),
        share(&trace.sim_i2t, &|i| i),
        share(&trace.itm_logits, &|i| usize::from(i < 3)),
    ];
    assert_eq!(out.accuracy.shares().unwrap()[..3], want);
    // Next tokens: the rows of the trace are whole captions, whose last row predicts nothing.
    let logits = trace.lm_logits.unwrap();
    let v = logits.rows().1;
    let (mut row, mut right, mut all) = (0, 0, 0);
    for text in &setup.text {
        for next in &text[1..] {
            let x = &logits.to_f64().unwrap()[row * v..(row + 1) * v];
            right += usize::from((0..v).all(|j| x[j] <= x[*next as usize]));
            (row, all) = (row + 1, all + 1);
        }
        row += 1;
    }
    assert_eq!(out.accuracy.shares().unwrap()[3], right as f64 / all as f64);
}

/// A pair's scores do not depend on the other pairs and images, and are those of `stage1`'s matching pass.
#[test]
fn matched_pairs_are_those_of_the_matching_loss() {
    let setup = Setup::new(tiny::config(), false, Profile::LavisDiagonal);
    let params = setup.params(&setup.values);
    let pass = Pass::inference(&params);
    let mut trace = Trace::default();
    setup.run(&pass, Some(&mut trace));
    let images = setup.model.image_features(&pass, &setup.image).unwrap();
    let n = &setup.negatives;
    let mut pairs: Vec<(usize, usize)> = (0..3).map(|i| (i, i)).collect();
    pairs.extend((0..3).map(|t| (n.image[t] as usize, t)));
    pairs.extend((0..3).map(|i| (i, n.text[i] as usize)));
    let scores = setup.model.match_pairs(&pass, &images, &setup.text, &pairs).unwrap();
    let far = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far(&scores.logits.to_f64().unwrap(), &trace.itm_logits.unwrap().to_f64().unwrap()) < 1e-12);
    let one = setup.model.match_pairs(&pass, &images, &setup.text, &pairs[4..5]).unwrap();
    assert!(far(&one.logits.to_f64().unwrap(), &scores.logits.to_f64().unwrap()[8..10]) < 1e-12);
    // Features: those of the first pass.
    assert!(far(&images.proj.to_f64().unwrap(), &trace.image_feats.unwrap().to_f64().unwrap()) < 1e-12);
    let texts = setup.model.text_features(&pass, &setup.text).unwrap();
    let e = setup.model.config.embed_dim;
    for (i, t) in texts.iter().enumerate() {
        assert_eq!(t.embeds.rows().0, setup.text[i].len());
        let cls = trace.text_feat.as_ref().unwrap().to_f64().unwrap();
        assert!(far(&t.proj.to_f64().unwrap()[..e], &cls[i * e..(i + 1) * e]) < 1e-12, "text {i}");
    }
    let cls: Vec<f64> = texts.iter().flat_map(|t| t.proj.to_f64().unwrap()[..e].to_vec()).collect();
    let itc = setup.model.itc_scores(&images.proj, &Tensor::new(cls, &[3, e]).unwrap()).unwrap();
    let temp = params.get(params.find("temp").unwrap()).item().unwrap();
    let sim: Vec<f64> = trace.sim_i2t.unwrap().to_f64().unwrap().iter().map(|x| x * temp).collect();
    assert!(far(&itc.to_f64().unwrap(), &sim) < 1e-12);
}

#[test]
fn mean_cosine_is_arithmetic() {
    // cos = 1, -1, 0 and 3/5: (2 + 0 + 1 + 1.6) / 2 / 4
    let (a, b) = ([1., 1., 2., 0., 1., 0., 1., 0.], [2., 2., -1., 0., 0., 5., 3., 4.]);
    assert!((mean_cosine(&a, &b, 2) - 4.6 / 8.0).abs() < 1e-15);
    assert_eq!(mean_cosine(&[], &[], 2), 0.0);
    // As torch's cosine_similarity: a row of zeros has cosine 0.
    assert_eq!(mean_cosine(&[0., 0.], &[1., 0.], 2), 0.5);
}

/// The two best texts of every image and the two best images of every text are matched; ties go to the lower index.
#[test]
fn reranked_scores_are_arithmetic() {
    let itc = vec![vec![0.1, 0.9, 0.5], vec![0.7, 0.7, 0.7]];
    let mut asked = Vec::new();
    let scores = retrieval_scores(&itc, 2, |pairs| {
        asked.push(pairs.to_vec());
        Ok(pairs.iter().map(|(i, t)| (10 * i + t) as f64).collect())
    });
    let scores = scores.unwrap();
    assert_eq!(scores.i2t, [[-100.0, 1.0 + 0.9, 2.0 + 0.5], [10.0 + 0.7, 11.0 + 0.7, -100.0]]);
    assert_eq!(scores.t2i, [[0.1, 10.7], [1.9, 11.7], [2.5, 12.7]]);
    assert_eq!(asked[..2], [vec![(0, 1), (0, 2)], vec![(1, 0), (1, 1)]]);
    assert_eq!(asked[2], [(1, 0), (0, 0)]);
    let one = retrieval_scores(&itc, 1, |pairs| Ok(vec![0.0; pairs.len()])).unwrap();
    assert_eq!(one.t2i, [[-100.0, 0.7], [0.9, -100.0], [-100.0, 0.7]]);
}
