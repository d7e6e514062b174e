//! Checkpoints of a second stage: LAVIS's `.pth` to a model's folder, and back. The language model itself is in neither; what LAVIS
//! saved of it by accident (a tied head, tables of positions) is left out.

use super::write::Job;
use super::{Args, OP, has_vit};
use crate::model::{Config, second_specs};
use crate::pretrained::llm::{LlmFolder, LlmPart};
use crate::pretrained::{self, load::wants};
use crate::terminal::note;
use crate::weights::Set;
use crate::weights::names::PROJECTION;
use crate::weights::start::Plan;
use crate::{Error, Result};
use std::sync::Arc;

/// The projection of a second stage among these files: its name, and how many columns its language model reads. That of a
/// folder of transformers counts where its language model is `given`: it may be wanted for a first stage.
pub fn projection(sets: &[Set], given: bool) -> Option<(&'static str, usize)> {
    let shape =
        |name: &str| sets.iter().find_map(|s| s.get(&format!("{name}.weight"))).map(|t| t.shape.clone());
    let names = ["opt_proj", "llm_proj", PROJECTION].into_iter();
    names.filter(|name| given || *name != PROJECTION).find_map(|name| match shape(name)?[..] {
        [width, _] => Some((name, width)),
        _ => None,
    })
}

/// The text side that a second stage has not: no vocabulary is needed.
const NO_WORDS: usize = 6;

pub fn run(args: &Args, sets: Vec<Set>, config: Config, (name, width): (&'static str, usize)) -> Result<()> {
    let (part, llm) = language_model(args, (name, width))?;
    if part.is_none() && args.to != "lavis" {
        return Err(Error::argument(
            OP,
            "--llm",
            "the language model's folder of a model of stage 2",
            "none",
        )
        .fix("give the one it was trained with: --llm DIR"));
    }
    let words = super::tokenizer(args).is_some();
    let config = if words { config } else { Config { vocab: NO_WORDS, ..config } };
    let mut specs = second_specs(&config, name, width);
    if !has_vit(&sets)? {
        specs.retain(|s| s.trained);
    }
    let plan = Plan::new(sets, wants(&specs), args.partial)?;
    note!("{}", plan.report.to_string().trim_end());
    if let Some(llm) = &llm {
        let own = specs.iter_mut().filter(|s| s.name.starts_with(PROJECTION));
        own.for_each(|s| s.name = s.name.replacen(PROJECTION, llm.config.projection(), 1));
    }
    let job = Job { plan, specs, config, seed: args.seed, random: false, llm: part };
    match (args.to.as_str(), llm) {
        ("lavis", _) => job.lavis(&args.out),
        ("hf", Some(llm)) => job.hugging_face_second(&args.out, llm),
        _ => job.folder(&args.out, |staged| if words { super::copy_tokenizer(args, staged) } else { Ok(()) }),
    }
}

/// What a model of stage 2 says of its language model; that itself where it was given, or is needed.
fn language_model(
    args: &Args,
    (name, width): (&str, usize),
) -> Result<(Option<LlmPart>, Option<Arc<LlmFolder>>)> {
    let part = match (&args.llm, args.input.as_deref().filter(|p| p.is_dir())) {
        (Some(folder), _) => {
            let llm = LlmFolder::open(folder)?;
            let projection = if name == PROJECTION { name } else { llm.config.projection() };
            if (projection, llm.config.embed_width) != (name, width) {
                let want = format!("a language model for {name} of {width} columns");
                let got = format!("one for {} of {}", llm.config.projection(), llm.config.embed_width);
                return Err(Error::file(OP, folder, want, got).fix("give the one it was trained with"));
            }
            let path = folder.canonicalize().map_err(|e| Error::io(OP, folder, &e))?;
            let part = LlmPart { path, blake3: llm.hash()?, prompt: args.prompt.clone().unwrap_or_default() };
            return Ok((Some(part), Some(Arc::new(llm))));
        }
        (None, Some(folder)) => pretrained::llm_part(folder).ok().flatten(),
        (None, None) => None,
    };
    let llm = match (&part, &args.input) {
        (Some(part), Some(input)) if args.to == "hf" => Some(LlmFolder::of_part(part, None, input)?),
        _ => None,
    };
    Ok((part, llm.map(Arc::new)))
}
