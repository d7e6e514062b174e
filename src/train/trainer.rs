//! One optimizer step after another: losses, gradients, the check that they are finite, AdamW.
//!
//! A step depends on the parameters, the moments, the step's number, the seed and its batches: nothing else. So a run that is
//! resumed from any step continues bit for bit.

use super::optimizer::{AdamW, Hyper};
use super::schedule::Schedule;
use super::step::{StepLosses, StepPlan, Unread, Values};
use crate::group::Group;
use crate::model::{Batch, Image, Model, Profile, Sampling, sites};
use crate::nn::{DropoutPlan, Id, Params, Pass};
use crate::ops::Squares;
use crate::tensor::{Buffer, Device, Gradients, Storage, Tensor, watch_non_finite};
use crate::{Error, Kind, Result};

/// Where contrastive negatives come from when gradients are accumulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contrast {
    /// The micro-batch (as LAVIS accumulates).
    MicroBatch,
    /// All micro-batches of the step.
    Accumulated,
    /// All micro-batches, each standing for a process of LAVIS: matching negatives, too, come from all.
    World,
}

impl Contrast {
    /// As the settings name it.
    pub const fn name(self) -> &'static str {
        match self {
            Contrast::MicroBatch => "micro-batch",
            Contrast::Accumulated => "accumulated",
            Contrast::World => "world",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    pub seed: u64,
    pub dropout: f32,
    pub profile: Profile,
    pub contrast: Contrast,
    pub steps_per_epoch: u64,
    pub schedule: Schedule,
    pub hyper: Hyper,
}

/// A micro-batch that owns its data (see [`Batch`]), with what to call its samples in messages.
pub struct Micro {
    pub image: Image,
    pub text: Vec<Vec<u32>>,
    pub image_id: Option<Vec<i64>>,
    pub names: Vec<String>,
}

impl Micro {
    fn batch(&self) -> Batch<'_> {
        Batch { image: self.image.clone(), text: &self.text, image_id: self.image_id.as_deref() }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    pub step: u64,
    pub lr: f64,
    pub losses: StepLosses,
    pub gradient_norm: f64,
    pub temperature: f64,
    /// False if loss scaling met an infinity and the step was left out.
    pub applied: bool,
}

/// Loss scaling as torch.amp.GradScaler: for f16; off (scale 1) otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    pub enabled: bool,
    pub scale: f64,
    pub clean_steps: u32,
    /// Steps in a row that were left out, up to the last one.
    pub skipped: u32,
}

/// So many steps in a row that are left out are worth a warning, and so many end a run: no scale is small enough.
pub const SKIPPED_WARNS: u32 = 10;
pub const SKIPPED_STOPS: u32 = 50;

impl LossScale {
    pub const OFF: LossScale = LossScale { enabled: false, scale: 1.0, clean_steps: 0, skipped: 0 };
    pub const F16: LossScale = LossScale { enabled: true, scale: 65536.0, clean_steps: 0, skipped: 0 };

    /// Halves on an overflow, doubles after 2000 clean steps. False: leave the step out.
    pub fn update(&mut self, finite: bool) -> bool {
        if !self.enabled {
            return true;
        }
        self.skipped = if finite { 0 } else { self.skipped + 1 };
        if !finite {
            (self.scale, self.clean_steps) = (self.scale * 0.5, 0);
        } else {
            self.clean_steps += 1;
            if self.clean_steps == 2000 {
                (self.scale, self.clean_steps) = (self.scale * 2.0, 0);
            }
        }
        finite
    }
}

pub struct Trainer {
    pub model: Model,
    pub params: Params,
    pub optimizer: AdamW,
    pub options: Options,
    pub scale: LossScale,
    /// Steps done, left-out ones included.
    pub step: u64,
    /// The processes that share its micro-batches.
    pub group: Group,
    ahead: Option<Ahead>,
    /// An error left parameters of which some have taken a step that others have not.
    torn: bool,
}

/// A second stream of the device, in which a frozen image encoder prefetches the next step's image tokens while this one
/// trains.
struct Ahead {
    device: Device,
    params: Params,
    /// Of which step, its image tokens, and the pictures, which are read until they are done.
    tokens: Option<(u64, Tensor, Tensor)>,
}

impl Trainer {
    pub fn new(model: Model, params: Params, options: Options) -> Result<Trainer> {
        let s = options.schedule;
        for (name, lr) in [("init_lr", s.init_lr), ("min_lr", s.min_lr), ("warmup_lr", s.warmup_lr)] {
            if !(lr.is_finite() && lr >= 0.0) {
                return Err(Error::argument("train", name, "a finite number, at least 0", lr));
            }
        }
        if !(0.0..1.0).contains(&options.dropout) {
            return Err(Error::argument("train", "dropout", "0 <= p < 1", options.dropout));
        }
        let optimizer = AdamW::new(&params, options.hyper)?;
        // Gradients in f16 vanish without it.
        let scale = if params.precision().rest == Storage::F16 { LossScale::F16 } else { LossScale::OFF };
        let group = Group::alone();
        Ok(Trainer { model, params, optimizer, options, scale, step: 0, group, ahead: None, torn: false })
    }

