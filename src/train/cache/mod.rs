//! Image tokens of a frozen encoder, computed once and kept in a folder: of every picture a few views (random crops, drawn once),
//! of which training takes one each time where it would draw a new crop. Most of a step's arithmetic is gone, and no picture is
//! decoded. A finite set of views is another training than LAVIS's, so it is asked for by name.
//!
//!   cache.json   what the tokens are of: a cache of anything else is refused
//!   tokens       record (picture * views + view): its tokens `[N,W]` in f16 or f32, little-endian
//!   done         u32 of every record: 0, its crc32, written behind the record, or that its picture could not be used
//!   pictures     of every picture, which bytes its tokens are of (`pictures`)
//!
//! A process may be stopped or killed at any time: what is done is done, the next one computes the rest. At opening, pictures
//! that have changed since lose their tokens, and those that could not be used are tried again. A record that a power cut
//! took or that was damaged is found by its sum when it is read, and computed again.

mod feed;
mod fill;
mod pictures;

pub use feed::Record;
pub use pictures::Source;

pub use super::config::CacheSettings as Settings;
use super::config::Config;
use super::corpus::Corpus;
use crate::data::random::Draws;
use crate::files::{self, Disk, RealDisk};
use crate::model;
use crate::tensor::{Device, Storage, Tensor};
use crate::{Error, Kind, Result};
use feed::Feed;
use pictures::Sources;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

const OPERATION: &str = "cache of image tokens";
/// Of the draws of [`Order`], of crops and these, each site has its own.
const SITE_CHOICE: u32 = 4;

/// 1 knew only the pictures' names.
const FORMAT: u32 = 2;
/// In place of the sum of a record: its picture could not be used.
const UNUSABLE: u32 = u32::MAX;

/// A picture's view to be computed: its pixels, and which bytes they were decoded from.
pub struct View {
    pub pixels: Vec<u8>,
    pub source: Source,
}

pub struct Cache {
    settings: Settings,
    /// [N,W] of a record.
    sizes: [usize; 2],
    tokens: File,
    done: File,
    sums: Vec<AtomicU32>,
    sources: Sources,
    /// Pictures whose tokens were of other bytes.
    changed: usize,
    /// Exclusive while anything is missing, shared from then on.
    lock: File,
    /// To the device that trains on it.
    feed: Option<Feed>,
}

impl Settings {
    /// Bytes of a picture's view.
    pub fn record(&self, sizes: &model::Config) -> u64 {
        (sizes.image_tokens() * sizes.vit_width * self.storage.bytes()) as u64
    }

    /// What the tokens depend on; `encoder` is a hash of the image encoder's parameters, `computed` how they were computed.
    fn identity(&self, config: &Config, corpus: &Corpus, model: &model::Config, encoder: &str) -> Value {
        let pictures: Vec<String> = (0..corpus.sets.len()).map(|set| corpus.pictures_of(set)).collect();
        let mut all = json!({
            "format": FORMAT,
            "encoder": encoder,
            "gelu": config.vit_gelu.name(),
            "image_size": model.image_size,
            "tokens": [model.image_tokens(), model.vit_width],
            "stored": self.storage.name(),
            "pictures": pictures,
            "views": self.views,
            "seed": config.seed,
        });
        for (name, value) in config.crops() {
            all[name] = value;
        }
        if model.exif_orientation {
            all["exif_orientation"] = true.into();
        }
        all
    }
}

