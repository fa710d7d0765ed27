"""What heads reach on real data with a frozen backbone, beside plain methods on the same features, as JSON lines.

Takes `../shared` (stamps in 16 uneven classes, two trained checkpoints); imports, computes features and ranks by the
product's own commands, in the stores that the environment names. Heads are trained by the product's Trainer in this
process, a second each, and judged once, after their last step, so that no figure is chosen by what judges it.

    scripts/bench heads
    .venv/bin/python scripts/bench_heads.py --figures uneven few-shot

Splits are `stratified:0.8,0.2`; of a class with two images one is in each part. Logistic regression is
`finetune.rank.logistic` with the penalty chosen on a quarter of the training images. macro_f1 is the mean over the
classes that occur among the truths; of five classes there are one or two test images, so it moves by 0.04 with one of
them: look at the mean over splits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402 - after the environment is set

SHARED = ROOT.parent / "shared"
STAMPS = f"folder:{SHARED / 'data/stamps'}"
LITE0, INCEPTION = "efficientnet_lite0", "inception_v3"
SEEDS = (1, 2, 3)
SPLITS = (1, 2, 3, 4, 5)
SHOTS, DRAWS = (1, 5, 10), (1, 2, 3, 4, 5)

# What the `uneven` recipe is made of, a step at a time.
PARTS: Mapping[str, dict[str, Any]] = {
    "constant rate 1e-3, 1000 steps": {
        "recipe": "head-only",
        "train.steps": 1000,
        "train.optimizer.learning_rate": 1e-3,
        "train.optimizer.schedule": "constant",
    },
    "head-only: rate 3e-3, cosine, 1500 steps": {"recipe": "head-only"},
    "+ class weights": {"recipe": "uneven", "head.arguments.feature_dropout": 0.0, "data.views": 1},
    "+ feature dropout": {"recipe": "uneven", "data.views": 1},
    "+ mirrored and cropped views (= uneven)": {"recipe": "uneven"},
    "without views, sampled evenly instead of weighted": {
        "recipe": "uneven",
        "head.arguments.class_weights": None,
        "data.order": "balanced",
        "data.views": 1,
    },
}


def figure(name: str, **values: Any) -> None:
    print(json.dumps({"figure": name, **values}), flush=True)


def tool(*arguments: str) -> Any:
    """One of the product's commands; its JSON."""
    command = [str(ROOT / ".venv/bin" / arguments[0]), *arguments[1:], "--format", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout)


def import_backbones() -> None:
    from scripts.bench import import_backbone

    for name in (LITE0, INCEPTION):
        import_backbone(name)


