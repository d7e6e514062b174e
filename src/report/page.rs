//! The page itself.

use super::{Curves, Group, Look, Sample, Story, curves};
use crate::results::{STYLE, data, escape};
use crate::terminal::duration;
use std::fmt::Write;
use std::time::Duration;

const HEAD: &str = "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
    <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
    <meta name=\"viewport\" content=\"width=device-width\">\n";

const BASE: &str = "
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin-top: 2rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; display: block; overflow-x: auto; } td, th { padding: .15rem 1rem .15rem 0; text-align: left; font-weight: 400; }
pre { overflow-x: auto; background: #8882; padding: 1rem; border-radius: .5rem; }
";

const LOOK: Look = Look { smoothing: 0.0, words: |text| text };

/// The whole page of a run, or of several beside each other; the first is the one that pictures belong to.
pub fn page(stories: &[&Story], groups: &[Group]) -> String {
    let mut html = String::new();
    let names: Vec<String> = stories.iter().map(|s| escape(&s.name)).collect();
    let title = names.join(", ");
    // Writing to a string does not fail.
    let _ = write!(
        html,
        "{HEAD}<title>{title} - qformer report</title>\n<style>{BASE}{STYLE}</style>\n<h1>{title}</h1>\n"
    );
    html += &summary(stories);
    for group in groups.iter().filter(|g| !g.samples.is_empty()) {
        let _ = writeln!(html, "<h2>{}</h2>\n<ol class=\"pictures\">", escape(&group.title));
        group.samples.iter().for_each(|s| html += &sample(s));
        html += "</ol>\n";
    }
    let _ = write!(html, "<h2>Curves, by step</h2>\n{}", curves(stories, LOOK));
    for (story, name) in stories.iter().zip(&names) {
        let of = if stories.len() > 1 { format!(" of {name}") } else { String::new() };
        html += &details(story, &of);
    }
    html + "</html>\n"
}

fn details(story: &Story, of: &str) -> String {
    let mut html = String::new();
    if !story.settings.is_empty() {
        let _ = write!(html, "<h2>Settings{of}</h2>\n<pre>{}</pre>\n", escape(&story.settings));
    }
    if !story.bad.is_empty() {
        let _ = writeln!(html, "<h2>Pictures that could not be used{of} ({})</h2>\n<table>", story.bad.len());
        for (picture, reason) in story.bad.iter().take(200) {
            let _ = writeln!(html, "<tr><td>{}<td>{}", escape(picture), escape(reason));
        }
        html += "</table>\n";
    }
    html
}

/// A row for each number, a column for each run.
fn summary(stories: &[&Story]) -> String {
    let columns: Vec<Vec<(&str, Option<String>)>> = stories.iter().map(|s| numbers(s)).collect();
    let mut html = "<table>\n".to_string();
    if stories.len() > 1 {
        let names = stories.iter().map(|s| format!("<th scope=\"col\">{}", escape(&s.name)));
        let _ = writeln!(html, "<tr><td>{}", names.collect::<String>());
    }
    for (i, (name, _)) in columns.first().into_iter().flatten().enumerate() {
        let cells: Vec<Option<&str>> = columns.iter().map(|c| c.get(i)?.1.as_deref()).collect();
        if cells.iter().any(Option::is_some) {
            let cells = cells.into_iter().map(|c| format!("<td>{}", c.unwrap_or("-")));
            let _ = writeln!(html, "<tr><th scope=\"row\">{name}{}", cells.collect::<String>());
        }
    }
    html + "</table>\n"
}

fn numbers(story: &Story) -> Vec<(&'static str, Option<String>)> {
    let (steps, evaluations) = (&story.steps, &story.evaluations);
    let losses = ["loss", "itc", "itm", "lm"].map(|n| steps.last(n).map_or(f64::NAN, |l| l.1));
    let [loss, itc, itm, lm] = losses;
    let best = evaluations.get("loss").iter().min_by(|a, b| a.1.total_cmp(&b.1));
    let among = evaluations
        .last("pictures")
        .map_or(String::new(), |(_, n)| format!(" among {n:.0} validation pictures"));
    let recall = |n| evaluations.last(n).map(|(_, r)| format!("{:.1} %{among}", 100.0 * r));
    let rates = steps.get("samples_per_second");
    let mean = rates.iter().map(|r| r.1).sum::<f64>() / rates.len().max(1) as f64;
    vec![
        ("steps", steps.last("loss").map(|(step, _)| format!("{step:.0}"))),
        ("last loss", Some(format!("{loss:.3} (itc {itc:.3}, itm {itm:.3}, lm {lm:.3})"))),
        ("best validation loss", best.map(|(step, loss)| format!("{loss:.3} at step {step:.0}"))),
        ("recall@1, text to image, by itc alone", recall("recall_text_to_image")),
        ("recall@1, image to text, by itc alone", recall("recall_image_to_text")),
        ("samples a second", (!rates.is_empty()).then(|| format!("{mean:.1} on average"))),
        (
            "from first to last step",
            span(steps).map(|s| duration(Duration::try_from_secs_f64(s).unwrap_or_default())),
        ),
    ]
}

/// Seconds between the first and the last step.
fn span(steps: &Curves) -> Option<f64> {
    let at = steps.get("at");
    Some(at.last()?.1 - at.first()?.1)
}

fn sample(s: &Sample) -> String {
    let picture = match &s.thumbnail {
        Ok(jpeg) => format!("<img src=\"{}\" alt=\"\" loading=\"lazy\">", data(jpeg)),
        Err(why) => format!("<div class=\"gone\">{}</div>", escape(why)),
    };
    let captions: Vec<String> = s.captions.iter().map(|c| escape(c)).collect();
    let class = if s.right { " class=\"right\"" } else { "" };
    let captions = captions.join("<br>");
    format!(
        "<li{class}>{picture}<span lang=\"ja\">{captions}</span><small>{}</small></li>\n",
        escape(&s.name)
    )
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
            Sample {
                name: hostile.into(),
                captions: vec![hostile.into()],
                thumbnail: Err(hostile.into()),
                right: false,
            },
            Sample {
                name: "b".into(),
                captions: vec!["猫".into()],
                thumbnail: Ok(vec![0xff, 0xd8]),
                right: true,
            },
        ];
        let html = page(&[&story], &[Group { title: hostile.into(), samples }]);
        assert!(!html.contains("<script") && !html.contains('\u{1}'), "{html}");
        assert_eq!(html.matches("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;\u{fffd}").count(), 9);
        assert!(html.contains("data:image/jpeg;base64,/9g=") && html.contains("猫"));
        for outside in ["http://", "https://", "src=\"/", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
