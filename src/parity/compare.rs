//! Lines of a parity report: what was compared, how far apart it is, and the verdict.

use serde::Serialize;
use std::collections::HashSet;
use std::fmt;
use std::path::Path;

#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub name: String,
    pub shape: Vec<usize>,
    pub max_abs: f64,
    pub rel_l2: f64,
    pub tolerance: f64,
    /// What the tolerance bounds: "rel_l2", "max_abs" or "equal".
    pub measure: &'static str,
    pub pass: bool,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub file: String,
    pub kind: String,
    pub lines: Vec<Line>,
    /// Recorded tensors that were not compared.
    pub missed: Vec<String>,
    /// Recorded tensors that cannot be compared: noise, without a gradient here, or behind a choice that rounding
    /// made otherwise.
    pub skipped: Vec<String>,
    pub first_divergence: Option<String>,
    pub pass: bool,
    /// What 16-bit storage adds to relative tolerances; 0 in f32 and f64.
    pub rounding: f64,
    pub gradient_rounding: f64,
}

impl Report {
    pub fn new(path: &Path, kind: &str) -> Report {
        Report {
            file: path.display().to_string(),
            kind: kind.to_string(),
            lines: Vec::new(),
            missed: Vec::new(),
            skipped: Vec::new(),
            first_divergence: None,
            pass: false,
            rounding: 0.0,
            gradient_rounding: 0.0,
        }
    }

    /// Whether what is chosen (a token, a candidate) can be expected to be the same.
    pub fn is_exact(&self) -> bool {
        self.rounding == 0.0
    }

    /// Relative L2 distance |ours - theirs| / |theirs|.
    pub fn close(&mut self, name: &str, shape: &[usize], ours: &[f64], theirs: &[f64], tolerance: f64) {
        self.line(name, shape, ours, theirs, self.loosened(tolerance), "rel_l2");
    }

    /// A relative tolerance that 16-bit storage can keep; arithmetic in f64 (learning rates) has nothing to do with it.
    pub fn loosened(&self, tolerance: f64) -> f64 {
        if tolerance < 1e-10 { tolerance } else { tolerance.max(self.rounding) }
    }

    /// Largest absolute difference.
    pub fn near(&mut self, name: &str, shape: &[usize], ours: &[f64], theirs: &[f64], tolerance: f64) {
        self.line(name, shape, ours, theirs, tolerance, "max_abs");
    }

    /// The same values.
    pub fn equal(&mut self, name: &str, shape: &[usize], ours: &[f64], theirs: &[f64]) {
        self.line(name, shape, ours, theirs, 0.0, "equal");
    }

    /// A recorded tensor that is not comparable, and said so.
    pub fn skip(&mut self, name: &str) {
        self.skipped.push(name.to_string());
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
            measure,
            pass: false,
        };
        if ours.len() == theirs.len() {
            let differences = || ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
            // A NaN on either side must not vanish in `max`.
            line.max_abs =
                differences().fold(0.0, |m, d| if d.is_nan() || m.is_nan() { f64::NAN } else { m.max(d) });
            let (distance, size) = (norm(&mut differences()), norm(&mut theirs.iter().copied()));
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
        let compared: HashSet<&str> = lines.chain(self.skipped.iter().map(String::as_str)).collect();
        self.missed = recorded.filter(|n| !compared.contains(n)).map(str::to_string).collect();
        self.first_divergence = self.lines.iter().find(|l| !l.pass).map(|l| l.name.clone());
        self.pass = !self.lines.is_empty() && self.missed.is_empty() && self.first_divergence.is_none();
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
        for name in &self.skipped {
            writeln!(f, "  {name:width$}  noise, behind a near tie, or without a gradient: not compared")?;
        }
        let worst = self.lines.iter().filter(|l| l.measure == "rel_l2").map(|l| l.rel_l2).fold(0.0, f64::max);
        match &self.first_divergence {
            Some(name) => write!(f, "DIFFERS: first diverging tensor in order of computation: {name}"),
            None if self.pass => {
                write!(f, "ok: {} tensors, largest relative L2 error {worst:.1e}", self.lines.len())
            }
            None => write!(f, "DIFFERS: {} recorded tensors were not compared", self.missed.len()),
        }
    }
}
