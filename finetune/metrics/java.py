"""METEOR and SPICE, by the programs of their authors: Java, through the library pycocoevalcap.

Takes captions and references. Gives a number each. Next: `finetune.score`.

METEOR 1.5 (Denkowski and Lavie 2014) stems and knows synonyms of English. SPICE (Anderson et al. 2016,
arXiv:1607.08822) parses English; at its first use the library fetches Stanford CoreNLP 3.6 (some 400 MB), and it takes
8 GB of memory. Both get the words that every other metric here gets.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from finetune.text.tokenizer import tokenize
from zoo.errors import FailedPrecondition, InvalidArgument


class NoJavaMetrics(FailedPrecondition):
    """Java, or the library that starts it, isn't there."""


class JavaMetricFailed(FailedPrecondition):
    """The program of a metric ended without a score."""


class UnknownMetricName(InvalidArgument):
    """A metric that isn't computed."""


def _meteor() -> Any:
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def _spice() -> Any:
    from pycocoevalcap.spice.spice import Spice

    return Spice()


_SCORERS: dict[str, Callable[[], Any]] = {"meteor": _meteor, "spice": _spice}
JAVA_METRICS = tuple(_SCORERS)


def java_metrics(
    names: Sequence[str], candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """`meteor`, `spice`, as asked for: 0 to 1, the mean over images. Nothing is started where nothing is asked for.

    Raises UnknownMetricName, NoJavaMetrics, JavaMetricFailed.
    """
    unknown = [name for name in names if name not in _SCORERS]
    if unknown:
        raise UnknownMetricName(
            f"no metric {unknown[0]!r} besides those always computed; there are {', '.join(_SCORERS)}"
        )
    if not names:
        return {}
    if shutil.which("java") is None:
        raise NoJavaMetrics(
            f"{' and '.join(names)} need Java, and there is no `java` on the PATH",
            hint="apt-get install default-jre-headless; every other metric is computed without it",
        )
    truths = {place: [_line(caption) for caption in captions] for place, captions in enumerate(references)}
    said = {place: [_line(caption)] for place, caption in enumerate(candidates)}
    return {name: _score(name, truths, said) for name in dict.fromkeys(names)}


def _line(caption: str) -> str:
    """One line, whatever line ends the caption holds: the programs are given a line a caption."""
    return " ".join(tokenize(caption))


def _score(name: str, truths: dict[int, list[str]], said: dict[int, list[str]]) -> float:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what the library has to say is no data
            return float(_SCORERS[name]().compute_score(truths, said)[0])
    except ImportError as error:
        raise NoJavaMetrics(
            f"{name} needs the library pycocoevalcap, which can't be imported: {error}",
            hint="pip install 'modelzoo[java-metrics]'",
        ) from None
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        needs = "SPICE fetches Stanford CoreNLP at its first use, and needs 8 GB of memory" if name == "spice" else None
        raise JavaMetricFailed(f"{name} gave no score: {type(error).__name__}: {error!s:.200}", hint=needs) from None
