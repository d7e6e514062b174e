//! Where training starts, or a conversion: for every parameter of a model, which file gives its numbers.
//!
//! Sources, the first that has a parameter counts: a checkpoint (LAVIS or Hugging Face names, or this crate's own), a
//! Japanese BERT, an EVA image encoder. What LAVIS does with them:
//! - feed-forwards of query rows (`intermediate_query`, `output_query`) start as copies of those of text rows;
//! - the word embeddings and the head's bias grow by a row for `[DEC]`, which starts from the seed;
//! - cross-attention, queries, projections, `ln_vision`, the matching head and `temp` start fresh beside a BERT;
//! - `pos_embed` is interpolated for another image size ([`super::interpolate`]);
//! - tied names must hold the same numbers.
//!
//! A checkpoint of a trained model gives all trained parameters: what it lacks is not quietly taken from a BERT or from the
//! seed. That is an error, as is a parameter that it has twice, under a wrapped name and another.
//!
//! [`Plan::new`] compares names and shapes only (and tied twins); numbers are read one parameter at a time.

use super::identity::{self, Identity, Narrow};
use super::names::{self, Meaning, Naming};
use super::wrappers::wrappers;
use super::{Dtype, Report, Set, interpolate};
use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

const OP: &str = "start from weights";

/// A parameter of the model.
#[derive(Clone, Debug)]
pub struct Want {
    /// As the model calls it.
    pub name: String,
    /// As the model has it.
    pub shape: Vec<usize>,
}

/// Where a parameter's numbers come from.
#[derive(Clone, Debug)]
enum Origin {
    /// All of a tensor.
    Whole(Place),
    /// Some of its elements.
    Part(Place, Range<usize>),
    /// A position embedding, for `s` patches a side.
    Resized(Place, usize),
    /// A tensor with rows to be added from the seed.
    Grown(Place),
    Initial,
}

#[derive(Clone, Debug)]
struct Place {
    set: usize,
    name: String,
}

/// Which file gives which parameter its numbers.
pub struct Plan {
    sets: Vec<Set>,
    wants: Vec<Want>,
    origins: Vec<Origin>,
    /// What fits and what does not.
    pub report: Report,
}

/// What the files offer, by parameter.
#[derive(Default)]
struct Offers {
    parameters: BTreeMap<String, (Place, Naming, Option<Range<usize>>)>,
    twins: Vec<(Place, Naming, String)>,
    /// Whether a BERT is among the files.
    bert: bool,
    /// The set that holds trained parameters of a model like this one.
    checkpoint: Option<usize>,
}

impl Offers {
    fn note(&mut self, set: usize, naming: Naming, parameter: &str) {
        self.bert |= naming == Naming::Bert;
        let trained = matches!(naming, Naming::Lavis | Naming::HuggingFace) && !of_vit(parameter);
        self.checkpoint = self.checkpoint.or(trained.then_some(set));
    }
}

fn of_vit(parameter: &str) -> bool {
    parameter.starts_with("visual_encoder.")
}

impl Plan {
    /// `sets` in the order of their precedence. Without `partial`, a missing or misshapen parameter is an error.
    pub fn new(sets: Vec<Set>, wants: Vec<Want>, partial: bool) -> Result<Plan> {
        let mut report = Report::default();
        let mut offers = Offers::default();
        for (i, set) in sets.iter().enumerate() {
            collect(i, set, &mut offers, &mut report)?;
        }
        untie(&sets, &mut offers, &mut report)?;
        let (mut origins, mut used) = (Vec::with_capacity(wants.len()), BTreeSet::new());
        for want in &wants {
            origins.push(origin(want, &offers, &sets, &mut report));
            used.insert(want.name.as_str());
        }
        report.extra.extend(offers.parameters.into_keys().filter(|name| !used.contains(name.as_str())));
        let plan = Plan { sets, wants, origins, report };
        if !partial {
            plan.refuse_gaps()?;
        }
        Ok(plan)
    }

