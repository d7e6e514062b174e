//! The page itself.

use super::chart::{Series, chart};
use super::{Curves, Group, Sample, Story};
use crate::results::{data, escape};
use crate::terminal::duration;
use std::fmt::Write;
use std::time::Duration;

const HEAD: &str = "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
    <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
    <meta name=\"viewport\" content=\"width=device-width\">\n";

const STYLE: &str = "
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); }
svg { width: 100%; border: 1px solid #8884; border-radius: .5rem; }
svg text { font-size: 12px; fill: currentColor; }
svg .title { font-weight: 600; font-size: 13px; }
svg .y, svg .legend { text-anchor: end; }
svg .x { text-anchor: middle; }
.grid { stroke: #8883; fill: none; }
.line { fill: none; stroke-width: 1.6; stroke: var(--c); }
.dashed { stroke-dasharray: 4 3; }
.dot { fill: var(--c); }
svg .legend { fill: var(--c); font-weight: 600; }
.c0 { --c: #3b82f6; } .c1 { --c: #ef8a17; } .c2 { --c: #16a34a; } .c3 { --c: #c026d3; } .c4 { --c: #888; }
table { border-collapse: collapse; } td { padding: .15rem 1rem .15rem 0; }
pre { overflow-x: auto; background: #8882; padding: 1rem; border-radius: .5rem; }
ol { list-style: none; padding: 0; display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); }
li { border: 1px solid #8884; border-radius: .5rem; padding: .7rem; overflow-wrap: anywhere; }
li img, .gone { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: #8882; border-radius: .3rem; }
li small { opacity: .7; display: block; }
";

/// The whole page of a run.
pub fn page(story: &Story, groups: &[Group]) -> String {
    let mut html = String::new();
    let title = escape(&story.name);
    // Writing to a string does not fail.
    let _ = write!(
        html,
        "{HEAD}<title>{title} - qformer report</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n"
    );
    html += &summary(story);
    let _ = write!(html, "<h2>Curves, by step</h2>\n<div class=\"charts\">\n{}</div>\n", charts(story));
    for group in groups.iter().filter(|g| !g.samples.is_empty()) {
        let _ = writeln!(html, "<h2>{}</h2>\n<ol>", escape(&group.title));
        group.samples.iter().for_each(|s| html += &sample(s));
        html += "</ol>\n";
    }
    if !story.settings.is_empty() {
        let _ = write!(html, "<h2>Settings</h2>\n<pre>{}</pre>\n", escape(&story.settings));
    }
    if !story.bad.is_empty() {
        let _ = writeln!(html, "<h2>Pictures that could not be used ({})</h2>\n<table>", story.bad.len());
        for (picture, reason) in story.bad.iter().take(200) {
            let _ = writeln!(html, "<tr><td>{}<td>{}", escape(picture), escape(reason));
        }
        html += "</table>\n";
    }
    html + "</html>\n"
}

fn summary(story: &Story) -> String {
    let (steps, evaluations) = (&story.steps, &story.evaluations);
    let mut rows: Vec<(&str, String)> = Vec::new();
    let mut add = |name, text: Option<String>| rows.extend(text.map(|t| (name, t)));
    add("steps", steps.last("loss").map(|(step, _)| format!("{step:.0}")));
    let losses = ["loss", "itc", "itm", "lm"].map(|n| steps.last(n).map_or(f64::NAN, |l| l.1));
    let [loss, itc, itm, lm] = losses;
    add("last loss", Some(format!("{loss:.3} (itc {itc:.3}, itm {itm:.3}, lm {lm:.3})")));
    let best = evaluations.get("loss").iter().min_by(|a, b| a.1.total_cmp(&b.1));
    add("best validation loss", best.map(|(step, loss)| format!("{loss:.3} at step {step:.0}")));
    let recall = |n| evaluations.last(n).map(|(_, r)| format!("{:.1} %", 100.0 * r));
    add("recall@1, text to image", recall("recall_text_to_image"));
    add("recall@1, image to text", recall("recall_image_to_text"));
    let rates = steps.get("samples_per_second");
    let mean = rates.iter().map(|r| r.1).sum::<f64>() / rates.len().max(1) as f64;
    add("samples a second", (!rates.is_empty()).then(|| format!("{mean:.1} on average")));
    add(
        "from first to last step",
        span(steps).map(|s| duration(Duration::try_from_secs_f64(s).unwrap_or_default())),
    );
    let mut html = "<table>\n".to_string();
    for (name, text) in rows {
        let _ = writeln!(html, "<tr><td>{name}<td>{text}");
    }
    html + "</table>\n"
}

/// Seconds between the first and the last step.
fn span(steps: &Curves) -> Option<f64> {
    let at = steps.get("at");
    Some(at.last()?.1 - at.first()?.1)
}

fn charts(story: &Story) -> String {
    let line = |name, of: &'static str| Series { name, points: story.steps.get(of), dots: false };
    let dots = |name, of: &'static str| Series { name, points: story.evaluations.get(of), dots: true };
    [
        chart("loss", &[line("total", "loss"), dots("validation", "loss")]),
        chart("the three losses", &[line("itc", "itc"), line("itm", "itm"), line("lm", "lm")]),
        chart(
            "accuracy: contrastive",
            &[
                line("text to image", "accuracy_text_to_image"),
                line("image to text", "accuracy_image_to_text"),
                dots("recall@1 t2i", "recall_text_to_image"),
                dots("recall@1 i2t", "recall_image_to_text"),
            ],
        ),
        chart(
            "accuracy: matching and captions",
            &[line("matching", "accuracy_matching"), line("next token", "accuracy_next_token")],
        ),
        chart("learning rate", &[line("", "learning_rate")]),
        chart("temperature", &[line("", "temperature")]),
        chart("gradient norm", &[line("", "gradient_norm")]),
        chart("samples a second", &[line("", "samples_per_second")]),
        chart("share of time waiting for data", &[line("", "waiting")]),
    ]
    .concat()
}

fn sample(s: &Sample) -> String {
    let picture = match &s.thumbnail {
        Ok(jpeg) => format!("<img src=\"{}\" alt=\"\" loading=\"lazy\">", data(jpeg)),
        Err(why) => format!("<div class=\"gone\">{}</div>", escape(why)),
    };
    let captions: Vec<String> = s.captions.iter().map(|c| escape(c)).collect();
    format!("<li>{picture}{}<small>{}</small></li>\n", captions.join("<br>"), escape(&s.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        let hostile = "\"><script>alert('1')</script>\u{1}";
        let mut story = Story { name: hostile.into(), settings: hostile.into(), ..Story::default() };
        story.bad.push((hostile.into(), hostile.into()));
        story.steps.of.insert("loss".into(), vec![(1.0, 2.0)]);
        let samples = vec![
            Sample { name: hostile.into(), captions: vec![hostile.into()], thumbnail: Err(hostile.into()) },
            Sample { name: "b".into(), captions: vec!["猫".into()], thumbnail: Ok(vec![0xff, 0xd8]) },
        ];
        let html = page(&story, &[Group { title: hostile.into(), samples }]);
        assert!(!html.contains("<script") && !html.contains('\u{1}'), "{html}");
        assert_eq!(html.matches("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;\u{fffd}").count(), 9);
        assert!(html.contains("data:image/jpeg;base64,/9g=") && html.contains("猫"));
        for outside in ["http://", "https://", "src=\"/", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
