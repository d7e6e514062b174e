//! One search in an index: all pictures by `itc`, then the best of them by what the model sees in each together with the text.

use super::add;
use super::index::{self, Index};
use super::kept::Kept;
use super::scan::{self, Scored};
use crate::data::Image;
use crate::model::{Images, mean_cosine};
use crate::pretrained::Pretrained;
use crate::pretrained::pictures::{Seen, look, see, seen, turn};
use crate::pretrained::scores::{Scores, Texts, scores};
use crate::tensor::{Chunk, Tensor};
use crate::vision::Photo;
use crate::{Error, Result};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// What the pictures that are looked at again are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum, serde::Deserialize))]
pub enum Rank {
    /// itm + itc, as LAVIS's retrieval
    #[cfg_attr(feature = "cli", value(name = "itm+itc"), serde(rename = "itm+itc"))]
    ItmPlusItc,
    /// By the matching head.
    #[cfg_attr(feature = "cli", serde(rename = "itm"))]
    Itm,
    /// By the largest cosine.
    #[cfg_attr(feature = "cli", serde(rename = "itc"))]
    Itc,
    /// mean_cosine, as BLIP2-Japanese
    #[cfg_attr(feature = "cli", value(name = "mean_cosine"), serde(rename = "mean_cosine"))]
    MeanCosine,
}

/// What is looked for.
pub enum Query {
    /// Pictures that a text fits.
    Text {
        /// As it was given.
        text: String,
        /// Made ready to be compared.
        ready: Texts,
    },
    /// Pictures like this one.
    Picture {
        /// Its file.
        path: PathBuf,
        /// As it is shown.
        name: String,
        /// What it is compared by.
        features: Images,
    },
}

impl Query {
    /// Looks for a text.
    pub fn of_text(model: &Pretrained, text: &str) -> Result<Query> {
        let longest = model.model.config.max_txt_len;
        let ready = Texts::new(model, &[text], longest)?;
        // [CLS] and [SEP] are always there.
        if ready.ids[0].len() <= 2 {
            return Err(Error::argument(
                "search",
                "TEXT",
                "a text with at least one word",
                format!("{text:?}"),
            ));
        }
        Ok(Query::Text { text: text.to_owned(), ready })
    }

    /// Looks for pictures like this one.
    pub fn of_picture(model: &Pretrained, path: &Path) -> Result<Query> {
        Query::of_seen(model, path, &see(model, &Image::File(path.to_owned()))?)
    }

    /// A picture that was decoded already; `path` is what it is called.
    pub fn of_seen(model: &Pretrained, path: &Path, seen: &Seen) -> Result<Query> {
        // As the pictures of an index are, which it is compared with.
        let features = look(model, &[seen])?.remove(0);
        Ok(Query::Picture { path: path.to_owned(), name: path.display().to_string(), features })
    }

    /// The text, or the picture's path.
    pub fn shown(&self) -> &str {
        match self {
            Query::Text { text, .. } => text,
            Query::Picture { name, .. } => name,
        }
    }

    /// The picture's path.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Query::Text { .. } => None,
            Query::Picture { path, .. } => Some(path),
        }
    }

    /// What features are compared with [T,E]; the score is the mean over T.
    fn rows(&self) -> &Tensor {
        match self {
            Query::Text { ready, .. } => &ready.cls,
            Query::Picture { features, .. } => &features.proj,
        }
    }

    /// The scores with a picture whose features are there.
    fn scores(&self, model: &Pretrained, image: &Images, itc: f32) -> Result<Found> {
        match self {
            Query::Text { ready, .. } => {
                let Scores { itm, mean_cosine, .. } = scores(model, image, ready)?[0];
                Ok(Found { picture: 0, itc, itm: Some(itm), mean_cosine: Some(mean_cosine) })
            }
            Query::Picture { features, .. } => {
                let (a, b) = (features.embeds.to_f64()?, image.embeds.to_f64()?);
                let cosine = mean_cosine(&a, &b, model.model.config.hidden);
                Ok(Found { picture: 0, itc, itm: None, mean_cosine: Some(cosine as f32) })
            }
        }
    }
}

/// A picture (its place in the index) and its scores, where they were computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// See [`Index::picture`].
    pub picture: usize,
    /// See [`Scores`]; of a picture, the mean over its queries.
    pub itc: f32,
    /// See [`Scores`]; none of a picture.
    pub itm: Option<f32>,
    /// See [`Scores`].
    pub mean_cosine: Option<f32>,
}

