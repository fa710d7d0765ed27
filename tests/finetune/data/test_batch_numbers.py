"""Batch numbers: each batch is done once, whoever comes, goes or is late."""

from __future__ import annotations

import json
import random
import threading

import pytest

from finetune.data.batch_numbers import BatchNumbers
from zoo.errors import FailedPrecondition, InvalidArgument


def test_what_is_unfinished_is_handed_out_again_after_a_restart() -> None:
    numbers = BatchNumbers()
    assert [numbers.take() for _ in range(6)] == [0, 1, 2, 3, 4, 5]
    for number in (0, 2, 5):
        numbers.finish(number)
    state = json.loads(json.dumps(numbers.to_json()))
    assert state == {"lowest_unfinished": 1, "finished_above": [2, 5]}
    assert numbers.num_finished == 3
    resumed = BatchNumbers.from_json(state)
    assert [resumed.take() for _ in range(5)] == [1, 3, 4, 6, 7]
    resumed.finish(4)
    resumed.finish(1)
    assert resumed.to_json() == {"lowest_unfinished": 3, "finished_above": [4, 5]}
    resumed.finish(3)
    assert resumed.to_json() == {"lowest_unfinished": 6, "finished_above": []}


def test_the_batch_of_a_dead_worker_is_the_next() -> None:
    numbers = BatchNumbers(7)
    assert [numbers.take(), numbers.take(), numbers.take()] == [7, 8, 9]
    numbers.give_back(8)
    numbers.give_back(7)
    assert [numbers.take(), numbers.take(), numbers.take()] == [7, 8, 10]


def test_no_batch_counts_twice() -> None:
    numbers = BatchNumbers()
    number = numbers.take()
    numbers.finish(number)
    for again in (number, 5):
        with pytest.raises(FailedPrecondition, match=f"batch {again} is not out"):
            numbers.finish(again)
        with pytest.raises(FailedPrecondition, match=f"batch {again} is not out"):
            numbers.give_back(again)


def test_many_workers_some_of_which_die() -> None:
    numbers, done, lock = BatchNumbers(), list[int](), threading.Lock()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            number = numbers.take()
            if chance.random() < 0.2:
                numbers.give_back(number)
                continue
            with lock:
                done.append(number)
            numbers.finish(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len(set(done)) == numbers.num_finished
    state = numbers.to_json()
    assert sorted(done) == [*range(state["lowest_unfinished"]), *state["finished_above"]]


@pytest.mark.parametrize(
    "value",
    [{}, {"lowest_unfinished": "3", "finished_above": []}, {"lowest_unfinished": 3, "finished_above": [3]},
     {"lowest_unfinished": -1, "finished_above": []}, {"lowest_unfinished": 1, "finished_above": [2, None]}],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match=r"no state of batch numbers|must lie above"):
        BatchNumbers.from_json(value)
