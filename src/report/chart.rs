//! Curves as SVG: a frame, round numbers at the axes, a line per series, a legend.

use std::fmt::Write;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 26.0;
/// Points of a line; more are averaged.
const POINTS: usize = 500;

pub struct Series<'a> {
    pub name: &'a str,
    pub points: &'a [(f64, f64)],
    /// Drawn as dots joined by a dashed line: few, measured now and then.
    pub dots: bool,
}

/// A chart; empty if no series has a finite point.
pub fn chart(title: &str, series: &[Series]) -> String {
    let finite = series.iter().flat_map(|s| s.points).filter(|p| p.0.is_finite() && p.1.is_finite());
    let (mut x, mut y) = (Range::EMPTY, Range::EMPTY);
    finite.for_each(|p| {
        x.include(p.0);
        y.include(p.1);
    });
    if x.low > x.high {
        return String::new();
    }
    let (x, y) = (x.widened(0.0), y.widened(0.04));
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">");
    let _ = write!(svg, "<text class=\"title\" x=\"{LEFT}\" y=\"16\">{title}</text>");
    let place = |p: (f64, f64)| {
        let px = LEFT + (p.0 - x.low) / (x.high - x.low) * (WIDTH - LEFT - RIGHT);
        let py = HEIGHT - BOTTOM - (p.1 - y.low) / (y.high - y.low) * (HEIGHT - TOP - BOTTOM);
        (px, py)
    };
    for t in y.ticks(5) {
        let (_, py) = place((x.low, t));
        let _ = write!(svg, "<path class=\"grid\" d=\"M{LEFT} {py:.1}H{}\"/>", WIDTH - RIGHT);
        let _ =
            write!(svg, "<text class=\"y\" x=\"{}\" y=\"{:.1}\">{}</text>", LEFT - 6.0, py + 4.0, short(t));
    }
    for t in x.ticks(6) {
        let (px, _) = place((t, y.low));
        let _ = write!(svg, "<text class=\"x\" x=\"{px:.1}\" y=\"{}\">{}</text>", HEIGHT - 8.0, short(t));
    }
    let mut at = WIDTH - RIGHT;
    for (i, s) in series.iter().enumerate().rev().filter(|(_, s)| !s.points.is_empty()) {
        let _ = write!(svg, "<text class=\"legend c{i}\" x=\"{at:.0}\" y=\"16\">{}</text>", s.name);
        at -= 7.0 * s.name.chars().count() as f64 + 14.0;
    }
    for (i, s) in series.iter().enumerate() {
        let points: Vec<_> = thinned(s.points).into_iter().map(place).collect();
        let path: Vec<String> = points.iter().map(|(px, py)| format!("{px:.1} {py:.1}")).collect();
        if path.is_empty() {
            continue;
        }
        let dashed = if s.dots { " dashed" } else { "" };
        let _ = write!(svg, "<path class=\"line c{i}{dashed}\" d=\"M{}\"/>", path.join("L"));
        if s.dots || points.len() == 1 {
            for (px, py) in &points {
                let _ = write!(svg, "<circle class=\"dot c{i}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3\"/>");
            }
        }
    }
    svg + "</svg>"
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

/// At most `POINTS` points, each the mean of as many neighbours; points that are not finite are left out.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<_> = points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    let size = finite.len().div_ceil(POINTS).max(1);
    let mean = |c: &[(f64, f64)]| {
        let n = c.len() as f64;
        (c.iter().map(|p| p.0).sum::<f64>() / n, c.iter().map(|p| p.1).sum::<f64>() / n)
    };
    finite.chunks(size).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(Range { low: 0.0, high: 10.0 }.ticks(5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(Range { low: 3.1, high: 9.7 }.ticks(5), [4.0, 6.0, 8.0]);
        let small = Range { low: 0.0, high: 1e-4 }.ticks(5);
        assert_eq!(small.len(), 6);
        assert!((small[1] - 2e-5).abs() < 1e-18);
    }

    #[test]
    fn points_stand_where_they_belong() {
        let points = [(1.0, 2.0), (3.0, 4.0)];
        let svg = chart("loss", &[Series { name: "total", points: &points, dots: false }]);
        // y runs from 2 - 0.08 to 4 + 0.08 over HEIGHT - TOP - BOTTOM = 204: the ends are 204 * 0.08 / 2.16 inside
        assert!(svg.contains("d=\"M58.0 226.4L548.0 37.6\""), "{svg}");
    }

    #[test]
    fn numbers_that_are_none_are_left_out() {
        let nan = [(1.0, f64::NAN), (f64::INFINITY, 1.0)];
        assert_eq!(chart("x", &[Series { name: "a", points: &nan, dots: false }]), "");
        let one = [(1.0, 5.0)];
        assert!(chart("x", &[Series { name: "a", points: &one, dots: false }]).contains("<circle"));
        let many: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        assert_eq!(thinned(&many).len(), 500);
        assert_eq!(thinned(&many)[0], (9.5, 1.0));
    }
}