class Stamps:
    """Features [N, V, D] and Examples of the stamps."""

    def __init__(self, backbone: str, views: int = 1) -> None:
        from finetune.data.features import FeatureCache
        from finetune.data.sources import open_source
        from finetune.models.backbone import Backbone
        from zoo.catalog import open_catalog

        catalog = open_catalog()
        self.source = open_source(STAMPS)
        self.examples = self.source.examples
        self.feature_NVD = (
            FeatureCache()
            .open_or_fill(
                backbone=Backbone.from_version(catalog, catalog.get(backbone)),
                source=self.source,
                indices=range(len(self.examples)),
                views=views,
                max_pixels=50_000_000,
            )
            .features
        )
        self.names, self.label_N = np.unique([str(each.label) for each in self.examples], return_inverse=True)

    def parts(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the training and of the test images."""
        from finetune.data.splits import split_examples

        split = split_examples(self.examples, "stratified:0.8,0.2", seed=seed)
        return np.asarray(split.train), np.asarray(split.validation)

    def scores(self, said_M: np.ndarray, test: np.ndarray) -> dict[str, float]:
        from finetune.metrics.classes import classification_metrics

        one_hot = np.eye(len(self.names))[said_M]
        found = classification_metrics(one_hot, self.label_N[test], list(self.names))
        return {name: found[name] for name in ("accuracy", "macro_f1")}


def head_says(stamps: Stamps, train: np.ndarray, test: np.ndarray, *, seed: int, **choices: Any) -> np.ndarray:
    """Classes of the test images by a classifier head of a recipe, after its last step."""
    import keras
    import tensorflow as tf

    from finetune.data.order_choice import row_order
    from finetune.data.queue import training_batches
    from finetune.models.heads import head_arguments, head_kind
    from finetune.models.network import HeadNetwork
    from finetune.recipes import resolve
    from finetune.training.split_data import SplitData
    from finetune.training.trainer import Trainer

    recipe = choices.pop("recipe")
    settings = [f"{name}={json.dumps(value)}" for name, value in choices.items()]
    values = {"name": "bench", "backbone": LITE0, "head": {"kind": "classifier"}, "data": {"location": STAMPS}}
    spec = resolve(recipe=recipe, values=values, settings=[*settings, f"train.seed={seed}"])
    keras.utils.set_random_seed(seed)
    kind, arguments = head_kind("classifier"), head_arguments(spec.head)
    examples = tuple(stamps.examples[index] for index in train)
    assets = kind.learn_assets(examples, arguments)
    split = SplitData.join(
        name="train",
        examples=examples,
        source_index=train.tolist(),
        features_NVD=np.ascontiguousarray(stamps.feature_NVD[train][:, : spec.data.views]),
        table=kind.targets(examples, arguments, assets),
    )
    head = kind.build(arguments=arguments, feature_dim=stamps.feature_NVD.shape[2], assets=assets, seed=spec.train.seed)
    trainer = Trainer(network=HeadNetwork(head), config=spec.train, strategy=tf.distribute.get_strategy())
    assert split.features_NVD is not None
    batches = training_batches(
        table=split.table,
        features=split.features_NVD,
        batch_size=spec.train.batch_size,
        seed=seed,
        order=row_order(spec.data.order, split.table.arrays, num_rows=len(train), seed=seed),
    )
    trainer.run(iter(batches), spec.train.steps)
    said_M = np.asarray(head.logits(stamps.feature_NVD[test, 0])).argmax(axis=1)
    place_C = np.searchsorted(stamps.names, np.array(assets.classes))
    return np.asarray(place_C[said_M])


def regression_says(stamps: Stamps, train: np.ndarray, test: np.ndarray, *, seed: int) -> np.ndarray:
    """Logistic regression as `finetune rank` has it."""
    from finetune.rank.probe import logistic_scores, scaled
    from finetune.rank.targets import class_targets

    targets = class_targets([stamps.examples[index] for index in train], "label")
    train_ND, test_MD = scaled(stamps.feature_NVD[train, 0], stamps.feature_NVD[test, 0])
    said_M = logistic_scores(train_ND, targets, test_MD, seed=seed).argmax(axis=1)
    return np.asarray(np.searchsorted(stamps.names, np.array(targets.names))[said_M])


def centroid_says(stamps: Stamps, train: np.ndarray, test: np.ndarray, *, seed: int) -> np.ndarray:
    """The class whose mean direction is nearest by cosine."""
    unit_ND = stamps.feature_NVD[:, 0] / np.linalg.norm(stamps.feature_NVD[:, 0], axis=1, keepdims=True)
    classes = np.unique(stamps.label_N[train])
    centre_CD = np.stack([unit_ND[train][stamps.label_N[train] == place].mean(axis=0) for place in classes])
    centre_CD /= np.linalg.norm(centre_CD, axis=1, keepdims=True)
    return np.asarray(classes[(unit_ND[test] @ centre_CD.T).argmax(axis=1)])


def mean_and_spread(found: list[dict[str, float]]) -> dict[str, Any]:
    return {
        name: {
            "mean": round(float(np.mean([each[name] for each in found])), 4),
            "deviation": round(float(np.std([each[name] for each in found], ddof=1)), 4),
            "each": [round(each[name], 4) for each in found],
        }
        for name in found[0]
    }


def uneven() -> None:
    """Every part of the recipe: three training seeds on the split of seed 1, and one on each of five splits."""
    stamps = Stamps(LITE0, views=6)
    for where, pairs in (
        ("split 1, training seeds 1 to 3", [(1, seed) for seed in SEEDS]),
        ("splits 1 to 5", [(split, split) for split in SPLITS]),
    ):
        told = {"logistic regression": regression_says, "nearest centroid": centroid_says}
        for name, says in told.items():
            found = [stamps.scores(says(stamps, *stamps.parts(s), seed=t), stamps.parts(s)[1]) for s, t in pairs]
            figure("uneven", where=where, by=name, **mean_and_spread(found))
        for name, choices in PARTS.items():
            found = [
                stamps.scores(head_says(stamps, *stamps.parts(s), seed=t, **choices), stamps.parts(s)[1])
                for s, t in pairs
            ]
            figure("uneven", where=where, by=name, **mean_and_spread(found))


def few_shot() -> None:
    """1, 5, 10 training images a class, five draws each; the test images are those of the split of seed 1."""
    stamps = Stamps(LITE0, views=6)
    train, test = stamps.parts(1)
    ways: dict[str, Callable[..., np.ndarray]] = {
        "few-shot": lambda *parts, seed: head_says(*parts, seed=seed, recipe="few-shot"),
        "logistic regression": regression_says,
        "nearest centroid": centroid_says,
    }
    for shots in SHOTS:
        for name, says in ways.items():
            found = []
            for draw in DRAWS:
                order = train[np.random.default_rng(draw).permutation(len(train))]
                chosen = np.sort(
                    np.concatenate(
                        [order[stamps.label_N[order] == place][:shots] for place in range(len(stamps.names))]
                    )
                )
                found.append(stamps.scores(says(stamps, chosen, test, seed=draw), test))
            figure("few-shot", images_a_class=shots, by=name, **mean_and_spread(found))


def ranking() -> None:
    """`finetune rank` of both backbones on the training images of the split of seed 1, and what full runs come to."""
    ranked = tool("finetune", "rank", "--data", STAMPS, "--set", "data.split=stratified:0.8,0.2", "--backbone", LITE0,
                  "--backbone", INCEPTION)  # fmt: skip
    for each in ranked["backbones"]:
        stamps = Stamps(each["reference"].partition("@")[0])
        train, test = stamps.parts(1)
        found = [stamps.scores(head_says(stamps, train, test, seed=s, recipe="head-only"), test) for s in SEEDS]
        figure(
            "rank",
            backbone=each["reference"],
            expected=each["expected"],
            behind_best=each["behind_best"],
            full_runs=mean_and_spread(found),
        )


FIGURES: dict[str, Callable[[], None]] = {"uneven": uneven, "few-shot": few_shot, "rank": ranking}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", nargs="*", choices=[*FIGURES], default=[*FIGURES])
    options = parser.parse_args()
    from finetune.tensorflow_start import start_tensorflow

    start_tensorflow()
    import_backbones()
    for name in options.figures:
        FIGURES[name]()


if __name__ == "__main__":
    main()
