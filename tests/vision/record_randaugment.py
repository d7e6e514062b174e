"""Records what LAVIS's RandAugment makes of small pictures: writes randaugment.safetensors beside this file.

    pip install opencv-python-headless==4.5.5.64 numpy==1.26.4 safetensors==0.8.0
    python record_randaugment.py

The functions are those of lavis/processors/randaugment.py (BSD-3-Clause, Salesforce), OpenCV as LAVIS pins it.
K                    a picture [height, width, 3]
metadata `opencv`:   {"K NAME VALUE": CRC-32 of picture K with NAME applied at this magnitude: a factor, a shear, pixels, degrees}
"""
import json, zlib
from pathlib import Path
import cv2
import numpy as np
from safetensors.numpy import save_file

FILL = (128, 128, 128)


def autocontrast_func(img):
    def tune_channel(ch):
        high, low = ch.max(), ch.min()
        if high <= low:
            table = np.arange(256)
        else:
            scale = 255 / (int(high) - int(low))
            table = np.arange(256) * scale + -int(low) * scale
            table[table < 0] = 0
            table[table > 255] = 255
        table = table.clip(0, 255).astype(np.uint8)
        return table[ch]
    return cv2.merge([tune_channel(ch) for ch in cv2.split(img)])


def equalize_func(img):
    n_bins = 256
    def tune_channel(ch):
        hist = cv2.calcHist([ch], [0], None, [n_bins], [0, n_bins])
        non_zero_hist = hist[hist != 0].reshape(-1)
        step = np.sum(non_zero_hist[:-1]) // (n_bins - 1)
        if step == 0:
            return ch
        n = np.empty_like(hist)
        n[0] = step // 2
        n[1:] = hist[:-1]
        table = (np.cumsum(n) // step).clip(0, 255).astype(np.uint8)
        return table[ch]
    return cv2.merge([tune_channel(ch) for ch in cv2.split(img)])


def brightness_func(img, factor):
    table = (np.arange(256, dtype=np.float32) * factor).clip(0, 255).astype(np.uint8)
    return table[img]


def sharpness_func(img, factor):
    kernel = np.ones((3, 3), dtype=np.float32)
    kernel[1][1] = 5
    kernel /= 13
    degenerate = cv2.filter2D(img, -1, kernel)
    if factor == 0.0:
        out = degenerate
    elif factor == 1.0:
        out = img
    else:
        out = img.astype(np.float32)
        degenerate = degenerate.astype(np.float32)[1:-1, 1:-1, :]
        out[1:-1, 1:-1, :] = degenerate + factor * (out[1:-1, 1:-1, :] - degenerate)
        out = out.astype(np.uint8)
    return out


def warp(img, matrix):
    height, width = img.shape[:2]
    return cv2.warpAffine(img, matrix, (width, height), borderValue=FILL, flags=cv2.INTER_LINEAR).astype(np.uint8)


def rotate_func(img, degree):
    height, width = img.shape[:2]
    return warp(img, cv2.getRotationMatrix2D((width / 2, height / 2), degree, 1))


OPERATIONS = {
    "AutoContrast": (lambda img, _: autocontrast_func(img), [0]),
    "Equalize": (lambda img, _: equalize_func(img), [0]),
    "Brightness": (brightness_func, [0.1, 0.64, 1.0, 1.9]),
    "Sharpness": (sharpness_func, [0.0, 0.1, 0.64, 1.0, 1.9]),
    "ShearX": (lambda img, f: warp(img, np.float32([[1, f, 0], [0, 1, 0]])), [0.15, -0.15, 0.3, 0.03]),
    "ShearY": (lambda img, f: warp(img, np.float32([[1, 0, 0], [f, 1, 0]])), [0.15, -0.15, 0.3, -0.03]),
    "TranslateX": (lambda img, o: warp(img, np.float32([[1, 0, -o], [0, 1, 0]])), [5.0, -5.0, 10.0, 2.5]),
    "TranslateY": (lambda img, o: warp(img, np.float32([[1, 0, 0], [0, 1, -o]])), [5.0, -5.0, 10.0, -0.7]),
    "Rotate": (rotate_func, [15.0, -15.0, 30.0, 3.0]),
}


def pictures():
    random = np.random.default_rng(20260103)
    for width, height in ((32, 32), (45, 29), (21, 40)):
        y, x = np.mgrid[0:height, 0:width]
        planes = [x * 150 / width + y * 60 / height + 40 * ((x + c * y) % 9 == 0) + 10 * c for c in range(3)]
        yield np.clip(np.stack(planes, -1) + random.integers(0, 30, (height, width, 3)), 0, 255).astype(np.uint8)
    yield np.stack([np.full((20, 24), 7), random.integers(0, 256, (20, 24)), random.integers(0, 2, (20, 24)) * 255], -1).astype(np.uint8)


def main():
    tensors, opencv = {}, {}
    for k, picture in enumerate(pictures()):
        tensors[str(k)] = picture
        for name, (function, magnitudes) in OPERATIONS.items():
            for magnitude in magnitudes:
                out = np.ascontiguousarray(function(picture.copy(), magnitude))
                opencv[f"{k} {name} {magnitude}"] = zlib.crc32(out.tobytes())
    path = Path(__file__).with_name("randaugment.safetensors")
    save_file(tensors, path, {"opencv": json.dumps(opencv), "made_by": f"OpenCV {cv2.__version__}, NumPy {np.__version__}"})
    print(cv2.__version__, len(opencv), "results", path.stat().st_size, "bytes")


main()
