"""Records tests/train/parquet/*.parquet with pyarrow: captions and pictures as Hugging Face's datasets and others write them.

    pip install pyarrow==26.0.1 && python tests/train/record_parquet.py tests/train/parquet
"""

import io
import struct
import sys
import zlib

import pyarrow as pa
import pyarrow.parquet as pq


def png(n: int) -> bytes:
    """A picture of 8 x 8 pixels of one grey."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + bytes([n] * 8) for _ in range(8))
    head = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


N = 30
captions = [f"写真{n}" for n in range(N)]
images = [{"bytes": png(n), "path": f"{n:02}.png"} for n in range(N)]
out = sys.argv[1]

# Hugging Face: image {bytes, path}; row groups and pages of a few rows, snappy (pyarrow's default), dictionaries.
table = pa.table({"image": images, "text": captions, "label": list(range(N))})
pq.write_table(table, f"{out}/inside.parquet", row_group_size=8, data_page_size=256, write_batch_size=2)
# Bytes in a column of their own, several captions a row, one of them null; ids; pages of version 2, no compression.
lists = [[f"写真{n}", None if n % 3 == 0 else f"絵{n}"] for n in range(N)]
table = pa.table({"image": [i["bytes"] for i in images], "caption": lists, "image_id": [n // 2 for n in range(N)]})
pq.write_table(table, f"{out}/lists.parquet", compression="none", data_page_version="2.0", use_dictionary=False)
# Names, the pictures beside; a caption that is null.
table = pa.table({"file_name": [f"{n:02}.png" for n in range(24)], "caption": [None] + captions[1:24]})
pq.write_table(table, f"{out}/beside.parquet")
pq.write_table(table, f"{out}/zstd.parquet", compression="zstd")
