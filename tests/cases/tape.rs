//! The tape: gradients add up, nothing stops silently, and what is asked wrongly is refused

use super::harness::t;
use qformer::ops::{self, Options, Weight};
use qformer::tensor::{Buffer, Gradients, Tape, Tensor, constant, record, watch_non_finite};

fn values(grads: &Gradients, key: usize) -> Vec<f64> {
    grads.get(key).map(|g| g.slice::<f64>().to_vec()).unwrap_or_default()
}

/// micrograd's habit: one variable again and again. y = 3 x + x * x (as x / (1/x) is not at hand: x^2 = x x^T).
#[test]
fn one_variable_used_many_times() {
    let (tape, mut grads) = (Tape::new(), Gradients::new());
    let x = tape.leaf(&t(&[5.0], &[1, 1]), 0);
    let square = ops::linear(&x, Weight::Dense(&x, None), Options::default()).unwrap();
    let y = ops::add(&ops::add(&ops::scale(&x, 3.0).unwrap(), &square).unwrap(), &x).unwrap();
    assert_eq!(y.item().unwrap(), 45.0);
    tape.backward(&y, 2.0, &mut grads).unwrap();
    assert_eq!(values(&grads, 0), [2.0 * (3.0 + 10.0 + 1.0)]);
}

#[test]
fn gradients_of_several_runs_add_up_until_cleared() {
    let mut grads = Gradients::new();
    for by in [1.0, 10.0] {
        let tape = Tape::new();
        let y = ops::scale(&tape.leaf(&t(&[2.0], &[]), 3), by).unwrap();
        tape.backward(&y, 1.0, &mut grads).unwrap();
    }
    assert_eq!(values(&grads, 3), [11.0]);
    assert_eq!(grads.keys().collect::<Vec<_>>(), [3]);
    grads.clear();
    assert!(grads.get(3).is_none() && grads.keys().next().is_none());
}

#[test]
fn what_no_loss_reads_gets_no_gradient() {
    let (tape, mut grads) = (Tape::new(), Gradients::new());
    let (a, b) = (tape.leaf(&t(&[1.0], &[]), 0), tape.leaf(&t(&[1.0], &[]), 1));
    let y = ops::scale(&a, 2.0).unwrap();
    let _unread = ops::scale(&b, 2.0).unwrap();
    assert_eq!(tape.len(), 2);
    tape.backward(&y, 1.0, &mut grads).unwrap();
    assert!(tape.is_empty() && grads.get(0).is_some() && grads.get(1).is_none());
}

#[test]
fn only_record_continues_a_tape() {
    let tape = Tape::new();
    let x = tape.leaf(&t(&[1.0], &[]), 0);
    let refused = constant("sign", &[&x], vec![1.0], &[]).unwrap_err().to_string();
    assert_eq!(
        refused,
        "sign: inputs: expected constants, got a tracked tensor; detach it: this operation has no gradient"
    );
    assert!(!constant("sign", &[&x.detach()], vec![1.0], &[]).unwrap().tracked());
    assert!(record("double", [&x], vec![2.0], &[], |_, _| Ok(())).unwrap().tracked());
    assert!(!record("double", [&x.detach()], vec![2.0], &[], |_, _| Ok(())).unwrap().tracked());
}

#[test]
fn a_backward_that_gives_another_shape_or_dtype_is_refused_by_name() {
    let wrong = |grad: fn(&mut qformer::tensor::Grads) -> qformer::Result<()>| {
        let tape = Tape::new();
        let x = tape.leaf(&t(&[1.0, 2.0], &[2]), 0);
        let y = record("odd", [&x], vec![1.0], &[], move |_, grads| grad(grads)).unwrap();
        tape.backward(&y, 1.0, &mut Gradients::new()).unwrap_err().to_string()
    };
    let got = wrong(|grads| grads.add(0, vec![1.0f64; 3]));
    assert_eq!(got, "backward: gradient: expected f64 [2], got f64 x 3; in the backward of odd");
    let got = wrong(|grads| grads.add(0, vec![1.0f32; 2]));
    assert_eq!(got, "backward: gradient: expected f64 [2], got f32 x 2; in the backward of odd");
    let got = wrong(|grads| grads.accumulate::<f32>(0, |_, _| Ok(())));
    assert_eq!(got, "backward: gradient: expected f64 [2], got f32 x 2; in the backward of odd");
}

