"""Writes pillow.safetensors and cmyk.jpg: what Pillow makes of a small picture, for the augmentation tests.

    pip install pillow numpy && python make_fixtures.py

Tensors are bytes, height x width x RGB, named `<operation>/<arguments>`; `hue` follows torchvision's adjust_hue for
Pillow images, `eval` torchvision's Resize and CenterCrop.
"""

import json
import pathlib
import struct

import numpy as np
import PIL
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

HERE = pathlib.Path(__file__).parent


def picture(height, width, seed):
    """Smooth colours, an edge, and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / a + y / b + c) for a, b, c in rng.uniform([3, 3, 0], [12, 12, 6], (3, 3))]
    image = 128 + 80 * np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3))
    image[(x > width // 2) & (y > height // 3)] += 60
    return np.clip(image, 0, 255).astype(np.uint8)


def colours(side, seed):
    """Any colours, greys and primaries among them."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (side * side, 3), dtype=np.uint8)
    pixels[:32] = pixels[:32, :1]
    pixels[32:59] = np.array([[r, g, b] for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)])
    pixels[60:100, 1] = pixels[60:100, 0]
    return pixels.reshape(side, side, 3)


def adjust_hue(image, factor):
    h, s, v = image.convert("HSV").split()
    shifted = np.array(h, dtype=np.uint8) + np.int32(factor * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(shifted, "L"), s, v)).convert("RGB")


def evaluate(image, resize, size):
    width, height = image.size
    if width <= height:
        target = (resize, int(resize * height / width))
    else:
        target = (int(resize * width / height), resize)
    image = image.resize(target, Image.BILINEAR)
    left, top = int(round((target[0] - size) / 2)), int(round((target[1] - size) / 2))
    return image.crop((left, top, left + size, top + size))


def main():
    small, many, wide = picture(16, 16, 1), colours(32, 2), picture(47, 61, 3)
    tensors = {"small": small, "many": many, "wide": wide}

    def add(name, image):
        tensors[name] = np.asarray(image)

    image, rainbow, large = Image.fromarray(small), Image.fromarray(many), Image.fromarray(wide)
    for factor in (0.0, 0.3, 0.6173, 1.0, 1.37, 1.9):
        add(f"brightness/{factor}", ImageEnhance.Brightness(image).enhance(factor))
        add(f"contrast/{factor}", ImageEnhance.Contrast(image).enhance(factor))
        add(f"saturation/{factor}", ImageEnhance.Color(image).enhance(factor))
    for turns in (-0.5, -0.1, -0.013, 0.0, 0.07, 0.5):
        add(f"hue/{turns}", adjust_hue(rainbow, turns))
    add("grayscale/", rainbow.convert("L").convert("RGB"))
    for threshold in (0, 77, 128, 255):
        add(f"solarize/{threshold}", ImageOps.solarize(image, threshold))
    for sigma in (0.1, 0.5, 0.9, 1.0, 1.4142, 2.0, 3.7, 12.0):
        add(f"gaussian_blur/{sigma}", image.filter(ImageFilter.GaussianBlur(sigma)))
    parts = ((0, 0, 61, 47), (5, 7, 40, 33), (30, 2, 16, 16), (50, 40, 5, 3), (11, 0, 9, 47), (60, 46, 1, 1), (3, 1, 58, 2))
    for left, top, width, height in parts:
        part = large.crop((left, top, left + width, top + height))
        for size in ((16, 16), (21, 13), (7, 38), (1, 1), (width, 5), (44, height)):
            add(f"resize/{left},{top},{width},{height},{size[0]},{size[1]}", part.resize(size, Image.BILINEAR))
    for resize, size in ((16, 16), (20, 16), (47, 32), (55, 24)):
        add(f"eval/{resize},{size}", evaluate(large, resize, size))

    header, offset, body = {"__metadata__": {"pillow": PIL.__version__, "script": "make_fixtures.py"}}, 0, b""
    for name, tensor in tensors.items():
        data = np.ascontiguousarray(tensor, dtype=np.uint8).tobytes()
        header[name] = {"dtype": "U8", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(data)]}
        offset, body = offset + len(data), body + data
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    (HERE / "pillow.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + body)
    Image.new("CMYK", (16, 16), (105, 180, 217, 0)).save(HERE / "cmyk.jpg", quality=95)


if __name__ == "__main__":
    main()
