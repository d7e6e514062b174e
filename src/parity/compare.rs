//! Lines of a parity report: what was compared, how far apart it is, and the verdict. What decides is in [`super::tolerance`].

use super::tolerance::{Held, MOST, Rounded};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    pub name: String,
    pub shape: Vec<usize>,
    pub max_abs: f64,
    pub rel_l2: f64,
    pub tolerance: f64,
    /// What the tolerance bounds: "rel_l2", "gain" (how far ours . theirs / theirs . theirs is from 1; "gain of all runs", where one run
    /// does not settle it), "max_abs" or "equal".
    pub measure: Cow<'static, str>,
    pub pass: bool,
}

/// A recorded tensor that is not comparable.
#[derive(Clone, Debug, Serialize)]
pub struct Skipped {
    pub name: String,
    pub why: &'static str,
}

/// Its true gradient is 0, and AdamW makes steps of the noise around it.
pub const NOISE: &str = "steps of AdamW along a gradient whose true value is 0";
/// Asked for: it does not count as missing.
pub const FROZEN: &str = "no gradient with GELU in its tanh form";

#[derive(Debug, Serialize)]
pub struct Report {
    pub file: String,
    pub kind: String,
    pub lines: Vec<Line>,
    /// Recorded tensors that were not compared.
    pub missed: Vec<String>,
    /// Recorded tensors that cannot be compared.
    pub skipped: Vec<Skipped>,
    pub first_divergence: Option<String>,
    pub pass: bool,
    /// What the tolerances in 16 bits come from; none in f32 and f64.
    pub held_to: Option<String>,
    #[serde(skip)]
    held: Option<Rounded>,
    /// Gradients that were recorded as 0, and how far they may be off in f32.
    #[serde(skip)]
    pub(super) zeros: Vec<(String, f64)>,
    /// Our values, where they are asked for.
    #[serde(skip)]
    pub(super) kept: Option<Keeping>,
}

/// What a run on the way to a tolerance keeps.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// Of these names only; of all if there are none.
    pub only: HashSet<String>,
    pub values: BTreeMap<String, Kept>,
}

/// Ours, and the size that an error of it is relative to.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub values: Vec<f32>,
    pub size: f64,
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|v| v * v).sum::<f64>().sqrt()
}

impl Report {
    pub(super) fn new(path: &Path, kind: &str, held: Held) -> Report {
        let held = match held {
            Held::Exact => None,
            Held::Rounded(r) => Some(r),
        };
        Report {
            file: path.display().to_string(),
            kind: kind.to_string(),
            lines: Vec::new(),
            missed: Vec::new(),
            skipped: Vec::new(),
            first_divergence: None,
            pass: false,
            held_to: held.as_ref().map(|h| h.from.clone()),
            held,
            zeros: Vec::new(),
            kept: None,
        }
    }

    /// An empty report of the same case, held to the same.
    pub(super) fn beside(&mut self) -> Report {
        let kept = self.kept.take();
        let mut other = Report::new(Path::new(&self.file), &self.kind, Held::Exact);
        (other.held, other.held_to, other.kept) = (self.held.take(), self.held_to.clone(), kept);
        other
    }

    /// Takes such a report's lines, and what it was lent.
    pub(super) fn take(&mut self, other: Report) {
        self.lines.extend(other.lines);
        self.skipped.extend(other.skipped);
        self.zeros.extend(other.zeros);
        (self.held, self.kept) = (other.held, other.kept);
    }

    /// Whether what is chosen (a token, a candidate) can be expected to be the same.
    pub fn is_exact(&self) -> bool {
        self.held.is_none()
    }

    pub(super) fn rounded(&self) -> Option<&Rounded> {
        self.held.as_ref()
    }

    /// Relative L2 distance |ours - theirs| / |theirs|; `tolerance` is that of f32.
    pub fn close(&mut self, name: &str, shape: &[usize], ours: &[f64], theirs: &[f64], tolerance: f64) {
        self.keep(name, ours, None);
        self.line(name, shape, ours, theirs, tolerance, "rel_l2");
        let (Some(held), Some(line)) = (&self.held, self.lines.last_mut()) else { return };
        let bound = held.bound(name, shape).max(tolerance);
        line.tolerance = bound;
        line.pass = line.rel_l2 <= bound;
        if bound > MOST {
            let size = theirs.iter().map(|x| x * x).sum::<f64>();
            let gain = ours.iter().zip(theirs).map(|(a, b)| a * b).sum::<f64>() / size;
            (line.measure, line.tolerance) = ("gain".into(), MOST);
            line.pass &= (gain - 1.0).abs() <= MOST;
        }
    }

