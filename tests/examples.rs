//! What programs do with the library: those of `examples/`, one after the other, where what one leaves the next takes; and a
//! training that is watched, stopped and resumed.

#[path = "../examples/caption.rs"]
mod caption;
#[path = "../examples/convert.rs"]
mod convert;
#[path = "../examples/gradient.rs"]
mod gradient;
#[path = "train/library.rs"]
mod library;
#[cfg(feature = "host-kernels")]
#[path = "../examples/own_kernel.rs"]
mod own_kernel;
#[path = "../examples/search.rs"]
mod search;
#[path = "../examples/train.rs"]
mod train;
#[allow(dead_code)]
#[path = "train/world.rs"]
mod world;

use qformer::files::RealDisk;
use qformer::pretrained::Pretrained;
use qformer::weights::{Dtype, Info, write_pytorch};
use std::path::Path;

/// A checkpoint as LAVIS saves one, with the image encoder in it.
fn checkpoint(model: &Pretrained, path: &Path) {
    let info =
        |name: &str, shape: &[usize]| Info { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec() };
    let infos: Vec<Info> = model.params.iter().map(|(_, spec, _)| info(&spec.name, &spec.shape)).collect();
    write_pytorch(&RealDisk, path, &infos, |info| {
        let id = model.params.find(&info.name).unwrap();
        Ok(model.params.get(id).to_f32().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect())
    })
    .unwrap();
}

#[test]
fn train_caption_search_and_convert() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    train::run(&at("set")).unwrap();
    let (model, pictures) = (at("set/run/model"), at("set/pictures/held-out"));
    assert_eq!(caption::run(&model, &pictures).unwrap(), 144);
    let found = search::run(&model, &pictures, &at("index"), "右下に紫の四角が二つ描かれている").unwrap();
    assert!(found.len() == 5 && found.iter().all(|path| Path::new(path).is_file()), "{found:?}");

    let trained = Pretrained::open(&model).unwrap();
    checkpoint(&trained, &at("checkpoint.pth"));
    convert::run(&[&at("checkpoint.pth")], trained.model.config.clone(), &model, &at("converted")).unwrap();
    let converted = Pretrained::open(&at("converted")).unwrap();
    for (id, spec, _) in trained.params.iter() {
        assert_eq!(
            converted.params.get(id).to_f32().unwrap(),
            trained.params.get(id).to_f32().unwrap(),
            "{}",
            spec.name
        );
    }
}

#[test]
fn a_gradient_of_ones_own() {
    // As the example's main has it.
    assert!(gradient::run().unwrap() < 300.0 * f64::EPSILON / 1e-5 + 1e-9);
}

#[cfg(feature = "host-kernels")]
#[test]
fn a_kernel_of_ones_own() {
    let place = tempfile::tempdir().unwrap();
    own_kernel::run(place.path()).unwrap();
    // Its name is known now: it cannot be taken twice, nor can the crate's own.
    let gpu = qformer::tensor::Gpu::open("host").unwrap();
    let again = place.path().join("again.so");
    std::fs::copy(place.path().join("mirror.so"), &again).unwrap();
    // SAFETY: the same kernels, which are refused.
    let error = unsafe { gpu.load(qformer::device::gpu::Kernels::Object(&again)) }.unwrap_err();
    assert!(error.to_string().contains("mirror"), "{error}");
    let absent = place.path().join("absent.so");
    // SAFETY: there is nothing to run.
    let error = unsafe { gpu.load(qformer::device::gpu::Kernels::Object(&absent)) }.unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
}
