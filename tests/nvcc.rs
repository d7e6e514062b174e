//! The search for nvcc, on made-up machines: which one is taken, which version will do, what a failure means.

#[path = "../build/nvcc.rs"]
mod nvcc;

use nvcc::{Machine, check, hint, version};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A machine below `root` with an nvcc in each of these folders.
fn machine(root: &Path, with: &[&str], variables: &[(&'static str, &str)]) -> Machine {
    for folder in with {
        let folder = root.join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("nvcc"), "").unwrap();
    }
    assert!(variables.iter().all(|(name, _)| nvcc::VARIABLES.contains(name)));
    let place = |v: &str| OsString::from(v.replace('~', root.to_str().unwrap()));
    Machine {
        variables: variables.iter().map(|(name, v)| (*name, place(v))).collect::<BTreeMap<_, _>>(),
        root: root.to_path_buf(),
        site_packages: vec![root.join("python/site-packages")],
    }
}

fn found(with: &[&str], variables: &[(&'static str, &str)]) -> Result<String, String> {
    let root = tempfile::tempdir().unwrap();
    let name = |p: PathBuf| p.parent().unwrap().strip_prefix(root.path()).unwrap().display().to_string();
    machine(root.path(), with, variables).find().map(name)
}

const WHEEL: &str = "venv/lib/python3.11/site-packages/nvidia/cu13/bin";
const PYTHON: &str = "python/site-packages/nvidia/cu13/bin";

#[test]
fn an_active_environment_comes_before_path() {
    let all = ["home/bin", WHEEL, "conda/bin", "usr/bin", "usr/local/cuda/bin", PYTHON];
    let set = [
        ("CUDA_HOME", "~/home"),
        ("VIRTUAL_ENV", "~/venv"),
        ("CONDA_PREFIX", "~/conda"),
        ("PATH", "~/nothing:~/usr/bin"),
    ];
    let expected = ["home/bin", WHEEL, "conda/bin", "usr/bin", "usr/local/cuda/bin", PYTHON];
    for (n, want) in expected.into_iter().enumerate() {
        assert_eq!(found(&all[n..], &set), Ok(want.to_string()));
    }
    assert!(found(&[], &set).unwrap_err().contains("pip install"));
}

#[test]
fn nvcc_named_by_the_user_is_taken_or_refused() {
    let named = [("NVCC", "~/mine/nvcc"), ("PATH", "~/usr/bin")];
    assert_eq!(found(&["mine", "usr/bin"], &named), Ok("mine".into()));
    let error = found(&["usr/bin"], &named).unwrap_err();
    assert!(error.contains("NVCC=") && error.contains("not a file"), "{error}");
    assert_eq!(found(&["usr/bin"], &[("NVCC", ""), ("PATH", "~/usr/bin")]), Ok("usr/bin".into()));
}

#[test]
fn the_version_must_be_of_cuda_13() {
    let printed = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\nBuild cuda_13.0";
    assert_eq!(version(printed), Some((13, 0)));
    assert_eq!(version("Cuda compilation tools, release 12.0, V12.0.140"), Some((12, 0)));
    assert_eq!(version("nvcc: not found"), None);
    let nvcc = Path::new("/usr/bin/nvcc");
    assert_eq!(check(nvcc, Some((13, 0))), Ok(None));
    assert!(check(nvcc, Some((13, 1))).unwrap().unwrap().contains("driver of CUDA 13.1"));
    for wrong in [Some((12, 0)), Some((14, 0)), None] {
        let error = check(nvcc, wrong).unwrap_err();
        assert!(error.contains("/usr/bin/nvcc") && error.contains("NVCC="), "{error}");
    }
}

#[test]
fn known_failures_get_advice() {
    let cases = [
        ("#error -- unsupported GNU version! gcc versions later than 15 are not supported!", "NVCC_CCBIN"),
        (
            "math_functions.h(629): error: exception specification is incompatible with previous function \"rsqrt\"",
            "CUDA 13.1",
        ),
        ("nvcc fatal: Could not write: No space left on device", "TMPDIR"),
        ("fatal error: cuda_runtime.h: No such file or directory", "toolkit"),
    ];
    for (text, advice) in cases {
        assert!(hint(text).unwrap().contains(advice), "{text}");
    }
    assert_eq!(hint("error: identifier \"x\" is undefined"), None);
}
