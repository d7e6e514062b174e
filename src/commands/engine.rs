//! What commands that run a trained model share: where to compute, opening the model, pictures decoded ahead on threads.

use super::inputs::Picture;
use crate::console::progress::Progress;
use crate::console::signals::Stop;
use crate::data::{Loader, Options, Order};
use crate::nn::{self, Gelu, Precision};
use crate::pretrained::{self, Opening, Pretrained};
use crate::tensor::{Chunk, Device};
use crate::terminal::note;
use crate::{Error, Kind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(clap::Args)]
pub struct ModelArgs {
    /// Folder of a trained model, as `train` writes it
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub place: PlaceArgs,
    /// Pictures computed together (on a GPU rounded up to a multiple of 32); results do not depend on it
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Running")]
    pub batch: u32,
    /// No progress on standard error
    #[arg(long, short, help_heading = "Running")]
    pub quiet: bool,
    #[command(flatten)]
    pub orientation: OrientationArgs,
}

#[derive(clap::Args)]
pub struct OrientationArgs {
    /// Turn pictures upright as their EXIF orientation says, also for a model that was trained without (LAVIS's are)
    #[arg(long, help_heading = "Running")]
    exif_orientation: bool,
}

impl OrientationArgs {
    pub fn apply(&self, model: &mut Pretrained) {
        model.model.config.exif_orientation |= self.exif_orientation;
    }
}

#[derive(clap::Args)]
pub struct PlaceArgs {
    /// Where to compute: auto (a GPU if one answers, else the CPU), cpu, cuda (cuda:1, ..), host (the GPU's kernels emulated on
    /// the CPU, slowly); only counted, nothing computed, in bench: plan, plan:24 (GB) or plan:CARD (rtx-4080-laptop, rtx-3090,
    /// rtx-4090, rtx-5090, a100, h100, h200)
    #[arg(long, default_value = "auto", help_heading = "Running")]
    pub device: String,
    /// On a GPU, how dense layers and attention store what they work on: f32, f16, bf16 (default; the image encoder in
    /// f16, as its weights were published) or bf16-vit (the image encoder, too)
    #[arg(long, value_parser = ["f32", "f16", "bf16", "bf16-vit"], help_heading = "Running")]
    pub dtype: Option<String>,
    /// GELU of a frozen image encoder on a GPU: exact (LAVIS's), or tanh: at the end of the matmul, with no kernel of its
    /// own, off by up to 5e-4 per activation
    #[arg(long, default_value = "exact", value_parser = ["exact", "tanh"], help_heading = "Running")]
    pub vit_gelu: String,
}

impl PlaceArgs {
    /// `say` is told which device it is.
    pub fn open(&self, say: impl FnOnce(String)) -> Result<(Device, Precision)> {
        nn::place(&self.device, self.dtype.as_deref(), Gelu::named(&self.vit_gelu)?, say)
    }
}

/// The model of a folder, of the first stage, where the command is to compute.
pub fn open(folder: &Path, run: &RunArgs) -> Result<Pretrained> {
    if pretrained::llm_part(folder)?.is_some() {
        let want = "a model of stage 1, which searches and matches";
        return Err(Error::file("open model", folder, want, "one of stage 2, which has a language model")
            .fix("give the stage-1 model that it began from; qformer caption and evaluate take this one"));
    }
    open_stage(folder, run, None)
}

/// The model of a folder, of either stage; `llm` is where its language model is, if not where the folder says.
pub fn open_stage(folder: &Path, run: &RunArgs, llm: Option<&Path>) -> Result<Pretrained> {
    let say = |line: String| {
        if !run.quiet {
            note!("{line}")
        }
    };
    let (device, precision) = run.place.open(say)?;
    device.check_computes("open model")?;
    let in_16_bits = device.keeps_storages();
    let opening = Opening { llm: llm.map(Path::to_path_buf), in_16_bits, ..Opening::default() };
    let mut model = Pretrained::open_with(folder, &opening)?;
    run.orientation.apply(&mut model);
    model.to(&device, precision)
}

