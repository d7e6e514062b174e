//! Scenes: one kind of thing, so many of it, in one place; the picture of it and the sentence that says so.
//!
//!   8 colours x 6 shapes x 5 places x 3 counts = 720 scenes
//!
//! A scene has as many pictures as asked for: place, size, angle, tint and paper differ a little. A picture depends on the
//! seed, the scene and the picture's number alone.

use crate::data::random::Draws;
use crate::vision::Picture;

/// A colour's word as it stands before a noun, and its red, green and blue.
type Colour = (&'static str, [f64; 3]);
/// Whether a point is in a shape, which fills the square from -1 to 1; y points down.
type Shape = fn(f64, f64) -> bool;

const COLOURS: [Colour; 8] = [
    ("赤い", [214.0, 40.0, 40.0]),
    ("青い", [40.0, 80.0, 220.0]),
    ("黄色い", [240.0, 200.0, 20.0]),
    ("緑の", [40.0, 150.0, 60.0]),
    ("紫の", [140.0, 50.0, 170.0]),
    ("黒い", [25.0, 25.0, 25.0]),
    ("茶色い", [130.0, 80.0, 40.0]),
    ("水色の", [110.0, 200.0, 230.0]),
];
const SHAPES: [(&str, Shape); 6] =
    [("丸", disc), ("三角", triangle), ("四角", square), ("星", star), ("十字", cross), ("輪", ring)];
const PLACES: [(&str, [f64; 2]); 5] = [
    ("左上", [0.28, 0.28]),
    ("右上", [0.72, 0.28]),
    ("左下", [0.28, 0.72]),
    ("右下", [0.72, 0.72]),
    ("真ん中", [0.5, 0.5]),
];
const COUNTS: [&str; 3] = ["一つ", "二つ", "三つ"];

/// Pixels on a side of a drawn picture.
pub const SIDE: usize = 96;
/// Samples on a side of a pixel.
const FINE: usize = 3;
/// The draws of pictures.
const PICTURE: u32 = 0xD3;

/// What is to be seen in a picture: places in the lists above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scene {
    /// Which of the colours.
    pub colour: usize,
    /// Which of the shapes.
    pub shape: usize,
    /// Which of the places.
    pub place: usize,
    /// Which of the counts.
    pub count: usize,
}

impl Scene {
    /// How many scenes there are.
    pub const ALL: usize = COLOURS.len() * SHAPES.len() * PLACES.len() * COUNTS.len();

    /// The scene of a number below [`Scene::ALL`].
    pub fn nth(number: usize) -> Scene {
        let (rest, count) = (number / COUNTS.len(), number % COUNTS.len());
        let (rest, place) = (rest / PLACES.len(), rest % PLACES.len());
        Scene { colour: rest / SHAPES.len() % COLOURS.len(), shape: rest % SHAPES.len(), place, count }
    }

    /// Its number, see [`Scene::nth`].
    pub fn number(&self) -> usize {
        let Scene { colour, shape, place, count } = self;
        ((colour * SHAPES.len() + shape) * PLACES.len() + place) * COUNTS.len() + count
    }

    /// Colour, shape, place and count.
    pub fn properties(&self) -> [usize; 4] {
        [self.colour, self.shape, self.place, self.count]
    }

    /// For example 左上に赤い星が二つ描かれている.
    pub fn caption(&self) -> String {
        let (place, count) = (PLACES[self.place].0, COUNTS[self.count]);
        format!("{place}に{}{}が{count}描かれている", COLOURS[self.colour].0, SHAPES[self.shape].0)
    }

