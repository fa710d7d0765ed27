"""A confusion matrix as a picture: rows are the truth, columns what was said, darker is a greater share of the row.

Takes `finetune.metrics.confusion`'s table. Gives pixels. Next: `finetune.training.pictures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zoo.atomic_file import replaced_file

_CELL = 30  # pixels a side
_MARGIN = 130  # for names, at the left and on top
_LONGEST = 18  # characters of a name
_INK = np.array([31.0, 73.0, 125.0])


def confusion_picture(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> np.ndarray:
    """uint8 [height, width, 3] of counts [C][C]."""
    count = np.asarray(matrix, np.float64).reshape(len(classes), len(classes))
    share = count / np.maximum(count.sum(axis=1, keepdims=True), 1)
    side = _MARGIN + _CELL * len(classes) + 8
    pixels = np.full((side, side, 3), 255, np.uint8)
    cells = (255 - share[:, :, np.newaxis] * (255 - _INK)).round().astype(np.uint8)
    pixels[_MARGIN : side - 8, _MARGIN : side - 8] = cells.repeat(_CELL, axis=0).repeat(_CELL, axis=1)
    picture = Image.fromarray(pixels)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for place, name in enumerate(classes):
        start = _MARGIN + place * _CELL
        draw.text((_MARGIN - 6, start + _CELL // 2), _short(name), fill="black", font=font, anchor="rm")
        _upright(picture, _short(name), (start, 0), font)
        for column in range(len(classes)):
            if count[place, column]:
                colour = "white" if share[place, column] > 0.5 else "black"
                at = (_MARGIN + column * _CELL + _CELL // 2, start + _CELL // 2)
                draw.text(at, str(int(count[place, column])), fill=colour, font=font, anchor="mm")
    draw.text((6, 6), "truth ↓  said →", fill="#666666", font=font)
    return np.asarray(picture)


def write_confusion(path: Path, matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """`confusion_picture` as a PNG, atomically."""
    with replaced_file(path) as file:
        Image.fromarray(confusion_picture(matrix, classes)).save(file, "PNG")


def _upright(
    picture: Image.Image, text: str, at: tuple[int, int], font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> None:
    """`text` from bottom to top, ending above the matrix."""
    strip = Image.new("RGB", (_MARGIN - 24, _CELL), "white")
    ImageDraw.Draw(strip).text((6, _CELL // 2), text, fill="black", font=font, anchor="lm")
    picture.paste(strip.rotate(90, expand=True), (at[0], at[1] + 24))


def _short(name: str) -> str:
    plain = "".join(c if c.isprintable() else "?" for c in name)
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"
