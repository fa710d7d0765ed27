"""Images whose label is likely wrong: confident learning on features of a backbone. No TensorFlow.

Takes feature vectors and the labels of their images. Gives LabelSuspects. Next: `finetune.training.data_warnings`
warns, `finetune data inspect --label-suspects` lists.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (2021, arXiv:1911.00068),
section 3: each image is asked of a model that hasn't seen it (cross-validation); a class counts as confidently seen
where its probability reaches the mean of that probability over the images that are labelled so; an image that is
confidently seen as another class than its label is a suspect. They are ranked by the margin, the probability of what
is seen less that of the label (the paper's second ranking).

The model is `finetune.rank`'s ridge regression, since it is solved at once where logistic regression iterates; a
softmax whose one temperature is fitted to the unseen images makes probabilities of its scores. Where it is often wrong,
many suspects are honest mistakes of the model: a run speaks only of those that stand out (`LabelSuspects.warning`).
Measured on 670 stamps of 16 uneven classes with EfficientNet-Lite0, whose model is right in 80 %: with the labels as
they are 8 images have a margin of 0.9 or more (a soccer ball among the sports, a Christmas pudding under seasonal);
with 33 labels changed by chance 20, of which 14 are among the 33, and with 67 changed 19, all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finetune.data.source import Example
from finetune.metrics.calibration import fit_temperature
from finetune.rank.probe import scaled
from finetune.rank.ridge import ridge_scores
from finetune.rank.sample import fold_of, stratified_sample
from finetune.rank.targets import Targets, class_targets

FOLDS = 5
MOST_LEARNT = 4000  # images that a fold's model learns from: more cost time and move no suspect
_LISTED = 1000
_NAMED = 3
_FEWEST = 20  # images; of fewer no model says anything
_STRIKING = 0.9  # margin from which on a run speaks of an image unasked


@dataclass(frozen=True, kw_only=True)
class LabelSuspect:
    """`probability` is that of `seen`, `margin` what it has over the label's; both by a model that never saw it."""

    id: str
    label: str
    seen: str
    probability: float
    margin: float


@dataclass(frozen=True, kw_only=True)
class LabelSuspects:
    """`suspects`, the most suspicious first, out of `looked_at` images; `accuracy`: how often the model agrees with the
    labels at all."""

    suspects: tuple[LabelSuspect, ...]
    looked_at: int
    accuracy: float

    def to_json(self) -> dict[str, Any]:
        return {
            "count": len(self.suspects),
            "striking": len(self.striking),
            "looked_at": self.looked_at,
            "accuracy": self.accuracy,
            "images": [asdict(each) for each in self.suspects[:_LISTED]],
        }

    @property
    def striking(self) -> tuple[LabelSuspect, ...]:
        return tuple(each for each in self.suspects if each.margin >= _STRIKING)

    @property
    def share(self) -> float:
        """Of striking ones among the images that were looked at."""
        return len(self.striking) / self.looked_at

    def warning(self) -> str | None:
        """A line for the log; None where nothing is striking."""
        found = self.striking
        if not found:
            return None
        named = "; ".join(f"{each.id} is {each.label!r}, looks like {each.seen!r}" for each in found[:_NAMED])
        return (
            f"{len(found)} of {self.looked_at} images may have a wrong label (confident learning): {named}. Look at "
            "them with `finetune data inspect DATA --label-suspects --backbone REF` and correct or remove what is wrong"
        )


def label_suspects(
    feature_ND: np.ndarray,
    examples: Sequence[Example],
    *,
    seed: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> LabelSuspects | None:
    """Asks every image of a class with two or more of them; row n of `feature_ND` belongs to `examples[n]`.

    None where nothing can be asked: fewer than 20 images that have a label, or one class.
    """
    targets = class_targets(examples, "label")
    count_C = targets.truth.sum(axis=0)
    # A lone image of its class is always unseen: whatever the model says of it, it says nothing of its label.
    row_M = np.flatnonzero((targets.truth & (count_C >= 2)).any(axis=1))
    if len(row_M) < _FEWEST or not int((count_C >= 2).sum()) >= 2:
        return None
    asked = class_targets([examples[int(row)] for row in row_M], "label")
    probability_MC = _unseen_probabilities(feature_ND[row_M], asked, seed, on_progress)
    label_M = asked.truth.argmax(axis=1)
    own_M = probability_MC[np.arange(len(label_M)), label_M]
    threshold_C = np.array([own_M[label_M == place].mean() for place in range(len(asked.names))])
    confident_MC = np.where(probability_MC >= threshold_C, probability_MC, -1.0)
    seen_M = confident_MC.argmax(axis=1)
    suspect_M = (confident_MC.max(axis=1) >= 0) & (seen_M != label_M)
    margin_M = probability_MC[np.arange(len(seen_M)), seen_M] - own_M
    order = [row for row in np.argsort(-margin_M, kind="stable") if suspect_M[row]]
    return LabelSuspects(
        suspects=tuple(
            LabelSuspect(
                id=examples[row_M[row]].id,
                label=asked.names[label_M[row]],
                seen=asked.names[seen_M[row]],
                probability=round(float(probability_MC[row, seen_M[row]]), 4),
                margin=round(float(margin_M[row]), 4),
            )
            for row in order
        ),
        looked_at=len(row_M),
        accuracy=round(float((probability_MC.argmax(axis=1) == label_M).mean()), 4),
    )


def _unseen_probabilities(
    feature_ND: np.ndarray, targets: Targets, seed: int, on_progress: Callable[[int, int], None]
) -> np.ndarray:
    """[N, C]: each row by a model of the other folds."""
    fold_N = fold_of(targets.strata, FOLDS, seed=seed)
    score_NC = np.zeros(targets.truth.shape)
    for fold in range(FOLDS):
        on_progress(fold, FOLDS)
        learnt, test = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
        learnt = learnt[stratified_sample(targets.strata[learnt], MOST_LEARNT, floor=FOLDS, seed=seed)]
        learnt_ND, test_ND = scaled(feature_ND[learnt], feature_ND[test])
        # Of truths that are 0 or 1. Far beyond these lie images unlike all others, of which nothing is known: a few
        # such would make the temperature so high that nothing is confident any more.
        score_NC[test] = np.clip(ridge_scores(learnt_ND, targets.truth[learnt].astype(np.float64), test_ND), -1, 2)
    on_progress(FOLDS, FOLDS)
    logit_NC = score_NC / fit_temperature(score_NC, targets.truth.argmax(axis=1))
    exponential_NC = np.exp(logit_NC - logit_NC.max(axis=1, keepdims=True))
    return np.asarray(exponential_NC / exponential_NC.sum(axis=1, keepdims=True))
