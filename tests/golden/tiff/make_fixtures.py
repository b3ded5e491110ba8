"""TIFF of many kinds, and `expected.csv`: SHA-256 of the RGB bytes that each is to be decoded to.

    python make_fixtures.py   # Pillow 13.0, tifffile 2026.3.3, imagecodecs 2026.3.6, numpy 2.4

8-bit files are what Pillow makes of them (`convert("RGB")`). Of others, the rule of `decode/tiff/samples.rs` is computed here: the
upper 8 bits of whole numbers, fewer bits scaled to 255, signed ones moved up by half their range, floats cut to 0..1 and scaled.
"""

import hashlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

HERE = Path(__file__).parent
WIDTH, HEIGHT = 37, 21
rng = np.random.default_rng(0)
expected = {}


def smooth(channels, most):
    """Values from 0 to `most` that differ everywhere, with some noise."""
    y, x, c = np.mgrid[:HEIGHT, :WIDTH, :channels].astype(np.float64)
    wave = 0.5 + 0.35 * np.sin(x / 5 + c) * np.cos(y / 4 - c) + rng.uniform(-0.1, 0.1, x.shape)
    return wave * most


def grey(values):
    return np.repeat(values.reshape(HEIGHT, WIDTH, 1), 3, 2)


def remember(name, pixels=None):
    if pixels is None:
        pixels = np.asarray(Image.open(HERE / name).convert("RGB"))
    assert pixels.shape == (HEIGHT, WIDTH, 3) and pixels.dtype == np.uint8, name
    expected[name] = hashlib.sha256(pixels.tobytes()).hexdigest()


def write(name, values, pixels=None, **options):
    options.setdefault("metadata", None)
    tifffile.imwrite(HERE / name, values, **options)
    remember(name, pixels)


def whole(bits, channels=1):
    kind = np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32 if bits <= 32 else np.uint64
    return np.minimum(smooth(channels, 2.0**bits), 2.0**bits - 2.0 ** max(bits - 52, 0)).astype(kind)


for bits in (10, 12, 14, 16, 24, 32, 64):
    values = whole(bits, 3)
    options = {"bitspersample": bits} if bits in (10, 12, 14, 24) else {}
    write(f"rgb-{bits}.tif", values, (values >> (bits - 8)).astype(np.uint8), photometric="rgb", **options)
for bits in (3, 5, 6, 7):
    values = whole(bits)[..., 0]
    most = 2**bits - 1
    scaled = ((values.astype(int) * 255 + most // 2) // most).astype(np.uint8)
    write(f"grey-{bits}.tif", values, grey(scaled), photometric="minisblack", bitspersample=bits)
    write(f"white-{bits}.tif", values, grey(255 - scaled), photometric="miniswhite", bitspersample=bits)
for bits in (8, 16, 32):
    values = (whole(bits, 3).astype(np.int64) - 2 ** (bits - 1)).astype(f"i{bits // 8}")
    upper = ((values.astype(np.int64) + 2 ** (bits - 1)) >> (bits - 8)).astype(np.uint8)
    write(f"signed-{bits}.tif", values, upper, photometric="rgb")
for bits in (16, 32, 64):
    values = (smooth(3, 1.6) - 0.3).astype(f"f{bits // 8}")
    scaled = (np.clip(values.astype(np.float32), 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
    write(f"float-{bits}.tif", values, scaled, photometric="rgb")
    write(f"float-{bits}-predicted.tif", values, scaled, photometric="rgb", compression="zlib", predictor=3)

rgb, one = whole(8, 3), whole(8)[..., 0]
write("grey-8.tif", one, photometric="minisblack")
write("white-8.tif", one, photometric="miniswhite")
deep = whole(16, 3)
write("rgb-16-big-endian.tif", deep, (deep >> 8).astype(np.uint8), photometric="rgb", byteorder=">")
write("rgb-16-predicted.tif", deep, (deep >> 8).astype(np.uint8), photometric="rgb", compression="lzw", predictor=2)
write("rgb-tiles.tif", rgb, photometric="rgb", tile=(16, 16))
write("rgb-tiles-planes.tif", np.moveaxis(rgb, 2, 0), photometric="rgb", planarconfig="separate", tile=(16, 16), compression="zlib")
write("rgb-planes.tif", np.moveaxis(rgb, 2, 0), photometric="rgb", planarconfig="separate", rowsperstrip=4)
write("rgb-big.tif", rgb, photometric="rgb", bigtiff=True)
write("rgb-big-endian-big.tif", rgb, rgb, photometric="rgb", bigtiff=True, byteorder=">")
for compression in ("lzw", "zlib", "packbits", "zstd"):
    write(f"rgb-{compression}.tif", rgb, photometric="rgb", compression=compression, rowsperstrip=5)
    write(f"rgb-{compression}-predicted.tif", rgb, rgb, photometric="rgb", compression=compression, predictor=2)
colors = np.sort(rng.integers(0, 65536, (3, 256)), 1).astype(np.uint16)
write("palette-8.tif", one, photometric="palette", colormap=colors)
write("cmyk-8.tif", whole(8, 4), photometric="separated")
cmyk = whole(16, 4)
write("cmyk-16.tif", cmyk, np.asarray(Image.frombytes("CMYK", (WIDTH, HEIGHT), (cmyk >> 8).astype(np.uint8).tobytes()).convert("RGB")), photometric="separated")
rgba = whole(8, 4)
rgba[:2, :, 3] = 0
rgba[2:4, :, 3] = 255
write("rgba-plain.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
write("rgba-multiplied.tif", rgba, photometric="rgb", extrasamples=["assocalpha"])
write("rgbx.tif", rgba, rgb * 0 + rgba[..., :3], photometric="rgb", extrasamples=["unspecified"])
for subsampling in ((1, 1), (2, 2)):
    name = f"jpeg-ycbcr-{subsampling[0]}.tif"
    write(name, rgb, photometric="ycbcr", compression="jpeg", subsampling=subsampling, tile=(16, 16))
write("jpeg-rgb.tif", rgb, photometric="rgb", compression="jpeg", compressionargs={"outcolorspace": "rgb"})
write("jpeg-grey.tif", one, photometric="minisblack", compression="jpeg")
black = Image.fromarray(one > 120)
for compression in ("group3", "group4", "tiff_lzw", "raw"):
    black.save(HERE / f"black-{compression}.tif", compression=compression)
    remember(f"black-{compression}.tif")

lines = [f"{name},{digest}\n" for name, digest in sorted(expected.items())]
(HERE / "expected.csv").write_text("name,rgb_sha256\n" + "".join(lines))