impl Cache {
    /// Opens a cache, or begins one; it is this process's alone unless it is complete.
    pub fn open(
        settings: &Settings,
        config: &Config,
        corpus: &Corpus,
        model: &model::Config,
        encoder: &str,
    ) -> Result<Cache> {
        let folder = &settings.folder;
        files::make_folders(&RealDisk, folder)?;
        let path = folder.join(".lock");
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(|e| Error::io(OPERATION, &path, &e))?;
        let alone = match lock.try_lock() {
            Err(TryLockError::Error(e)) if files::has_no_locks(&e) => {
                files::no_locks(folder);
                true
            }
            locked => locked.is_ok(),
        };
        let (identity, header) =
            (settings.identity(config, corpus, model, encoder), folder.join("cache.json"));
        let records = corpus.pictures() * settings.views;
        let record = settings.record(model);
        let begun = header.is_file();
        match (begun, alone) {
            (true, _) => same(&header, &identity)?,
            (false, false) => return Err(filled_by_another(folder, TryLockError::WouldBlock)),
            (false, true) => {}
        }
        let open = |name: &str, bytes: u64| {
            let path = folder.join(name);
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(!begun).open(&path);
            let file = file.map_err(|e| Error::io(OPERATION, &path, &e))?;
            file.set_len(bytes).map_err(|e| files::write_error("write", &path, &e))?;
            Ok::<_, Error>(file)
        };
        let (tokens, done) = (open("tokens", records as u64 * record)?, open("done", 4 * records as u64)?);
        let mut sums = vec![0u8; 4 * records];
        done.read_exact_at(&mut sums, 0).map_err(|e| Error::io(OPERATION, folder.join("done"), &e))?;
        let sums: Vec<u32> = bytemuck::allocation::pod_collect_to_vec(&sums);
        let mut cache = Cache {
            settings: settings.clone(),
            sizes: [model.image_tokens(), model.vit_width],
            tokens,
            done,
            sums: sums.into_iter().map(|s| AtomicU32::new(u32::from_le(s))).collect(),
            sources: Sources::open(&folder.join("pictures"), corpus.pictures(), begun)?,
            changed: 0,
            lock,
            feed: None,
        };
        cache.follow_pictures(corpus, alone)?;
        cache.share(alone)?;
        cache.check_room(record)?;
        if !begun {
            let text = format!("{identity:#}\n");
            files::write_atomic(&RealDisk, &header, text.len() as u64, |w| w.write_all(text.as_bytes()))?;
        }
        Ok(cache)
    }

    /// Compares the pictures with those the tokens are of.
    fn follow_pictures(&mut self, corpus: &Corpus, alone: bool) -> Result<()> {
        let views = self.views();
        let state = |picture: usize| {
            let sums = self.sums[picture * views..][..views].iter().map(|s| s.load(Ordering::Acquire));
            let (mut there, mut unusable) = (false, false);
            sums.for_each(|s| {
                (there, unusable) = (there || s != 0 && s != UNUSABLE, unusable || s == UNUSABLE)
            });
            (there, unusable)
        };
        let there: Vec<usize> = (0..corpus.pictures()).filter(|p| state(*p).0).collect();
        let again: Vec<usize> = (0..corpus.pictures()).filter(|p| state(*p).1).collect();
        let changed = self.sources.compare(&there, |p| corpus.picture(p), alone)?;
        if !changed.is_empty() && !alone {
            return Err(Error::new(Kind::Argument, OPERATION)
                .about(self.settings.folder.display().to_string())
                .expected("the pictures as they were")
                .got(format!("{} that have changed since, and another training that uses it", changed.len()))
                .fix("wait for it, stop it, or choose another folder (--cache)"));
        }
        self.changed = changed.len();
        if alone {
            self.forget(&changed, |_| true)?;
            self.forget(&again, |sum| sum == UNUSABLE)?;
        }
        Ok(())
    }

    /// Takes away what is there of pictures. On the disk before anything else is written: a sum must not outlive its picture.
    fn forget(&self, pictures: &[usize], which: impl Fn(u32) -> bool) -> Result<()> {
        let failed = |e| files::write_error("write", &self.settings.folder.join("done"), &e);
        for record in pictures.iter().flat_map(|p| p * self.views()..(p + 1) * self.views()) {
            if which(self.sums[record].swap(0, Ordering::AcqRel)) {
                self.done.write_all_at(&[0; 4], 4 * record as u64).map_err(failed)?;
            }
        }
        if pictures.is_empty() { Ok(()) } else { files::retry(|| self.done.sync_data()).map_err(failed) }
    }

    /// Pictures that had changed when it was opened, whose tokens are computed again.
    pub fn changed(&self) -> usize {
        self.changed
    }

