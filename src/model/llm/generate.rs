//! Texts that follow images and prompts: the prefix runs once an image, then rows of all open hypotheses run together, keys and
//! values are kept.
//!
//! A cache holds, per layer, the keys and values of every image's query rows and prompt and, behind them, of every token run so
//! far. A hypothesis is a list of cache rows, so beams share their prefix and nothing is copied when they are reordered. Dense
//! layers of single rows are batch-invariant: a text is the same in any batch.

use super::layer::{Drops, Layer, Sums};
use crate::model::Model;
use crate::model::beams::{Hypothesis, Next, Outlook, Search, Special};
use crate::model::options::Options;
use crate::model::stage2::{Rows, Stage2};
use crate::nn::{Params, Pass};
use crate::ops;
use crate::tensor::Tensor;
use crate::{Error, Result};

const OP: &str = "generate";

/// Whose rules lengths and values of hypotheses follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// LAVIS's last commit under transformers 4.33: a search starts from a bos that the model never reads; lengths count it
    /// and new tokens.
    #[default]
    LavisHead,
    /// LAVIS 1.0.2 under transformers 4.26: a search starts from the prompt, which counts; `max_length` counts new tokens alone.
    Lavis102,
}

impl Profile {
    /// By its name in settings.
    pub fn named(name: &str) -> Result<Profile> {
        match name {
            "lavis-head" => Ok(Profile::LavisHead),
            "lavis-1.0.2" => Ok(Profile::Lavis102),
            _ => Err(Error::argument(OP, "profile", "lavis-head or lavis-1.0.2", name)),
        }
    }
}

/// What is asked of images: projected query rows, a prompt for each (its opening token included), and how to search.
pub struct Answering<'a> {
    /// `[B*Q,E]`
    pub inputs: &'a Tensor,
    pub prompts: &'a [Vec<u32>],
    pub options: &'a Options,
    pub profile: Profile,
    pub bos: u32,
    pub eos: u32,
    /// Tell images apart where numbers are drawn.
    pub identities: &'a [u32],
}

/// Keys and values of the rows so far.
struct Cache<'a> {
    stage: &'a Stage2,
    pass: Pass<'a>,
    layers: Vec<Layer<Tensor>>,
    kept: Vec<[Tensor; 2]>,
    rows: usize,
}

/// An open hypothesis: the cache rows it sees, its next position, and the token to run next.
#[derive(Clone)]
struct Row {
    seen: Vec<u32>,
    position: u32,
    token: u32,
}

impl Model {
    /// The texts that follow every image and prompt, best first: new tokens alone, with the end if there is one.
    pub fn answers(&self, params: &Params, ask: &Answering) -> Result<Vec<Vec<Hypothesis>>> {
        let config = &self.second()?.llm.config;
        let longest = self.check_prompts(ask.inputs, ask.prompts)?;
        let room = config.positions.saturating_sub(self.config.num_query + longest) + 1;
        ask.options.check(config.vocab, room)?;
        if ask.identities.len() != ask.prompts.len() {
            let want = format!("one for each of {} images", ask.prompts.len());
            return Err(Error::argument(OP, "identities", want, ask.identities.len()));
        }
        let special = Special { bos: ask.bos, eos: ask.eos };
        let mut searches: Vec<Search> = Vec::new();
        for (identity, prompt) in ask.identities.iter().zip(ask.prompts) {
            searches.push(match ask.profile {
                Profile::LavisHead => Search::new(ask.options, special, *identity),
                Profile::Lavis102 => {
                    let max_length = ask.options.max_length + prompt.len();
                    let options = Options { max_length, ..ask.options.clone() };
                    Search::new(&options, special, *identity).old_style(prompt)
                }
            });
        }
        let width = ask.options.width();
        let tokens = ask.prompts.len() * width * ask.options.max_length;
        let (mut cache, mut open, logits) = self.prefix(params, ask.inputs, ask.prompts, tokens)?;
        let best = ask.options.enough().map(|k| k.min(config.vocab));
        let mut logits = Some(logits);
        while let Some(now) = logits.take() {
            let mut outlooks = match best {
                Some(k) => ops::top_k(&now, k)?.into_iter().map(Outlook::Best).collect::<Vec<_>>(),
                None => split(&now)?.map(Outlook::All).collect(),
            }
            .into_iter();
            for (search, rows) in searches.iter_mut().zip(&mut open) {
                let own: Vec<Outlook> = outlooks.by_ref().take(rows.len()).collect();
                if !own.is_empty() {
                    let next = search.advance(own);
                    let row = |n: &Next| Row { token: n.token, ..rows[n.parent].clone() };
                    *rows = next.iter().map(row).collect();
                }
            }
            let rows: Vec<&mut Row> = open.iter_mut().flatten().collect();
            if !rows.is_empty() {
                logits = Some(cache.run(rows)?);
            }
        }
        let starts = ask.prompts.iter().map(|p| if ask.profile == Profile::LavisHead { 1 } else { p.len() });
        let new = |(search, start): (Search, usize)| {
            let cut = |h: Hypothesis| Hypothesis { ids: h.ids[start.min(h.ids.len())..].to_vec(), ..h };
            search.finish().into_iter().map(cut).collect()
        };
        Ok(searches.into_iter().zip(starts).map(new).collect())
    }

