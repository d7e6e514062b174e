//! The charts of one run, or of several laid over each other: which curves stand together, and what guessing would reach.
//!
//! Chance: of B captions the right one is guessed with a loss of ln B; a pair in three matches (one right, two negatives), so "no match"
//! is right in 2/3 of the cases and the entropy is ln 3 - 2/3 ln 2 = 0.6365; of V words the next is guessed with ln V.

use super::Story;
use super::chart::{Chance, Look, Series, chart};
use std::fmt::Write;

/// Colours of the style; more series than these begin anew.
const COLOURS: usize = 5;
/// Ways to draw a line, one for each run.
const RUNS: usize = 4;

/// A curve: its name, whose numbers, measured now and then or at every step.
type Curve = (&'static str, &'static str, bool);

const fn line(name: &'static str, of: &'static str) -> Curve {
    (name, of, false)
}

const fn dots(name: &'static str, of: &'static str) -> Curve {
    (name, of, true)
}

const CHARTS: &[(&str, &[Curve])] = &[
    ("loss", &[line("training", "loss"), dots("validation", "loss")]),
    (
        "the three losses",
        &[line("contrastive (itc)", "itc"), line("matching (itm)", "itm"), line("captioning (lm)", "lm")],
    ),
    (
        "accuracy: contrastive",
        &[
            line("text to image", "accuracy_text_to_image"),
            line("image to text", "accuracy_image_to_text"),
            dots("recall@1 on validation, text to image", "recall_text_to_image"),
            dots("recall@1 on validation, image to text", "recall_image_to_text"),
        ],
    ),
    (
        "accuracy: matching and captions",
        &[line("matching", "accuracy_matching"), line("next token", "accuracy_next_token")],
    ),
    ("learning rate", &[line("", "learning_rate")]),
    ("temperature", &[line("", "temperature")]),
    ("gradient norm", &[line("", "gradient_norm")]),
    ("samples a second", &[line("", "samples_per_second")]),
    ("share of time waiting for data", &[line("", "waiting")]),
];

/// All charts of some runs.
pub fn curves(stories: &[&Story], look: Look) -> String {
    let mut html = String::new();
    if stories.len() > 1 {
        html += "<p class=\"runs\">";
        for (i, story) in stories.iter().enumerate() {
            let name = crate::results::escape(&story.name);
            // Writing to a string does not fail.
            let _ = write!(
                html,
                "<span class=\"run\"><svg viewBox=\"0 0 40 8\" aria-hidden=\"true\"><path class=\"line r{}\" d=\"M0 4H40\"/></svg> {name}</span> ",
                i % RUNS
            );
        }
        html += "</p>\n";
    }
    html += "<div class=\"charts\">\n";
    for (title, curves) in CHARTS {
        let mut series = Vec::new();
        for (run, story) in stories.iter().enumerate() {
            for (colour, (name, of, dots)) in curves.iter().enumerate() {
                let from = if *dots { &story.evaluations } else { &story.steps };
                let (run, colour) = (run % RUNS, colour % COLOURS);
                series.push(Series { name, points: from.get(of), dots: *dots, run, colour });
            }
        }
        html += &chart(title, &series, &chances(title, stories), look);
    }
    html + "</div>\n"
}

/// What guessing reaches, where all runs agree on it.
fn chances(title: &str, stories: &[&Story]) -> Vec<Chance> {
    let same = |of: fn(&Story) -> Option<f64>| {
        let first = of(stories.first()?)?;
        stories.iter().all(|s| of(s) == Some(first)).then_some(first)
    };
    let (third, two_thirds) = (1.0f64 / 3.0, 2.0f64 / 3.0);
    let entropy = -(third * third.ln() + two_thirds * two_thirds.ln());
    let all = match title {
        "the three losses" => vec![
            ("chance, contrastive: ln B =", same(|s| s.batch).map(f64::ln), 0),
            ("chance, matching:", Some(entropy), 1),
            ("chance, captioning: ln V =", same(|s| s.vocabulary).map(f64::ln), 2),
        ],
        "accuracy: matching and captions" => vec![("chance, matching:", Some(two_thirds), 0)],
        "accuracy: contrastive" => vec![("chance: 1/B =", same(|s| s.batch).map(f64::recip), 0)],
        _ => Vec::new(),
    };
    all.into_iter().filter_map(|(name, value, colour)| Some(Chance { name, value: value?, colour })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story(name: &str, batch: f64) -> Story {
        let mut story = Story { name: name.into(), batch: Some(batch), ..Story::default() };
        for of in ["loss", "itc", "itm"] {
            story.steps.of.insert(of.into(), vec![(1.0, 3.0), (2.0, 1.0)]);
        }
        story
    }

    #[test]
    fn chance_is_drawn_where_it_is_known() {
        let look = Look { smoothing: 0.0, words: |text| text };
        let one = curves(&[&story("a", 8.0)], look);
        // ln 8 = 2.079; ln 3 - 2/3 ln 2 = 0.637
        assert!(one.contains("ln B = 2.079<") && one.contains("chance, matching: 0.637<"), "{one}");
        assert!(!one.contains("ln V") && !one.contains("class=\"runs\""));
        // Of runs with other batches no line is right for both.
        let two = curves(&[&story("a", 8.0), &story("<b>", 16.0)], look);
        assert!(!two.contains("ln B") && two.contains("line c0 r1") && two.contains("&lt;b&gt;"), "{two}");
    }
}
