//! Scenes: one kind of thing, so many of it, in one place; the picture of it and the sentence that says so.
//!
//!   8 colours x 6 shapes x 5 places x 3 counts = 720 scenes
//!
//! A scene has as many pictures as asked for: place, size, tint and paper differ a little. A picture depends on the
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
    [("丸", disc), ("三角", triangle), ("四角", square), ("星", star), ("十字", cross), ("ハート", heart)];
const PLACES: [(&str, [f64; 2]); 5] = [
    ("左上", [0.27, 0.27]),
    ("右上", [0.73, 0.27]),
    ("左下", [0.27, 0.73]),
    ("右下", [0.73, 0.73]),
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
    pub colour: usize,
    pub shape: usize,
    pub place: usize,
    pub count: usize,
}

impl Scene {
    pub const ALL: usize = COLOURS.len() * SHAPES.len() * PLACES.len() * COUNTS.len();

    /// The scene of a number below [`Scene::ALL`].
    pub fn nth(number: usize) -> Scene {
        let (rest, count) = (number / COUNTS.len(), number % COUNTS.len());
        let (rest, place) = (rest / PLACES.len(), rest % PLACES.len());
        Scene { colour: rest / SHAPES.len() % COLOURS.len(), shape: rest % SHAPES.len(), place, count }
    }

    pub fn number(&self) -> usize {
        let Scene { colour, shape, place, count } = self;
        ((colour * SHAPES.len() + shape) * PLACES.len() + place) * COUNTS.len() + count
    }

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
        let radius = between(6, 0.11, 0.125);
        let middle = [0, 1].map(|a| PLACES[self.place].1[a] + between(7 + a, -0.02, 0.02));
        let things = ARRANGEMENTS[self.count].iter().enumerate();
        let centre = |(i, at): (usize, &[f64; 2])| {
            [0, 1].map(|a| middle[a] + 0.132 * at[a] + between(9 + 2 * i + a, -0.008, 0.008))
        };
        let centres: Vec<[f64; 2]> = things.map(centre).collect();
        let mut rgb = Vec::with_capacity(SIDE * SIDE * 3);
        for pixel in 0..SIDE * SIDE {
            let share = coverage([pixel % SIDE, pixel / SIDE], &centres, radius, SHAPES[self.shape].1);
            rgb.extend((0..3).map(|c| (paper[c] + (ink[c] - paper[c]) * share).round() as u8));
        }
        Picture { width: SIDE, height: SIDE, rgb }
    }
}

/// Where the things of a scene are, in steps from its middle, by how many they are.
const ARRANGEMENTS: [&[[f64; 2]]; 3] =
    [&[[0.0, 0.0]], &[[-1.0, 0.0], [1.0, 0.0]], &[[-1.0, 0.9], [1.0, 0.9], [0.0, -0.9]]];

/// The share of a pixel that lies in one of the things.
fn coverage(pixel: [usize; 2], centres: &[[f64; 2]], radius: f64, inside: Shape) -> f64 {
    let place = |p: usize, i: usize| (p as f64 + (i as f64 + 0.5) / FINE as f64) / SIDE as f64;
    let reach = 1.2 * radius + 1.0 / SIDE as f64;
    let near = |c: &&[f64; 2]| (0..2).all(|a| (place(pixel[a], 0) - c[a]).abs() < reach);
    let near: Vec<&[f64; 2]> = centres.iter().filter(near).collect();
    let hit = |i: &usize| {
        let at = [place(pixel[0], i % FINE), place(pixel[1], i / FINE)];
        near.iter().any(|c| inside((at[0] - c[0]) / radius, (at[1] - c[1]) / radius))
    };
    (0..FINE * FINE).filter(hit).count() as f64 / (FINE * FINE) as f64
}

fn disc(x: f64, y: f64) -> bool {
    x * x + y * y < 0.9
}

fn square(x: f64, y: f64) -> bool {
    x.abs().max(y.abs()) < 0.8
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
        x * angle.sin() - y * angle.cos() > 0.33
    };
    x * x + y * y < 1.2 && (0..5).filter(|k| beyond(*k)).count() < 2
}

fn heart(x: f64, y: f64) -> bool {
    let (x, y) = (1.25 * x, -1.2 * y + 0.1);
    let a = x * x + y * y - 1.0;
    a * a * a - x * x * y * y * y < 0.0
}
