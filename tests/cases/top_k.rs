//! The largest of each row and log-softmax

use super::harness::{DRAWS, Rng, STORAGES, distance, places, t, there};
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

/// A vocabulary, more places than threads, all of a row. Quarters, exact in every storage: many ties.
#[test]
fn vocabularies_in_every_storage() {
    for (r, v, k) in [(2, 32001, 6), (3, 1000, 10), (2, 37, 37), (1, 1, 1)] {
        let x: Vec<f64> =
            Rng::new(v as u32).values(r * v).iter().map(|x| (x * 4.0).round() / 4.0 + 0.0).collect();
        let want = ops::top_k(&t(&x, &[r, v]), k).unwrap().concat();
        for (place, storage) in places().flat_map(|place| STORAGES.map(|s| (place, s))) {
            let found = ops::top_k(&there(place, storage, &x, &[r, v]), k).unwrap().concat();
            let parts = |of: &[(u32, f64)]| of.iter().copied().unzip::<u32, f64, Vec<_>, Vec<_>>();
            let ((ids, scores), (want, exact)) = (parts(&found), parts(&want));
            assert_eq!(ids, want, "{storage:?}, {place:?}");
            // A sum of 32,001 terms, its logarithm below 12, in f32: most of the terms are added in pieces.
            assert!(distance(&scores, &exact) < 1e-4, "{storage:?}, {place:?}");
        }
    }
}

#[test]
fn nan_stands_first_and_infinity_is_certain() {
    for (place, storage) in places().flat_map(|place| STORAGES.map(|s| (place, s))) {
        let top = |x: &[f64], k: usize| ops::top_k(&there(place, storage, x, &[1, x.len()]), k).unwrap();
        let x = [0.0, f64::NEG_INFINITY, -0.0, f64::INFINITY, f64::NAN, -1.0, f64::NAN, 0.0];
        let found = &top(&x, 8)[0];
        assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), [4, 6, 3, 0, 2, 7, 5, 1], "{place:?}");
        assert!(found.iter().all(|f| f.1.is_nan()), "{storage:?}, {place:?}");
        let found = top(&[f64::NEG_INFINITY, 3.0], 2);
        assert_eq!(found, [[(1, 0.0), (0, f64::NEG_INFINITY)]], "{storage:?}, {place:?}");
    }
}

#[test]
fn k_is_within_the_row() {
    for k in [0, 5] {
        let e = ops::top_k(&t(&[1.0; 4], &[1, 4]), k).unwrap_err().to_string();
        assert_eq!(e, format!("top_k: k: expected 1 to 4, got {k}"));
    }
}
