//! `qformer inspect`: what is in a file of weights, and whether two hold the same.

use super::output::say;
use crate::pretrained::parts;
use crate::weights::names::{self, Meaning, Naming};
use crate::weights::{Dtype, Info, Set};
use crate::{Error, Kind, Result};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// List the tensors of a file or folder of weights, or compare two
///
/// Reads PyTorch files (.pth, .pt, .bin; no code in them is ever run), safetensors, and folders of either. Without --hash
/// and --compare no byte of a tensor is read, so that a file of many gigabytes is listed at once.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  qformer inspect eva_vit_g.pth\n  qformer inspect model/ --json --hash\n  qformer inspect model.safetensors --compare checkpoint.pth"
)]
pub struct Args {
    /// A file of weights, or a model's folder
    path: PathBuf,
    /// Say whether this file or folder holds the same tensors, bit for bit; exit code 5 if not. Where the two use
    /// different namings (LAVIS, Hugging Face, ...), tensors are matched by what they mean
    #[arg(long, value_name = "OTHER")]
    compare: Option<PathBuf>,
    /// Print blake3 of every tensor, for which the whole file is read; where the file says what it was written with, other
    /// numbers are an error
    #[arg(long)]
    hash: bool,
    /// JSON instead of lines
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let set = Set::open(&args.path)?;
    if let Some(other) = &args.compare {
        return compare(args, &set, other);
    }
    let hashes = if args.hash { Some(hashes(&set)?) } else { None };
    if args.hash {
        parts::verify(&args.path)?;
    }
    let naming = naming(&set).map(Naming::name);
    if args.json {
        say!("{}", report(&set, naming, hashes.as_ref()))?;
        return Ok(());
    }
    for file in set.files() {
        say!("{}: {}, {} bytes", file.path().display(), file.format().name(), file.file_bytes())?;
        for (key, value) in file.metadata() {
            say!("  {key}: {}", value.chars().take(200).collect::<String>())?;
        }
        if !file.others().is_empty() {
            say!("  beside the weights: {}", file.others().join(", "))?;
        }
    }
    if let Some(naming) = naming {
        say!("names: {naming}")?;
    }
    let width = set.tensors().map(|t| t.name.len()).max().unwrap_or(0);
    for t in set.tensors() {
        let hash = hashes.as_ref().and_then(|h| h.get(&t.name)).map(|h| format!("  {h}")).unwrap_or_default();
        say!("  {:width$}  {:4}  {:?}{hash}", t.name, t.dtype.name(), t.shape)?;
    }
    for (dtype, [tensors, elements, bytes]) in totals(&set) {
        say!("{dtype}: {tensors} tensors, {elements} elements, {bytes} bytes")?;
    }
    Ok(())
}

fn naming(set: &Set) -> Option<Naming> {
    Naming::of(set.tensors().map(|t| t.name.as_str()))
}

fn hashes(set: &Set) -> Result<BTreeMap<String, String>> {
    let names: Vec<&str> = set.tensors().map(|t| t.name.as_str()).collect();
    names.par_iter().map(|n| Ok(((*n).to_string(), set.holder(n)?.hash(n)?.to_hex().to_string()))).collect()
}

/// Tensors, elements and bytes by dtype.
fn totals(set: &Set) -> BTreeMap<Dtype, [usize; 3]> {
    let mut totals = BTreeMap::<Dtype, [usize; 3]>::new();
    for t in set.tensors() {
        let [tensors, elements, bytes] = totals.entry(t.dtype).or_default();
        *tensors += 1;
        *elements += t.elements();
        *bytes += t.bytes();
    }
    totals
}