    fn plan(&self) -> StepPlan {
        let (seed, step) = (self.options.seed, self.step as u32);
        StepPlan {
            profile: self.options.profile,
            // Also where p is 0: a language model has a dropout of its own, a trained image encoder drop path.
            drop: Some(DropoutPlan { p: self.options.dropout, seed, step }),
            seed,
            step,
            scale: self.scale.scale,
        }
    }

    /// One optimizer step over one or more micro-batches.
    pub fn step(&mut self, micro: &[Micro]) -> Result<StepReport> {
        self.step_ahead(micro, &[])
    }

    /// The tokens of this step's pictures, if the last step prefetched them.
    fn seen_ahead(&mut self) -> Result<Option<Tensor>> {
        let Some(ahead) = &mut self.ahead else { return Ok(None) };
        let Some((step, tokens, _pictures)) = ahead.tokens.take() else { return Ok(None) };
        let device = self.params.device();
        device.after(&ahead.device)?;
        Ok((step == self.step).then(|| tokens.on(device)))
    }

    /// Opens the second stream, where there is use for it, with as much memory as [`Trainer::held_ahead`] said of a run like
    /// the coming one. False if there is not as much.
    pub fn open_ahead(&mut self, held: [usize; 2]) -> Result<bool> {
        self.second_stream()?;
        self.ahead.as_ref().map_or(Ok(true), |ahead| ahead.device.reserve(held))
    }

    fn second_stream(&mut self) -> Result<()> {
        if self.ahead.is_some() || self.model.trains_vit() {
            return Ok(());
        }
        self.ahead = self.params.device().side()?.map(|device| {
            let params = self.params.on(&device);
            Ahead { device, params, tokens: None }
        });
        Ok(())
    }

    /// What the second stream's pool has of the driver.
    pub fn held_ahead(&self) -> [usize; 2] {
        self.ahead.as_ref().map_or([0; 2], |ahead| ahead.device.held())
    }

    /// Begins to prefetch the next step's image tokens, where there are streams and the image encoder is frozen.
    fn look_ahead(&mut self, next: &[Micro]) -> Result<()> {
        let [next] = next else { return Ok(()) };
        let Image::Pixels(pixels) = &next.image else { return Ok(()) };
        self.second_stream()?;
        let Some(ahead) = &mut self.ahead else { return Ok(()) };
        // Its pictures have been uploaded, and whoever used its pool's memory last is done.
        let image = Pass::inference(&self.params).here(pixels)?;
        ahead.device.after(self.params.device())?;
        let pass = Pass::inference(&ahead.params);
        let tokens = self.model.vit_tokens(&pass, &image.on(&ahead.device), |_, _| {})?;
        ahead.tokens = Some((self.step + 1, tokens, image));
        Ok(())
    }

    /// [`Trainer::step`]; meanwhile a GPU looks at the pictures of `next`, the next step's one micro-batch. The numbers are those of
    /// `step`.
    pub fn step_ahead(&mut self, micro: &[Micro], next: &[Micro]) -> Result<StepReport> {
        let seen = self.seen_ahead()?;
        self.look_ahead(next)?;
        if micro.is_empty() {
            return Err(Error::argument("train", "micro-batches", "at least one", "none"));
        }
        let mut batches: Vec<Batch> = micro.iter().map(Micro::batch).collect();
        if let (Some(tokens), [batch]) = (&seen, &mut batches[..]) {
            batch.image = Image::Tokens(tokens.clone());
        }
        let (plan, mut grads) = (self.plan(), Gradients::new());
        self.group.at_step(self.step + 1);
        let losses = match self.options.contrast {
            Contrast::Accumulated if batches.len() > 1 => {
                self.model.step_joint(&self.params, &batches, plan, &mut grads)
            }
            Contrast::World if batches.len() * self.group.size() > 1 => {
                self.model.step_world(&self.params, &batches, plan, &self.group, &mut grads)
            }
            _ => self.model.step_separate(&self.params, &batches, plan, &mut grads),
        };
        let unread = match losses {
            Ok(unread) => unread,
            Err(e) if e.kind() != Kind::NonFinite => return Err(e),
            Err(_) => return Err(self.non_finite("loss", &grads, &batches, micro, plan)),
        };
        let lr = self.options.schedule.lr(self.step, self.options.steps_per_epoch);
        let (losses, gradient_norm, temperature) = self.update(&unread, &grads, lr)?;
        if !losses.losses.iter().all(|x| x.is_finite()) {
            return Err(self.non_finite("loss", &grads, &batches, micro, plan));
        }
        if !gradient_norm.is_finite() && !self.scale.enabled {
            return Err(self.non_finite("gradient", &grads, &batches, micro, plan));
        }
        let applied = self.scale.update(gradient_norm.is_finite());
        self.step += 1;
        Ok(StepReport { step: self.step, lr, losses, gradient_norm, temperature, applied })
    }

