//! What a run will do, in words: settings, data, steps, memory. It is worked out and nothing is computed.

use super::Job;
use crate::Result;
use crate::files::bytes;
use crate::model::Model;
use crate::train::config;
use crate::train::plan::Plan;

impl Job {
    /// Settings, data and plan.
    pub(super) fn describe(&self) -> Result<String> {
        let mut text = format!("# settings\n{}", config::resolved(&self.config));
        let sizes = serde_json::to_value(&self.start.model.config).unwrap_or_default();
        let sizes: Vec<String> =
            sizes.as_object().into_iter().flatten().map(|(name, n)| format!("{name} {n}")).collect();
        text += &format!("\n# model\n{}\n\n# data\n", sizes.join(", "));
        for (name, set) in self.corpus.names.iter().zip(&self.corpus.sets) {
            text += &format!("{name}: {}\n", set.report);
        }
        for set in self.validation.iter().flat_map(|v| &v.sets) {
            text += &format!("validation: {}\n", set.report);
        }
        text += &format!("\n# plan\n{}", self.plan);
        if let Some(cache) = self.config.cache() {
            let views = self.corpus.pictures() * cache.views;
            text += &format!(
                "\ncache          {} of tokens of {views} views in {}",
                bytes(views as u64 * cache.record(&self.start.model.config)),
                cache.folder.display()
            );
        }
        if let Some(gpu) = self.device.gpu() {
            text +=
                &format!("\n{}", self.steps(&self.config).rehearse(gpu.memory().map(|m| m.usable), true)?);
        }
        if self.config.start.is_none() && self.config.trains_vit() {
            text += &format!("\n{}", self.what_start_saves()?);
        }
        Ok(text)
    }

    /// A model from nothing has an image encoder to train, which one from a model directory has not.
    fn what_start_saves(&self) -> Result<String> {
        let sizes = &self.start.model.config;
        let mut frozen = self.config.clone();
        frozen.train_vit = Some(false);
        let (_, specs) = Model::new(sizes.clone(), false)?;
        let on_cpu = self.device.gpu().is_none();
        let plan = Plan::new(&frozen, sizes, &specs, self.longest, self.length, on_cpu);
        let (now, then) = if on_cpu {
            let total = |plan: &Plan| plan.memory.map_or(0, |m| m.total());
            (total(&self.plan), total(&plan))
        } else {
            let peak = |config| self.steps(config).rehearse(None, false).map(|r| r.peak);
            (peak(&self.config)?, peak(&frozen)?)
        };
        Ok(format!(
            "image encoder  trained, too, since nothing gives it its numbers: {:.2} million parameters more; a model that is given \
             (--start) has one, which stays frozen: {} in place of {}",
            (self.plan.trained - plan.trained) as f64 / 1e6,
            bytes(then),
            bytes(now)
        ))
    }
}
