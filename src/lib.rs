//! BLIP-2's Q-Former: trained, captioning and searching in Japanese, and equal to LAVIS number by number.
//!
//! Train, then caption a picture:
//!
//! ```no_run
//! use qformer::data::Image;
//! use qformer::model::{GenerateOptions, Images};
//! use qformer::pretrained::{Pretrained, pictures};
//! use qformer::train::{StepLine, Training};
//!
//! let trained = Training::new()
//!     .path("images", "photos")
//!     .path("captions", "captions.json")
//!     .path("out", "run")
//!     .run(&mut |step: &StepLine| println!("{} {:.3}", step.step, step.loss))?;
//!
//! let model = Pretrained::open(&trained.model)?;
//! let seen = pictures::see(&model, &Image::File("dog.jpg".into()))?;
//! let images = Images::stack(&pictures::look(&model, &[&seen])?)?;
//! let captions = model.caption(&images, &GenerateOptions::default(), &[seen.identity])?;
//! println!("{}", captions[0][0].text);
//! # Ok::<(), qformer::Error>(())
//! ```
//!
//! `examples/` has more: a search, an operation and a kernel of one's own, a checkpoint of LAVIS. Without the command line:
//! `default-features = false`.
//!
//! The rooms, from the ground up; imports only go down (`tests/house.rs` holds them to it):
//!
//! | room | what is in it |
//! |---|---|
//! | [`error`] | the one error: operation, argument, expected, got, what to change |
//! | [`files`] | files that are either whole or not there |
//! | [`random`] | random numbers without state, the same on every device |
//! | [`device`] | where the arithmetic runs: loops and matmul on the CPU, kernels on a GPU or on the host |
//! | [`tensor`] | tensors, randomness, the tape |
//! | [`ops`] | one file per operation, forward and backward |
//! | `kernels` | what the benchmarks of a GPU time: operations on real shapes, with the bytes and FLOPs they need |
//! | [`nn`] | parameters and the layers made of them |
//! | [`model`] | the image encoder, the Q-Former, the losses of both stages, language models, generation |
//! | [`text`] | Japanese text to ids and back, as BertJapaneseTokenizer does it; caption cleaning; tokenizers of language models |
//! | [`vision`] | picture files to model input, as Pillow and torchvision make it |
//! | [`data`] | captioned pictures: annotation files, the order of training, a threaded loader, checks |
//! | [`demo`] | drawn pictures with captions, to try everything on |
//! | [`metrics`] | BLEU, ROUGE-L, CIDEr-D, recall |
//! | [`pretrained`] | [`pretrained::Pretrained`], a model as users hold it: a folder with its numbers and its tokenizer |
//! | [`train`] | [`train::Training`]: settings, optimizer, schedule, trainer, checkpoints |
//! | `group` | processes that compute one training together |
//! | `parity` | recorded cases of LAVIS against this crate |
//! | `report` | a run as one HTML page |
//! | `results` | what commands write: caption files, arrays, the page of a search |
//! | [`search`] | [`search::Index`] of pictures, and searches in it |
//! | `serve` | a page and an HTTP interface over a model in memory (feature `serve`) |
//! | `console` | progress and signals of long commands (feature `cli`) |
//! | `commands` | the command line (feature `cli`) |
//!
//! Rooms without a link, and most of `train`, are hidden here: only the command line and the tests stand on them.

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod commands;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod console;
pub mod data;
pub mod demo;
pub mod device;
pub mod error;
pub mod files;
#[doc(hidden)]
pub mod group;
#[doc(hidden)]
pub mod kernels;
pub mod metrics;
pub mod model;
pub mod nn;
pub mod ops;
#[doc(hidden)]
pub mod parity;
pub mod pretrained;
pub mod random;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod results;
pub mod search;
#[cfg(feature = "serve")]
#[doc(hidden)]
pub mod serve;
pub mod tensor;
#[doc(hidden)]
pub mod terminal;
pub mod text;
pub mod train;
pub mod vision;
pub mod weights;

pub use error::{Error, Kind, Result};