    /// Refuses a cache of something else, as opening it does, and writes nothing.
    pub fn check(
        settings: &Settings,
        config: &Config,
        corpus: &Corpus,
        model: &model::Config,
        encoder: &str,
    ) -> Result<()> {
        let header = settings.folder.join("cache.json");
        if header.is_file() {
            same(&header, &settings.identity(config, corpus, model, encoder))?;
        }
        Ok(())
    }

    /// A complete cache may be read by several trainings.
    fn share(&self, alone: bool) -> Result<()> {
        let complete = self.missing().is_empty();
        let locked = match (alone, complete) {
            (true, false) => return Ok(()),
            (false, false) => Err(TryLockError::WouldBlock),
            // Locked so in place of the other way.
            (_, true) => match self.lock.try_lock_shared() {
                Err(TryLockError::Error(e)) if files::has_no_locks(&e) => Ok(()),
                locked => locked,
            },
        };
        locked.map_err(|e| filled_by_another(&self.settings.folder, e))
    }

    /// What is missing must fit on the disk.
    fn check_room(&self, record: u64) -> Result<()> {
        let (missing, folder) = (self.missing().len() as u64 * record, &self.settings.folder);
        let free = RealDisk.free_bytes(folder).map_err(|e| Error::io(OPERATION, folder, &e))?;
        if free >= missing {
            return Ok(());
        }
        let bytes = crate::files::bytes;
        Err(Error::new(Kind::Write, OPERATION)
            .about(folder.display().to_string())
            .expected(format!("{} free on its disk", bytes(missing)))
            .got(bytes(free))
            .fix("choose another disk (--cache), or fewer or smaller views (--set cache_views=1, --set cache_dtype=f16)"))
    }

    /// Records that are not there yet.
    pub fn missing(&self) -> Vec<usize> {
        (0..self.sums.len()).filter(|r| self.sums[*r].load(Ordering::Acquire) == 0).collect()
    }

    pub fn len(&self) -> usize {
        self.sums.len()
    }

    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    pub fn folder(&self) -> &Path {
        &self.settings.folder
    }

    pub fn views(&self) -> usize {
        self.settings.views
    }

    /// The view that entry `index` takes in micro-batch `micro`.
    pub fn choose(&self, seed: u64, micro: u64, index: usize) -> usize {
        let draws = Draws::new(seed, [SITE_CHOICE, micro as u32, index as u32]);
        draws.below(0, self.settings.views as u32) as usize
    }

    fn bytes(&self) -> usize {
        self.sizes[0] * self.sizes[1] * self.settings.storage.bytes()
    }

    /// Makes ready for training on a device; with `on_gpu` all of the cache is put there. `repair` computes a damaged record again.
    pub fn attach(
        &mut self,
        device: &Device,
        on_gpu: bool,
        repair: impl FnMut(&Cache, usize) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let mut feed = Feed::new(device, self)?;
        if on_gpu {
            feed.keep_all(self, repair)?;
        }
        self.feed = Some(feed);
        Ok(())
    }

    fn feed(&self) -> Result<&Feed> {
        let none = || Error::argument(OPERATION, "device", "a cache that is ready for training", "none");
        self.feed.as_ref().ok_or_else(none)
    }

    fn is_usable(&self, record: usize) -> bool {
        self.sums.get(record).is_some_and(|s| !matches!(s.load(Ordering::Acquire), 0 | UNUSABLE))
    }

    /// A record for a batch; `None` if it is damaged and must be computed again.
    pub fn load(&self, record: usize) -> Result<Option<Record>> {
        if !self.is_usable(record) {
            let about = format!("picture {}, view {}", record / self.views(), record % self.views());
            let got = "none: the picture could not be used";
            return Err(Error::new(Kind::Data, OPERATION).about(about).expected("its tokens").got(got));
        }
        let feed = self.feed()?;
        if feed.has_all() {
            return Ok(Some(Record::Kept(record)));
        }
        let mut slot = feed.slot()?;
        Ok(self.read(record, slot.bytes_mut())?.then_some(Record::Read(slot)))
    }

    /// A record that was computed again, for a batch.
    pub fn record_of(&self, bytes: &[u8]) -> Result<Record> {
        let mut slot = self.feed()?.slot()?;
        slot.bytes_mut().copy_from_slice(bytes);
        Ok(Record::Read(slot))
    }

