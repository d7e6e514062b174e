"""Makes picture files of every kind that decoders differ in, with Pillow and libjpeg-turbo's cjpeg and jpegtran, and records what
Pillow makes of each: writes decoders.safetensors beside this file, or a larger set elsewhere.

    apt install libjpeg-turbo-progs; pip install pillow==11.3.0 numpy==2.4.6 safetensors==0.8.0
    python record_decoders.py [--many N --out FILE]

NAME                the bytes of a picture file
metadata `pillow`:  {NAME: [width, height, CRC-32 of Image.open(NAME).convert("RGB"), CRC-32 of that resized to 61 x 47, bicubic]},
                    or {NAME: null} where Pillow refuses the file
"""
import argparse, io, itertools, json, struct, subprocess, tempfile, zlib
from pathlib import Path
import numpy as np
from PIL import Image, ImageFile, features
from safetensors.numpy import save_file

Image.MAX_IMAGE_PIXELS = None
random = np.random.default_rng(20260102)


def scene(width, height, channels=3):
    """Slopes, an edge and noise; long strips get a pattern that costs few bytes."""
    y, x = np.mgrid[0:height, 0:width]
    if max(width, height) > 4000:
        plane = ((x // 64 + y // 64) % 4 * 60 + 20).astype(np.uint8)
        return np.stack([plane // (c + 1) for c in range(channels)], -1)
    f, g, p = random.uniform(0.02, 0.6, 3), random.uniform(0.02, 0.6, 3), random.uniform(0, 6, 3)
    planes = [120 + 80 * np.sin(f[c % 3] * x + p[c % 3]) * np.cos(g[c % 3] * y) + 50 * (x + 2 * y > width) for c in range(channels)]
    noise = random.normal(0, random.uniform(0, 12), (height, width, channels))
    return np.clip(np.stack(planes, -1) + noise, 0, 255).astype(np.uint8)


def picture(mode, width, height):
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    return Image.frombytes(mode, (width, height), scene(width, height, channels).tobytes())


def saved(image, format, **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def run(*command, data):
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def cjpeg(image, *options):
    return run("cjpeg", *options, data=saved(image, "PPM"))


def scans(data, text):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as script:
        script.write(text)
        script.flush()
        return run("jpegtran", "-scans", script.name, data=data)


SAMPLINGS = ["1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "2x4", "2x1,1x1,2x1", "2x2,2x1,1x2", "1x2,1x1,1x1"]
SEPARATE = ["0;\n1;\n2;\n", "0;\n1 2;\n", "0 1 2: 0-0, 0, 0;\n0: 1-63, 0, 0;\n1: 1-63, 0, 0;\n2: 1-63, 0, 0;\n", "1;\n2;\n0;\n"]
SIZES = [(1, 1), (1, 9), (9, 1), (7, 5), (8, 8), (16, 16), (17, 33), (33, 17), (50, 40)]


def jpegs(sizes):
    for (w, h), k in zip(sizes, itertools.count()):
        quality, name = [75, 92, 30, 100, 5, 60, 85, 95, 50][k % 9], f"{w}x{h}"
        for sampling in SAMPLINGS:
            tidy = sampling.replace(",", "-")
            yield f"{name}-{tidy}.jpg", cjpeg(picture("RGB", w, h), "-quality", str(quality), "-sample", sampling)
        base = cjpeg(picture("RGB", w, h), "-quality", str(quality), "-sample", ["1x1", "2x1", "1x2", "2x2"][k % 4])
        yield f"{name}-progressive.jpg", run("jpegtran", "-progressive", data=base)
        yield f"{name}-arithmetic.jpg", run("jpegtran", "-arithmetic", data=base)
        yield f"{name}-arithmetic-progressive.jpg", run("jpegtran", "-arithmetic", "-progressive", data=base)
        yield f"{name}-restart.jpg", run("jpegtran", "-restart", "2B", data=base)
        yield f"{name}-restart-progressive.jpg", run("jpegtran", "-progressive", "-restart", "1", data=base)
        yield f"{name}-optimized.jpg", run("jpegtran", "-optimize", "-rotate", "90", data=base)
        for i, text in enumerate(SEPARATE):
            progressive = "-" in text.replace("0-0", "")
            yield f"{name}-scans{i}{'p' * progressive}.jpg", scans(base, text)
        yield f"{name}-grey.jpg", saved(picture("L", w, h), "JPEG", quality=quality)
        yield f"{name}-grey-progressive.jpg", saved(picture("L", w, h), "JPEG", quality=quality, progressive=True)
        yield f"{name}-grey-2x2.jpg", cjpeg(picture("L", w, h), "-grayscale", "-quality", str(quality), "-sample", "2x2")
        yield f"{name}-rgb.jpg", cjpeg(picture("RGB", w, h), "-rgb", "-quality", str(quality))
        cmyk = saved(picture("CMYK", w, h), "JPEG", quality=quality, progressive=k % 2 == 1)
        adobe = cmyk.index(b"Adobe")
        yield f"{name}-cmyk.jpg", cmyk
        yield f"{name}-ycck.jpg", cmyk[:adobe + 11] + b"\2" + cmyk[adobe + 12:]
        yield f"{name}-cmyk-unmarked.jpg", cmyk[:adobe] + b"Eboda" + cmyk[adobe + 5:]


def strips():
    """The longest sides that libjpeg takes."""
    for (w, h) in [(65500, 1), (1, 65500), (65500, 9), (9, 65500)]:
        for sampling in ("1x1", "2x2"):
            yield f"{w}x{h}-{sampling}.jpg", cjpeg(picture("RGB", w, h), "-quality", "60", "-optimize", "-sample", sampling)
        yield f"{w}x{h}-progressive.jpg", cjpeg(picture("RGB", w, h), "-quality", "60", "-progressive", "-sample", "2x1")


def webps(sizes):
    for (w, h), k in zip(sizes, itertools.count()):
        name = f"{w}x{h}"
        yield f"{name}-lossy.webp", saved(picture("RGB", w, h), "WEBP", quality=[80, 20, 95][k % 3])
        yield f"{name}-lossy-alpha.webp", saved(picture("RGBA", w, h), "WEBP", quality=70, alpha_quality=[100, 40][k % 2])
        yield f"{name}-lossless.webp", saved(picture("RGB", w, h), "WEBP", lossless=True, method=[0, 4, 6][k % 3])
        yield f"{name}-lossless-alpha.webp", saved(picture("RGBA", w, h), "WEBP", lossless=True, exact=k % 2 == 0)
        yield f"{name}-palette.webp", saved(picture("RGB", w, h).quantize([2, 5, 17][k % 3]).convert("RGB"), "WEBP", lossless=True)
    for exact in (False, True):
        frames = [picture("RGBA", 24, 18) for _ in range(3)]
        yield f"animated-{exact}.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=exact, background=(9, 99, 199, 77))
    for blend in (0, 2):
        part = saved(picture("RGBA", 7, 5), "WEBP", lossless=True, exact=True)[12:]
        lossy = saved(picture("RGBA", 6, 8), "WEBP", quality=60)
        lossy = lossy[12 + 18:] if lossy[12:16] == b"VP8X" else lossy[12:]
        for kind, data, (w, h) in (("lossless", part, (7, 5)), ("lossy", lossy, (6, 8))):
            yield f"part-{kind}-{blend}.webp", webp_animation(20, 16, [(4, 6, w, h, blend, data), (0, 0, w, h, 0, data)])


def webp_animation(width, height, frames):
    u24 = lambda n: struct.pack("<I", n)[:3]
    chunk = lambda name, data: name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    body = chunk(b"VP8X", struct.pack("<I", 0x12) + u24(width - 1) + u24(height - 1)) + chunk(b"ANIM", struct.pack("<IH", 0x804020FF, 0))
    for (left, top, w, h, flags, data) in frames:
        body += chunk(b"ANMF", u24(left // 2) + u24(top // 2) + u24(w - 1) + u24(h - 1) + u24(100) + bytes([flags]) + data)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def bmp(width, height, depth, data, compression=0, palette=b"", masks=b"", header=40, listed=None):
    fields = struct.pack("<IiiHHIIiiII", header, width, height, 1, depth, compression, len(data), 0, 0, len(palette) // 4 if listed is None else listed, 0)
    fields += masks[:header - 40] + b"\0" * max(0, header - 40 - len(masks))
    rest = masks if header == 40 else b""
    offset = 14 + header + len(rest) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + fields + rest + palette + data


def bmps(rounds):
    noise = lambda n: random.integers(0, 256, n, dtype=np.uint8).tobytes()
    for r in range(rounds):
        w, h = (13, 9) if r == 0 else (int(random.integers(1, 40)), int(random.integers(1, 30)))
        stride = lambda bits: (w * bits + 31) // 32 * 4
        palette = noise(4 * 40)
        for bits in (1, 4, 8):
            colours = min(1 << bits, 40)
            data = noise(stride(bits) * h)
            yield f"palette{bits}-{r}.bmp", bmp(w, h, bits, data, palette=palette[:4 * colours])
            yield f"down{bits}-{r}.bmp", bmp(w, -h, bits, data, palette=palette[:4 * colours])
        for bits in (16, 24, 32):
            yield f"plain{bits}-{r}.bmp", bmp(w, h, bits, noise(stride(bits) * h))
        layouts = [(16, (0xF800, 0x7E0, 0x1F)), (16, (0x7C00, 0x3E0, 0x1F)), (24, (0xFF0000, 0xFF00, 0xFF)), (32, (0xFF0000, 0xFF00, 0xFF, 0)),
                   (32, (0xFF000000, 0xFF0000, 0xFF00, 0)), (32, (0xFF000000, 0xFF00, 0xFF, 0)), (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
                   (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)), (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)), (32, (0xFF000000, 0xFF00, 0xFF, 0xFF0000)),
                   (32, (0xFF00, 0xFF, 0xFF0000, 0))]
        for i, (bits, masks) in enumerate(layouts):
            for header in (40, 56, 108, 124):
                if r == 0 or random.integers(0, 4) == 0:
                    packed = struct.pack(f"<{len(masks)}I", *masks)
                    packed = packed[:12] if header == 40 else packed
                    yield f"masks{i}-{header}-{r}.bmp", bmp(w, h, bits, noise(stride(bits) * h), 3, masks=packed, header=header)
        for four in (False, True):
            for kind in range(5):
                yield f"runs{4 if four else 8}-{kind}-{r}.bmp", bmp(w, h, 4 if four else 8, runs(w, h, four, kind), 2 if four else 1, palette=palette[:4 * 16])


def runs(width, height, four, kind):
    """0 whole rows; 1 rows that end early; 2 with deltas; 3 with absolute runs; 4 of everything, and sometimes too short."""
    out = b""
    for _ in range(height):
        x = 0
        while x < width:
            n, value, what = int(random.integers(1, 9)), int(random.integers(0, 256 if four else 16)), random.integers(0, 6)
            if kind == 0:
                n = min(n, width - x)
            if kind in (1, 4) and what == 0:
                break
            if kind in (2, 4) and what == 1:
                out += bytes([0, 2, int(random.integers(0, 4)), int(random.integers(0, 2))])
            elif kind in (3, 4) and what == 2 and n >= 3:
                data = bytes(random.integers(0, 256 if four else 16, (n + 1) // 2 if four else n, dtype=np.uint8))
                out += bytes([0, n]) + data + b"\0" * (len(data) % 2)
                x += n
            else:
                out += bytes([n, value])
                x += n
        out += b"\0\0"
    return out + b"\0\1"


def record(files):
    tensors, pillow = {}, {}
    for name, data in files:
        tensors[name] = np.frombuffer(data, np.uint8)
        try:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            small = image.resize((61, 47), Image.Resampling.BICUBIC)
            pillow[name] = [*image.size, zlib.crc32(image.tobytes()), zlib.crc32(small.tobytes())]
        except Exception as why:
            pillow[name] = None
            print(name, type(why).__name__, why)
    return tensors, pillow


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--many", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path(__file__).with_name("decoders.safetensors"))
    options = options.parse_args()
    if options.many:
        sizes = [(int(random.integers(1, 200)), int(random.integers(1, 200))) for _ in range(options.many)]
        files = itertools.chain(jpegs(sizes), strips(), webps(sizes), bmps(options.many))
    else:
        files = itertools.chain(jpegs(SIZES[4:9:2]), strips(), webps(SIZES[3:7]), bmps(1))
    tensors, pillow = record(files)
    made_by = f"Pillow {Image.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}, libwebp {features.version('webp')}"
    save_file(tensors, options.out, {"pillow": json.dumps(pillow), "made_by": made_by})
    print(made_by, len(tensors), "files", options.out.stat().st_size, "bytes")


main()
