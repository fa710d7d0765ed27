"""The ranking as text: a row a backbone, and what the figures don't cover.

Takes a Ranking. Gives columns, rows and sentences. Next: `finetune.cli.rank`.
"""

from __future__ import annotations

from collections.abc import Iterator

from finetune.rank.ranking import NOT_COVERED, Ranked, Ranking
from zoo.cli.output import size_text

COLUMNS = ("", "backbone", "linear probe", "behind best", "kNN", "LogME", "ms/image", "weights", "GFLOPs", "features")
_SHORT = {"accuracy": "accuracy", "mean_average_precision": "mAP"}
_SHOWN = 10  # bad records


def table_rows(ranking: Ranking) -> list[list[str | int | float | None]]:
    return [[place, *_row(each)] for place, each in enumerate(ranking.ranked, 1)]


def _row(each: Ranked) -> list[str | int | float | None]:
    scores, cost = each.scores, each.cost
    return [
        each.candidate.reference,
        f"{scores.probe.mean:.4f} ± {scores.probe.standard_error:.4f}",
        "" if each.behind == 0 else "≈ best" if each.tied else f"−{each.behind:.4f}",
        f"{scores.neighbours.mean:.4f}",
        f"{each.log_evidence:.4f}",
        f"{cost.milliseconds:.2f}",
        size_text(cost.bytes),
        None if cost.flops is None else round(cost.flops / 1e9, 2),
        each.feature_dim,
    ]


def heading(ranking: Ranking) -> str:
    what = "words" if ranking.by == "captions" else "classes"
    return (
        f"{_SHORT[ranking.measure]} by {ranking.by}: {ranking.images} of {ranking.available} images "
        f"({ranking.part}), {ranking.classes} {what}, {ranking.folds} folds, seed {ranking.seed}; "
        f"an answer without looking: {ranking.baseline:.4f}"
    )


def expectation(ranking: Ranking) -> str:
    """What to expect of the best one, in a sentence."""
    best = ranking.ranked[0]
    probe = best.scores.probe
    tied = [each.candidate.reference for each in ranking.ranked[1:] if each.tied]
    words = (
        "Words told from features order backbones; they say nothing of BLEU or CIDEr. "
        if ranking.by == "captions"
        else ""
    )
    return (
        f"Expect {_SHORT[ranking.measure]} {probe.mean:.3f} ± {probe.standard_error:.3f} (mean of the folds ± standard "
        f"error) of a linear head on {best.candidate.reference}. {words}"
        + (f"Within two standard errors of it: {', '.join(tied)}." if tied else "")
    ).rstrip()


def remarks(ranking: Ranking) -> Iterator[str]:
    """What was left out, skipped and not covered."""
    for each in ranking.ranked:
        if each.candidate.also:
            yield f"note: {each.candidate.reference} stands for {', '.join(each.candidate.also)}: the same backbone"
    for note in ranking.notes:
        yield f"note: {note}"
    if ranking.probe == "ridge" and ranking.by == "label":
        yield f"note: {ranking.classes} classes: ridge regression stands in for logistic regression"
    for one in ranking.bad[:_SHOWN]:
        yield f"left out: {one.id}: {one.reason}"
    if len(ranking.bad) > _SHOWN:
        yield f"left out: {len(ranking.bad) - _SHOWN} more images; --format json lists them"
    for skipped in ranking.skipped:
        yield f"skipped: {skipped.reference}: {skipped.reason}"
    yield "not covered: " + "; ".join(NOT_COVERED)
