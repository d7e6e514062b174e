"""Records what Pillow 11 and torchvision make of small synthetic pictures: writes cases.safetensors beside this file.

    pip install pillow==11.3.0 numpy==2.4.6 safetensors==0.8.0 torch==2.11.0 torchvision==0.26.0
    python record_pillow.py

file.NAME     the bytes of a picture file           rgb.NAME   Image.open(file).convert("RGB"), [height, width, 3]
upright.NAME  the same after ImageOps.exif_transpose, for the files that carry an orientation
resize.K.in, resize.K.out  a picture, and its crop resized bicubically; metadata `resize` holds the crop of each K
metadata `crops`: the 32-bit words of torch's generator and what torchvision's RandomResizedCrop and flip draw from them
"""
import io, json, math, struct, zlib
from pathlib import Path
import numpy as np
import torch, torchvision
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from torchvision.transforms import RandomResizedCrop

random = np.random.default_rng(20260101)


def scene(width, height, channels=3):
    """A smooth slope, an edge and a little noise, so that every channel and every direction differs."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * (5 + c) * 37 / width + y * (9 - 2 * c) * 23 / height + 60 * ((x + 2 * y + c) % 7 == 0)) for c in range(channels)]
    noise = random.integers(0, 40, (height, width, channels))
    return np.clip(np.stack(planes, -1) + noise, 0, 255).astype(np.uint8)


def picture(mode, width, height):
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = scene(width, height, channels)
    if mode == "CMYK":
        return Image.frombytes(mode, (width, height), pixels.tobytes())
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def saved(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


# --- PNG kinds that Pillow does not write

def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, depth, colour, rows, extra=b"", interlace=0):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    body = b"".join(b"\0" + row for row in rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(body, 9)) + chunk(b"IEND", b"")


def packed(values, depth):
    bits = "".join(format(int(v), f"0{depth}b") for v in values)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i:i + 8], 2) for i in range(0, len(bits), 8))


def wide_rows(width, height, channels):
    values = random.integers(0, 65536, (height, width, channels))
    values[0, : width // 2] //= 300  # some below 256, where Pillow's grey differs from its colours
    return [b"".join(struct.pack(">H", int(v)) for v in row.flat) for row in values]


def adam7(pixels):
    height, width, _ = pixels.shape
    steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [row.tobytes() for x, y, dx, dy in steps for row in pixels[y::dy, x::dx] if row.size]
    return png(width, height, 8, 2, rows, interlace=1)


def pngs():
    small = lambda depth: random.integers(0, 1 << depth, (9, 13))
    palette = chunk(b"PLTE", random.integers(0, 256, 16 * 3, dtype=np.uint8).tobytes())
    yield "grey.png", saved(picture("L", 13, 9), "PNG")
    yield "grey_alpha.png", saved(picture("LA", 13, 9), "PNG")
    yield "rgb.png", saved(picture("RGB", 13, 9), "PNG")
    yield "alpha.png", saved(picture("RGBA", 13, 9), "PNG")
    yield "palette.png", saved(picture("RGB", 13, 9).quantize(200), "PNG")
    yield "palette_clear.png", saved(picture("RGB", 13, 9).quantize(5), "PNG", transparency=bytes([0, 100, 255]))
    yield "one_bit.png", saved(picture("L", 13, 9).convert("1"), "PNG")
    for depth in (2, 4):
        yield f"grey_{depth}bit.png", png(13, 9, depth, 0, [packed(r, depth) for r in small(depth)])
        yield f"palette_{depth}bit.png", png(13, 9, depth, 3, [packed(r, depth) for r in small(depth)], palette)
    yield "grey_clear.png", png(13, 9, 8, 0, [r.astype(np.uint8).tobytes() for r in small(8)], chunk(b"tRNS", b"\0\7"))
    yield "rgb_clear.png", saved(picture("RGB", 13, 9), "PNG", transparency=(1, 2, 3))
    yield "grey_16bit.png", png(13, 9, 16, 0, wide_rows(13, 9, 1))
    yield "grey_16bit_clear.png", png(13, 9, 16, 0, wide_rows(13, 9, 1), chunk(b"tRNS", b"\0\7"))
    yield "grey_alpha_16bit.png", png(13, 9, 16, 4, wide_rows(13, 9, 2))
    yield "rgb_16bit.png", png(13, 9, 16, 2, wide_rows(13, 9, 3))
    yield "alpha_16bit.png", png(13, 9, 16, 6, wide_rows(13, 9, 4))
    yield "interlaced.png", adam7(scene(13, 11))
    exif = Image.Exif()
    exif[0x112] = 5
    yield "turned5.png", saved(picture("RGB", 11, 7), "PNG", exif=exif)


# --- JPEG

def jpegs():
    yield "grey.jpg", saved(picture("L", 19, 13), "JPEG", quality=90)
    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        for width, height in ((33, 27), (7, 5)):
            yield f"rgb_{name}_{width}x{height}.jpg", saved(picture("RGB", width, height), "JPEG", quality=85, subsampling=sampling)
    yield "progressive.jpg", saved(picture("RGB", 41, 30), "JPEG", quality=85, progressive=True)
    yield "progressive_grey.jpg", saved(picture("L", 30, 41), "JPEG", quality=85, progressive=True)
    yield "restart.jpg", saved(picture("RGB", 50, 40), "JPEG", quality=80, restart_marker_blocks=2)
    cmyk = saved(picture("CMYK", 25, 18), "JPEG", quality=90)
    yield "cmyk.jpg", cmyk
    adobe = cmyk.index(b"Adobe")
    yield "ycck.jpg", cmyk[:adobe + 11] + b"\2" + cmyk[adobe + 12:]
    yield "cmyk_unmarked.jpg", cmyk[:adobe] + b"Eboda" + cmyk[adobe + 5:]
    yield "adobe_rgb.jpg", saved(picture("RGB", 25, 18), "JPEG", quality=90, keep_rgb=True)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = turn
        yield f"turned{turn}.jpg", saved(picture("RGB", 11, 7), "JPEG", quality=90, subsampling=0, exif=exif)


# --- GIF

def gif_frame(pixels, left, top, clear=None, colours=16):
    """A GIF frame whose LZW stream is uncompressed: a clear code before the table would grow."""
    height, width = pixels.shape
    bits = int(math.log2(colours))
    codes, since = [1 << bits], 0
    for value in pixels.flat:
        if since == (1 << bits) - 2:
            codes, since = codes + [1 << bits], 0
        codes, since = codes + [int(value)], since + 1
    codes.append((1 << bits) + 1)
    value = sum(code << (i * (bits + 1)) for i, code in enumerate(codes))
    data = value.to_bytes((len(codes) * (bits + 1) + 7) // 8, "little")
    blocks = b"".join(bytes([len(data[i:i + 255])]) + data[i:i + 255] for i in range(0, len(data), 255))
    control = b"" if clear is None else b"\x21\xf9\x04\x01\0\0" + bytes([clear]) + b"\0"
    return control + b"," + struct.pack("<HHHHB", left, top, width, height, 0) + bytes([bits]) + blocks + b"\0"


def gif(width, height, frames, background=3):
    palette = random.integers(0, 256, 16 * 3, dtype=np.uint8).tobytes()
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF3, background, 0) + palette + b"".join(frames) + b";"


def gifs():
    indices = lambda w, h: random.integers(0, 16, (h, w))
    yield "palette.gif", saved(picture("RGB", 17, 11).quantize(60), "GIF")
    yield "grey.gif", saved(picture("L", 17, 11), "GIF")
    yield "interlaced.gif", saved(picture("RGB", 20, 20).quantize(60), "GIF", interlace=1)
    yield "whole.gif", gif(9, 7, [gif_frame(indices(9, 7), 0, 0)])
    yield "whole_clear.gif", gif(9, 7, [gif_frame(indices(9, 7), 0, 0, clear=5)])
    yield "part.gif", gif(9, 7, [gif_frame(indices(4, 3), 2, 1)])
    yield "part_clear.gif", gif(9, 7, [gif_frame(indices(4, 3), 2, 1, clear=5)])
    yield "band_clear.gif", gif(9, 7, [gif_frame(indices(9, 3), 0, 2, clear=5)])
    yield "animated.gif", gif(9, 7, [gif_frame(indices(9, 7), 0, 0), gif_frame(indices(4, 3), 2, 1)])


# --- BMP

def bmp(width, height, depth, rows, compression=0, masks=b"", palette=b"", core=False, data=None):
    body = data if data is not None else b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    if core:
        header = struct.pack("<IHHHH", 12, width, height, 1, depth)
    else:
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, len(body), 0, 0, len(palette) // 4, 0)
    offset = 14 + len(header) + len(masks) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + masks + palette + body


def bmps():
    colours = lambda n: b"".join(bytes([*random.integers(0, 256, 3), 0]) for _ in range(n))
    words = lambda top: [b"".join(struct.pack("<H", int(v)) for v in random.integers(0, top, 13)) for _ in range(9)]
    yield "rgb.bmp", saved(picture("RGB", 13, 9), "BMP")
    yield "alpha.bmp", saved(picture("RGBA", 13, 9), "BMP")
    yield "grey.bmp", saved(picture("L", 13, 9), "BMP")
    yield "one_bit.bmp", saved(picture("L", 13, 9).convert("1"), "BMP")
    yield "palette.bmp", saved(picture("RGB", 13, 9).quantize(100), "BMP")
    yield "palette_4bit.bmp", bmp(13, 9, 4, [packed(random.integers(0, 16, 14), 4) for _ in range(9)], palette=colours(16))
    yield "x888.bmp", bmp(13, 9, 32, [random.integers(0, 256, 52, dtype=np.uint8).tobytes() for _ in range(9)])
    yield "x555.bmp", bmp(13, 9, 16, words(32768))
    yield "565.bmp", bmp(13, 9, 16, words(65536), 3, struct.pack("<III", 0xF800, 0x7E0, 0x1F))
    yield "top_down.bmp", bmp(13, -9, 24, [row.tobytes() for row in scene(13, 9)])
    yield "old_header.bmp", bmp(13, 9, 24, [row.tobytes() for row in scene(13, 9)], core=True)
    runs = b"".join(bytes([6, i, 0, 3, i + 1, i + 2, i + 3, 0, 4, i + 4, 0, 0]) for i in range(9))
    yield "runs.bmp", bmp(13, 9, 8, [], 1, palette=colours(32), data=runs + b"\0\1")


# --- WebP

def webps():
    yield "lossy.webp", saved(picture("RGB", 37, 29), "WEBP", quality=80)
    yield "lossy_16.webp", saved(picture("RGB", 16, 16), "WEBP", quality=95)
    yield "lossy_alpha.webp", saved(picture("RGBA", 21, 18), "WEBP", quality=80)
    yield "lossless.webp", saved(picture("RGB", 19, 14), "WEBP", lossless=True)
    yield "lossless_alpha.webp", saved(picture("RGBA", 19, 14), "WEBP", lossless=True, exact=True)
    frames = [picture("RGB", 12, 10), picture("RGB", 12, 10)]
    yield "animated.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)


# --- resize

def resizes(tensors):
    sizes = [  # input, crop (left, top, width, height) or None, output
        ((1, 1), None, (5, 3)), ((1, 9), None, (4, 4)), ((9, 1), None, (4, 4)), ((1, 40), None, (1, 7)), ((40, 1), None, (7, 1)),
        ((2, 2), None, (9, 9)), ((3, 5), None, (16, 16)), ((7, 7), None, (7, 7)), ((7, 7), None, (8, 6)), ((13, 11), None, (12, 12)),
        ((31, 17), None, (14, 14)), ((5, 90), None, (14, 14)), ((120, 3), None, (14, 14)), ((48, 36), None, (1, 1)),
        ((48, 36), None, (14, 14)), ((31, 43), None, (20, 20)), ((33, 20), None, (33, 11)), ((33, 20), None, (11, 20)), ((17, 23), None, (30, 40)),
        ((30, 24), (6, 5, 20, 15), (9, 9)), ((30, 24), (29, 0, 1, 24), (6, 6)), ((30, 24), (0, 23, 30, 1), (6, 6)),
        ((30, 24), (3, 4, 14, 14), (14, 14)), ((30, 24), (20, 17, 5, 6), (20, 20)), ((61, 47), (11, 3, 33, 44), (20, 20)),
    ]
    extreme = [((9, 8), "checks", (5, 5)), ((8, 9), "checks", (21, 20)), ((30, 30), "stripes", (7, 7)), ((12, 12), "white", (5, 30))]
    listed = []
    for k, ((width, height), crop, out) in enumerate(sizes + extreme):
        pixels = scene(width, height)
        y, x = np.mgrid[0:height, 0:width]
        if crop == "checks":
            pixels[:] = (255 * ((x + y) % 2))[..., None]
        elif crop == "stripes":
            pixels[:] = (255 * (x % 5 < 2))[..., None]
        elif crop == "white":
            pixels[:] = 255
        left, top, w, h = crop if isinstance(crop, tuple) else (0, 0, width, height)
        made = Image.fromarray(pixels).crop((left, top, left + w, top + h)).resize(out, Image.Resampling.BICUBIC)
        tensors[f"resize.{k}.in"], tensors[f"resize.{k}.out"] = pixels, np.asarray(made)
        listed.append({"left": left, "top": top, "width": w, "height": h})
    return listed


# --- torchvision's random crop

def crops():
    listed = []
    shapes = [(640, 480), (480, 640), (224, 224), (1, 1), (1, 50), (50, 1), (3000, 40), (40, 3000), (500, 375), (7, 5), (333, 251), (160, 90)]
    for seed in range(36):
        width, height = shapes[seed % len(shapes)]
        scale = (0.5, 1.0) if seed < 27 else (0.08, 1.0)
        torch.manual_seed(seed)
        top, left, h, w = RandomResizedCrop.get_params(torch.empty(3, height, width), scale, (3 / 4, 4 / 3))
        flip = bool(torch.rand(1) < 0.5)
        words = np.random.RandomState(seed).randint(0, 2**32, 41, dtype=np.uint64).tolist()
        listed.append(dict(width=width, height=height, scale=scale, words=words, top=top, left=left, crop_height=h, crop_width=w, flip=flip))
    return listed


def main():
    tensors = {}
    for name, data in [case for kind in (pngs, jpegs, gifs, bmps, webps) for case in kind()]:
        tensors[f"file.{name}"] = np.frombuffer(data, np.uint8)
        tensors[f"rgb.{name}"] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        if name.startswith("turned"):
            tensors[f"upright.{name}"] = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    metadata = {"resize": json.dumps(resizes(tensors)), "crops": json.dumps(crops())}
    metadata["made_by"] = f"Pillow {Image.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    tensors = {name: np.ascontiguousarray(t) for name, t in tensors.items()}
    save_file(tensors, Path(__file__).with_name("cases.safetensors"), metadata)
    print(metadata["made_by"], len(tensors), "tensors")


main()
