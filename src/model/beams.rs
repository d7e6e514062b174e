//! Which token comes next: greedy, beam search and sampling as transformers 4.30's `generate` has them.
//!
//! A search belongs to one image and knows nothing of the others, so a caption never depends on its batch. It is given the
//! outlook of its open rows and answers with the next rows: which row each continues, and by which token.
//!
//! Beam search (`BeamSearchScorer`), per step over beams b and tokens v:
//!   s(b,v) = score(b) + processed log_softmax(logits)(b,v); the 2n best in order, ties to the lower b V + v;
//!   [SEP] among the first n ends a hypothesis of value s / length^length_penalty ([SEP] not counted); others go on until n.
//!   It is done when n hypotheses are kept and the worst is at least s_best / (length + 1)^length_penalty.
//! Processing: repetition penalty, then no [SEP] below the minimum length; sampling then divides by the temperature, keeps
//! the top_k largest, and of these the smallest set with a probability of top_p. Lengths count [DEC], as in LAVIS.

use super::options::Options;
use crate::tensor::Stream;

/// The special ids a search needs.
#[derive(Clone, Copy, Debug)]
pub struct Special {
    /// Begins a caption.
    pub bos: u32,
    /// Ends it.
    pub eos: u32,
}

/// A finished caption: ids from `[DEC]` on, with `[SEP]` if it ended before the maximum length.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// What hypotheses are ranked by: beam search's value, else the log-probability.
    pub score: f64,
    /// Sum over the tokens of the log-probabilities by which they were chosen.
    pub log_prob: f64,
}

/// A row to run next: it continues row `parent` of the last call (in this search's own numbering).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The beam it continues.
    pub parent: usize,
    /// With this token.
    pub token: u32,
}

/// What may follow a row.
pub enum Outlook {
    /// The logits of all tokens.
    All(Vec<f64>),
    /// The most probable tokens, in order, with the logarithms of their probabilities.
    Best(Vec<(u32, f64)>),
}

struct Row {
    ids: Vec<u32>,
    score: f64,
}

/// The search of one image.
pub struct Search {
    options: Options,
    special: Special,
    /// Of random draws; belongs to the image, not to its place in a batch.
    stream: Stream,
    rows: Vec<Row>,
    /// For sampling: which of the returned sequences a row is.
    sequence: Vec<usize>,
    /// How many ids a search starts from.
    start: usize,
    /// transformers 4.26: done by the length before a token.
    old: bool,
    finished: Vec<Hypothesis>,
    done: bool,
}

impl Search {
    /// `identity` tells this image from others where numbers are drawn.
    pub fn new(options: &Options, special: Special, identity: u32) -> Search {
        let stream = Stream { seed: options.seed, step: identity, site: u32::MAX };
        let rows = vec![Row { ids: vec![special.bos], score: 0.0 }];
        Search {
            options: options.clone(),
            special,
            stream,
            rows,
            sequence: vec![0],
            start: 1,
            old: false,
            finished: Vec::new(),
            done: false,
        }
    }

    /// A search as transformers 4.26 has it where it is given a prompt: its ids open every hypothesis and count.
    #[must_use]
    pub fn old_style(mut self, prompt: &[u32]) -> Search {
        self.rows = vec![Row { ids: prompt.to_vec(), score: 0.0 }];
        (self.start, self.old) = (prompt.len(), true);
        self
    }

    /// Takes the outlooks of the open rows, in order (the first call has one row, of [DEC]); returns the next rows.
    pub fn advance(&mut self, outlooks: Vec<Outlook>) -> Vec<Next> {
        if self.done {
            return Vec::new();
        }
        let next = if self.options.do_sample {
            self.sample(&outlooks)
        } else if self.options.num_beams == 1 {
            self.greedy(outlooks)
        } else {
            self.beams(outlooks)
        };
        if next.is_empty() {
            self.done = true;
        } else if self.rows.first().is_some_and(|r| r.ids.len() >= self.options.max_length) {
            self.close();
            return Vec::new();
        }
        next
    }

    /// The captions, best first.
    pub fn finish(mut self) -> Vec<Hypothesis> {
        if !self.options.do_sample {
            // Equal values: the later one first, as a stable sort and pop() from its end give.
            self.finished.reverse();
            self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        }
        self.finished.truncate(self.options.num_return_sequences);
        self.finished
    }

