"""What captions of scenes say, and whether it is true. No pictures here, so anything may mark captions with it.

Takes captions and Examples of `scenes:`. Gives what each caption claims and the shares that are right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from finetune.data.source import Example
from zoo.errors import InvalidArgument

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle", "cross")
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_WORDS = {"over": "above", "on top of": "above", "under": "below", "beneath": "below", "underneath": "below"}
_OBJECT = rf"(?:an?|the)\s+({'|'.join(COLOURS)})\s+({'|'.join(SHAPES)})"
_RELATION = r"(?:to\s+the\s+)?(" + "|".join((*OPPOSITES, *_WORDS)).replace(" ", r"\s+") + ")"
_CAPTION = re.compile(rf"\s*(?:there\s+is\s+)?{_OBJECT}\s+(?:is\s+)?{_RELATION}\s+{_OBJECT}\s*\.?\s*\Z", re.IGNORECASE)


class Truth(NamedTuple):
    """`colour shape` stands in `relation` to `other_colour other_shape`."""

    colour: str
    shape: str
    relation: str
    other_colour: str
    other_shape: str

    def mirrored(self) -> Truth:
        """The same scene said from the other object."""
        return Truth(self.other_colour, self.other_shape, OPPOSITES[self.relation], self.colour, self.shape)


def phrasings(truth: Truth) -> tuple[str, str, str]:
    """Three captions of one scene, the last said from the other object."""
    first, second = (f"{colour} {shape}" for colour, shape in (truth[:2], truth[3:]))
    aside = "to the left of" if truth.relation == "left of" else truth.relation
    return (
        f"{_article(first)} {first} is {truth.relation} {_article(second)} {second}",
        f"there is {_article(first)} {first} {aside} {_article(second)} {second}",
        f"{_article(second)} {second} is {OPPOSITES[truth.relation]} {_article(first)} {first}",
    )


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def read_caption(text: str) -> Truth | None:
    """What a caption claims, said as it says it; None where it is no sentence about two objects and a relation."""
    match = _CAPTION.match(text)
    if match is None:
        return None
    colour, shape, relation, other_colour, other_shape = (" ".join(word.lower().split()) for word in match.groups())
    return Truth(colour, shape, _WORDS.get(relation, relation), other_colour, other_shape)


def scene_truth(example: Example) -> Truth:
    """The combination that a scene shows. Raises InvalidArgument for an Example of another source."""
    truth = read_caption(example.captions[0]) if example.captions else None
    if truth is None:
        raise InvalidArgument(f"example {example.id!r} is not a scene of scenes:, its captions name no combination")
    return truth


def scene_score(captions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """Shares, 0 to 1, of scenes whose caption is right.

    `colour` and `shape`: of both objects; `relation`: it holds between the objects the caption sets in it; `all_right`:
    the caption is true. Any phrasing `read_caption` understands counts, mirrored ones included ("a above b" is "b
    below a"): the caption's objects are matched with the scene's in the way that fits more of their attributes.
    """
    if len(captions) != len(examples) or not captions:
        raise InvalidArgument(f"one caption a scene is needed: got {len(captions)} captions, {len(examples)} scenes")
    marks = [_mark(read_caption(text), scene_truth(example)) for text, example in zip(captions, examples, strict=True)]
    shares = [sum(mark[part] for mark in marks) / len(marks) for part in range(3)]
    return {
        "colour": shares[0],
        "shape": shares[1],
        "relation": shares[2],
        "all_right": sum(all(mark) for mark in marks) / len(marks),
    }


def _mark(said: Truth | None, truth: Truth) -> tuple[bool, bool, bool]:
    if said is None:
        return False, False, False
    best = max((said, said.mirrored()), key=lambda claim: sum(a == b for a, b in zip(claim, truth, strict=True)))
    return (
        (best.colour, best.other_colour) == (truth.colour, truth.other_colour),
        (best.shape, best.other_shape) == (truth.shape, truth.other_shape),
        best.relation == truth.relation,
    )