    fn refuse_gaps(&self) -> Result<()> {
        let Report { missing, misshapen, .. } = &self.report;
        let from = self.sets.iter().flat_map(Set::files).map(|f| f.path().display().to_string());
        let from = from.collect::<Vec<_>>().join(", ");
        let from = if from.is_empty() { "no file".into() } else { from };
        if let Some((name, want, got)) = misshapen.first() {
            let more = more(misshapen.len());
            return Err(Error::argument(OP, from, format!("{name} of {want:?}"), format!("{got:?}{more}"))
                .fix("choose the model's sizes with --config, or use --partial, which starts it from random numbers"));
        }
        if let Some(name) = missing.first() {
            let got = format!("none{}", more(missing.len()));
            let e = Error::argument(OP, from, format!("a tensor for {name}"), got);
            return Err(e.fix("add the file that has it (--bert, --vit), or start it fresh with --partial"));
        }
        let Some(name) = self.report.lacking.first() else { return Ok(()) };
        let got = format!("none in the checkpoint{}", more(self.report.lacking.len()));
        let e = Error::argument(OP, from, format!("a tensor for {name}"), got);
        Err(e.fix("the checkpoint is not whole; take what it lacks from the other files with --partial"))
    }

    /// The files.
    pub fn sets(&self) -> &[Set] {
        &self.sets
    }

    /// The parameters.
    pub fn wants(&self) -> &[Want] {
        &self.wants
    }

    /// The dtype in which parameter `i` lies in its file as a whole; None if it is made here.
    pub fn dtype(&self, i: usize) -> Option<Dtype> {
        match self.origins.get(i)? {
            Origin::Whole(place) | Origin::Part(place, _) => {
                Some(self.sets.get(place.set)?.get(&place.name)?.dtype)
            }
            _ => None,
        }
    }

    /// Parameter `i` as f32. `initial` gives elements of what starts fresh.
    pub fn f32(&self, i: usize, initial: impl Fn(Range<usize>) -> Vec<f32>) -> Result<Vec<f32>> {
        let (Some(want), Some(origin)) = (self.wants.get(i), self.origins.get(i)) else {
            return Err(Error::argument(OP, "parameter", format!("below {}", self.wants.len()), i));
        };
        let read = |place: &Place| match self.sets.get(place.set) {
            Some(set) => set.f32(&place.name),
            None => Err(Error::argument(OP, &place.name, "an open file", "none")),
        };
        let elements = want.shape.iter().product();
        Ok(match origin {
            Origin::Whole(place) => read(place)?,
            Origin::Part(place, range) => read(place)?.get(range.clone()).unwrap_or_default().to_vec(),
            Origin::Resized(place, side) => {
                let width = want.shape.last().copied().unwrap_or(0);
                let resized = interpolate::pos_embed(&read(place)?, width, *side);
                resized.ok_or_else(|| {
                    Error::argument(OP, &want.name, "a square grid and a class token", "another")
                })?
            }
            Origin::Grown(place) => {
                let mut values = read(place)?;
                values.extend(initial(values.len()..elements));
                values
            }
            Origin::Initial => initial(0..elements),
        })
    }

    /// Parameter `i` as it is, if that is a matrix of f16.
    pub fn half(&self, i: usize) -> Result<Option<Vec<u16>>> {
        let Some(Origin::Whole(place)) = self.origins.get(i) else { return Ok(None) };
        let Some(set) = self.sets.get(place.set) else { return Ok(None) };
        let is_half = set.get(&place.name).is_some_and(|t| t.dtype == Dtype::F16 && t.shape.len() == 2);
        if is_half { set.holder(&place.name)?.halves(&place.name).map(Some) } else { Ok(None) }
    }

