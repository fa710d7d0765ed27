"""`scenes:`: pictures of coloured shapes, drawn on the spot from a seed, whose captions can be marked exactly.

Takes options (`scenes:count=1200,seed=7,size=160`). Gives Examples (three captions, two labels such as `red circle`)
and PNG bytes. Next: `finetune.data.splits`.

A scene shows two large objects side by side or one over the other, now and then a small grey one that no caption
mentions, before one of several backgrounds. Combinations (colour, shape, relation, colour, shape) are held out of
training: the ids say train/, validation/ or test/ by the combination, so every validation scene shows two objects that
never stood together like that in training. Nothing is written to disk; a scene depends on (seed, index, size) alone.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from finetune.data.scene_language import COLOURS, SHAPES, Truth, phrasings
from finetune.data.source import BadRecord, Example
from zoo.errors import InvalidArgument

RGB = {
    "red": (225, 25, 30),
    "green": (20, 165, 55),
    "blue": (25, 70, 225),
    "yellow": (250, 215, 0),
}  # far apart: with six colours a linear probe of EfficientNet-Lite0 features told 56 % of held-out scenes, not 73 %
# (first, second): what lies behind the left or upper object and what behind the other. A pooled feature vector keeps
# what stands before what, and loses where; these say where. Sky over ground, a light wall beside a dark one.
BACKGROUNDS = {
    "above": (((170, 215, 250), (78, 56, 36)), ((190, 226, 250), (70, 56, 48)), ((160, 206, 240), (88, 66, 42))),
    "left of": (((255, 253, 248), (36, 38, 44)), ((248, 250, 254), (46, 44, 40)), ((255, 250, 238), (30, 36, 42))),
}
OPTIONS = {"count": (1200, 10, 1_000_000), "seed": (7, 0, 2**63), "size": (160, 32, 1024)}  # default, least, most
HELD_OUT = {"validation": 0.1, "test": 0.1}  # shares of the combinations


@dataclass(frozen=True, kw_only=True)
class SceneSource:
    """An ExampleSource of drawn scenes."""

    location: str
    seed: int
    size: int
    examples: Sequence[Example]
    bad_records: Sequence[BadRecord] = ()
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = tuple(sorted(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES))

    @classmethod
    def open(cls, options: str = "") -> SceneSource:
        """Draws the combinations, no picture yet. Raises InvalidArgument: an unknown option, a value out of range."""
        values = _options(options)
        seed = values["seed"]
        scenes = (_example(seed, index) for index in range(values["count"]))
        return cls(
            location="scenes:" + ",".join(f"{key}={value}" for key, value in values.items()),
            seed=seed,
            size=values["size"],
            examples=tuple(sorted(scenes, key=lambda example: example.id)),
        )

    def read(self, index: int) -> bytes:
        """The scene as PNG, size × size."""
        number = int(self.examples[index].id.rpartition("/")[2].removesuffix(".png"))
        image = draw(_truth(self.seed, number), self.size, random.Random(f"scene {self.seed} {number} picture"))
        with io.BytesIO() as buffer:
            image.save(buffer, "PNG", compress_level=1)
            return buffer.getvalue()


def _options(text: str) -> dict[str, int]:
    values = {key: default for key, (default, _, _) in OPTIONS.items()}
    for option in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = option.partition("=")
        if key not in OPTIONS:
            raise InvalidArgument(f"scenes:{text}: unknown option {key!r}; options are {', '.join(OPTIONS)}")
        _, least, most = OPTIONS[key]
        if not (value.isascii() and value.isdigit() and least <= int(value) <= most):
            raise InvalidArgument(f"scenes:{text}: {key} must be a whole number from {least} to {most}, got {value!r}")
        values[key] = int(value)
    return values


# Every combination, said from the left or upper object; the two objects differ in colour, in shape or in both.
OBJECTS = tuple(itertools.product(COLOURS, SHAPES))
COMBINATIONS = tuple(
    Truth(*first, relation, *second)
    for first in OBJECTS
    for relation in ("left of", "above")
    for second in OBJECTS
    if first != second
)


def _truth(seed: int, index: int) -> Truth:
    return random.Random(f"scene {seed} {index}").choice(COMBINATIONS)


def part_of(truth: Truth) -> str:
    """`train`, `validation` or `test`: by the combination alone, whatever the seed."""
    position = int.from_bytes(hashlib.sha256(" ".join(truth).encode()).digest()[:6], "big") / 2**48
    for part, share in HELD_OUT.items():
        if position < share:
            return part
        position -= share
    return "train"


def _example(seed: int, index: int) -> Example:
    truth = _truth(seed, index)
    shown = sorted({f"{truth.colour} {truth.shape}", f"{truth.other_colour} {truth.other_shape}"})
    return Example(id=f"{part_of(truth)}/{index:07d}.png", captions=phrasings(truth), labels=tuple(shown))


def draw(truth: Truth, size: int, chance: random.Random) -> Image.Image:
    """The picture of one combination, RGB size × size."""
    beside = truth.relation == "left of"
    first, second = chance.choice(BACKGROUNDS[truth.relation])
    border = round(size * chance.uniform(0.48, 0.52))
    image = Image.new("RGB", (size, size), _tinted(first, chance))
    pen = ImageDraw.Draw(image)
    pen.rectangle((border, 0, size, size) if beside else (0, border, size, size), fill=_tinted(second, chance))
    objects = ((truth.colour, truth.shape, 0.25), (truth.other_colour, truth.other_shape, 0.75))
    for colour, shape, along in objects:
        radius = size * chance.uniform(0.185, 0.23)
        middle = size * (along + chance.uniform(-0.02, 0.02))
        across = size * (0.5 + chance.uniform(-0.16, 0.16))
        x, y = (middle, across) if beside else (across, middle)
        _shape(pen, shape, x, y, radius, RGB[colour])
    if chance.random() < 0.4:
        _bystander(pen, size, beside, chance)
    return image


def _tinted(colour: tuple[int, int, int], chance: random.Random) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, part + chance.randint(-8, 8))) for part in colour)
    return red, green, blue


def _bystander(pen: ImageDraw.ImageDraw, size: int, beside: bool, chance: random.Random) -> None:
    """A small grey disc in a corner, clear of both objects."""
    radius = size * chance.uniform(0.03, 0.045)
    x, y = (size * chance.choice((0.07, 0.93)) for _ in range(2))
    grey = chance.randint(120, 160)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(grey, grey, grey))


def _shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    pen.polygon([(x + radius * across, y + radius * down) for across, down in OUTLINES[shape]], fill=fill)


OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": ((0.0, -1.0), (1.05, 0.9), (-1.05, 0.9)),
    "cross": (
        *((-0.32, -1.0), (0.32, -1.0), (0.32, -0.32), (1.0, -0.32), (1.0, 0.32), (0.32, 0.32)),
        *((0.32, 1.0), (-0.32, 1.0), (-0.32, 0.32), (-1.0, 0.32), (-1.0, -0.32), (-0.32, -0.32)),
    ),
}