#[test]
fn wrong_starts_are_refused() {
    let tape = Tape::new();
    let x = tape.leaf(&t(&[1.0, 2.0], &[2]), 0);
    let says = |r: qformer::Result<()>| r.unwrap_err().to_string();
    let mut grads = Gradients::new();
    assert_eq!(says(tape.backward(&x, 1.0, &mut grads)), "backward: loss: expected one element, got [2]");
    assert_eq!(
        says(tape.backward(&t(&[1.0], &[]), 1.0, &mut grads)),
        "backward: loss: expected a tensor of this tape, got a constant; compute it from tracked parameters"
    );
    let seed = t(&[1.0; 3], &[3]);
    assert_eq!(
        says(tape.backward_from(&[(&x, seed)], &mut grads)),
        "backward: gradient: expected f64 [2], got f64 [3]"
    );
    let seed = Tensor::new(vec![1f32; 2], &[2]).unwrap();
    assert_eq!(
        says(tape.backward_from(&[(&x, seed)], &mut grads)),
        "backward: gradient: expected f64 [2], got f32 [2]"
    );
    let other = Tape::new();
    let y = other.leaf(&t(&[1.0, 2.0], &[2]), 0);
    assert_eq!(
        ops::add(&x, &y).unwrap_err().to_string(),
        "add: inputs: expected tensors of one tape, got tensors of two tapes"
    );
    let z = ops::scale(&y, 2.0).unwrap();
    let two = t(&[1.0; 2], &[2]);
    assert_eq!(
        says(tape.backward_from(&[(&z, two)], &mut grads)),
        "backward: loss: expected a tensor of this tape, got one of another tape"
    );
}

#[test]
fn gradients_refuse_another_length() {
    let mut grads = Gradients::new();
    grads.add(1, Buffer::F64(vec![1.0, 2.0])).unwrap();
    grads.add(1, Buffer::F64(vec![3.0, 4.0])).unwrap();
    assert_eq!(values(&grads, 1), [4.0, 6.0]);
    let says = |b| grads.clone().add(1, b).unwrap_err().to_string();
    assert_eq!(says(Buffer::F64(vec![1.0])), "gradients: gradient: expected f64 x 2, got f64 x 1");
    assert_eq!(says(Buffer::F32(vec![1.0, 1.0])), "gradients: gradient: expected f64 x 2, got f32 x 2");
}

#[test]
fn the_first_operation_that_is_not_finite_is_named() {
    let run = |x: f64| {
        watch_non_finite(|| {
            let x = t(&[1.0, x], &[2]);
            let y = ops::scale(&x, 1e200).unwrap();
            ops::scale(&ops::scale(&y, 1e200).unwrap(), 1e200).unwrap()
        })
        .1
    };
    assert_eq!(run(1e-300), None.or(Some("scale [2] at element 0".to_string())));
    assert_eq!(watch_non_finite(|| ops::scale(&t(&[1.0], &[1]), 2.0)).1, None);
    // Nothing is watched outside.
    assert!(ops::scale(&t(&[1e300], &[1]), 1e300).unwrap().item().unwrap().is_infinite());
    let found = watch_non_finite(|| ops::gelu(&t(&[0.0, 0.0, f64::NAN], &[3]))).1;
    assert_eq!(found.as_deref(), Some("gelu [3] at element 2"));
}

#[test]
fn tensors_are_what_they_say() {
    let x = t(&[1., 2., 3., 4., 5., 6.], &[3, 2]);
    assert_eq!((x.rows(), x.len(), x.is_empty(), x.shape().to_string()), ((3, 2), 6, false, "[3, 2]".into()));
    assert_eq!(t(&[7.0], &[]).rows(), (1, 1));
    assert_eq!(Tensor::zeros(x.dtype(), &[2, 0]).len(), 0);
    assert_eq!(format!("{x:?}"), "Tensor(f64 [3, 2])");
    assert_eq!(x.data::<f32>().len(), 0);
    assert_eq!(x.to_f32().unwrap(), [1f32, 2., 3., 4., 5., 6.]);
    assert_eq!(x.slice_rows(1..2).unwrap().to_f64().unwrap(), [3., 4.]);
    assert_eq!(x.item().unwrap(), 1.0);
    assert!(Tensor::zeros(x.dtype(), &[0]).item().is_err());
    assert_eq!(t(&[1.0, f64::INFINITY], &[2]).first_non_finite().unwrap(), Some(1));
    assert_eq!(x.first_non_finite().unwrap(), None);
    let mut mine = x.slice_rows(1..3).unwrap();
    assert!(mine.data_mut::<f64>().is_none(), "two tensors share the buffer");
    drop(x);
    mine.data_mut::<f64>().unwrap()[0] = 9.0;
    assert_eq!(mine.to_f64().unwrap(), [9., 4., 5., 6.]);
    assert!(mine.data_mut::<f32>().is_none());
}