impl Found {
    fn value(&self, rank: Rank) -> f32 {
        let itm = self.itm.unwrap_or(0.0);
        match rank {
            Rank::ItmPlusItc => itm + self.itc,
            // A picture as query has no itm.
            Rank::Itm => self.itm.unwrap_or(self.itc),
            Rank::Itc => self.itc,
            Rank::MeanCosine => self.mean_cosine.unwrap_or(self.itc),
        }
    }
}

/// What a search found.
#[derive(Debug)]
pub struct Ranked {
    /// The best of all pictures, best first: those looked at again before the others.
    pub found: Vec<Found>,
    /// Pictures that should have been looked at again but were gone or changed.
    pub unread: Vec<Error>,
}

/// The `top_k` best pictures: the best `rerank` by itc looked at again, then the others.
pub fn search(
    model: &Pretrained,
    index: &Index,
    query: &Query,
    how: (usize, Rank),
    top_k: usize,
) -> Result<Ranked> {
    search_keeping(model, index, query, how, top_k, &Kept::new(0))
}

/// [`search`]; what the image encoder says of pictures that are looked at again is kept, and used where it is there.
pub fn search_keeping(
    model: &Pretrained,
    index: &Index,
    query: &Query,
    (rerank, rank): (usize, Rank),
    top_k: usize,
    kept: &Kept,
) -> Result<Ranked> {
    let best = scan::best(&model.model, index, query.rows(), rerank.max(top_k))?;
    let found = |s: Scored| Found { picture: s.picture, itc: s.itc, itm: None, mean_cosine: None };
    let mut found: Vec<Found> = best.into_iter().map(found).collect();
    let mut rest = found.split_off(rerank.min(found.len()));
    let (mut again, mut unread) = (Vec::with_capacity(found.len()), Vec::new());
    for some in found.chunks(Chunk::of(model.params.device()).pictures) {
        let known: Vec<_> = some.iter().map(|f| (*f, index.picture(f.picture))).collect();
        let read: Vec<(Found, &index::Picture, Again)> =
            known.par_iter().map(|(f, known)| (*f, *known, again_of(model, index, known, kept))).collect();
        let mut unseen = Vec::new();
        for (_, known, again) in &read {
            if let Again::Seen(seen) = again {
                unseen.push((known.hash.as_str(), seen));
            }
        }
        let mut new = kept.look(model, &unseen)?.into_iter();
        for (f, _, seen) in read {
            let image = match seen {
                Again::Unusable(e) => {
                    unread.push(e);
                    rest.push(f);
                    continue;
                }
                Again::Seen(_) => new.next(),
                Again::Tokens(tokens) => Some(Kept::images(model, &tokens)?),
            };
            if let Some(image) = image {
                again.push(Found { picture: f.picture, ..query.scores(model, &image, f.itc)? });
            }
        }
    }
    sort(&mut again, rank);
    sort(&mut rest, Rank::Itc);
    again.extend(rest);
    again.truncate(top_k);
    Ok(Ranked { found: again, unread })
}

/// Largest first, ties in the order of the index.
fn sort(found: &mut [Found], rank: Rank) {
    found.sort_by(|a, b| b.value(rank).total_cmp(&a.value(rank)).then(a.picture.cmp(&b.picture)));
}

/// A picture of the index that is looked at again.
enum Again {
    Seen(Seen),
    Tokens(Tensor),
    Unusable(Error),
}

fn again_of(model: &Pretrained, index: &Index, known: &index::Picture, kept: &Kept) -> Again {
    match kept.tokens(&known.hash).filter(|_| add::unchanged(index, Path::new(&known.path))) {
        Some(tokens) => Again::Tokens(tokens),
        None => see_again(model, known).map_or_else(Again::Unusable, Again::Seen),
    }
}

/// A picture of the index, if its file is as it was.
fn see_again(model: &Pretrained, known: &index::Picture) -> Result<Seen> {
    let photo = Photo::open(&known.path, turn(model))?;
    if photo.hash().to_hex().as_str() != known.hash {
        return Err(Error::file("search", &known.path, "the picture as it was indexed", "another")
            .fix("run `search index` again"));
    }
    seen(model, &photo)
}