    /// Reads a record's bytes; false if they are damaged.
    fn read(&self, record: usize, to: &mut [u8]) -> Result<bool> {
        let path = || self.settings.folder.join("tokens");
        let read = self.tokens.read_exact_at(to, (record * self.bytes()) as u64);
        read.map_err(|e| Error::io(OPERATION, path(), &e))?;
        Ok(check_sum(to) == self.sums[record].load(Ordering::Acquire))
    }

    fn store(&self, record: usize, bytes: &[u8]) -> Result<()> {
        let failed = |e| files::write_error("write", &self.settings.folder.join("tokens"), &e);
        self.tokens.write_all_at(bytes, (record * self.bytes()) as u64).map_err(failed)?;
        self.mark(record, check_sum(bytes))
    }

    fn mark(&self, record: usize, sum: u32) -> Result<()> {
        let failed = |e| files::write_error("write", &self.settings.folder.join("done"), &e);
        self.done.write_all_at(&sum.to_le_bytes(), 4 * record as u64).map_err(failed)?;
        self.sums[record].store(sum, Ordering::Release);
        Ok(())
    }

    /// Tokens [B*N,W] of the records of a batch, one after the other; they are there after [`Cache::settle`].
    pub fn tensor(&self, records: Vec<Record>) -> Result<Tensor> {
        self.feed()?.tokens(records)
    }

    /// What comes next on the device waits for the tokens handed out so far.
    pub fn settle(&self) -> Result<()> {
        self.feed.as_ref().map_or(Ok(()), Feed::settle)
    }

    /// Tokens that f16 has no room for, or that are no numbers, would spoil a run unnoticed.
    fn check_finite(&self, record: usize, bytes: &[u8]) -> Result<()> {
        let finite = match self.settings.storage {
            Storage::F16 => bytes.chunks_exact(2).all(|b| b[1] & 0x7c != 0x7c),
            _ => bytes.chunks_exact(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()),
        };
        if finite {
            return Ok(());
        }
        let picture = record / self.views();
        Err(Error::new(Kind::NonFinite, OPERATION)
            .about(format!("picture {picture}"))
            .expected(format!("finite tokens in {}", self.settings.storage.name()))
            .got("one that is not")
            .fix("set cache_dtype: f32, or look at the image encoder's weights"))
    }
}

fn filled_by_another(folder: &Path, e: std::fs::TryLockError) -> Error {
    Error::new(Kind::Argument, OPERATION)
        .about(folder.display().to_string())
        .expected("a folder that no other training fills")
        .got(e)
        .fix("wait for it, stop it, or choose another folder (--cache)")
}

/// Never 0, nor [`UNUSABLE`].
fn check_sum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes).clamp(1, UNUSABLE - 1)
}

/// Refuses a cache of something else: says what differs.
fn same(header: &Path, identity: &Value) -> Result<()> {
    let text = std::fs::read_to_string(header).map_err(|e| Error::io(OPERATION, header, &e))?;
    let own: Value = serde_json::from_str(&text)
        .map_err(|e| Error::new(Kind::Data, OPERATION).about(header.display().to_string()).got(e))?;
    if own.get("format") != identity.get("format") {
        let got = own.get("format").map_or_else(|| "none".into(), Value::to_string);
        return Err(Error::argument(OPERATION, format!("format of {}", header.display()), FORMAT, got)
            .fix("it does not know which pictures its tokens are of: remove it, or choose another folder (--cache)"));
    }
    let differs = |key: &&String| own.get(key.as_str()) != identity.get(key.as_str());
    let keys: Vec<&String> = identity.as_object().into_iter().flat_map(|o| o.keys()).collect();
    match keys.into_iter().find(differs) {
        None => Ok(()),
        Some(key) => {
            let of = |v: &Value| v.get(key).map_or_else(|| "nothing".to_string(), Value::to_string);
            Err(Error::argument(
                OPERATION,
                format!("{} of {}", key, header.display()),
                of(identity),
                of(&own),
            )
            .fix("choose another folder (--cache), or remove this one"))
        }
    }
}
