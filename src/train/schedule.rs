//! LAVIS's `linear_warmup_cosine_lr`: a linear warm-up inside epoch 0, then a cosine by whole epochs.
//!   epoch 0:  min(init_lr, warmup_lr + (init_lr - warmup_lr) step / max(warmup_steps, 1))
//!   later:    (init_lr - min_lr) (1 + cos(pi epoch / max_epoch)) / 2 + min_lr

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub init_lr: f64,
    pub min_lr: f64,
    pub warmup_lr: f64,
    pub warmup_steps: u64,
    pub max_epoch: u64,
}

impl Schedule {
    /// The learning rate of optimizer step `step` (from 0).
    pub fn lr(&self, step: u64, steps_per_epoch: u64) -> f64 {
        let epoch = step / steps_per_epoch.max(1);
        if epoch == 0 {
            let share = step as f64 / self.warmup_steps.max(1) as f64;
            return self.init_lr.min(self.warmup_lr + (self.init_lr - self.warmup_lr) * share);
        }
        let angle = std::f64::consts::PI * epoch as f64 / self.max_epoch.max(1) as f64;
        (self.init_lr - self.min_lr) * 0.5 * (1.0 + angle.cos()) + self.min_lr
    }
}
