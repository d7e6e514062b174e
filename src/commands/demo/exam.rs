//! Captions of pictures of scenes that training never saw, and searches for those pictures by their right captions.
//!
//! As `qformer caption` and `qformer evaluate` do it: three beams; of all pictures, the best by itc are ranked by itm + itc.

use crate::Result;
use crate::data::Image;
use crate::demo::Test;
use crate::model::GenerateOptions;
use crate::pretrained::Pretrained;
use crate::pretrained::pictures::{self, Seen};
use crate::pretrained::scores::Texts;
use crate::report::{Group, Sample};
use crate::search::gallery::Gallery;
use rayon::prelude::*;

/// Pictures of a search that are ranked by itm + itc.
const RANKED: usize = 16;
/// What the page shows: searches, and pictures of each.
const SEARCHES: usize = 12;
const FINDS: usize = 6;

pub struct Exam<'a> {
    tests: &'a [Test],
    answers: Vec<Answer>,
}

/// About one test picture.
struct Answer {
    /// The right caption and the model's, as the tokenizer writes them.
    right: String,
    written: String,
    /// Places of pictures found by the right caption, best first, and their scores.
    found: Vec<(usize, f64)>,
}

impl Answer {
    fn is_exact(&self) -> bool {
        self.written == self.right
    }

    fn is_found(&self, place: usize) -> bool {
        self.found.first().is_some_and(|first| first.0 == place)
    }
}

/// Captions all pictures, and searches for each among all.
pub fn take<'a>(model: &Pretrained, tests: &'a [Test]) -> Result<Exam<'a>> {
    let mut gallery = Gallery::new(model)?;
    let see = |test: &Test| pictures::see(model, &Image::File(test.path.clone()));
    let seen: Vec<Seen> = tests.par_iter().map(see).collect::<Result<_>>()?;
    let images = gallery.add(model, &seen.iter().collect::<Vec<_>>())?;
    let identities: Vec<u32> = seen.iter().map(|s| s.identity).collect();
    // The captions are shorter than those that LAVIS asks for.
    let options = GenerateOptions { min_length: 1, ..GenerateOptions::default() };
    let written = model.caption(&images, &options, &identities)?;
    let captions: Vec<String> = tests.iter().map(|t| t.scene.caption()).collect();
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    let texts = Texts::new(model, &captions, model.model.config.max_txt_len)?;
    let searches = gallery.scores(model, &texts, RANKED, || ())?.t2i;
    let mut answers = Vec::with_capacity(tests.len());
    for ((written, scores), ids) in written.into_iter().zip(searches).zip(&texts.ids) {
        let mut found: Vec<(usize, f64)> = scores.into_iter().enumerate().collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1));
        let written = written.into_iter().next().map_or(String::new(), |best| best.text);
        answers.push(Answer { right: model.tokenizer.decode(ids), written, found });
    }
    Ok(Exam { tests, answers })
}

impl Exam<'_> {
    /// Share of the pictures whose caption is right to the last character.
    pub fn captioned(&self) -> f64 {
        self.share(|_, answer| answer.is_exact())
    }

    /// Share of the captions whose picture is found first.
    pub fn found(&self) -> f64 {
        self.share(|place, answer| answer.is_found(place))
    }

    fn share(&self, right: impl Fn(usize, &Answer) -> bool) -> f64 {
        let count = self.answers.iter().enumerate().filter(|(place, a)| right(*place, a)).count();
        count as f64 / self.answers.len().max(1) as f64
    }

    /// For the page: some searches, then every caption, wrong ones first.
    pub fn groups(&self) -> Vec<Group> {
        // Evenly over the pictures, which are in random order; one that went wrong tells more.
        let mut places: Vec<usize> = (0..self.answers.len()).collect();
        places.sort_by_key(|p| self.answers[*p].is_found(*p));
        let mut groups: Vec<Group> = places.iter().take(SEARCHES).map(|p| self.search(*p)).collect();
        places.sort_by_key(|p| self.answers[*p].is_exact());
        let samples = places.iter().map(|p| self.caption(*p)).collect();
        groups.push(Group { title: "Captions of pictures that training never saw".into(), samples });
        groups
    }

    fn search(&self, place: usize) -> Group {
        let answer = &self.answers[place];
        let hit = |(rank, (other, score)): (usize, &(usize, f64))| {
            let verdict = if *other == place { "the right one" } else { "another" };
            let lines = vec![format!("{}. {verdict}", rank + 1), format!("itm + itc {score:.3}")];
            Sample { right: *other == place, ..self.sample(*other, lines) }
        };
        let samples = answer.found.iter().take(FINDS).enumerate().map(hit).collect();
        Group { title: format!("Search: {}", self.tests[place].scene.caption()), samples }
    }

    fn caption(&self, place: usize) -> Sample {
        let Answer { written, right, .. } = &self.answers[place];
        let mut lines = vec![written.clone()];
        lines.extend((written != right).then(|| format!("wrong; right: {right}")));
        self.sample(place, lines)
    }

    fn sample(&self, place: usize, lines: Vec<String>) -> Sample {
        let Test { path, .. } = &self.tests[place];
        let name = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
        Sample::new(name, lines, path)
    }
}