    /// blake3 of the image encoder: over the names, shapes and numbers of its parameters, so that it is the same for an
    /// EVA file and for what was converted from it, whatever the dtypes. None if the model has none from a file.
    pub fn vit_hash(&self) -> Result<Option<String>> {
        let mut parts: Vec<(&str, usize)> = Vec::new();
        for (i, want) in self.wants.iter().enumerate() {
            if of_vit(&want.name) {
                if matches!(self.origins.get(i), None | Some(Origin::Initial)) {
                    return Ok(None);
                }
                parts.push((&want.name, i));
            }
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let hash = |(name, i): &(&str, usize)| Ok((name.to_string(), *i, self.hash_narrow(*i)?));
        let hashes: Vec<(String, usize, Narrow)> = parts.par_iter().map(hash).collect::<Result<_>>()?;
        let mut identity = Identity::default();
        for (name, i, narrow) in hashes {
            identity.add(&name, self.wants.get(i).map(|w| w.shape.as_slice()).unwrap_or_default(), narrow);
        }
        Ok(identity.finish())
    }

    /// blake3 of a parameter's numbers as f16 if that holds them exactly, else as f32.
    fn hash_narrow(&self, i: usize) -> Result<Narrow> {
        if let (Some(Origin::Whole(place)), Some(Dtype::F16)) = (self.origins.get(i), self.dtype(i))
            && let Some(set) = self.sets.get(place.set)
        {
            return Ok((Dtype::F16, set.holder(&place.name)?.hash(&place.name)?));
        }
        Ok(identity::narrow(&self.f32(i, |_| Vec::new())?))
    }

    /// The bytes of parameter `i` as its file has them; only where [`Plan::dtype`] is one.
    pub fn bytes(&self, i: usize) -> Result<Vec<u8>> {
        let none = || Error::argument(OP, "parameter", "one that lies in a file", i);
        let (Origin::Whole(place) | Origin::Part(place, _)) = self.origins.get(i).ok_or_else(none)? else {
            return Err(none());
        };
        let set = self.sets.get(place.set).ok_or_else(none)?;
        let bytes = set.bytes(&place.name)?;
        let Some(Origin::Part(_, r)) = self.origins.get(i) else { return Ok(bytes) };
        let size = set.get(&place.name).map_or(1, |info| info.dtype.size());
        Ok(bytes.get(r.start * size..r.end * size).unwrap_or_default().to_vec())
    }
}

fn more(count: usize) -> String {
    if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() }
}

/// What each tensor of a set means.
fn collect(i: usize, set: &Set, offers: &mut Offers, report: &mut Report) -> Result<()> {
    let naming = Naming::of_set(set)?;
    let mut names: HashMap<String, &str> = HashMap::new();
    let mut wrapped: BTreeMap<String, usize> = BTreeMap::new();
    for info in set.tensors() {
        let place = Place { set: i, name: info.name.clone() };
        let plain = names::plain(&info.name);
        if let Some(other) = names.insert(plain.clone(), &info.name) {
            let got = format!("{other} and {}", info.name);
            return Err(Error::file(OP, set.holder(&info.name)?.path(), format!("one tensor {plain}"), got)
                .fix("save the state dict of the model alone, without what wraps it"));
        }
        let wrapper = wrappers(&info.name);
        if !wrapper.is_empty() {
            *wrapped.entry(wrapper).or_default() += 1;
        }
        let mut offer = |parameter: String, range| {
            offers.note(i, naming, &parameter);
            offers.parameters.entry(parameter).or_insert((place.clone(), naming, range));
        };
        match names::meaning(naming, &info.name) {
            Meaning::Parameter(name) => offer(name, None),
            Meaning::QkvBias(q, v) => {
                let n = info.elements() / 3;
                offer(q, Some(0..n));
                offer(v, Some(2 * n..3 * n));
            }
            Meaning::Twin(of) => offers.twins.push((place, naming, of)),
            Meaning::Unused(_) => report.unused.push(info.name.clone()),
            Meaning::Unknown => report.extra.push(info.name.clone()),
        }
    }
    let file = set.files().first().map(|f| f.path().display().to_string()).unwrap_or_default();
    for (wrapper, count) in wrapped {
        report.notes.push(format!("{file}: {wrapper} taken off {count} names"));
    }
    Ok(())
}

/// Tied names: the twin's numbers must be the parameter's. Where only the bias of LAVIS's head differs, LAVIS computes
/// with the twin, and so do we.
fn untie(sets: &[Set], offers: &mut Offers, report: &mut Report) -> Result<()> {
    for (twin, naming, of) in std::mem::take(&mut offers.twins) {
        let Some((place, _, _)) = offers.parameters.get(&of).cloned() else {
            offers.parameters.insert(of, (twin, naming, None));
            continue;
        };
        if place.set != twin.set {
            continue; // another source comes first
        }
        let Some(set) = sets.get(twin.set) else { continue };
        if set.get(&place.name).map(|t| (t.dtype, &t.shape))
            == set.get(&twin.name).map(|t| (t.dtype, &t.shape))
            && set.bytes(&place.name)? == set.bytes(&twin.name)?
        {
            report.unused.push(twin.name);
        } else if of == names::HEAD_BIAS {
            report.notes.push(format!(
                "{} differs from its twin {}, which is what LAVIS computes with: taken",
                place.name, twin.name
            ));
            offers.parameters.insert(of, (twin, naming, None));
        } else {
            let file = set.holder(&twin.name)?.path();
            let expected = format!("{} equal to {}, to which it is tied", twin.name, place.name);
            return Err(Error::file(OP, file, expected, "other numbers")
                .fix("this model ties them: untied weights do not fit"));
        }
    }
    Ok(())
}