fn report(set: &Set, naming: Option<&str>, hashes: Option<&BTreeMap<String, String>>) -> Value {
    let tensor = |t: &Info| {
        let mut line = json!({"name": t.name, "dtype": t.dtype.name(), "shape": t.shape});
        if let (Some(hash), Some(map)) = (hashes.and_then(|h| h.get(&t.name)), line.as_object_mut()) {
            map.insert("blake3".into(), json!(hash));
        }
        line
    };
    let files: Vec<Value> = set
        .files()
        .iter()
        .map(|f| {
            json!({
                "path": f.path(), "format": f.format().name(), "bytes": f.file_bytes(), "metadata": f.metadata(),
                "others": f.others(), "tensors": f.tensors().iter().map(tensor).collect::<Vec<_>>(),
            })
        })
        .collect();
    let total = |(dtype, [tensors, elements, bytes]): (Dtype, [usize; 3])| json!({"dtype": dtype.name(), "tensors": tensors, "elements": elements, "bytes": bytes});
    let totals: Vec<Value> = totals(set).into_iter().map(total).collect();
    json!({"names": naming, "files": files, "totals": totals})
}

/// How a tensor differs from its namesake.
fn difference(a: &Set, b: &Set, name_a: &str, name_b: &str) -> Result<Option<String>> {
    let describe = |t: &Info| format!("{} {:?}", t.dtype, t.shape);
    let (Some(x), Some(y)) = (a.get(name_a), b.get(name_b)) else { return Ok(Some("absent".into())) };
    if (x.dtype, &x.shape) != (y.dtype, &y.shape) {
        return Ok(Some(format!("{} here, {} there", describe(x), describe(y))));
    }
    let (x, y) = (a.bytes(name_a)?, b.bytes(name_b)?);
    let differing = x.iter().zip(&y).filter(|(x, y)| x != y).count();
    Ok((differing > 0).then(|| format!("{differing} of {} bytes", x.len())))
}

fn compare(args: &Args, a: &Set, path: &Path) -> Result<()> {
    let b = Set::open(path)?;
    let (of_a, of_b) = (naming(a), naming(&b));
    let by_meaning = of_a != of_b;
    let keys = |set: &Set, naming: Option<Naming>| -> BTreeMap<String, String> {
        let key = |t: &Info| match naming.filter(|_| by_meaning).map(|n| names::meaning(n, &t.name)) {
            None | Some(Meaning::Unknown | Meaning::QkvBias(..)) => Some((t.name.clone(), t.name.clone())),
            Some(Meaning::Parameter(name)) => Some((name, t.name.clone())),
            Some(Meaning::Twin(_) | Meaning::Unused(_)) => None,
        };
        set.tensors().filter_map(key).collect()
    };
    let (names_a, names_b) = (keys(a, of_a), keys(&b, of_b));
    let only = |x: &BTreeMap<String, String>, y: &BTreeMap<String, String>| -> Vec<String> {
        x.keys().filter(|k| !y.contains_key(*k)).cloned().collect()
    };
    let (only_a, only_b) = (only(&names_a, &names_b), only(&names_b, &names_a));
    let shared: Vec<(&String, &String, &String)> =
        names_a.iter().filter_map(|(k, n)| Some((k, n, names_b.get(k)?))).collect();
    let found: Vec<Option<(String, String)>> = shared
        .par_iter()
        .map(|(k, n, m)| Ok(difference(a, &b, n, m)?.map(|d| ((*k).clone(), d))))
        .collect::<Result<_>>()?;
    let differ: BTreeMap<String, String> = found.into_iter().flatten().collect();
    let same = only_a.is_empty() && only_b.is_empty() && differ.is_empty();
    let equal = shared.len() - differ.len();
    if args.json {
        say!(
            "{}",
            json!({"same": same, "equal": equal, "differ": differ, "only_here": only_a, "only_there": only_b})
        )?;
    } else {
        differ.iter().try_for_each(|(name, how)| say!("differs: {name}: {how}"))?;
        only_a.iter().try_for_each(|name| say!("only in {}: {name}", args.path.display()))?;
        only_b.iter().try_for_each(|name| say!("only in {}: {name}", path.display()))?;
        say!("{equal} tensors equal, {} differ, {} in one only", differ.len(), only_a.len() + only_b.len())?;
    }
    if same {
        return Ok(());
    }
    let got = format!("{} that differ and {} in one only", differ.len(), only_a.len() + only_b.len());
    Err(Error::new(Kind::Parity, "inspect").expected("the same tensors").got(got))
}
