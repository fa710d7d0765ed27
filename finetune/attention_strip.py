"""An attention strip: one picture a word of a caption, bright where the captioner looked when it said the word.

Takes an encoded image and an Explanation. Gives a PNG, or its pixels. Next: somebody's eyes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont  # draws; decoding stays in finetune.data.preprocess

from finetune.data.preprocess import load_pixels
from zoo.atomic_file import replaced_file
from zoo.input_spec import InputSpec

if TYPE_CHECKING:
    from finetune.models.heads.captioner_speech import Explanation

SIDE = 144  # pixels of a word's picture
TEXT_HEIGHT = 22
COLUMNS = 8
_DARK = 0.15  # brightness of a place that was not looked at
_MAX_PIXELS = 50_000_000


def strip_of(image: bytes, explanation: Explanation, spec: InputSpec) -> np.ndarray:
    """uint8 [height, width, 3]: what the network saw of the image, then a picture a word, COLUMNS in a line.

    Raises UnreadableImage. `explanation` is of a captioner that attends.
    """
    seen = Image.fromarray(load_pixels(image, spec, max_pixels=_MAX_PIXELS)).resize((SIDE, SIDE))
    tiles = [(seen, "")]
    for word in explanation.words:
        if word.attention is not None:
            tiles.append((_lit(seen, word.attention), word.word))
    lines = -(-len(tiles) // COLUMNS)
    picture = Image.new("RGB", (min(len(tiles), COLUMNS) * SIDE, lines * (SIDE + TEXT_HEIGHT)), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    for place, (tile, text) in enumerate(tiles):
        x, y = place % COLUMNS * SIDE, place // COLUMNS * (SIDE + TEXT_HEIGHT)
        picture.paste(tile, (x, y))
        draw.text((x + 4, y + SIDE + 2), text, fill="black", font=font)
    return np.asarray(picture)


def write_strip(path: Path, image: bytes, explanation: Explanation, spec: InputSpec) -> None:
    """Writes the strip as a PNG, atomically."""
    with replaced_file(path) as file:
        Image.fromarray(strip_of(image, explanation, spec)).save(file, "PNG")


def stacked(strips: list[np.ndarray]) -> np.ndarray:
    """Strips one under the other, filled up with white."""
    width = max(strip.shape[1] for strip in strips)
    padded = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    return np.concatenate(padded)


def _lit(seen: Image.Image, attention_HW: np.ndarray) -> Image.Image:
    """The image in the light of the weights, the brightest place as it is."""
    scaled_HW = (attention_HW / max(float(attention_HW.max()), 1e-12)).astype(np.float32)
    light = np.asarray(Image.fromarray(scaled_HW).resize(seen.size, Image.Resampling.BICUBIC))
    bright_HW1 = (_DARK + (1 - _DARK) * np.clip(light, 0, 1))[..., None]
    return Image.fromarray((np.asarray(seen, np.float32) * bright_HW1).astype(np.uint8))
