//! Which of a file's dictionaries holds the model. Checkpoints are saved as a state dict alone, under `model`, `state_dict`,
//! `net` or any other key, once or twice wrapped, beside averages of the same model (EMA), optimizers, settings.
//!
//! Dictionaries that hold tensors are looked for from the root down. An optimizer's is none. Then, in this order:
//! the root, if its names are a model's; the only one; one under a usual key, a model's names first; the only one that is no
//! average. Anything else is an error that says which there are: two models are never chosen between.

use super::Refusal;
use super::graph::{Graph, Id, Node};
use crate::weights::names::Naming;
use std::collections::HashSet;

pub(super) const SAVE_ALONE: &str = "save the state dict alone: torch.save(model.state_dict(), path)";

/// Keys under which weights are saved, the most usual first.
const USUAL: [&str; 10] = [
    "model",
    "state_dict",
    "module",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "params",
    "weights",
    "parameters",
];
/// What is in the keys of averages of a model's weights.
const AVERAGES: [&str; 5] = ["ema", "swa", "average", "teacher", "momentum"];
const MOST_DEPTH: usize = 6;
const MOST_DICTS: usize = 4096;

pub(super) struct Chosen<'g> {
    pub dict: &'g [(Id, Id)],
    /// Keys of the root beside the way to it.
    pub others: Vec<String>,
}

/// A dictionary that holds tensors.
struct Candidate<'g> {
    /// The keys that lead there.
    path: Vec<&'g str>,
    dict: &'g [(Id, Id)],
    /// Whether its names are those of a model known here.
    known: bool,
}

impl Candidate<'_> {
    fn is_average(&self) -> bool {
        let is = |key: &&str| AVERAGES.iter().any(|a| key.to_ascii_lowercase().contains(a));
        self.path.iter().any(is)
    }

    /// The place of its key among the usual ones.
    fn usual(&self) -> Option<usize> {
        let last = self.path.last()?;
        USUAL.iter().position(|key| key == last)
    }
}

pub(super) fn choose<'g>(graph: &'g Graph) -> Result<Chosen<'g>, Refusal> {
    let Node::Dict(root) = graph.root() else {
        let what = match graph.root() {
            Node::Object(_) => graph.describe("an object", graph.root),
            _ => "an object".into(),
        };
        return Err(Refusal::whole(format!("{what} that is no dictionary of tensors")).fix(SAVE_ALONE));
    };
    let found = candidates(graph, root);
    let nameless = |(key, value): &(Id, Id)| {
        graph.text(*key).is_none() && matches!(graph.node(*value), Node::Tensor { .. })
    };
    if found.is_empty() && root.iter().any(nameless) {
        return Err(Refusal::whole("a dictionary whose keys are not names").fix(SAVE_ALONE));
    }
    let chosen = pick(&found)?;
    let way = chosen.path.first().copied();
    let beside = |(key, value): &(Id, Id)| {
        let name = graph.text(*key).filter(|name| Some(*name) != way)?;
        Some(graph.describe(name, *value))
    };
    let others = if way.is_some() { root.iter().filter_map(beside).collect() } else { Vec::new() };
    Ok(Chosen { dict: chosen.dict, others })
}

/// Dictionaries with tensors, from the root down, each once.
fn candidates<'g>(graph: &'g Graph, root: &'g [(Id, Id)]) -> Vec<Candidate<'g>> {
    let mut found = Vec::new();
    let mut seen = HashSet::from([graph.root]);
    let mut now = vec![(Vec::new(), root)];
    for _ in 0..MOST_DEPTH {
        let mut next = Vec::new();
        for (path, dict) in now {
            let text = |key: Id| graph.text(key);
            let has = |name: &str| dict.iter().any(|(key, _)| text(*key) == Some(name));
            if has("state") && has("param_groups") {
                continue; // an optimizer
            }
            for (key, value) in dict {
                if let (Some(key), Node::Dict(inner)) = (text(*key), graph.node(*value))
                    && seen.len() < MOST_DICTS
                    && seen.insert(*value)
                {
                    next.push(([&path[..], &[key]].concat(), inner.as_slice()));
                }
            }
            let tensor = |(key, value): &(Id, Id)| {
                graph.text(*key).filter(|_| matches!(graph.node(*value), Node::Tensor { .. }))
            };
            let names: Vec<&str> = dict.iter().filter_map(tensor).collect();
            if !names.is_empty() {
                let known = Naming::of(names.iter().copied()).is_some();
                found.push(Candidate { path, dict, known });
            }
        }
        now = next;
    }
    found
}

fn pick<'c, 'g>(found: &'c [Candidate<'g>]) -> Result<&'c Candidate<'g>, Refusal> {
    let root = found.first().filter(|c| c.path.is_empty());
    if let Some(root) = root.filter(|c| c.known || found.len() == 1) {
        return Ok(root);
    }
    // Beside a dictionary of weights, tensors of the root are counters and states of random numbers.
    let inner: Vec<&Candidate> = found.iter().filter(|c| !c.path.is_empty()).collect();
    let models: Vec<&Candidate> = inner.iter().copied().filter(|c| !c.is_average()).collect();
    let usual = |known: bool| {
        let all = models.iter().filter(|c| c.known == known);
        let ranked = all.filter_map(|c| Some(((c.path.len(), c.usual()?), *c)));
        let ranked: Vec<_> = ranked.collect();
        let best = ranked.iter().map(|(rank, _)| *rank).min();
        let mut best = ranked.into_iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, c)| c);
        best.next().filter(|_| best.next().is_none())
    };
    match (&inner[..], &models[..]) {
        ([], _) => return Err(Refusal::whole("a dictionary without a tensor").fix(SAVE_ALONE)),
        ([only], _) | (_, [only]) => return Ok(only),
        _ => {}
    }
    if let Some(chosen) = usual(true).or_else(|| usual(false)) {
        return Ok(chosen);
    }
    let names: Vec<String> = inner.iter().take(8).map(|c| c.path.join(".")).collect();
    let more = if inner.len() > 8 { ", ..." } else { "" };
    let got = format!("several dictionaries of tensors ({}{more})", names.join(", "));
    Err(Refusal::whole(got).fix(SAVE_ALONE))
}