    /// Whether the numbers are those of `step` steps: an error in the middle of an update leaves them between two.
    pub fn is_whole(&self) -> bool {
        !self.torn
    }

    /// Gives back the memory of the next step's image tokens.
    pub fn forget_ahead(&mut self) {
        self.ahead = None;
    }

    /// Updates the parameters, unless a loss or a gradient is not finite; then says what losses, gradient norm and temperature
    /// are. A GPU is asked for the update before anybody knows: it looks for itself, and is waited for once.
    fn update(&mut self, unread: &Unread, grads: &Gradients, lr: f64) -> Result<(StepLosses, f64, f64)> {
        let squares = self.optimizer.squares(grads, unread.total()?.as_ref())?;
        let by = (lr, 1.0 / self.scale.scale);
        let temp = self.params.find("temp");
        let Squares::OnGpu(sum) = &squares else {
            let losses = self.of_all(unread.read(&[])?.0)?;
            let norm = squares.norm()? / self.scale.scale;
            if norm.is_finite() && losses.losses.iter().all(|x| x.is_finite()) {
                self.torn = true;
                self.optimizer.step_if(&mut self.params, grads, by, None)?;
                self.torn = false;
            }
            let temperature = temp.map_or(Ok(f64::NAN), |id| self.params.get(id).item())?;
            return Ok((losses, norm, temperature));
        };
        self.torn = true;
        self.optimizer.step_if(&mut self.params, grads, by, Some(&squares))?;
        let more = [Some(sum), temp.map(|id| self.params.get(id))];
        let (losses, more) = unread.read(&more.into_iter().flatten().collect::<Vec<_>>())?;
        let losses = self.of_all(losses)?;
        // What was read came behind the update.
        self.torn = false;
        let norm = more.first().map_or(f64::NAN, |sum| sum.sqrt()) / self.scale.scale;
        if !norm.is_finite() {
            self.optimizer.undo();
        }
        Ok((losses, norm, more.get(1).copied().unwrap_or(f64::NAN)))
    }

    /// The losses of a step from the parts of all processes.
    fn of_all(&self, own: Vec<Values>) -> Result<StepLosses> {
        let all = self.group.gather("gather losses", &own.concat())?.concat();
        Ok(StepLosses::of(all.as_chunks().0))
    }

    /// Says where the first number that is not finite is: among the parameters, the pictures, the activations or the
    /// gradients.
    fn non_finite(
        &self,
        what: &str,
        grads: &Gradients,
        batches: &[Batch],
        micro: &[Micro],
        plan: StepPlan,
    ) -> Error {
        let is_bad = |t: &Tensor| t.first_non_finite().is_ok_and(|found| found.is_some());
        let bad_param = self.params.iter().find(|(_, _, t)| is_bad(t));
        let place = if let Some((_, spec, _)) = bad_param {
            format!("parameter {}", spec.name)
        } else if let Some(i) = batches.iter().position(|b| is_bad(b.image.tensor())) {
            format!("pictures of micro-batch {i}")
        } else {
            let run = || {
                batches.iter().enumerate().try_for_each(|(i, b)| {
                    let site = sites::micro_batch(i);
                    let pass = Pass::untracked(&self.params, plan.drop).at_site(site);
                    if self.model.llm().is_some() {
                        return self.model.stage2(&pass, b, None).map(drop);
                    }
                    let sampling = Sampling::Draw { seed: plan.seed, step: plan.step, site };
                    self.model.stage1(&pass, b, plan.profile, sampling, None).map(drop)
                })
            };
            match watch_non_finite(run).1 {
                Some(op) => format!("result of {op}"),
                None => {
                    self.bad_gradient(grads).unwrap_or_else(|| format!("the {what} of all micro-batches"))
                }
            }
        };
        let names: Vec<&str> = micro.iter().flat_map(|m| m.names.iter().map(String::as_str)).collect();
        Error::new(Kind::NonFinite, format!("train: step {}", self.step + 1))
            .about(format!("first number that is not finite: {place}"))
            .expected(format!("a finite {what}"))
            .got(format!("one that is not; the batch was {}", names.join(", ")))
            .fix(if self.params.precision().rest == Storage::F16 {
                "f16 ends at 65,504: start again with --dtype bf16, look at these samples, or lower init_lr"
            } else {
                "look at these samples, lower init_lr, or resume from the last checkpoint"
            })
    }

    /// The first gradient, in the order backward reaches them, that is not finite.
    fn bad_gradient(&self, grads: &Gradients) -> Option<String> {
        let bad = |id: Id| {
            let whole =
                |g: &Buffer| Tensor::of_buffer(g.clone(), &[g.len()]).ok()?.first_non_finite().ok()?;
            grads.get(id.0).and_then(whole).is_some()
        };
        let last = self.params.iter().filter(|(id, _, _)| bad(*id)).last();
        last.map(|(_, spec, _)| format!("gradient of {}", spec.name))
    }
}
