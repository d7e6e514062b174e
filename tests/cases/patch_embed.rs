//! Patches of a picture through a linear layer, behind a class token, each with its position added

use super::harness::{Case, Input, Rng, on_kernels, places, prove};
use qformer::device::Real;
use qformer::tensor::Tensor;
use qformer::{Result, ops};

#[derive(Debug)]
struct Patches {
    b: usize,
    channels: usize,
    s: usize,
    p: usize,
    w: usize,
    image: Vec<f64>,
    inputs: [Vec<f64>; 4],
}

fn draw(rng: &mut Rng) -> Patches {
    let (b, channels, p, w) =
        (rng.pick(&[0, 1, 1, 2, 3]), rng.pick(&[1, 3, 3]), rng.pick(&[1, 2, 3, 4]), rng.size());
    // Some pictures have pixels left over at their right and lower edges.
    let s = p * rng.pick(&[1, 2, 3]) + rng.below(p);
    draw_of(rng, [b, channels, s, p, w])
}

fn draw_of(rng: &mut Rng, [b, channels, s, p, w]: [usize; 5]) -> Patches {
    let n = (s / p) * (s / p) + 1;
    let image = rng.values(b * channels * s * s).iter().map(|x| f64::from(*x as f32)).collect();
    let inputs = [w * channels * p * p, w, w, n * w].map(|n| rng.values(n));
    Patches { b, channels, s, p, w, image, inputs }
}

impl Case for Patches {
    fn inputs(&self) -> Vec<Input> {
        let (c, p, w) = (self.channels, self.p, self.w);
        let n = self.inputs[3].len() / w;
        let shapes = [vec![w, c, p, p], vec![w], vec![1, 1, w], vec![1, n, w]];
        shapes.iter().zip(&self.inputs).map(|(s, v)| Input::new(s, v.clone())).collect()
    }

    fn on_gpu(&self) -> bool {
        self.channels == 3
    }

    fn dense(&self) -> Vec<bool> {
        vec![true, false, false, false]
    }

    fn run(&self, x: &[Tensor]) -> Result<Tensor> {
        let image =
            Tensor::of(x[0].dtype(), &self.image, &[self.b, self.channels, self.s, self.s])?.like(&x[1])?;
        ops::patch_embed(&image, &x[0], &x[1], &x[2], &x[3])
    }

    fn define<T: Real>(&self, x: &[Vec<T>]) -> (Vec<usize>, Vec<T>) {
        let (c, s, p, w) = (self.channels, self.s, self.p, self.w);
        let side = s / p;
        let [weight, bias, cls, pos] = [&x[0], &x[1], &x[2], &x[3]];
        let mut y = Vec::new();
        for b in 0..self.b {
            y.extend((0..w).map(|o| cls[o] + pos[o]));
            for (g, (gy, gx)) in (0..side).flat_map(|gy| (0..side).map(move |gx| (gy, gx))).enumerate() {
                for o in 0..w {
                    let mut sum = bias[o] + pos[(1 + g) * w + o];
                    for ch in 0..c {
                        for (i, j) in (0..p).flat_map(|i| (0..p).map(move |j| (i, j))) {
                            let pixel = self.image[((b * c + ch) * s + gy * p + i) * s + gx * p + j];
                            sum += T::of(pixel) * weight[((o * c + ch) * p + i) * p + j];
                        }
                    }
                    y.push(sum);
                }
            }
        }
        (vec![self.b * (side * side + 1), w], y)
    }
}

#[test]
fn equals_its_definition_and_differences() {
    prove(draw);
}

/// Patches of 14 and 16 pixels, one pixel beyond the last whole patch.
#[test]
fn patches_of_the_models_on_kernels() {
    let sizes = [[2, 3, 29, 14, 40], [1, 3, 16, 16, 13], [1, 3, 6, 2, 8]];
    on_kernels(sizes.map(|sizes| draw_of(&mut Rng::new(3), sizes)));
}

/// (v / 255 - mean) / std of every byte there is, in f32 and in this order, on every device.
#[test]
fn planes_of_pixels_are_torchvisions() {
    let (size, mean, std) = (10, [0.48f32, 0.45, 0.40], [0.27f32, 0.26, 0.28]);
    let bytes: Vec<u8> = (0..2 * size * size * 3).map(|i| (i * 7 % 256) as u8).collect();
    let want: Vec<f32> = (0..bytes.len())
        .map(|i| {
            let (picture, c, pixel) = (i / (3 * size * size), i / (size * size) % 3, i % (size * size));
            let v = bytes[(picture * size * size + pixel) * 3 + c];
            (f32::from(v) / 255.0 - mean[c]) / std[c]
        })
        .collect();
    for place in places() {
        let planes = ops::pixel_planes(place, &bytes, size, mean, std).unwrap();
        assert_eq!(planes.shape().sizes(), [2, 3, size, size]);
        assert_eq!(planes.to_f32().unwrap(), want, "{place:?}");
    }
}
