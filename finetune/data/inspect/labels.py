"""The classes, and what is likely wrong with them.

Takes Examples. Gives a LabelSurvey. Next: `finetune.data.inspect.inspection`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune.data.source import ExampleSource

FEW = 20  # images; with fewer a class says little, and a part of a split may get none
_UNEVEN = 20  # times
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Problem:
    """`kind` is for scripts to compare, `says` for people."""

    kind: str
    says: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelSurvey:
    """`counts`: class → images, by the classes' order, which is that of code points.

    Attributes:
        several: images have any number of classes each; `per_image`: number of classes → images.
        unlabelled: images without a class, where every image has one; in data with several, those that show none.
        natural_order: the classes as people count (2 before 10), None where it is the same order.
    """

    several: bool
    counts: dict[str, int]
    per_image: dict[int, int]
    unlabelled: int
    natural_order: tuple[str, ...] | None
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "several": self.several,
            "order": "lexicographic",
            "natural_order": None if self.natural_order is None else list(self.natural_order),
            "classes": [{"name": name, "images": count} for name, count in self.counts.items()],
            "per_image": {str(number): count for number, count in self.per_image.items()},
            "unlabelled": self.unlabelled,
            "problems": [asdict(problem) | {"classes": list(problem.classes)} for problem in self.problems],
        }


def survey_labels(source: ExampleSource) -> LabelSurvey | None:
    """None for data without labels."""
    counted: Counter[str] = Counter(dict.fromkeys(source.classes or (), 0))
    per_image: Counter[int] = Counter()
    several = False
    for example in source.examples:
        names = example.labels if example.label is None else (example.label,)
        several = several or bool(example.labels)
        counted.update(names)
        per_image[len(names)] += 1
    if not counted:
        return None
    counts = dict(sorted(counted.items()))
    names = tuple(counts)
    natural = tuple(sorted(names, key=_natural))
    return LabelSurvey(
        several=several,
        counts=counts,
        per_image=dict(sorted(per_image.items())),
        unlabelled=per_image[0],
        natural_order=natural if natural != names else None,
        problems=tuple(_problems(source, counts, per_image[0], several, natural)),
    )


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Digits as numbers, the rest without case."""
    pieces = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in pieces if p] + [(2, 0, name)]


def _problems(
    source: ExampleSource, counts: dict[str, int], unlabelled: int, several: bool, natural: Sequence[str]
) -> list[Problem]:
    found = []
    with_images = [name for name, count in counts.items() if count]
    empty = [name for name, count in counts.items() if not count]
    empty += [r.id.rstrip("/") for r in source.bad_records if r.id.endswith("/") and r.id.rstrip("/") not in counts]
    if len(with_images) == 1 and not several:
        found.append(Problem(kind="one_class", says=f"one class only, {with_images[0]!r}: a classifier needs two"))
    if empty:
        says = f"{len(empty)} class(es) without an image: {_listed(empty)}"
        found.append(Problem(kind="empty_class", says=says, classes=tuple(sorted(empty))))
    found += _alike(with_images + empty)
    few = [name for name in with_images if counts[name] < FEW]
    if few:
        says = f"{len(few)} class(es) have fewer than {FEW} images: {_listed([f'{n} ({counts[n]})' for n in few])}"
        found.append(Problem(kind="few_images", says=says, classes=tuple(few)))
    most, least = (pick(with_images, key=counts.__getitem__, default="") for pick in (max, min))
    if with_images and counts[most] >= _UNEVEN * counts[least]:
        says = f"uneven: {most!r} has {counts[most]} images, {least!r} {counts[least]}"
        found.append(Problem(kind="uneven", says=says, classes=(most, least)))
    if unlabelled and not several:
        found.append(Problem(kind="unlabelled", says=f"{unlabelled} image(s) have no label, the others have one"))
    if tuple(natural) != tuple(counts):
        first = next((a, b) for a, b in zip(counts, natural, strict=True) if a != b)
        says = (
            f"the classes' order is that of code points ({_listed(list(counts), 4)}), not the natural one, which has "
            f"{first[1]!r} where {first[0]!r} is; class names, not numbers, are stored with a model"
        )
        found.append(Problem(kind="order", says=says))
    return found


# What two names may have in common though they differ, from the least difference to the greatest.
_FORMS: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("unicode_form", "in Unicode form", lambda name: unicodedata.normalize("NFKC", name)),
    ("case", "in case", lambda name: unicodedata.normalize("NFKC", name).casefold()),
    ("spaces", "in spaces and marks", lambda name: re.sub(r"[\s_\-.]+", "", unicodedata.normalize("NFKC", name))),
    ("accents", "in accents", lambda name: _bare(name)),
)


def _bare(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name)
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()


def _alike(names: Sequence[str]) -> list[Problem]:
    found: list[Problem] = []
    told: set[frozenset[str]] = set()
    for kind, how, form in _FORMS:
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(form(name), []).append(name)
        for group in groups.values():
            key = frozenset(group)
            if len(key) > 1 and not any(key <= before for before in told):
                told.add(key)
                says = f"classes that differ only {how}: {', '.join(ascii(name) for name in sorted(key)[:_SHOWN])}"
                found.append(Problem(kind=f"alike_{kind}", says=says, classes=tuple(sorted(key))))
    return found


def _listed(names: Sequence[str], shown: int = _SHOWN) -> str:
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")