    /// Logits behind each prompt and after every token of given texts [T+1]`[V]`: what `answers` sees on the way.
    pub fn answer_logits(
        &self,
        params: &Params,
        inputs: &Tensor,
        prompts: &[Vec<u32>],
        texts: &[Vec<u32>],
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        self.check_prompts(inputs, prompts)?;
        if texts.len() != prompts.len() {
            return Err(Error::argument(OP, "texts", format!("{} of them", prompts.len()), texts.len()));
        }
        let count = texts.iter().map(Vec::len).sum();
        let (mut cache, mut open, first) = self.prefix(params, inputs, prompts, count)?;
        let mut all: Vec<Vec<Vec<f64>>> = split(&first)?.map(|row| vec![row]).collect();
        for place in 0..texts.iter().map(Vec::len).max().unwrap_or(0) {
            let which: Vec<usize> = (0..texts.len()).filter(|i| texts[*i].len() > place).collect();
            let mut rows = Vec::new();
            for (row, ids) in open.iter_mut().flatten().zip(texts).filter(|(_, ids)| ids.len() > place) {
                row.token = ids[place];
                rows.push(row);
            }
            let logits = cache.run(rows)?;
            which.into_iter().zip(split(&logits)?).for_each(|(i, row)| all[i].push(row));
        }
        Ok(all)
    }

    /// The longest prompt.
    fn check_prompts(&self, inputs: &Tensor, prompts: &[Vec<u32>]) -> Result<usize> {
        let c = &self.second()?.llm.config;
        let want = [prompts.len() * self.config.num_query, c.embed_width];
        if inputs.shape().sizes() != want {
            return Err(Error::argument(OP, "image rows", format!("{want:?}"), inputs.shape()));
        }
        if let Some(id) = prompts.iter().flatten().find(|id| **id as usize >= c.vocab) {
            return Err(Error::argument(OP, "prompt", format!("ids below {}", c.vocab), id)
                .fix("use the tokenizer that belongs to this language model"));
        }
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let most = c.positions.saturating_sub(self.config.num_query + 1);
        if longest > most {
            return Err(Error::argument(OP, "prompt", format!("at most {most} tokens"), longest));
        }
        Ok(longest)
    }

    /// Runs images and prompts; the cache has room for so many tokens behind them. Rows that continue them, and the logits of
    /// what follows.
    fn prefix<'a>(
        &'a self,
        params: &'a Params,
        inputs: &Tensor,
        prompts: &[Vec<u32>],
        tokens: usize,
    ) -> Result<(Cache<'a>, Vec<Vec<Row>>, Tensor)> {
        let (stage, pass) = (self.second()?, Pass::inference(params));
        let rows = Rows::new(self.config.num_query, prompts.iter().map(Vec::len));
        let x = ops::concat_rows(&[inputs, &stage.llm.embed(&pass, &prompts.concat())?])?;
        let mut past = Vec::new();
        let hidden = stage.llm.forward(&pass, &x, &rows.pack(&stage.llm, None)?, |_| {}, Some(&mut past))?;
        let end =
            |b: usize| if rows.text[b].is_empty() { rows.image(b).end } else { rows.text[b].end } as u32 - 1;
        let ends: Vec<u32> = (0..prompts.len()).map(end).collect();
        let logits = stage.llm.logits(&pass, &ops::gather_rows(&hidden, &ends)?, Sums::BatchInvariant)?;
        let room = |t: &Tensor| ops::with_room(t, rows.len() + tokens);
        let kept = past.iter().map(|[k, v]| Ok([room(k)?, room(v)?])).collect::<Result<Vec<_>>>()?;
        let layers = stage.llm.layers.iter().map(|l| l.bind(&pass, true)).collect::<Result<Vec<_>>>()?;
        let row = |b: usize| {
            let seen = rows.image(b).chain(rows.text[b].clone()).map(|r| r as u32).collect::<Vec<_>>();
            vec![Row { position: seen.len() as u32, seen, token: 0 }]
        };
        let open = (0..prompts.len()).map(row).collect();
        Ok((Cache { stage, pass, layers, kept, rows: rows.len() }, open, logits))
    }
}

impl Cache<'_> {
    /// Runs the tokens of these rows; returns their logits [R,V].
    fn run(&mut self, rows: Vec<&mut Row>) -> Result<Tensor> {
        let (llm, sums) = (&self.stage.llm, Sums::BatchInvariant);
        let (ids, positions): (Vec<u32>, Vec<u32>) = rows.iter().map(|r| (r.token, r.position)).unzip();
        let first = self.rows;
        let mut lists = Vec::with_capacity(rows.len());
        for row in rows {
            row.seen.push(self.rows as u32);
            row.position += 1;
            self.rows += 1;
            lists.push(row.seen.clone());
        }
        let (lists, rotary) = (ops::Lists::new(lists), llm.rotary(&positions));
        let mut x = llm.enter(&self.pass, &llm.embed(&self.pass, &ids)?, &positions, sums)?;
        for (layer, [keys, values]) in self.layers.iter().zip(&mut self.kept) {
            let [(q, _), (k, _), (v, _)] = layer.heads(&layer.input(&x)?, rotary.as_ref(), sums)?;
            ops::put_rows(keys, first, &k)?;
            ops::put_rows(values, first, &v)?;
            let y =
                ops::attend_rows([&q, keys, values], &lists, layer.kind.grouped.heads, layer.kind.scale())?;
            x = layer.finish(&x, &y, sums, Drops::default())?;
        }
        llm.logits(&self.pass, &llm.leave(&self.pass, &x, sums)?, sums)
    }
}

/// Logits [R,V], row by row.
fn split(logits: &Tensor) -> Result<impl Iterator<Item = Vec<f64>> + use<>> {
    let (all, v) = (logits.to_f64()?, logits.rows().1);
    Ok((0..all.len() / v.max(1)).map(move |i| all[i * v..(i + 1) * v].to_vec()))
}
