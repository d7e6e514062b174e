//! Curves as SVG: a frame, round numbers at the axes, a line per series; above it in HTML the title and a legend, which wrap where
//! there is little room.

use super::Words;
use crate::results::escape;
use std::fmt::Write;

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 24.0;
/// Points of a line; more are averaged.
const POINTS: usize = 500;

pub struct Series<'a> {
    pub name: &'static str,
    pub points: &'a [(f64, f64)],
    /// Drawn as dots joined by a dashed line: few, measured now and then.
    pub dots: bool,
    /// Which of several runs it is of.
    pub run: usize,
    /// Which colour; the same name has the same in all runs.
    pub colour: usize,
}

/// A value that guessing reaches, drawn across the chart.
pub struct Chance {
    pub name: &'static str,
    pub value: f64,
    pub colour: usize,
}

/// How curves are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Share of the mean so far in each point, 0 for none.
    pub smoothing: f64,
    pub words: Words,
}

/// A chart; empty if no series has a finite point.
pub fn chart(title: &'static str, series: &[Series], chances: &[Chance], look: Look) -> String {
    let drawn: Vec<(&Series, Vec<(f64, f64)>)> = series
        .iter()
        .map(|s| (s, thinned(&smoothed(s.points, if s.dots { 0.0 } else { look.smoothing }))))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let (mut x, mut y) = (Range::EMPTY, Range::EMPTY);
    drawn.iter().flat_map(|(_, points)| points).for_each(|p| {
        x.include(p.0);
        y.include(p.1);
    });
    if x.low > x.high {
        return String::new();
    }
    let chances: Vec<&Chance> = chances.iter().filter(|c| c.value.is_finite()).collect();
    chances.iter().for_each(|c| y.include(c.value));
    let (x, y) = (x.widened(0.0), y.widened(0.04));
    let say = look.words;
    let title = say(title);
    // Writing to a string does not fail.
    let mut html = format!("<figure><figcaption><b>{title}</b>");
    let mut named: Vec<&str> = Vec::new();
    for (s, _) in &drawn {
        if !s.name.is_empty() && !named.contains(&s.name) {
            named.push(s.name);
            let dots = if s.dots { " dots" } else { "" };
            let _ = write!(html, " <span class=\"key c{}{dots}\">{}</span>", s.colour, say(s.name));
        }
    }
    for c in &chances {
        let _ = write!(
            html,
            " <span class=\"key chance c{}\">{} {}</span>",
            c.colour,
            say(c.name),
            short(c.value)
        );
    }
    let _ = write!(
        html,
        "</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
        escape(title)
    );
    let place = |p: (f64, f64)| {
        let px = LEFT + (p.0 - x.low) / (x.high - x.low) * (WIDTH - LEFT - RIGHT);
        let py = HEIGHT - BOTTOM - (p.1 - y.low) / (y.high - y.low) * (HEIGHT - TOP - BOTTOM);
        (px, py)
    };
    for t in y.ticks(5) {
        let (_, py) = place((x.low, t));
        let _ = write!(html, "<path class=\"grid\" d=\"M{LEFT} {py:.1}H{}\"/>", WIDTH - RIGHT);
        let _ =
            write!(html, "<text class=\"y\" x=\"{}\" y=\"{:.1}\">{}</text>", LEFT - 6.0, py + 4.0, short(t));
    }
    for t in x.ticks(6) {
        let (px, _) = place((t, y.low));
        let _ = write!(html, "<text class=\"x\" x=\"{px:.1}\" y=\"{}\">{}</text>", HEIGHT - 8.0, short(t));
    }
    for c in &chances {
        let (_, py) = place((x.low, c.value));
        let _ = write!(
            html,
            "<path class=\"line chance c{}\" d=\"M{LEFT} {py:.1}H{}\"/>",
            c.colour,
            WIDTH - RIGHT
        );
    }
    for (s, points) in &drawn {
        let points: Vec<_> = points.iter().copied().map(place).collect();
        let path: Vec<String> = points.iter().map(|(px, py)| format!("{px:.1} {py:.1}")).collect();
        let dashed = if s.dots { " dashed" } else { "" };
        let class = format!("line c{} r{}{dashed}", s.colour, s.run);
        let _ = write!(html, "<path class=\"{class}\" d=\"M{}\"/>", path.join("L"));
        if s.dots || points.len() == 1 {
            for (px, py) in &points {
                let _ = write!(
                    html,
                    "<circle class=\"dot c{}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3\"/>",
                    s.colour
                );
            }
        }
    }
    html + "</svg></figure>\n"
}

