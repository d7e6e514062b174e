//! Which packed rows belong together: all query rows first, then all text rows, real tokens only.
//!
//! A [`Layout`] is one pass of the Q-Former over a table of segments. Rows that nobody reads after the last layer may be
//! left out of it (`keep`): there they still serve as keys and values.

use crate::Result;
use crate::ops::{Segment, Segments};
use std::ops::Range;
use std::sync::Arc;

/// Which packed rows belong together.
pub struct Layout {
    /// Rows of queries, which come first.
    pub query_rows: usize,
    /// All rows.
    pub rows: usize,
    /// What each row sees.
    pub segments: Arc<Segments>,
    /// Query rows to the image tokens of their image.
    pub cross: Arc<Segments>,
    /// What of the last layer is read.
    pub last: Option<Last>,
    /// First row of every text, and of every caption that is predicted.
    pub text: Vec<Range<usize>>,
    /// The rows of each caption that is foretold.
    pub lm: Vec<Range<usize>>,
}

/// The rows of the last layer: all query rows and some text rows.
pub struct Last {
    /// The rows that are read.
    pub keep: Vec<u32>,
    /// What each row sees.
    pub segments: Arc<Segments>,
}

/// Consecutive ranges of these lengths, from `start` on.
fn ranges(start: usize, lens: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut at = start;
    lens.into_iter()
        .map(|n| {
            at += n;
            at - n..at
        })
        .collect()
}

fn segment(q: &Range<usize>, a: &Range<usize>, b: &Range<usize>, causal: bool) -> Segment {
    Segment { q: q.clone(), a: a.clone(), b: b.clone(), causal }
}

/// Sizes that all layouts of a model share.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Queries of a picture.
    pub queries: usize,
    /// Tokens of a picture.
    pub image_tokens: usize,
}

impl Layout {
    /// Query pass, text pass and LM pass in one: rows [queries of every image | texts | captions to predict].
    /// `lm[i]` sees the queries of image i. With `trim`, the last layer keeps of a text only its `[CLS]` row.
    pub fn merged(s: Sizes, images: usize, text: &[usize], lm: &[usize], trim: bool) -> Result<Layout> {
        let query = ranges(0, (0..images).map(|_| s.queries));
        let text = ranges(images * s.queries, text.iter().copied());
        let after = text.last().map_or(images * s.queries, |r| r.end);
        let lm = ranges(after, lm.iter().copied());
        let none = 0..0;
        let mut list: Vec<Segment> = query.iter().map(|q| segment(q, q, &none, false)).collect();
        list.extend(text.iter().map(|t| segment(t, &none, t, false)));
        list.extend(lm.iter().zip(&query).map(|(t, q)| segment(t, q, t, true)));
        let rows = lm.last().map_or(after, |r| r.end);
        let last = trim.then(|| keep_last(&list, images * s.queries, rows, &text, images)).transpose()?;
        let images: Vec<usize> = (0..images).collect();
        Layout::build(s, &images, list, rows, last, text, lm)
    }

    /// This layout where the keys and values are of `all` images, of which its own are the first.
    #[must_use = "the layout is changed"]
    pub fn among(mut self, s: Sizes, all: usize) -> Result<Layout> {
        let own: Vec<usize> = (0..self.query_rows / s.queries.max(1)).collect();
        self.cross = cross(s, &own, all)?;
        Ok(self)
    }

    /// Pairs of an image and a text that see each other. With `trim`, the last layer keeps the query rows only.
    pub fn pairs(
        s: Sizes,
        images: &[usize],
        text: &[usize],
        all_images: usize,
        trim: bool,
    ) -> Result<Layout> {
        let query = ranges(0, images.iter().map(|_| s.queries));
        let query_rows = images.len() * s.queries;
        let text = ranges(query_rows, text.iter().copied());
        let rows = text.last().map_or(query_rows, |r| r.end);
        let of_queries = query.iter().zip(&text).map(|(q, t)| segment(q, q, t, false));
        let of_texts = query.iter().zip(&text).map(|(q, t)| segment(t, q, t, false));
        let last = trim
            .then(|| -> Result<Last> {
                let segments = Segments::new(of_queries.clone().collect(), query_rows, rows)?;
                Ok(Last { keep: (0..query_rows as u32).collect(), segments })
            })
            .transpose()?;
        let list = of_queries.clone().chain(of_texts).collect();
        let mut layout = Layout::build(s, images, list, rows, last, text, Vec::new())?;
        layout.cross = cross(s, images, all_images)?;
        Ok(layout)
    }

    fn build(
        s: Sizes,
        images: &[usize],
        list: Vec<Segment>,
        rows: usize,
        last: Option<Last>,
        text: Vec<Range<usize>>,
        lm: Vec<Range<usize>>,
    ) -> Result<Layout> {
        let all = images.iter().map(|i| i + 1).max().unwrap_or(0);
        Ok(Layout {
            query_rows: images.len() * s.queries,
            rows,
            segments: Segments::new(list, rows, rows)?,
            cross: cross(s, images, all)?,
            last,
            text,
            lm,
        })
    }
}

/// Each group of query rows sees the tokens of its image, among `all` images.
fn cross(s: Sizes, images: &[usize], all: usize) -> Result<Arc<Segments>> {
    let (q, n) = (s.queries, s.image_tokens);
    let list = images.iter().enumerate().map(|(g, image)| Segment {
        q: g * q..(g + 1) * q,
        a: image * n..(image + 1) * n,
        b: 0..0,
        causal: false,
    });
    Segments::new(list.collect(), images.len() * q, all * n)
}

/// The last layer of the merged pass: queries, the [CLS] row of every text, all rows to predict from.
fn keep_last(
    list: &[Segment],
    queries: usize,
    rows: usize,
    text: &[Range<usize>],
    images: usize,
) -> Result<Last> {
    let after_text = text.last().map_or(queries, |r| r.end);
    let mut keep: Vec<u32> = (0..queries as u32).collect();
    keep.extend(text.iter().map(|t| t.start as u32));
    keep.extend(after_text as u32..rows as u32);
    let moved = |i: usize, s: &Segment| {
        let q = if i < images {
            s.q.clone()
        } else if i < images + text.len() {
            let row = queries + i - images;
            row..row + 1
        } else {
            let back = after_text - queries - text.len();
            s.q.start - back..s.q.end - back
        };
        Segment { q, ..s.clone() }
    };
    let list = list.iter().enumerate().map(|(i, s)| moved(i, s)).collect();
    Ok(Last { segments: Segments::new(list, keep.len(), rows)?, keep })
}
