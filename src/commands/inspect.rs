//! `qformer inspect`: what is in a file of weights, and whether two hold the same.

use super::output::say;
use crate::files::{self, RealDisk};
use crate::pretrained::parts;
use crate::weights::names::{self, Meaning, Naming};
use crate::weights::start::{Plan, Want};
use crate::weights::{Dtype, Info, Set, Weights, wrappers};
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
    /// Say whether this file or folder holds the same tensors, bit for bit; exit code 5 if not. What wraps names (module,
    /// _orig_mod) does not matter, nor whether norms have gamma and beta or weight and bias. Where the two use different
    /// namings (LAVIS, Hugging Face, ...), tensors are matched by what they mean
    #[arg(long, value_name = "OTHER")]
    compare: Option<PathBuf>,
    /// Print blake3 of every file, every tensor and the image encoder, for which all is read; where a file says what it was
    /// written with, other numbers are an error
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
    let hashes = if args.hash { Some(Hashes::of(&args.path, &set)?) } else { None };
    if args.hash {
        parts::verify(&args.path)?;
    }
    let naming = naming(&set).map(Naming::name);
    if args.json {
        say!("{}", report(&set, naming, hashes.as_ref()))?;
        return Ok(());
    }
    for (i, file) in set.files().iter().enumerate() {
        say!("{}: {}, {} bytes", file.path().display(), file.format().name(), file.file_bytes())?;
        if let Some(hash) = hashes.as_ref().and_then(|h| h.files.get(i)) {
            say!("  blake3: {hash}")?;
        }
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
    if let Some(kind) = kind(&set) {
        say!("kind: {kind}")?;
    }
    if let Some(hash) = hashes.as_ref().and_then(|h| h.vit.as_ref()) {
        let said = match set.metadata(names::VIT_HASH) {
            Some(said) if said == hash => ", the one the model was trained with".to_string(),
            Some(said) => format!(", not the one the model was trained with ({said})"),
            None => String::new(),
        };
        say!("image encoder: blake3 {hash}{said}")?;
    }
    let wrapped = set.tensors().filter(|t| !wrappers(&t.name).is_empty()).count();
    if wrapped > 0 {
        say!("wrapped names (module, _orig_mod, model, ...), seen through: {wrapped}")?;
    }
    let width = set.tensors().map(|t| t.name.len()).max().unwrap_or(0);
    for t in set.tensors() {
        let hash = hashes
            .as_ref()
            .and_then(|h| h.tensors.get(&t.name))
            .map(|h| format!("  {h}"))
            .unwrap_or_default();
        say!("  {:width$}  {:4}  {:?}{hash}", t.name, t.dtype.name(), t.shape)?;
    }
    for (dtype, [tensors, elements, bytes]) in totals(&set) {
        say!("{dtype}: {tensors} tensors, {elements} elements, {bytes} bytes")?;
    }
    Ok(())
}

/// Which stage of BLIP-2 a set is of.
fn kind(set: &Set) -> Option<String> {
    let rows = |name: &str| set.get(name).and_then(|t| t.shape.first().copied());
    let second = ["opt_proj.weight", "llm_proj.weight", "t5_proj.weight", "language_projection.weight"];
    if let Some((name, width)) = second.into_iter().find_map(|name| Some((name, rows(name)?))) {
        let name = name.trim_end_matches(".weight");
        return Some(format!("stage 2, for a language model that reads {width} columns ({name})"));
    }
    rows("itm_head.weight").map(|_| "stage 1".to_string())
}

fn naming(set: &Set) -> Option<Naming> {
    Naming::of(set.tensors().map(|t| t.name.as_str()))
}

/// blake3 of what is in a set.
struct Hashes {
    /// In the order of the files.
    files: Vec<String>,
    tensors: BTreeMap<String, String>,
    /// Of the image encoder's numbers, as a model's metadata names the one it was trained with.
    vit: Option<String>,
}

impl Hashes {
    fn of(path: &Path, set: &Set) -> Result<Hashes> {
        let file = |f: &Weights| {
            let hash =
                files::hash_file(&RealDisk, f.path()).map_err(|e| Error::io("inspect", f.path(), &e))?;
            Ok(hash.to_hex().to_string())
        };
        let names: Vec<&str> = set.tensors().map(|t| t.name.as_str()).collect();
        let tensor = |n: &&str| Ok(((*n).to_string(), set.holder(n)?.hash(n)?.to_hex().to_string()));
        Ok(Hashes {
            files: set.files().iter().map(file).collect::<Result<_>>()?,
            tensors: names.par_iter().map(tensor).collect::<Result<_>>()?,
            vit: image_encoder(path, set)?,
        })
    }
}