fn origin(want: &Want, offers: &Offers, sets: &[Set], report: &mut Report) -> Origin {
    let name = &want.name;
    let Some((place, naming, range)) = offers.parameters.get(name) else {
        if let Some((place, Naming::Bert, _)) = text_twin(name).and_then(|twin| offers.parameters.get(&twin))
        {
            let found = sets.get(place.set).and_then(|s| s.get(&place.name));
            if found.is_some_and(|t| t.shape == want.shape) {
                report.copied.push(name.clone());
                if offers.checkpoint.is_some() {
                    report.lacking.push(name.clone());
                }
                return Origin::Whole(place.clone());
            }
        }
        let by_design = offers.bert && offers.checkpoint.is_none() && is_fresh(name);
        let list = if by_design { &mut report.fresh } else { &mut report.missing };
        list.push(name.clone());
        return Origin::Initial;
    };
    if offers.checkpoint.is_some_and(|c| c != place.set) && !of_vit(name) {
        report.lacking.push(name.clone());
    }
    let found = sets.get(place.set).and_then(|s| s.get(&place.name));
    let shape = found.map(|t| t.shape.clone()).unwrap_or_default();
    let float = found.is_some_and(|t| t.dtype.is_float());
    if let Some(range) = range.clone().filter(|r| float && want.shape == [r.len()] && shape == [3 * r.len()])
    {
        report.matched.push(name.clone());
        return Origin::Part(place.clone(), range);
    }
    if float && range.is_none() {
        if shape == want.shape {
            report.matched.push(name.clone());
            return Origin::Whole(place.clone());
        }
        if let Some(side) = resized_side(name, &shape, &want.shape) {
            report.adapted.push(name.clone());
            return Origin::Resized(place.clone(), side);
        }
        if *naming == Naming::Bert && grows_by_one(name, &shape, &want.shape) {
            report.adapted.push(name.clone());
            return Origin::Grown(place.clone());
        }
    }
    report.misshapen.push((name.clone(), want.shape.clone(), shape));
    Origin::Initial
}

/// The text rows' feed-forward parameter that a query rows' one starts as.
fn text_twin(name: &str) -> Option<String> {
    let twin = name.replacen(".intermediate_query.", ".intermediate.", 1);
    let twin = twin.replacen(".output_query.", ".output.", 1);
    (twin != name).then_some(twin)
}

/// What a BERT does not have and LAVIS starts fresh.
fn is_fresh(name: &str) -> bool {
    let heads = ["ln_vision.", "vision_proj.", "text_proj.", "itm_head."];
    name == "query_tokens"
        || name == "temp"
        || name.contains(".crossattention.")
        || heads.iter().any(|h| name.starts_with(h))
}

/// Patches a side of a position embedding that can be made from another.
fn resized_side(name: &str, from: &[usize], to: &[usize]) -> Option<usize> {
    let (&[1, rows, w], &[1, wanted, width]) = (from, to) else { return None };
    let side = |rows: usize| rows.checked_sub(1).map(usize::isqrt).filter(|s| *s > 0 && s * s + 1 == rows);
    (name == "visual_encoder.pos_embed" && w == width && side(rows).is_some()).then(|| side(wanted)).flatten()
}

fn grows_by_one(name: &str, from: &[usize], to: &[usize]) -> bool {
    let (&[rows, ref rest @ ..], &[wanted, ref same @ ..]) = (from, to) else { return false };
    [names::WORDS, names::HEAD_BIAS].contains(&name) && rest == same && rows + 1 == wanted
}