    /// Compares arithmetic in f64 on both sides, which no precision changes.
    pub fn arithmetic(&mut self, name: &str, shape: &[usize], ours: &[f64], theirs: &[f64], tolerance: f64) {
        self.line(name, shape, ours, theirs, tolerance, "rel_l2");
    }

    /// Largest absolute difference.
    pub fn near(&mut self, name: &str, shape: &[usize], ours: &[f64], theirs: &[f64], tolerance: f64) {
        self.line(name, shape, ours, theirs, tolerance, "max_abs");
    }

    /// Compares values that must be equal.
    pub fn equal(&mut self, name: &str, shape: &[usize], ours: &[f64], theirs: &[f64]) {
        self.line(name, shape, ours, theirs, 0.0, "equal");
    }

    /// A recorded tensor that is not comparable, and said so.
    pub fn skip(&mut self, name: &str, why: &'static str) {
        self.skipped.push(Skipped { name: name.to_string(), why });
    }

    /// Keeps ours, or what became of `before`.
    pub(super) fn keep(&mut self, name: &str, ours: &[f64], before: Option<&[f64]>) {
        let Some(kept) = &mut self.kept else { return };
        if !kept.only.is_empty() && !kept.only.contains(name) {
            return;
        }
        let values = match before {
            Some(before) => ours.iter().zip(before).map(|(a, b)| (a - b) as f32).collect(),
            None => ours.iter().map(|x| *x as f32).collect(),
        };
        // What became of weights is kept first, and stays.
        kept.values.entry(name.to_string()).or_insert(Kept { values, size: norm(ours.iter().copied()) });
    }

    fn line(
        &mut self,
        name: &str,
        shape: &[usize],
        ours: &[f64],
        theirs: &[f64],
        tolerance: f64,
        measure: &'static str,
    ) {
        let mut line = Line {
            name: name.to_string(),
            shape: shape.to_vec(),
            max_abs: f64::INFINITY,
            rel_l2: f64::INFINITY,
            tolerance,
            measure: measure.into(),
            pass: false,
        };
        if ours.len() == theirs.len() {
            let differences = || ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
            // A NaN on either side must not vanish in `max`.
            line.max_abs =
                differences().fold(0.0, |m, d| if d.is_nan() || m.is_nan() { f64::NAN } else { m.max(d) });
            let (distance, size) = (norm(differences()), norm(theirs.iter().copied()));
            line.rel_l2 = if distance == 0.0 { 0.0 } else { distance / size };
            line.pass = match measure {
                "rel_l2" => line.rel_l2 <= tolerance,
                _ => line.max_abs <= tolerance,
            };
        }
        self.lines.push(line);
    }