fn image_encoder(path: &Path, set: &Set) -> Result<Option<String>> {
    let Some(naming) = naming(set) else { return Ok(None) };
    let want = |t: &Info| match names::meaning(naming, &t.name) {
        Meaning::Parameter(name) if name.starts_with("visual_encoder.") => {
            Some(Want { name, shape: t.shape.clone() })
        }
        _ => None,
    };
    let wants: Vec<Want> = set.tensors().filter_map(want).collect();
    if wants.is_empty() { Ok(None) } else { Plan::new(vec![Set::open(path)?], wants, true)?.vit_hash() }
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

fn report(set: &Set, naming: Option<&str>, hashes: Option<&Hashes>) -> Value {
    let tensor = |t: &Info| {
        let mut line = json!({"name": t.name, "dtype": t.dtype.name(), "shape": t.shape});
        if let (Some(hash), Some(map)) = (hashes.and_then(|h| h.tensors.get(&t.name)), line.as_object_mut()) {
            map.insert("blake3".into(), json!(hash));
        }
        line
    };
    let files: Vec<Value> = set
        .files()
        .iter()
        .enumerate()
        .map(|(i, f)| {
            let mut file = json!({
                "path": f.path(), "format": f.format().name(), "bytes": f.file_bytes(), "metadata": f.metadata(),
                "others": f.others(), "tensors": f.tensors().iter().map(tensor).collect::<Vec<_>>(),
            });
            if let Some(hash) = hashes.and_then(|h| h.files.get(i)) {
                file["blake3"] = json!(hash);
            }
            file
        })
        .collect();
    let total = |(dtype, [tensors, elements, bytes]): (Dtype, [usize; 3])| json!({"dtype": dtype.name(), "tensors": tensors, "elements": elements, "bytes": bytes});
    let totals: Vec<Value> = totals(set).into_iter().map(total).collect();
    let mut report = json!({"names": naming, "files": files, "totals": totals});
    if let Some(hash) = hashes.and_then(|h| h.vit.as_ref()) {
        report["image_encoder"] = json!({"blake3": hash, "trained_with": set.metadata(names::VIT_HASH)});
    }
    report
}

/// A tensor by its name in a file, or a third of one: the biases of queries and values where they stand in one.
#[derive(Clone)]
struct Piece {
    name: String,
    third: Option<usize>,
}

/// The pieces of a set by what they are called on both sides. `by_meaning` if the sides have different namings.
fn pieces(set: &Set, naming: Option<Naming>, by_meaning: bool) -> BTreeMap<String, Piece> {
    let mut pieces = BTreeMap::new();
    for t in set.tensors() {
        let mut add = |key: String, third| {
            // Two names that mean the same: the second keeps its own.
            let key = if pieces.contains_key(&key) { t.name.clone() } else { key };
            pieces.insert(key, Piece { name: t.name.clone(), third });
        };
        match naming.filter(|_| by_meaning).map(|n| names::meaning(n, &t.name)) {
            None | Some(Meaning::Unknown) => add(names::plain(&t.name), None),
            Some(Meaning::Parameter(name)) => add(name, None),
            Some(Meaning::QkvBias(q, v)) => {
                add(q, Some(0));
                add(v, Some(2));
            }
            Some(Meaning::Twin(_) | Meaning::Unused(_)) => {}
        }
    }
    pieces
}

/// How a piece differs from its namesake.
fn difference(a: &Set, b: &Set, piece_a: &Piece, piece_b: &Piece) -> Result<Option<String>> {
    let describe = |t: &Info| format!("{} {:?}", t.dtype, t.shape);
    let of = |set: &Set, piece: &Piece| {
        let info = set.get(&piece.name)?.clone();
        let shape = if piece.third.is_some() { vec![info.elements() / 3] } else { info.shape };
        Some(Info { shape, ..info })
    };
    let (Some(x), Some(y)) = (of(a, piece_a), of(b, piece_b)) else { return Ok(Some("absent".into())) };
    if (x.dtype, &x.shape) != (y.dtype, &y.shape) {
        return Ok(Some(format!("{} here, {} there", describe(&x), describe(&y))));
    }
    let read = |set: &Set, piece: &Piece, info: &Info| -> Result<Vec<u8>> {
        let bytes = set.bytes(&piece.name)?;
        let Some(third) = piece.third else { return Ok(bytes) };
        Ok(bytes.chunks_exact(info.bytes().max(1)).nth(third).unwrap_or_default().to_vec())
    };
    let (x, y) = (read(a, piece_a, &x)?, read(b, piece_b, &y)?);
    let differing = x.iter().zip(&y).filter(|(x, y)| x != y).count();
    Ok((differing > 0).then(|| format!("{differing} of {} bytes", x.len())))
}

fn compare(args: &Args, a: &Set, path: &Path) -> Result<()> {
    let b = Set::open(path)?;
    let (of_a, of_b) = (naming(a), naming(&b));
    let by_meaning = of_a != of_b;
    let (names_a, names_b) = (pieces(a, of_a, by_meaning), pieces(&b, of_b, by_meaning));
    let only = |x: &BTreeMap<String, Piece>, y: &BTreeMap<String, Piece>| -> Vec<String> {
        x.keys().filter(|k| !y.contains_key(*k)).cloned().collect()
    };
    let (only_a, only_b) = (only(&names_a, &names_b), only(&names_b, &names_a));
    let shared: Vec<(&String, &Piece, &Piece)> =
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