    /// One picture of the scene.
    pub fn draw(&self, seed: u64, variant: u32) -> Picture {
        let draws = Draws::new(seed, [PICTURE, self.number() as u32, variant]);
        let between = |n: usize, low: f64, high: f64| low + (high - low) * draws.unit(n as u32);
        let paper = [0, 1, 2].map(|c| between(c, 225.0, 255.0));
        let ink =
            [0, 1, 2].map(|c| (COLOURS[self.colour].1[c] + between(3 + c, -14.0, 14.0)).clamp(0.0, 255.0));
        let (smallest, largest) = RADII[self.count];
        let radius = between(6, smallest, largest);
        let middle = [0, 1].map(|a| PLACES[self.place].1[a] + between(7 + a, -0.01, 0.01));
        let thing = |(i, at): (usize, &[f64; 2])| {
            let own = |n: usize, most: f64| between(9 + 4 * i + n, -most, most);
            let centre = [0, 1].map(|a| middle[a] + STEP * at[a] + own(a, 0.004));
            Thing { centre, radius: radius * (1.0 + own(2, 0.012)), turn: own(3, 0.05).sin_cos() }
        };
        let things: Vec<Thing> = ARRANGEMENTS[self.count].iter().enumerate().map(thing).collect();
        let mut rgb = Vec::with_capacity(SIDE * SIDE * 3);
        for pixel in 0..SIDE * SIDE {
            let share = coverage([pixel % SIDE, pixel / SIDE], &things, SHAPES[self.shape].1);
            rgb.extend((0..3).map(|c| (paper[c] + (ink[c] - paper[c]) * share).round() as u8));
        }
        Picture { width: SIDE, height: SIDE, rgb }
    }
}

/// Where the things of a scene are, in steps from its middle, by how many they are.
const ARRANGEMENTS: [&[[f64; 2]]; 3] =
    [&[[0.0, 0.0]], &[[-1.0, 0.0], [1.0, 0.0]], &[[-1.0, 1.0], [1.0, 1.0], [0.0, -1.0]]];
/// A step, and the smallest and largest radius by how many the things are: they never touch.
const STEP: f64 = 0.136;
const RADII: [(f64, f64); 3] = [(0.152, 0.168), (0.109, 0.114), (0.109, 0.114)];

/// One of the things of a scene.
struct Thing {
    centre: [f64; 2],
    radius: f64,
    /// Sine and cosine of the angle it is turned by.
    turn: (f64, f64),
}

impl Thing {
    /// Whether the shape covers a point of the picture.
    fn covers(&self, at: [f64; 2], inside: Shape) -> bool {
        let [x, y] = [0, 1].map(|a| (at[a] - self.centre[a]) / self.radius);
        let (sin, cos) = self.turn;
        inside(x * cos + y * sin, y * cos - x * sin)
    }
}

/// The share of a pixel that lies in one of the things.
fn coverage(pixel: [usize; 2], things: &[Thing], inside: Shape) -> f64 {
    let place = |p: usize, i: usize| (p as f64 + (i as f64 + 0.5) / FINE as f64) / SIDE as f64;
    let near = |t: &&Thing| {
        let reach = 1.3 * t.radius + 1.0 / SIDE as f64;
        (0..2).all(|a| (place(pixel[a], 0) - t.centre[a]).abs() < reach)
    };
    let near: Vec<&Thing> = things.iter().filter(near).collect();
    let hit = |i: &usize| {
        let at = [place(pixel[0], i % FINE), place(pixel[1], i / FINE)];
        near.iter().any(|t| t.covers(at, inside))
    };
    (0..FINE * FINE).filter(hit).count() as f64 / (FINE * FINE) as f64
}

fn disc(x: f64, y: f64) -> bool {
    x * x + y * y < 0.8
}

fn square(x: f64, y: f64) -> bool {
    x.abs().max(y.abs()) < 0.88
}

fn triangle(x: f64, y: f64) -> bool {
    y < 0.8 && y > 2.0 * x.abs() - 1.0
}

fn cross(x: f64, y: f64) -> bool {
    (x.abs().min(y.abs())) < 0.3 && x.abs().max(y.abs()) < 0.95
}

/// Five points: inside the pentagram's edges but for at most one.
fn star(x: f64, y: f64) -> bool {
    let beyond = |k: usize| {
        let angle = std::f64::consts::TAU * k as f64 / 5.0;
        x * angle.sin() - y * angle.cos() > 0.31
    };
    x * x + y * y < 1.2 && (0..5).filter(|k| beyond(*k)).count() < 2
}

