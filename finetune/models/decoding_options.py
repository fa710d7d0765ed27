"""How captions are found: beam search or sampling, and within which limits. No TensorFlow.

Takes what a caller asks for and what a head has by itself. Gives a Decoding. Next: `finetune.models.beam_search`,
`finetune.models.sampling`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from zoo.errors import InvalidArgument

MAX_NGRAM = 10


class InvalidDecoding(InvalidArgument):
    """A decoding option that is out of range, or doesn't go with the others."""


class DecodingDefaults(Protocol):
    """The head's arguments that decide its captions where a caller says nothing."""

    beam_size: int
    max_words: int
    min_words: int
    length_penalty: float
    coverage: float
    no_repeat_ngram: int
    beam_groups: int
    diversity: float


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Everything decided.

    Attributes:
        beam_size: captions an image: beams, or samples.
        max_words, min_words: without the end token.
        length_penalty: α; captions are ranked by log_prob / length^α (arXiv:1609.08144, without the constant 5).
        coverage: β; β · the places' mean of log min(1, all attention to the place) is added to the rank (the same
            paper's, whose sum over places is a mean here). 0 is off.
        no_repeat_ngram: no caption holds the same so many words in a row twice; 0 is off.
        beam_groups, diversity: groups of beams, of which a later one is charged `diversity` for a word each time that
            an earlier one chose it in this step (arXiv:1610.02424). 1 group is plain beam search.
        sample: draw words instead of searching, by softmax(logits / temperature) over the `top_k` likeliest words (0:
            all) of the fewest that have `top_p` of the probability together. `seed` decides the draws of an image,
            whatever others are captioned with it.
    """

    beam_size: int
    max_words: int
    length_penalty: float
    min_words: int = 0
    coverage: float = 0.0
    no_repeat_ngram: int = 0
    beam_groups: int = 1
    diversity: float = 0.5
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _within("beam_size", self.beam_size, 1, None)
        _within("max_words", self.max_words, 1, None)
        _within("min_words", self.min_words, 0, self.max_words)
        _within("length_penalty", self.length_penalty, 0, 10)
        _within("coverage", self.coverage, 0, 10)
        _within("no_repeat_ngram", self.no_repeat_ngram, 0, MAX_NGRAM)
        _within("beam_groups", self.beam_groups, 1, self.beam_size)
        _within("diversity", self.diversity, 0, 100)
        _within("temperature", self.temperature, 0.01, 100)
        _within("top_k", self.top_k, 0, None)
        _within("top_p", self.top_p, 0.001, 1)
        _within("seed", self.seed, 0, 2**31 - 1)
        if self.beam_size % self.beam_groups:
            raise InvalidDecoding(f"{self.beam_size} beams can't be dealt to {self.beam_groups} groups of one size")


@dataclass(frozen=True, kw_only=True)
class DecodingRequest:
    """What a caller wants otherwise than the head has it by itself; None leaves that. See Decoding."""

    beam_size: int | None = None
    max_words: int | None = None
    min_words: int | None = None
    length_penalty: float | None = None
    coverage: float | None = None
    no_repeat_ngram: int | None = None
    beam_groups: int | None = None
    diversity: float | None = None
    sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def resolved(self, defaults: DecodingDefaults) -> Decoding:
        """Raises InvalidDecoding: out of range, or an option of sampling without `sample`, or of beams with it."""
        asked = {name: value for name, value in asdict(self).items() if value is not None}
        stray = _OF_SAMPLING if not self.sample else _OF_BEAMS
        for name in sorted(stray & asked.keys()):
            raise InvalidDecoding(
                f"{name} says how to {'draw words' if not self.sample else 'search'}, "
                f"but words are {'searched for' if not self.sample else 'drawn'}",
                hint="ask for sampling too" if not self.sample else None,
            )
        own: dict[str, Any] = {name: getattr(defaults, name) for name in _OF_THE_HEAD}
        if self.sample:  # beams and their ranks mean nothing to it
            own |= {"beam_groups": 1, "coverage": 0.0}
        elif "beam_size" in asked and asked["beam_size"] % own["beam_groups"]:
            own["beam_groups"] = 1
        if "max_words" in asked:
            own["min_words"] = min(own["min_words"], asked["max_words"])
        return Decoding(**(own | asked))


_OF_THE_HEAD = (
    "beam_size",
    "max_words",
    "min_words",
    "length_penalty",
    "coverage",
    "no_repeat_ngram",
    "beam_groups",
    "diversity",
)
_OF_SAMPLING = frozenset({"temperature", "top_k", "top_p", "seed"})
_OF_BEAMS = frozenset({"coverage", "beam_groups", "diversity"})


def _within(name: str, value: float, least: float, most: float | None) -> None:
    if not math.isfinite(value) or value < least or (most is not None and value > most):
        allowed = f"{least:g} or more" if most is None else f"{least:g} to {most:g}"
        raise InvalidDecoding(f"{name} is {value}, allowed is {allowed}")
