//! What a start or a conversion takes from where, as it is told to users.

use serde::Serialize;
use std::fmt;

/// What was found where; names of parameters, or of tensors in files.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Taken as they are.
    pub matched: Vec<String>,
    /// Interpolated, or grown by a row.
    pub adapted: Vec<String>,
    /// Copied from their text twins.
    pub copied: Vec<String>,
    /// Fresh by design.
    pub fresh: Vec<String>,
    /// Not in the checkpoint, and taken from another file beside it.
    pub lacking: Vec<String>,
    /// In no file, and not meant to be fresh.
    pub missing: Vec<String>,
    /// Of another shape: parameter, expected, found.
    pub misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// In a file, and no parameter of this model.
    pub extra: Vec<String>,
    /// In a file, known, and of no use here.
    pub unused: Vec<String>,
    /// What else a reader should know.
    pub notes: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        let lists: [(&str, &Vec<String>); 8] = [
            ("matched", &self.matched),
            ("interpolated or grown", &self.adapted),
            ("copied from text rows", &self.copied),
            ("fresh", &self.fresh),
            ("not in the checkpoint, taken from another file", &self.lacking),
            ("missing", &self.missing),
            ("extra", &self.extra),
            ("not used here", &self.unused),
        ];
        for (title, names) in lists {
            if names.is_empty() {
                continue;
            }
            write!(f, "{title}: {}", names.len())?;
            if title != "matched" && title != "copied from text rows" {
                let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
                let rest = if names.len() > SHOWN { ", ..." } else { "" };
                write!(f, " ({}{rest})", shown.join(", "))?;
            }
            writeln!(f)?;
        }
        for (name, want, got) in &self.misshapen {
            writeln!(f, "of another shape: {name}, {got:?} instead of {want:?}")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}
