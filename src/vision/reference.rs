//! The recorded case `images`: what Pillow 11 and torchvision made of the files in a folder, against what we make.
//!
//! Names of the case's outputs: `FILE.evalS.u8` [S,S,3] the whole picture at S x S, `FILE.crop.u8` the crop that the
//! metadata names (cut, resized, flipped), `FILE.evalS` [3,S,S] the same normalised.
//! Tolerances: PNG, BMP, GIF and WebP equal to the byte. JPEG may differ where decoders round differently: mean error
//! at most 0.5/255, none above 6/255. Normalised values: that divided by the standard deviation; and the recorded bytes,
//! normalised here, must give the recorded floats to the bit.
