//! What the decoders of picture files work on.

use std::path::Path;

/// The bytes of a file under its name: what the decoders work on and whose errors they report.
pub(super) struct Source<'a> {
    pub path: &'a Path,
    pub bytes: &'a [u8],
}