    /// The maximum length is reached: open rows become hypotheses.
    fn close(&mut self) {
        let sampled = self.options.do_sample;
        for (row, sequence) in
            std::mem::take(&mut self.rows).into_iter().zip(std::mem::take(&mut self.sequence))
        {
            if sampled {
                self.put(sequence, row);
            } else if self.options.num_beams == 1 {
                self.finished.push(Hypothesis { score: row.score, log_prob: row.score, ids: row.ids });
            } else {
                self.keep(row.ids, row.score, false);
            }
        }
        self.done = true;
    }

    fn process(&self, ids: &[u32], scores: &mut [f64]) {
        if self.options.repetition_penalty != 1.0 {
            let mut seen = ids.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                let s = &mut scores[id as usize];
                *s = if *s < 0.0 {
                    *s * self.options.repetition_penalty
                } else {
                    *s / self.options.repetition_penalty
                };
            }
        }
        if ids.len() < self.options.min_length {
            scores[self.special.eos as usize] = f64::NEG_INFINITY;
        }
    }

    /// Candidates where the most probable are known: only [SEP] may have to go.
    fn process_best(&self, ids: &[u32], best: &mut [(u32, f64)]) {
        if ids.len() < self.options.min_length {
            best.iter_mut().filter(|b| b.0 == self.special.eos).for_each(|b| b.1 = f64::NEG_INFINITY);
        }
    }

    fn greedy(&mut self, outlooks: Vec<Outlook>) -> Vec<Next> {
        let (Some(mut row), Some(outlook)) = (self.rows.pop(), outlooks.into_iter().next()) else {
            return Vec::new();
        };
        let (token, log_prob) = match outlook {
            Outlook::All(mut logits) => {
                let probable = log_softmax(&logits);
                self.process(&row.ids, &mut logits);
                let token = best(&logits, 1)[0];
                (token as u32, probable[token])
            }
            Outlook::Best(mut list) => {
                self.process_best(&row.ids, &mut list);
                list[best(&list.iter().map(|b| b.1).collect::<Vec<_>>(), 1)[0]]
            }
        };
        row.score += log_prob;
        row.ids.push(token);
        if token == self.special.eos {
            self.finished.push(Hypothesis { score: row.score, log_prob: row.score, ids: row.ids });
            return Vec::new();
        }
        self.rows.push(row);
        vec![Next { parent: 0, token }]
    }

    /// What may come next, of every row: (row, token), and what it would be worth.
    fn continuations(&self, outlooks: Vec<Outlook>) -> (Vec<(usize, u32)>, Vec<f64>) {
        let (mut what, mut all) = (Vec::new(), Vec::new());
        for (parent, (row, outlook)) in self.rows.iter().zip(outlooks).enumerate() {
            match outlook {
                Outlook::All(logits) => {
                    let mut scores = log_softmax(&logits);
                    self.process(&row.ids, &mut scores);
                    what.extend((0..scores.len()).map(|token| (parent, token as u32)));
                    all.extend(scores.iter().map(|s| s + row.score));
                }
                Outlook::Best(mut list) => {
                    self.process_best(&row.ids, &mut list);
                    what.extend(list.iter().map(|b| (parent, b.0)));
                    all.extend(list.iter().map(|b| b.1 + row.score));
                }
            }
        }
        (what, all)
    }

    fn beams(&mut self, outlooks: Vec<Outlook>) -> Vec<Next> {
        let n = self.options.num_beams;
        let (what, all) = self.continuations(outlooks);
        let candidates = best(&all, 2 * n);
        let length = self.rows[0].ids.len();
        let old = std::mem::take(&mut self.rows);
        let mut next = Vec::with_capacity(n);
        for (rank, at) in candidates.iter().enumerate() {
            let ((parent, token), score) = (what[*at], all[*at]);
            if token != self.special.eos {
                let ids = old[parent].ids.iter().copied().chain([token]).collect();
                self.rows.push(Row { ids, score });
                next.push(Next { parent, token });
            } else if rank < n {
                self.keep(old[parent].ids.clone(), score, true);
            }
            if next.len() == n {
                break;
            }
        }
        self.sequence = vec![0; self.rows.len()];
        let seen = if self.old { length } else { length + 1 };
        let attainable = all[candidates[0]] / (seen as f64).powf(self.options.length_penalty);
        let worst = self.finished.iter().map(|h| h.score).fold(f64::INFINITY, f64::min);
        if self.finished.len() == n && worst >= attainable {
            return Vec::new();
        }
        next
    }

    /// Keeps the n best hypotheses; `ids` without [SEP], which is added if `ended`.
    fn keep(&mut self, mut ids: Vec<u32>, log_prob: f64, ended: bool) {
        let score = log_prob / (ids.len() as f64).powf(self.options.length_penalty);
        if ended {
            ids.push(self.special.eos);
        }
        let new = Hypothesis { ids, score, log_prob };
        if self.finished.len() < self.options.num_beams {
            self.finished.push(new);
            return;
        }
        let (at, worst) = (self.finished.iter().map(|h| h.score).enumerate())
            .fold((0, f64::INFINITY), |a, b| if b.1 < a.1 { b } else { a });
        if score > worst {
            self.finished.remove(at);
            self.finished.push(new);
        }
    }

    fn sample(&mut self, outlooks: &[Outlook]) -> Vec<Next> {
        if self.rows.len() == 1 && self.rows[0].ids.len() == self.start {
            // The first call: one row for all sequences.
            self.finished = vec![
                Hypothesis { ids: Vec::new(), score: 0.0, log_prob: 0.0 };
                self.options.num_return_sequences
            ];
            self.sequence = (0..self.options.num_return_sequences).collect();
            let start = self.rows[0].ids.clone();
            self.rows = self.sequence.iter().map(|_| Row { ids: start.clone(), score: 0.0 }).collect();
        }
        let (old, sequences) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.sequence));
        let mut next = Vec::new();
        for (i, (mut row, sequence)) in old.into_iter().zip(sequences).enumerate() {
            let parent = i.min(outlooks.len() - 1);
            let Outlook::All(logits) = &outlooks[parent] else { continue };
            let mut scores = logits.clone();
            let probable = log_softmax(&scores);
            self.process(&row.ids, &mut scores);
            let u = self.stream.uniform((sequence * self.options.max_length + row.ids.len()) as u64);
            let token = self.draw(scores, u);
            row.score += probable[token as usize];
            row.ids.push(token);
            if token == self.special.eos {
                self.put(sequence, row);
            } else {
                self.rows.push(row);
                self.sequence.push(sequence);
                next.push(Next { parent, token });
            }
        }
        next
    }

    fn put(&mut self, sequence: usize, row: Row) {
        self.finished[sequence] = Hypothesis { score: row.score, log_prob: row.score, ids: row.ids };
    }

    /// One token by its probability after temperature, top-k and top-p.
    fn draw(&self, mut scores: Vec<f64>, u: f64) -> u32 {
        for s in &mut scores {
            *s /= self.options.temperature;
        }
        let k = if self.options.top_k == 0 { scores.len() } else { self.options.top_k.min(scores.len()) };
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        let least = scores[order[k - 1]];
        order.retain(|i| scores[*i] >= least);
        let top = scores[order[0]];
        let weights: Vec<f64> = order.iter().map(|i| (scores[*i] - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        // A token stays while those before it have not reached top_p.
        let mut before = 0.0;
        let mut kept = 0;
        while kept < weights.len()
            && (kept == 0 || self.options.top_p >= 1.0 || before / total < self.options.top_p)
        {
            before += weights[kept];
            kept += 1;
        }
        let (mut at, last) = (u * before, kept - 1);
        for (i, w) in order.iter().zip(&weights[..last]) {
            at -= w;
            if at < 0.0 {
                return *i as u32;
            }
        }
        order[last] as u32
    }
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let norm = top + logits.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
    logits.iter().map(|x| x - norm).collect()
}

/// The places of the n largest, largest first, ties to the lower place. NaN is below everything.
fn best(scores: &[f64], n: usize) -> Vec<usize> {
    let mut list: Vec<usize> = Vec::with_capacity(n + 1);
    let mut least = f64::NEG_INFINITY;
    for (i, s) in scores.iter().enumerate() {
        if list.len() == n && (*s <= least || s.is_nan()) {
            continue;
        }
        let at = list.partition_point(|j| scores[*j] >= *s || s.is_nan());
        list.insert(at, i);
        list.truncate(n);
        if list.len() == n {
            least = scores[list[n - 1]];
        }
    }
    list
}

#[cfg(test)]
mod tests;
