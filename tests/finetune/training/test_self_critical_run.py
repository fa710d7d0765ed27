"""Self-critical training as the trainer does it: after cross-entropy, the same whether interrupted or not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from finetune.spec import TrainConfig
from finetune.training.trainer import Trainer
from tests.finetune.training.conftest import Task


def trainer_of(task: Task) -> Trainer:
    head = task.head()
    head.learn_from(task.data.examples)
    task = Task(kind=task.kind, arguments=task.arguments, assets=task.assets, data=task.data)
    object.__setattr__(task, "head", lambda seed=1: head)
    return task.trainer(TrainConfig(steps=9))


@pytest.mark.parametrize("dropout", [0.3])
def test_a_run_that_goes_on_draws_what_it_would_have_drawn(captioner_task: Callable[..., Task], dropout: float) -> None:
    task = captioner_task(self_critical_from=4, self_critical_samples=3, embedding_dropout=dropout)
    whole = trainer_of(task)
    first = whole.run(task.batches(), 4)
    second = whole.run(task.batches(4), 5)
    assert first.metrics["reward"][1] == 0  # cross-entropy until then
    assert second.metrics["reward"][1] == 5 * 8 * 3
    assert second.metrics["reward"][0] > 0
    assert np.isfinite(second.loss)

    before, after = trainer_of(task), trainer_of(task)
    before.run(task.batches(), 6)
    for group, variables in before.variables.items():
        for name, variable in variables.items():
            after.variables[group][name].assign(variable)
    after.run(task.batches(6), 3)
    for name, variable in whole.variables["head"].items():
        np.testing.assert_array_equal(np.asarray(after.variables["head"][name]), np.asarray(variable), err_msg=name)
