//! Files of a folder that are named like pictures of kinds that cannot be read: counted, so that nobody takes the others for
//! all there were.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Extensions of pictures that are none of JPEG, PNG, WebP, GIF and BMP: of phones and scanners, newer codecs, cameras, editors.
const EXTENSIONS: [&str; 28] = [
    "heic", "heif", "avif", "tif", "tiff", "jxl", "jp2", "j2k", "jpf", "jpx", "apng", "ico", "tga", "ppm",
    "pgm", "pnm", "svg", "psd", "exr", "hdr", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf",
];

/// How many of each kind, and the first one's name.
#[derive(Debug, Default)]
pub struct Unread {
    kinds: BTreeMap<String, (usize, String)>,
}

impl Unread {
    /// Counts a file if it is named like such a picture.
    pub fn note(&mut self, path: &Path) {
        let Some(extension) = path.extension().map(|e| e.to_string_lossy().to_lowercase()) else { return };
        if EXTENSIONS.contains(&extension.as_str()) {
            let name = || path.file_name().map(|n| format!("{n:?}")).unwrap_or_default();
            self.kinds.entry(extension).or_insert_with(|| (0, name())).0 += 1;
        }
    }

    /// What was counted; nothing if nothing was.
    pub fn told(&self) -> Option<String> {
        (!self.kinds.is_empty()).then(|| self.to_string())
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let count: usize = self.kinds.values().map(|k| k.0).sum();
        let kinds: Vec<String> =
            self.kinds.iter().map(|(kind, (n, first))| format!("{n} .{kind}, such as {first}")).collect();
        write!(
            f,
            "not read: {count} files of other kinds ({}); save them as JPEG or PNG to include them",
            kinds.join("; ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_pictures_are_counted_by_kind_and_nothing_else_is() {
        let mut unread = Unread::default();
        for name in ["a.jpg", "a.txt", "a", "heic"] {
            unread.note(Path::new(name));
        }
        assert_eq!(unread.told(), None);
        for name in ["p/IMG_1.HEIC", "p/IMG_2.heic", "b.Avif", "c.tif"] {
            unread.note(Path::new(name));
        }
        let told = unread.told().unwrap();
        for part in ["4 files", "2 .heic, such as \"IMG_1.HEIC\"", "1 .avif", "1 .tif", "JPEG or PNG"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
