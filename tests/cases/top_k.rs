//! The largest of each row and log-softmax

use super::harness::{DRAWS, Rng, distance, t};
use qformer::ops;

#[test]
fn equals_its_definition_and_ignores_the_other_rows() {
    for n in 0..DRAWS {
        let rng = &mut Rng::new(n);
        let (r, v) = (rng.pick(&[0, 1, 2, 5]), rng.pick(&[1, 2, 7, 33]));
        let k = 1 + n as usize % v;
        // Halves: many ties.
        let x: Vec<f64> = rng.values(r * v).iter().map(|x| (x * 2.0).round() / 2.0 + 0.0).collect(); // no -0
        let found = ops::top_k(&t(&x, &[r, v]), k).unwrap();
        assert_eq!(found.len(), r);
        for (i, (found, row)) in found.iter().zip(x.chunks(v)).enumerate() {
            let mut order: Vec<usize> = (0..v).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a])); // stable: ties to the lower index
            let norm = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            let ids: Vec<usize> = found.iter().map(|f| f.0 as usize).collect();
            assert_eq!(ids, order[..k], "row {i} of draw {n}");
            let want: Vec<f64> = ids.iter().map(|j| row[*j] - norm).collect();
            assert!(distance(&found.iter().map(|f| f.1).collect::<Vec<_>>(), &want) < 1e-13);
            assert_eq!(&ops::top_k(&t(row, &[1, v]), k).unwrap()[0], found);
        }
    }
}

#[test]
fn nan_stands_first_and_infinity_is_certain() {
    let x = t(&[1.0, f64::NAN, f64::INFINITY, 0.0], &[1, 4]);
    let found = &ops::top_k(&x, 3).unwrap()[0];
    assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), [1, 2, 0]);
    assert!(found.iter().all(|f| f.1.is_nan()));
    let found = ops::top_k(&t(&[f64::NEG_INFINITY, 3.0], &[1, 2]), 2).unwrap();
    assert_eq!(found, [[(1, 0.0), (0, f64::NEG_INFINITY)]]);
}

#[test]
fn k_is_within_the_row() {
    for k in [0, 5] {
        let e = ops::top_k(&t(&[1.0; 4], &[1, 4]), k).unwrap_err().to_string();
        assert_eq!(e, format!("top_k: k: expected 1 to 4, got {k}"));
    }
}
