//! LAVIS's `linear_warmup_cosine_lr`: a linear warm-up inside epoch 0, then a cosine by whole epochs.
//!   epoch 0:  min(init_lr, warmup_lr + (init_lr - warmup_lr) step / max(warmup_steps, 1))
//!   later:    (init_lr - min_lr) (1 + cos(pi epoch / max_epoch)) / 2 + min_lr
//!   from max_epoch on, where LAVIS ends: min_lr

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
        let last = self.max_epoch.max(1);
        let angle = std::f64::consts::PI * epoch.min(last) as f64 / last as f64;
        (self.init_lr - self.min_lr) * 0.5 * (1.0 + angle.cos()) + self.min_lr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_never_climbs_after_the_warm_up() {
        let schedule =
            Schedule { init_lr: 1e-4, min_lr: 1e-5, warmup_lr: 1e-6, warmup_steps: 3, max_epoch: 2 };
        let rates: Vec<f64> = (0..40).map(|step| schedule.lr(step, 5)).collect();
        // (1e-4 - 1e-6) / 3 a step, from 1e-6 on.
        assert!(rates[0] == 1e-6 && (rates[1] - 3.4e-5).abs() < 1e-18, "{rates:?}");
        assert!(rates[3..].windows(2).all(|w| w[1] <= w[0]), "{rates:?}");
        // The end of two epochs is step 10; the half of the cosine is epoch 1.
        assert_eq!(rates[4], 1e-4);
        assert!((rates[5] - 5.5e-5).abs() < 1e-18);
        assert!(rates[10..].iter().all(|lr| *lr == 1e-5));
    }
}
