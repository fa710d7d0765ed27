"""A picture of what each backbone tells against what it costs.

Takes a Ranking. Gives a PNG.

Along: milliseconds an image, logarithmic; up: the linear probe with one standard error to either side. The line joins
the backbones that none beats in both; the others are hollow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from finetune.rank.ranking import Ranked, Ranking
from zoo.atomic_file import replaced_file

WIDTH, HEIGHT = 960, 600
LEFT, RIGHT, TOP, BOTTOM = 80, 40, 60, 70
INK, FAINT, MARK, FRONT = "#222222", "#dddddd", "#1f5fa8", "#9db8d6"
_RADIUS = 6
_LABEL = 60  # letters of a reference that are shown


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Values to pixels. `least` and `most` are of milliseconds and of the measure."""

    least: tuple[float, float]
    most: tuple[float, float]

    @classmethod
    def around(cls, ranked: Sequence[Ranked]) -> Axes:
        """With room on every side, also around one point."""
        times = [each.cost.milliseconds for each in ranked]
        lows = [each.scores.probe.mean - each.scores.probe.standard_error for each in ranked]
        highs = [each.scores.probe.mean + each.scores.probe.standard_error for each in ranked]
        room = max(0.02, (max(highs) - min(lows)) * 0.15)
        return cls(
            least=(min(times) / 1.6, max(0.0, min(lows) - room)), most=(max(times) * 2.2, min(1.0, max(highs) + room))
        )

    def at(self, milliseconds: float, value: float) -> tuple[float, float]:
        share_x = math.log(milliseconds / self.least[0]) / math.log(self.most[0] / self.least[0])
        share_y = (value - self.least[1]) / (self.most[1] - self.least[1])
        return LEFT + share_x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - share_y * (HEIGHT - TOP - BOTTOM)


def write_chart(path: Path, ranking: Ranking) -> None:
    """Writes the picture, atomically. Raises NoSpace, NoAccess and the like."""
    with replaced_file(path) as file:
        draw_chart(ranking).save(file, "PNG")


def front_of(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Those that no other beats in time and measure both, the fastest first."""
    front: list[Ranked] = []
    for each in sorted(ranked, key=lambda one: (one.cost.milliseconds, -one.scores.probe.mean)):
        if not front or each.scores.probe.mean > front[-1].scores.probe.mean:
            front.append(each)
    return front


def draw_chart(ranking: Ranking) -> Image.Image:
    """RGB, WIDTH × HEIGHT."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    axes = Axes.around(ranking.ranked)
    _frame(draw, axes, ranking)
    front = front_of(ranking.ranked)
    points = [axes.at(each.cost.milliseconds, each.scores.probe.mean) for each in front]
    if len(points) > 1:
        draw.line(points, fill=FRONT, width=3)
    taken: list[tuple[float, float, float, float]] = []
    for each in ranking.ranked:
        _point(draw, axes, each, filled=each in front)
        x, y = axes.at(each.cost.milliseconds, each.scores.probe.mean)
        taken.append((x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS))
    for each in ranking.ranked:
        _name(draw, axes, each, taken)
    return picture


def _frame(draw: ImageDraw.ImageDraw, axes: Axes, ranking: Ranking) -> None:
    small, large = ImageFont.load_default(13), ImageFont.load_default(18)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    title = f"{ranking.measure.replace('_', ' ')} of a linear probe: {ranking.images} images, {ranking.folds} folds"
    draw.text((LEFT, 18), title, fill=INK, font=large)
    for value in ticks(axes.least[1], axes.most[1]):
        _, y = axes.at(axes.least[0], value)
        draw.line((LEFT, y, right, y), fill=FAINT)
        draw.text((LEFT - 10, y), f"{value:.4g}", fill=INK, font=small, anchor="rm")
    for value in log_ticks(axes.least[0], axes.most[0]):
        x, _ = axes.at(value, axes.least[1])
        draw.line((x, TOP, x, bottom), fill=FAINT)
        draw.text((x, bottom + 8), f"{value:g}", fill=INK, font=small, anchor="ma")
    draw.line((LEFT, TOP, LEFT, bottom, right, bottom), fill=INK)
    draw.text(((LEFT + right) / 2, HEIGHT - 30), "milliseconds an image, here", fill=INK, font=small, anchor="ma")


def ticks(least: float, most: float) -> list[float]:
    """Round values between the two, 3 to 9 of them."""
    rough = (most - least) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [step * number for number in range(math.ceil(least / step), math.floor(most / step + 1e-9) + 1)]


def log_ticks(least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the two."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    return [value for power in powers for factor in (1, 2, 5) if least <= (value := factor * 10.0**power) <= most]


def _point(draw: ImageDraw.ImageDraw, axes: Axes, each: Ranked, *, filled: bool) -> None:
    probe = each.scores.probe
    x, low = axes.at(each.cost.milliseconds, probe.mean - probe.standard_error)
    _, high = axes.at(each.cost.milliseconds, probe.mean + probe.standard_error)
    _, y = axes.at(each.cost.milliseconds, probe.mean)
    draw.line((x, low, x, high), fill=MARK, width=2)
    for end in (low, high):
        draw.line((x - 4, end, x + 4, end), fill=MARK, width=2)
    box = (x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS)
    draw.ellipse(box, fill=MARK if filled else "white", outline=MARK, width=2)


def _name(draw: ImageDraw.ImageDraw, axes: Axes, each: Ranked, taken: list[tuple[float, float, float, float]]) -> None:
    """The reference beside its point, at the first place that nothing else has."""
    font = ImageFont.load_default(13)
    text = each.candidate.reference
    text = text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"
    width, height = draw.textlength(text, font=font), 15
    x, y = axes.at(each.cost.milliseconds, each.scores.probe.mean)
    places = []
    for shift in range(0, 240, height + 2):
        for below in (0,) if not shift else (shift, -shift):
            for left in (x + 10, x - 10 - width):
                places.append((left, y - height / 2 + below, left + width, y + height / 2 + below))
    inside = [box for box in places if box[0] >= 0 and box[2] <= WIDTH and box[1] >= TOP - 20 and box[3] <= HEIGHT]
    free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
    box = (free or inside or places)[0]
    taken.append(box)
    draw.text((box[0], box[1]), text, fill=INK, font=font)


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
