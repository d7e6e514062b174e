//! A map of numbers over a picture: painted over it, and as one HTML page that needs nothing else.
//!
//! A map is square, of `side` numbers a side, row by row; colours run from 0 to its largest number.

use super::page::{BASE, HEAD, escape};
use base64::Engine;
use std::fmt::Write;

/// Colours from nothing to the most, in equal steps: a few of matplotlib's inferno.
const RAMP: [[f32; 3]; 6] = [
    [0.0, 0.0, 4.0],
    [66.0, 10.0, 104.0],
    [147.0, 38.0, 103.0],
    [221.0, 81.0, 58.0],
    [252.0, 165.0, 10.0],
    [252.0, 255.0, 164.0],
];

/// The colour of a share of the largest number.
fn colour(share: f32) -> [f32; 3] {
    let at = share.clamp(0.0, 1.0) * (RAMP.len() - 1) as f32;
    let (low, part) = (at as usize, at.fract());
    let high = (low + 1).min(RAMP.len() - 1);
    [0, 1, 2].map(|c| RAMP[low][c] + part * (RAMP[high][c] - RAMP[low][c]))
}

fn shares(map: &[f32]) -> Vec<f32> {
    let most = map.iter().copied().fold(0f32, f32::max);
    map.iter().map(|v| if most > 0.0 { (v / most).max(0.0) } else { 0.0 }).collect()
}

/// Paints a map over a picture `[height, width, 3]`: where it is 0 the picture darkens, where it is large the map's colour shows.
/// Between the centres of the map's squares numbers are interpolated.
pub fn paint(rgb: &mut [u8], width: usize, side: usize, map: &[f32]) {
    let map = shares(map);
    if side == 0 || width == 0 || map.len() != side * side {
        return;
    }
    let height = rgb.len() / (3 * width);
    // The two squares beside a pixel, and the share of the second.
    let near = |at: usize, n: usize| {
        let place = ((at as f32 + 0.5) / n as f32 * side as f32 - 0.5).clamp(0.0, (side - 1) as f32);
        (place as usize, (place as usize + 1).min(side - 1), place.fract())
    };
    for (at, pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let ((top, bottom, down), (left, right, across)) =
            (near(at / width, height), near(at % width, width));
        let row = |y: usize| map[y * side + left] * (1.0 - across) + map[y * side + right] * across;
        let share = row(top) * (1.0 - down) + row(bottom) * down;
        let (heat, weight) = (colour(share), 0.25 + 0.5 * share);
        for (p, h) in pixel.iter_mut().zip(heat) {
            *p = (f32::from(*p) * (1.0 - weight) + h * weight).round() as u8;
        }
    }
}

/// A map alone, a pixel for each number `[side, side, 3]`.
pub fn heat(map: &[f32]) -> Vec<u8> {
    shares(map).into_iter().flat_map(colour).map(|c| c.round() as u8).collect()
}

/// A small picture with a line below.
pub struct Small {
    pub name: String,
    pub png: Vec<u8>,
}

/// What the page of a map shows.
pub struct MapPage {
    pub title: String,
    /// Lines of text, the number first.
    pub about: Vec<String>,
    /// The picture, and the map over it.
    pub pictures: Vec<Small>,
    /// Plain attention, of each head and of each query.
    pub heads: Vec<Small>,
    pub queries: Vec<Small>,
}

impl MapPage {
    pub fn html(&self) -> String {
        let mut html = String::new();
        // Writing to a string does not fail.
        let _ = write!(
            html,
            "{HEAD}<title>{0} - qformer explain</title>\n<style>{BASE}{OWN}</style>\n<h1>{0}</h1>\n",
            escape(&self.title)
        );
        for line in &self.about {
            let _ = writeln!(html, "<p>{}</p>", escape(line));
        }
        let groups = [
            ("pictures", "", &self.pictures),
            ("small", "<h2>Attention of each head, mean over the queries</h2>", &self.heads),
            ("small", "<h2>Attention of each query, mean over the heads</h2>", &self.queries),
        ];
        for (class, heading, pictures) in groups {
            let _ = writeln!(html, "{heading}<div class=\"{class}\">");
            for Small { name, png } in pictures {
                let (name, png) = (escape(name), base64::engine::general_purpose::STANDARD.encode(png));
                let _ = writeln!(
                    html,
                    "<figure><img src=\"data:image/png;base64,{png}\" alt=\"{name}\"><figcaption>{name}</figcaption></figure>"
                );
            }
            html.push_str("</div>\n");
        }
        html.push_str("</html>\n");
        html
    }
}

const OWN: &str = "
.pictures, .small { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(5rem, 1fr)); }
figure { margin: 0; }
figure img { width: 100%; border-radius: .3rem; }
.small img { image-rendering: pixelated; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_number_is_the_brightest_place() {
        let mut rgb = vec![100u8; 8 * 8 * 3];
        paint(&mut rgb, 8, 2, &[0.0, 0.0, 0.0, 4.0]);
        let light =
            |x: usize, y: usize| rgb[(y * 8 + x) * 3..][..3].iter().map(|v| u32::from(*v)).sum::<u32>();
        assert!(light(7, 7) > light(4, 4) && light(4, 4) > light(0, 0));
        assert_eq!(light(0, 7), light(7, 0));
        assert_eq!(heat(&[0.0, 2.0])[3..], [252, 255, 164]);
        // Nothing at all: dark everywhere, and no division by 0.
        let mut flat = vec![100u8; 12];
        paint(&mut flat, 2, 1, &[0.0]);
        assert!(flat.iter().all(|v| *v < 100));
        assert_eq!(heat(&[0.0]), [0, 0, 4]);
    }
}
