//! Questions about pictures, which a second stage's language model answers, and how good the answers are.
//!
//! A file of questions is a JSON list of objects `{"image", "question"}`; a file of answers has `"answer"` in each, too. The
//! truth has `"answer"`, or `"answers"`, a list of what several people said.

use super::engine::{self, ModelArgs};
use super::generation::Generation;
use super::inputs::Inputs;
use super::output::say;
use crate::data::Image;
use crate::files::{self, RealDisk};
use crate::model::{AnswerProfile, GenerateOptions};
use crate::pretrained::pictures::{self, Seen};
use crate::pretrained::{Caption, Pretrained};
use crate::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use unicode_normalization::UnicodeNormalization;

const OPERATION: &str = "answer";
const MOST: u64 = 1 << 30;
/// LAVIS's, for models that read English.
const TEMPLATE: &str = "Question: {} Short answer:";

#[derive(clap::Args)]
#[command(next_help_heading = "Language model")]
pub struct Asked {
    /// Text that the language model continues [default: the one it was trained with]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A question about every picture; with --questions, what stands around each: {} is the question
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt")]
    ask: Option<String>,
    /// A JSON list of {"image", "question"}; pictures are looked for beside the file
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,
    /// Where the language model is, if not where the model's folder says
    #[arg(long, value_name = "DIR")]
    llm: Option<PathBuf>,
    /// Whose rules lengths of texts follow: lavis-head (its last commit), or lavis-1.0.2
    #[arg(long, default_value = "lavis-head", value_parser = ["lavis-head", "lavis-1.0.2"])]
    profile: String,
}

/// How a model's texts are searched for.
pub struct How {
    pub options: GenerateOptions,
    pub profile: AnswerProfile,
    pub prompt: String,
    /// A model of stage 2.
    pub second: bool,
}

impl Asked {
    pub fn llm(&self) -> Option<&Path> {
        self.llm.as_deref()
    }

    /// Whether questions are asked, not captions.
    pub fn questions(&self) -> bool {
        self.ask.is_some() || self.questions.is_some()
    }

    pub fn how(&self, model: &Pretrained, generation: &Generation, answers: bool) -> Result<How> {
        let profile = AnswerProfile::named(&self.profile)?;
        if let (Some(second), Some(llm)) = (&model.second, model.model.llm()) {
            let prompt = self.prompt.clone().unwrap_or_else(|| second.part.prompt.clone());
            return Ok(How {
                options: generation.options_of_llm(llm, answers)?,
                profile,
                prompt,
                second: true,
            });
        }
        for (flag, given) in [
            ("--prompt", self.prompt.is_some()),
            ("--ask", self.ask.is_some()),
            ("--questions", self.questions.is_some()),
            ("--llm", self.llm.is_some()),
        ] {
            if given {
                return Err(Error::argument(OPERATION, flag, "a model of stage 2", "one of stage 1")
                    .fix("leave it out, or train a second stage: qformer train --start MODEL --llm DIR"));
            }
        }
        let config = &model.model.config;
        let options = generation.options(config.vocab, config.max_pos)?;
        Ok(How { options, profile, prompt: String::new(), second: false })
    }
}