    /// Names what was recorded but not compared, and the first line that fails.
    pub fn finish<'a>(&mut self, recorded: impl Iterator<Item = &'a str>) {
        let lines = self.lines.iter().map(|l| l.name.as_str());
        let compared: HashSet<&str> = lines.chain(self.skipped.iter().map(|s| s.name.as_str())).collect();
        self.missed = recorded.filter(|n| !compared.contains(n)).map(str::to_string).collect();
        self.first_divergence = self.lines.iter().find(|l| !l.pass).map(|l| l.name.clone());
        let whole = !self.lines.is_empty() && self.missed.is_empty() && !self.too_little();
        self.pass = whole && self.first_divergence.is_none();
    }

    /// Gradients that one run in 16 bits does not settle (see [`super::tolerance`]), and how many more runs do.
    pub(super) fn unsettled(&self) -> (HashSet<String>, u64) {
        let Some(held) = &self.held else { return Default::default() };
        let open = |l: &&Line| !l.pass && l.measure == "gain" && l.name.starts_with("grads.");
        let may = |l: &Line| l.rel_l2 <= held.bound(&l.name, &l.shape);
        let open: Vec<&Line> = self.lines.iter().filter(open).filter(|l| may(l)).collect();
        let runs = open.iter().map(|l| held.runs(&l.name, &l.shape)).max().unwrap_or(0);
        (open.iter().map(|l| l.name.clone()).collect(), runs)
    }

    /// The gain of a tensor over several runs; `agrees`: the record is what f32 computes.
    pub(super) fn settle(&mut self, name: &str, gain: f64, agrees: bool) {
        for line in self.lines.iter_mut().filter(|l| l.name == name) {
            line.measure = "gain of all runs".into();
            line.pass = agrees && (gain - 1.0).abs() <= MOST;
        }
    }

    /// A record that f32 on the CPU does not agree with.
    pub(super) fn refuse(&mut self, name: &str) {
        self.lines.iter_mut().filter(|l| l.name == name).for_each(|l| l.pass = false);
    }

    /// Whether more than a tenth of what was recorded is not comparable.
    fn too_little(&self) -> bool {
        let skipped = self.skipped.iter().filter(|s| s.why != FROZEN).count();
        10 * skipped > self.lines.len() + skipped
    }

    /// What the tolerances come from, and what was left out, for the last line.
    fn how(&self) -> String {
        let held = self.held_to.as_ref().map_or(String::new(), |from| format!("; held to {from}"));
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        self.skipped.iter().for_each(|s| *counts.entry(s.why).or_default() += 1);
        let skipped: Vec<String> =
            counts.iter().map(|(why, n)| format!("; {n} not compared: {why}")).collect();
        held + &skipped.concat()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.file, self.kind)?;
        let width = self.lines.iter().map(|l| l.name.len()).max().unwrap_or(0);
        for l in &self.lines {
            let verdict = if l.pass { "ok" } else { "DIFFERS" };
            let shape = format!("{:?}", l.shape);
            writeln!(
                f,
                "  {:width$}  {shape:18}  max {:9.2e}  rel {:9.2e}  {} <= {:.0e}  {verdict}",
                l.name, l.max_abs, l.rel_l2, l.measure, l.tolerance
            )?;
        }
        for name in &self.missed {
            writeln!(f, "  {name:width$}  recorded, but not compared")?;
        }
        for Skipped { name, why } in &self.skipped {
            writeln!(f, "  {name:width$}  not compared: {why}")?;
        }
        let worst = self.lines.iter().filter(|l| l.measure == "rel_l2").map(|l| l.rel_l2).fold(0.0, f64::max);
        let (n, how) = (self.lines.len(), self.how());
        match &self.first_divergence {
            Some(name) => write!(f, "DIFFERS: first diverging tensor in order of computation: {name}{how}"),
            None if self.pass => write!(f, "ok: {n} tensors, largest relative L2 error {worst:.1e}{how}"),
            None if self.missed.is_empty() => {
                let all = n + self.skipped.len();
                write!(f, "DIFFERS: only {n} of {all} recorded tensors can be compared{how}")
            }
            None => write!(f, "DIFFERS: {} recorded tensors were not compared{how}", self.missed.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact() -> Report {
        Report::new(Path::new("x"), "stage1", Held::Exact)
    }

    #[test]
    fn more_than_a_tenth_left_out_is_a_failure() {
        let report = |skipped: usize, why: &'static str| {
            let mut r = exact();
            (0..18).for_each(|i| r.close(&format!("outputs.{i}"), &[1], &[1.0], &[1.0], 1e-4));
            (0..skipped).for_each(|i| r.skip(&format!("after.{i}"), why));
            r.finish(std::iter::empty());
            r
        };
        assert!(report(2, NOISE).pass && report(30, FROZEN).pass);
        let three = report(3, NOISE);
        assert!(!three.pass);
        let last = three.to_string();
        assert!(
            last.contains("DIFFERS: only 18 of 21 recorded tensors can be compared; 3 not compared"),
            "{last}"
        );
    }

    /// A record of 0 beside which we have something is no agreement, nor is a NaN on either side.
    #[test]
    fn nothing_and_no_numbers_are_told_apart() {
        let mut r = exact();
        r.close("outputs.a", &[2], &[1e-9, 0.0], &[0.0, 0.0], 1e-4);
        r.close("outputs.b", &[2], &[0.0, 0.0], &[0.0, 0.0], 1e-4);
        r.close("outputs.c", &[1], &[f64::NAN], &[1.0], 1e-4);
        r.close("outputs.d", &[1], &[1.0], &[f64::NAN], 1e-4);
        r.close("outputs.e", &[2], &[1.0], &[1.0, 1.0], 1e-4);
        assert_eq!(r.lines.iter().map(|l| l.pass).collect::<Vec<_>>(), [false, true, false, false, false]);
    }
}
