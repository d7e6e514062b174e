//! Checkpoints of a second stage: LAVIS's `.pth` to a model's folder, and back. The language model itself is in neither; what LAVIS
//! saved of it by accident (a tied head, tables of positions) is left out.

use super::write::Job;
use super::{Args, OP, has_vit};
use crate::model::{Config, second_specs};
use crate::pretrained::llm::{LlmFolder, LlmPart};
use crate::pretrained::{self, load::wants};
use crate::terminal::note;
use crate::weights::Set;
use crate::weights::start::Plan;
use crate::{Error, Result};

/// The projection of a second stage among these files: its name, and how many columns its language model reads.
pub fn projection(sets: &[Set]) -> Option<(&'static str, usize)> {
    let shape =
        |name: &str| sets.iter().find_map(|s| s.get(&format!("{name}.weight"))).map(|t| t.shape.clone());
    ["opt_proj", "llm_proj"].into_iter().find_map(|name| match shape(name)?[..] {
        [width, _] => Some((name, width)),
        _ => None,
    })
}

/// The text side that a second stage has not: no vocabulary is needed.
const NO_WORDS: usize = 6;

pub fn run(args: &Args, sets: Vec<Set>, config: Config, (name, width): (&'static str, usize)) -> Result<()> {
    let part = match (&args.llm, args.input.as_deref().filter(|p| p.is_dir())) {
        (Some(folder), _) => {
            let llm = LlmFolder::open(folder)?;
            if (llm.config.projection(), llm.config.embed_width) != (name, width) {
                let want = format!("a language model for {name} of {width} columns");
                let got = format!("one for {} of {}", llm.config.projection(), llm.config.embed_width);
                return Err(Error::file(OP, folder, want, got).fix("give the one it was trained with"));
            }
            let path = folder.canonicalize().map_err(|e| Error::io(OP, folder, &e))?;
            Some(LlmPart { path, blake3: llm.hash()?, prompt: args.prompt.clone().unwrap_or_default() })
        }
        (None, Some(folder)) => pretrained::llm_part(folder).ok().flatten(),
        (None, None) => None,
    };
    let lavis = args.to == "lavis";
    if args.to == "hf" {
        return Err(Error::argument(OP, "--to", "qformer or lavis for a model of stage 2", "hf")
            .fix("convert it with --to lavis"));
    }
    if part.is_none() && !lavis {
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
    let job = Job { plan, specs, config, seed: args.seed, random: false, llm: part };
    if lavis {
        return job.lavis(&args.out);
    }
    job.folder(&args.out, |staged| if words { super::copy_tokenizer(args, staged) } else { Ok(()) })
}
