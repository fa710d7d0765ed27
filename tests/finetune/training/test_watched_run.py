"""Whole runs in real processes, looked at in every way: the same child, and everything in the event files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.jobs.folder import JobFolder
from finetune.training.checkpoints import Checkpoints, spec_digest
from tests.finetune.training.roles import Place, log

SHORT = {"steps": 30, "evaluate_every": 10, "summary_every": 5, "histogram_every": 15}
LOOKS = {
    "print": ["image_embedding", "lstm/bias"],
    "print_every": 15,
    "check_numerics": True,
    "overfit_batch": True,
    "overfit_steps": 400,
    "profile": "12:13",
}


def tags(folder: Path) -> dict[str, Any]:
    events = EventAccumulator(str(folder), {"tensors": 0}).Reload()
    return {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}


def weights(folder: JobFolder) -> dict[str, np.ndarray]:
    return Checkpoints(folder.checkpoints, digest=spec_digest(folder.request().spec)).read_weights(30)


@pytest.mark.slow
def test_a_run_that_is_looked_at_in_every_way_gives_the_same_weights(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    plain = place.job("plain", train={**SHORT, "histogram_every": 0})
    looked_at = place.job("looked-at", train={**SHORT, "histogram_every": 0}, debug=LOOKS)
    assert spec_digest(plain.request().spec) == spec_digest(looked_at.request().spec)
    with_histograms = place.job("histograms", train=SHORT)
    for folder in (plain, looked_at, with_histograms):
        assert place.run(folder) == (0, 0), log(folder, "chief") + log(folder, "evaluator")
    expected = weights(plain)
    for folder in (looked_at, with_histograms):
        for name, value in weights(folder).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert (plain.export / "manifest.json").read_bytes().count(b"debug") == 0
    said = log(looked_at, "chief")
    assert "one batch, again and again: loss " in said
    for line in ("step 1: image_embedding [8 24] min ", "step 15: lstm/bias [96] min ", "step 30: lstm/bias "):
        assert line in said
    assert len(list(looked_at.events_train.glob("plugins/profile/*/*.xplane.pb"))) == 1

    train, validation = tags(with_histograms.events_train), tags(with_histograms.events_validation)
    assert {"loss", "word_accuracy"} <= train.keys() & validation.keys()  # one chart
    assert {"learning_rate", "step_milliseconds", "spec", "weights/head/lstm", "gradients/head/lstm"} <= train.keys()
    assert [event.step for event in train["update_norm/head/lstm"]] == [15, 30]
    assert [event.step for event in validation["sample"]] == [10, 20, 30]
    png = tf.make_ndarray(validation["sample"][-1].tensor_proto)[2]
    assert png.startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_name_that_is_not_there_ends_the_run_before_its_first_step(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    folder = place.job("typo", train=SHORT, debug={"print": ["image_embeding"]})
    process = place.start("chief", folder)
    assert process.wait(timeout=120) == 1
    error = folder.read_error()
    assert error is not None
    assert error["reason"] == "UnknownTensor"
    assert "did you mean head/image_embedding" in error["message"]
    assert not list(folder.checkpoints.glob("[0-9]*"))