/// What the language model says of pictures behind a prompt each.
pub fn answers(
    model: &Pretrained,
    seen: &[Seen],
    prompts: &[String],
    how: &How,
) -> Result<Vec<Vec<Caption>>> {
    let all = pictures::planes(model, &seen.iter().collect::<Vec<_>>())?;
    let identities: Vec<u32> = seen.iter().map(|s| s.identity).collect();
    model.answer(&all, prompts, (&how.options, how.profile), &identities)
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Question {
    image: String,
    question: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
    #[serde(default, skip_serializing)]
    answers: Vec<String>,
}

fn read(path: &Path) -> Result<Vec<Question>> {
    let text = files::read_regular(path, MOST, OPERATION)?;
    let all: Vec<Question> = serde_json::from_slice(&text)
        .map_err(|e| Error::file(OPERATION, path, "a JSON list of objects with image and question", e))?;
    if all.is_empty() {
        return Err(Error::file(OPERATION, path, "at least one question", "none"));
    }
    Ok(all)
}

pub fn run(
    asked: &Asked,
    args: &ModelArgs,
    inputs: &Inputs,
    generation: &Generation,
    out: Option<&Path>,
) -> Result<()> {
    let (template, questions) = match (&asked.questions, &asked.ask) {
        (Some(file), ask) => {
            let template = ask.as_deref().unwrap_or(TEMPLATE);
            if !template.contains("{}") {
                return Err(Error::argument(OPERATION, "--ask", "{} where the question stands", template)
                    .fix("for example --ask '質問: {} 答え:'"));
            }
            let beside = files::folder_of(file);
            let place = |q: Question| (Image::File(beside.join(&q.image)), q);
            (template, read(file)?.into_iter().map(place).collect::<Vec<_>>())
        }
        (None, ask) => {
            let question = ask.as_deref().unwrap_or_default();
            let found = inputs.find()?;
            if let Some(error) = found.unusable.into_iter().next() {
                return Err(error);
            }
            let one = |p: super::inputs::Picture| {
                let question = question.to_owned();
                (p.image, Question { image: p.name, question, answer: None, answers: Vec::new() })
            };
            ("{}", found.pictures.into_iter().map(one).collect())
        }
    };
    let model = engine::open_stage(&args.model, &args.run, asked.llm())?;
    let how = asked.how(&model, generation, true)?;
    let mut done = Vec::with_capacity(questions.len());
    for some in questions.chunks(args.run.batch as usize) {
        let seen = some.iter().map(|(image, _)| pictures::see(&model, image)).collect::<Result<Vec<_>>>()?;
        let prompts: Vec<String> = some.iter().map(|(_, q)| template.replace("{}", &q.question)).collect();
        for ((_, q), found) in some.iter().zip(answers(&model, &seen, &prompts, &how)?) {
            let answer = found.into_iter().next().map(|c| c.text);
            done.push(Question { answer, ..q.clone() });
        }
    }
    let text = serde_json::to_string_pretty(&done).map_err(|e| Error::new(Kind::Write, OPERATION).got(e))?;
    match out {
        Some(path) => {
            files::write_atomic(&RealDisk, path, text.len() as u64, |w| w.write_all(text.as_bytes()))
        }
        None => say!("{text}"),
    }
}

/// As answers are compared: composed alike, trimmed.
fn plain(text: &str) -> String {
    text.nfkc().collect::<String>().trim().to_owned()
}

#[derive(Serialize)]
struct Judged {
    questions: usize,
    exact_match: f64,
    /// Of questions that several people answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    vqa_accuracy: Option<f64>,
}

/// Exact match after NFKC and trimming, and VQA accuracy min(n / 3, 1) of n people who said the same; in percent.
pub fn evaluate(asked: &Asked, results: &Path, json: bool) -> Result<()> {
    let file = asked.questions.as_deref().ok_or_else(|| {
        Error::argument(OPERATION, "--questions", "a file of questions with their answers", "none")
    })?;
    let (truth, given) = (read(file)?, read(results)?);
    let (mut exact, mut vqa) = (Vec::new(), Vec::new());
    for q in &truth {
        let same = |g: &&Question| g.image == q.image && g.question == q.question;
        let Some(answer) = given.iter().find(same).and_then(|g| g.answer.as_deref()) else {
            return Err(Error::file(
                OPERATION,
                results,
                format!("an answer to {:?} of {}", q.question, q.image),
                "none",
            )
            .fix("answer all questions of the file"));
        };
        let answer = plain(answer);
        let right: Vec<String> = q.answers.iter().chain(&q.answer).map(|a| plain(a)).collect();
        if right.is_empty() {
            return Err(Error::file(
                OPERATION,
                file,
                format!("answer or answers of {:?}", q.question),
                "none",
            ));
        }
        exact.push(f64::from(u8::from(right.contains(&answer))));
        if !q.answers.is_empty() {
            let said = q.answers.iter().filter(|a| plain(a) == answer).count();
            vqa.push((said as f64 / 3.0).min(1.0));
        }
    }
    let mean = |x: &[f64]| 100.0 * x.iter().sum::<f64>() / x.len().max(1) as f64;
    let vqa_accuracy = (!vqa.is_empty()).then(|| mean(&vqa));
    let judged = Judged { questions: truth.len(), exact_match: mean(&exact), vqa_accuracy };
    if json {
        let text = serde_json::to_string(&judged).map_err(|e| Error::new(Kind::Write, OPERATION).got(e))?;
        return say!("{text}");
    }
    say!("{} questions: exact match {:.2} %", judged.questions, judged.exact_match)?;
    match judged.vqa_accuracy {
        Some(vqa) => say!("VQA accuracy {vqa:.2} %"),
        None => Ok(()),
    }
}