/// Says what of texts the model does not see: words that its vocabulary lacks, and what is behind the last token it reads.
pub fn note_texts<T: AsRef<str>>(model: &Pretrained, texts: &[T], quiet: bool) {
    const SHOWN: usize = 5;
    let (tokenizer, most) = (&model.tokenizer, model.model.config.max_txt_len);
    let note = |text: &str| {
        let clean = crate::text::clean_caption(text);
        let (all, short) = (tokenizer.encode(&clean), tokenizer.caption(text, most));
        let lacking = |word: &String| {
            tokenizer.encode(word).contains(&tokenizer.special().unk).then(|| format!("{word:?}"))
        };
        let lacks: Vec<String> = tokenizer.words(&clean).iter().filter_map(lacking).collect();
        let unknown = (!lacks.is_empty()).then(|| {
            format!("{} are not in the model's vocabulary and are taken for [UNK]", lacks.join(", "))
        });
        let cut = all.len().checked_sub(short.len()).filter(|n| *n > 0).map(|n| {
            let read = tokenizer.decode(&short);
            format!(
                "its last {n} of {} tokens are not read: the model reads {most}, up to {read:?}",
                all.len() - 2
            )
        });
        let said: Vec<String> = unknown.into_iter().chain(cut).collect();
        (!said.is_empty()).then(|| format!("note: the text {text:?}: {}", said.join("; ")))
    };
    let notes: Vec<String> =
        if quiet { Vec::new() } else { texts.iter().filter_map(|t| note(t.as_ref())).collect() };
    notes.iter().take(SHOWN).for_each(|n| note!("{n}"));
    if notes.len() > SHOWN {
        note!("note: the same of {} more texts", notes.len() - SHOWN);
    }
}

/// Pictures prefetched on threads, in order; broken ones are reported, counted and left out.
pub struct Stream<T> {
    operation: &'static str,
    loader: Option<Loader<T>>,
    pictures: Arc<Vec<Picture>>,
    told: usize,
    progress: Progress,
    stop: Stop,
}

impl<T: Send + 'static> Stream<T> {
    /// `what` is being done with pictures by a model there; `load` runs on the threads.
    pub fn start(
        (operation, what): (&'static str, &'static str),
        (pictures, device): (Vec<Picture>, &Device),
        run: &RunArgs,
        load: impl Fn(&Picture) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Stream<T>> {
        let pictures = Arc::new(pictures);
        let stop = Stop::listen()?;
        let progress = Progress::of_pictures(what, pictures.len(), run.quiet);
        let mut stream =
            Stream { operation, loader: None, pictures: pictures.clone(), told: 0, progress, stop };
        if !pictures.is_empty() {
            let batch = Chunk::of(device).whole(run.batch as usize);
            let order = Arc::new(Order::in_turn(batch, pictures.len())?);
            let default = Options::default();
            let workers = default.workers.min(pictures.len());
            let options = Options { workers, bad_share: 1.0, ..default };
            stream.loader = Some(Loader::start(order, options, move |i, _| load(&pictures[i]))?);
        }
        Ok(stream)
    }

    pub fn picture(&self, i: usize) -> &Picture {
        &self.pictures[i]
    }

    /// The next batch with each picture's place; `None` at the end or when a signal asks to stop.
    pub fn next(&mut self) -> Result<Option<Vec<(usize, T)>>> {
        if self.stop.signal().is_some() {
            return Ok(None);
        }
        let Some(loader) = &mut self.loader else { return Ok(None) };
        let batch = loader.next_batch()?;
        let bad = loader.bad();
        let waited = &mut || loader.waited_share();
        for b in &bad[self.told.min(bad.len())..] {
            self.progress.warn(format!("skipped {:?}: {}", self.pictures[b.index].name, b.reason));
        }
        self.progress.add(bad.len() - self.told.min(bad.len()), waited);
        self.told = bad.len();
        Ok(batch.map(|b| b.indices.into_iter().zip(b.items).collect()))
    }

    /// `n` pictures are done.
    pub fn done(&mut self, n: usize) {
        if let Some(loader) = &mut self.loader {
            self.progress.add(n, || loader.waited_share());
        }
    }

    /// A message that is shown even if nothing else is.
    pub fn warn(&self, text: impl std::fmt::Display) {
        self.progress.warn(text);
    }

    /// A signal asks to stop.
    pub fn stopped(&self) -> bool {
        self.stop.signal().is_some()
    }

    /// The end: pictures per second, and the error to end with, if a signal stopped the command or pictures were
    /// left out (`more` of them before the stream began). `single` means that the first broken picture is all there was.
    pub fn end(self, single: bool, more: usize, advice: &str) -> (f64, Result<()>) {
        let skipped = self.loader.as_ref().map(Loader::bad).unwrap_or_default();
        let (total, operation) = (self.pictures.len() + more, self.operation);
        let rate = self.progress.finish();
        if let Some(stopped) = self.stop.error(operation) {
            return (rate, Err(stopped.fix(advice)));
        }
        match (&skipped[..], more) {
            ([], 0) => (rate, Ok(())),
            ([one], 0) if single => (rate, Err(one.reason.clone())),
            _ => (rate, Err(left_out(operation, skipped.len() + more, total))),
        }
    }
}

/// The error of a command that did all it could.
pub fn left_out(operation: &str, skipped: usize, total: usize) -> Error {
    Error::new(Kind::Data, operation)
        .expected("every picture to be readable")
        .got(format!("{skipped} of {total} skipped, listed above"))
        .fix("repair or remove them; the others are done")
}