fn ring(x: f64, y: f64) -> bool {
    (0.3..0.95).contains(&(x * x + y * y))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Connected parts of what is nearer to ink than to paper: the pixels of each.
    fn parts(picture: &Picture) -> Vec<Vec<usize>> {
        let rgb = |p: usize| [0, 1, 2].map(|c| f64::from(picture.rgb[3 * p + c]));
        let paper = rgb(0);
        let far = |p: usize| (0..3).map(|c| (rgb(p)[c] - paper[c]).abs()).fold(0.0, f64::max);
        let most = (0..SIDE * SIDE).map(far).fold(0.0, f64::max);
        let mut inked: Vec<bool> = (0..SIDE * SIDE).map(|p| far(p) > 0.5 * most).collect();
        let mut parts = Vec::new();
        while let Some(first) = inked.iter().position(|is| *is) {
            let (mut part, mut open) = (Vec::new(), vec![first]);
            inked[first] = false;
            while let Some(p) = open.pop() {
                part.push(p);
                let around = |n: usize| n.saturating_sub(1)..(n + 2).min(SIDE);
                let (x, y) = (around(p % SIDE), around(p / SIDE));
                for q in y.flat_map(|y| x.clone().map(move |x| y * SIDE + x)) {
                    if std::mem::take(&mut inked[q]) {
                        open.push(q);
                    }
                }
            }
            parts.push(part);
        }
        parts
    }

    /// The word of the colour nearest to a part's mean.
    fn colour(picture: &Picture, part: &[usize]) -> usize {
        let mean = [0, 1, 2]
            .map(|c| part.iter().map(|p| f64::from(picture.rgb[3 * p + c])).sum::<f64>() / part.len() as f64);
        let distance = |n: &usize| (0..3).map(|c| (COLOURS[*n].1[c] - mean[c]).powi(2)).sum::<f64>();
        (0..COLOURS.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap()
    }

    /// How well a shape of a part's area, middle and any small turn covers it: what both share of what either has.
    fn overlap(part: &[usize], shape: Shape) -> f64 {
        let points = |inside: &dyn Fn(f64, f64) -> bool| -> Vec<[f64; 2]> {
            let at = |i: usize| [i % 64, i / 64].map(|n| (n as f64 + 0.5) / 25.6 - 1.25);
            (0..64 * 64).map(at).filter(|p| inside(p[0], p[1])).collect()
        };
        let middle = |points: &[[f64; 2]]| {
            [0, 1].map(|a| points.iter().map(|p| p[a]).sum::<f64>() / points.len() as f64)
        };
        let inked: HashSet<[usize; 2]> = part.iter().map(|p| [p % SIDE, p / SIDE]).collect();
        let to = middle(&inked.iter().map(|p| p.map(|n| n as f64 + 0.5)).collect::<Vec<_>>());
        let of_turn = |degrees: i32| {
            let (sin, cos) = f64::from(degrees).to_radians().sin_cos();
            let points = points(&|x, y| shape(x * cos + y * sin, y * cos - x * sin));
            let from = middle(&points);
            let scale = (part.len() as f64 / points.len() as f64).sqrt() * 25.6;
            let pixel = |p: &[f64; 2]| [0, 1].map(|a| (to[a] + scale * (p[a] - from[a])) as usize);
            let covered: HashSet<[usize; 2]> = points.iter().map(pixel).collect();
            covered.intersection(&inked).count() as f64 / covered.union(&inked).count() as f64
        };
        [-5, 0, 5].map(of_turn).into_iter().fold(0.0, f64::max)
    }

    #[test]
    fn pictures_show_what_their_captions_say() {
        for number in 0..Scene::ALL {
            let scene = Scene::nth(number);
            let picture = scene.draw(7, number as u32 % 5);
            let parts = parts(&picture);
            let caption = scene.caption();
            assert_eq!(parts.len(), scene.count + 1, "{caption}");
            let all: Vec<usize> = parts.iter().flatten().copied().collect();
            let mean = |along: fn(usize) -> usize| {
                all.iter().map(|p| along(*p) as f64 + 0.5).sum::<f64>() / all.len() as f64 / SIDE as f64
            };
            let third = |x: f64| (x > 0.4) as usize + (x > 0.6) as usize;
            let place = match (third(mean(|p| p % SIDE)), third(mean(|p| p / SIDE))) {
                (0, 0) => "左上",
                (2, 0) => "右上",
                (0, 2) => "左下",
                (2, 2) => "右下",
                (1, 1) => "真ん中",
                other => panic!("{caption}: {other:?}"),
            };
            assert!(caption.starts_with(place), "{caption}: {place}");
            for part in &parts {
                assert_eq!(colour(&picture, part), scene.colour, "{caption}");
                let fits = |n: &usize| overlap(part, SHAPES[*n].1);
                let best = (0..SHAPES.len()).max_by(|a, b| fits(a).total_cmp(&fits(b))).unwrap();
                assert_eq!(SHAPES[best].0, SHAPES[scene.shape].0, "{caption}");
            }
        }
    }
}