/// Each point as the mean of itself and those before it, which weigh less the farther back they are: m' = w m + (1 - w) y from 0,
/// divided by 1 - w^n, so that the first is itself. Points that are not finite are left out.
fn smoothed(points: &[(f64, f64)], share: f64) -> Vec<(f64, f64)> {
    let share = share.clamp(0.0, 0.999);
    let (mut mean, mut weight) = (0.0, 0.0);
    let finite = points.iter().filter(|p| p.0.is_finite() && p.1.is_finite());
    finite
        .map(|(x, y)| {
            (mean, weight) = (share * mean + (1.0 - share) * y, share * weight + 1.0 - share);
            (*x, mean / weight)
        })
        .collect()
}

#[derive(Clone, Copy)]
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    const EMPTY: Range = Range { low: f64::INFINITY, high: f64::NEG_INFINITY };

    fn include(&mut self, v: f64) {
        (self.low, self.high) = (self.low.min(v), self.high.max(v));
    }

    /// With some room, and never of no width.
    fn widened(self, share: f64) -> Range {
        let width = self.high - self.low;
        let room = if width > 0.0 { share * width } else { (self.high.abs() * 0.1).max(0.5) };
        Range { low: self.low - room, high: self.high + room }
    }

    /// About `count` round numbers within.
    fn ticks(self, count: usize) -> Vec<f64> {
        let rough = (self.high - self.low) / count as f64;
        let power = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let first = (self.low / step).ceil();
        (0..=2 * count).map(|i| (first + i as f64) * step).take_while(|t| *t <= self.high).collect()
    }
}

fn short(v: f64) -> String {
    let v = if v.abs() < 1e-12 { 0.0 } else { v };
    if v != 0.0 && (v.abs() < 1e-3 || v.abs() >= 1e6) {
        return format!("{v:.1e}");
    }
    let text = format!("{v:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// At most `POINTS` points, each the mean of as many neighbours.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(POINTS).max(1);
    let mean = |c: &[(f64, f64)]| {
        let n = c.len() as f64;
        (c.iter().map(|p| p.0).sum::<f64>() / n, c.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(size).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Look = Look { smoothing: 0.0, words: |text| text };

    fn line<'a>(name: &'static str, points: &'a [(f64, f64)]) -> Series<'a> {
        Series { name, points, dots: false, run: 0, colour: 0 }
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(Range { low: 0.0, high: 10.0 }.ticks(5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(Range { low: 3.1, high: 9.7 }.ticks(5), [4.0, 6.0, 8.0]);
        let small = Range { low: 0.0, high: 1e-4 }.ticks(5);
        assert_eq!(small.len(), 6);
        assert!((small[1] - 2e-5).abs() < 1e-18);
    }

    #[test]
    fn points_and_chance_stand_where_they_belong() {
        let points = [(1.0, 2.0), (3.0, 4.0)];
        let svg = chart("loss", &[line("total", &points)], &[], LOOK);
        // y runs from 2 - 0.08 to 4 + 0.08 over HEIGHT - TOP - BOTTOM = 198: the ends are 198 * 0.08 / 2.16 = 7.33 inside
        assert!(svg.contains("d=\"M52.0 198.7L470.0 15.3\""), "{svg}");
        // Chance at 3 is half way: 206 - 99.
        let chance = Chance { name: "chance", value: 3.0, colour: 1 };
        let svg = chart("loss", &[line("total", &points)], &[chance], LOOK);
        assert!(svg.contains("chance c1\" d=\"M52 107.0H470\"") && svg.contains("chance 3<"), "{svg}");
    }

    #[test]
    fn numbers_that_are_none_are_left_out() {
        let nan = [(1.0, f64::NAN), (f64::INFINITY, 1.0)];
        assert_eq!(chart("x", &[line("a", &nan)], &[], LOOK), "");
        let one = [(1.0, 5.0)];
        assert!(chart("x", &[line("a", &one)], &[], LOOK).contains("<circle"));
        let many: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        assert_eq!(thinned(&many).len(), 500);
        assert_eq!(thinned(&many)[0], (9.5, 1.0));
    }

    /// Worked by hand: weights 1; 1/3, 2/3; 1/7, 2/7, 4/7 at a share of one half.
    #[test]
    fn smoothing_weighs_the_past_less() {
        let points = [(1.0, 7.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 14.0)];
        let smooth: Vec<f64> = smoothed(&points, 0.5).iter().map(|p| p.1).collect();
        let want = [7.0, 7.0 / 3.0 + 2.0 / 3.0, 1.0 + 2.0 / 7.0 + 8.0];
        assert!(smooth.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{smooth:?}");
        assert_eq!(smoothed(&points, 0.0).len(), 3);
    }
}
