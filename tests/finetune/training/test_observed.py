"""Looking at training: what is shown is right, and nothing that is trained changes by a bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.pr_curve import metadata as pr_curve_metadata
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from finetune.jobs.folder import JobFolder
from finetune.models.network import HeadNetwork
from finetune.spec import JobSpec
from finetune.training.debugging import NonFiniteOperation
from finetune.training.histograms import layer_groups
from finetune.training.observed import ObservedTrainer
from finetune.training.overfit import BatchNotLearnt, overfit
from finetune.training.probe import Probe, UnknownTensor
from finetune.training.summaries import Summaries, precision_recall_table
from finetune.training.trainer import Trainer
from finetune.training.watching import watched
from tests.finetune.training.line import Line, LineTask

ALL_EVENTS = dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)


def spec(*, debug: dict[str, Any] | None = None, **train: Any) -> JobSpec:
    optimizer = {"name": "adam", "learning_rate": 0.01, "ema_decay": 0.9, "warmup_steps": 3}
    values = {"steps": 12, "evaluate_every": 5, "batch_size": 8, "optimizer": optimizer, **train}
    return JobSpec.parse(
        {
            "name": "child",
            "backbone": "tiny",
            "head": {"kind": "captioner"},
            "data": {"location": "scenes:"},
            "train": values,
            "debug": debug or {},
        }
    )


class Session:
    """Twelve steps of a small task, looked at as its spec says."""

    def __init__(self, root: Path, plan: JobSpec, task: Any) -> None:
        self.folder = JobFolder.create(root, job="j1", spec=plan, store_url="memory://x")
        self.plan, self.task = plan, task
        self.head = task.head()
        self.network = HeadNetwork(self.head)
        self.strategy = tf.distribute.get_strategy()
        self.trainer = Trainer(network=self.network, config=plan.train, strategy=self.strategy)
        self.said: list[str] = []

    def run(self, *, steps: int = 12, each: int = 5, batches: Callable[[int], Any] | None = None) -> Session:
        summaries = Summaries(self.folder.events_train)
        give = batches or self.task.batches
        with watched(
            self.folder,
            self.plan,
            trainer=self.trainer,
            network=self.network,
            batches=lambda step: nullcontext(give(step)),
            summaries=summaries,
            say=self.said.append,
        ) as trainer:
            iterator = give(0)
            for begin in range(0, steps, each):
                count = min(each, steps - begin)
                assert trainer.run(iterator, count).steps == count
        summaries.close()
        return self

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Everything that a Checkpoint would hold."""
        return {
            f"{group}/{name}": np.asarray(variable.numpy())
            for group, variables in self.trainer.variables.items()
            for name, variable in variables.items()
        }

    @property
    def events(self) -> EventAccumulator:
        return EventAccumulator(str(self.folder.events_train), ALL_EVENTS).Reload()


def unwatched(task: Any, plan: JobSpec) -> dict[str, np.ndarray]:
    trainer = Trainer(network=HeadNetwork(task.head()), config=plan.train, strategy=tf.distribute.get_strategy())
    trainer.run(task.batches(), 12)
    return {
        f"{group}/{name}": np.asarray(variable.numpy())
        for group, variables in trainer.variables.items()
        for name, variable in variables.items()
    }


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A run under all the looks that there are."""
    debug = {
        "print": ["w"],
        "print_every": 4,
        "check_numerics": True,
        "overfit_batch": True,
        "profile": "3:4",
    }
    return Session(tmp_path_factory.mktemp("everything"), spec(debug=debug, histogram_every=3), LineTask()).run()


def test_whatever_looks_are_taken_the_bits_are_the_same(everything: Session) -> None:
    """Noise that training draws, averages, moments and counters included."""
    plain = unwatched(LineTask(), spec())
    assert plain.keys() == everything.values.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(everything.values[name], value, err_msg=name)
    assert everything.trainer._run_one.experimental_get_tracing_count() == 1  # every step is handed over


def test_looks_now_and_then_cost_no_second_trace(tmp_path: Path) -> None:
    session = Session(tmp_path, spec(histogram_every=3, debug={"print": ["w"], "print_every": 4}), LineTask()).run()
    for name, value in unwatched(LineTask(), spec()).items():
        np.testing.assert_array_equal(session.values[name], value, err_msg=name)
    assert session.trainer._run.experimental_get_tracing_count() == 1
    assert session.trainer._run_one.experimental_get_tracing_count() == 0


def test_histograms_and_norms_at_their_steps(everything: Session) -> None:
    events = everything.events
    groups = layer_groups(everything.network)
    assert groups == {"head/w": [0]}
    steps, norms = scalars(events, "weight_norm/head/w")
    assert steps == [3, 6, 9, 12]
    assert norms[-1] == pytest.approx(float(np.linalg.norm(everything.head.w.numpy())), rel=1e-6)
    tensors = events.Tags()["tensors"]
    assert {"weights/head/w", "gradients/head/w"} <= set(tensors)
    buckets = tf.make_ndarray(events.Tensors("weights/head/w")[-1].tensor_proto)
    assert buckets[:, 2].sum() == 2  # two weights


def scalars(events: EventAccumulator, tag: str) -> tuple[list[int], list[float]]:
    found = events.Tensors(tag)
    return [event.step for event in found], [float(tf.make_ndarray(event.tensor_proto)) for event in found]


def test_the_norms_are_those_of_the_step(tmp_path: Path) -> None:
    """Plain SGD without clipping: the update is rate × gradient, and the gradient's norm what the trainer reports."""
    plan = spec(histogram_every=2, optimizer={"name": "sgd", "learning_rate": 0.1, "clip_norm": None})
    session = Session(tmp_path, plan, LineTask())
    reported: list[float] = []
    original = session.trainer.run

    def run(iterator: Any, count: int) -> Any:
        stretch = original(iterator, count)
        reported.append(stretch.gradient_norm)
        return stretch

    session.trainer.run = run  # type: ignore[method-assign]
    session.run(steps=4, each=1)
    _, gradients = scalars(session.events, "gradient_norm/head/w")
    _, updates = scalars(session.events, "update_norm/head/w")
    assert gradients == pytest.approx(reported[1::2], rel=1e-5)
    assert updates == pytest.approx([0.1 * norm for norm in gradients], rel=1e-4)


def test_the_graph_has_name_scopes(everything: Session) -> None:
    graph = tf.compat.v1.GraphDef.FromString(everything.events.Graph().SerializeToString())
    names = {node.name for node in graph.node}
    for scope in ("head/", "gradients/", "update/"):
        assert any(name.startswith(scope) for name in names), scope


def test_the_spec_is_there_as_text_and_as_hyperparameters(everything: Session) -> None:
    (event,) = everything.events.Tensors("spec")
    text = tf.make_ndarray(event.tensor_proto).item().decode()
    assert "    name: child\n" in text
    assert "        learning_rate: 0.01\n" in text
    run = EventAccumulator(str(everything.folder.events), ALL_EVENTS).Reload()
    content = run.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = hparams_metadata.parse_session_start_info_plugin_data(content)
    assert start.hparams["train.optimizer.learning_rate"].number_value == 0.01
    assert not any(name.startswith("debug") for name in start.hparams)
    assert "_hparams_/session_end_info" in run.summary_metadata


def test_tensors_are_printed_with_shape_range_and_slice(everything: Session) -> None:
    lines = [line for line in everything.said if line.startswith("step ")]
    assert [line.partition(":")[0] for line in lines] == ["step 1", "step 4", "step 8", "step 12"]
    assert lines[0] == "step 1: w [2] min 1 max 1 mean 1 first [1 1]"
    assert (everything.folder.logs / "prints.log").read_text().splitlines() == lines


def test_the_profile_is_a_trace_that_parses(everything: Session) -> None:
    (path,) = everything.folder.events_train.glob("plugins/profile/*/*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    names = {event.name for plane in space.planes for event in plane.event_metadata.values()}
    assert "train" in names
    assert any("a trace of steps 3 to 4" in line for line in everything.said)


def test_layers_and_their_outputs_can_be_printed(captioner_task: Any, tmp_path: Path) -> None:
    task = captioner_task()
    network = HeadNetwork(task.head())
    look = Probe(network).printer(["image_embedding", "head/lstm/bias", "output/kernel"], file=str(tmp_path / "p"))
    look(7, *next(task.batches()))
    lines = (tmp_path / "p").read_text().splitlines()
    assert lines[0].startswith("step 7: image_embedding [8 16] min ")
    assert lines[1].startswith("step 7: head/lstm/bias [64] min 0 max 1 mean 0.25 ")
    assert lines[2].startswith("step 7: output/kernel [16 ")


@pytest.mark.parametrize(
    ("name", "said"),
    [("imag_embedding", "did you mean head/image_embedding"), ("head/lstm/bios", "head/lstm/bias"), ("?", "it has ")],
)
def test_unknown_names_are_answered_with_near_ones(captioner_task: Any, name: str, said: str) -> None:
    with pytest.raises(UnknownTensor, match="no tensor, layer or endpoint") as caught:
        Probe(HeadNetwork(captioner_task().head())).printer([name], file="unused")
    assert said in str(caught.value)


def test_a_layer_that_training_does_not_call_is_said_to_be_so(captioner_task: Any, tmp_path: Path) -> None:
    task = captioner_task()
    look = Probe(HeadNetwork(task.head())).printer(["head/lstm"], file=str(tmp_path / "p"))
    with pytest.raises(UnknownTensor, match="whose call is no part") as caught:
        look(1, *next(task.batches()))
    assert "head/lstm/" in str(caught.value.hint)


class Logarithm(Line):
    """Takes the logarithm of its inputs; the trouble begins when one is negative."""

    def loss(self, features: Any, targets: Any, *, training: bool) -> Any:
        with tf.name_scope("log_of_inputs"):
            features = {"feature_vector": tf.math.log(features["feature_vector"])}
        return super().loss(features, targets, training=training)


class _Logarithms(LineTask):
    def head(self, seed: int = 1) -> Line:
        return Logarithm(seed=seed)


def positive_until(bad: int) -> Any:
    x = np.full((8, 2), 2.0, np.float32)

    def batch(i: tf.Tensor) -> Any:
        sign = tf.where(i == bad - 1, -1.0, 1.0)
        return {"feature_vector": x * sign}, {"y": tf.ones(8), "weight": tf.ones(8)}

    return iter(tf.data.Dataset.range(100).map(batch))


def test_the_first_operation_that_is_not_finite_is_named(tmp_path: Path) -> None:
    session = Session(tmp_path, spec(debug={"check_numerics": True}), _Logarithms())
    with pytest.raises(NonFiniteOperation, match=r"at step 5 of 12") as caught:
        session.run(batches=lambda step: positive_until(5))
    assert caught.value.details["op"] == "Log"
    assert caught.value.details["scope"].startswith("head/log_of_inputs")
    assert "the first operation is Log in head/log_of_inputs" in caught.value.message


def test_a_batch_with_nan_is_blamed_for_it(tmp_path: Path) -> None:
    session = Session(tmp_path, spec(debug={"check_numerics": True}), LineTask())
    x = np.array([[1.0, float("nan")]], np.float32)
    data = ({"feature_vector": x}, {"y": np.ones(1, np.float32), "weight": np.ones(1, np.float32)})
    with pytest.raises(NonFiniteOperation, match=r"the batch has NaN or Inf in feature_vector \(1 of 2 values\)"):
        session.run(batches=lambda step: iter(tf.data.Dataset.from_tensors(data).repeat()))


def test_a_batch_is_learnt_by_heart_or_said_not_to_be(captioner_task: Any) -> None:
    task = captioner_task()
    network = HeadNetwork(task.head())
    plan = spec(optimizer={"name": "adam", "learning_rate": 0.02}).train
    before = {name: variable.numpy() for name, variable in network.groups["head"].items()}
    strategy = tf.distribute.get_strategy()
    batch = next(task.batches())
    verdict = overfit(network, plan, batch, steps=120, strategy=strategy)
    assert verdict.learnt
    verdict.require()
    for name, value in before.items():
        np.testing.assert_array_equal(network.groups["head"][name].numpy(), value)
    slow = plan.model_copy(update={"optimizer": plan.optimizer.model_copy(update={"learning_rate": 1e-6})})
    verdict = overfit(network, slow, batch, steps=10, strategy=strategy)
    assert not verdict.learnt
    with pytest.raises(BatchNotLearnt, match="not about 0"):
        verdict.require()


def test_precision_and_recall_by_threshold() -> None:
    truth = np.array([True, True, False, False])
    score = np.array([0.9, 0.4, 0.6, 0.1])
    table = precision_recall_table(truth, score)
    assert table[:, 0].tolist() == [2, 2, 0, 0, 0.5, 1.0]  # everything is at or above 0
    assert table[:, 50].tolist() == [1, 1, 1, 1, 0.5, 0.5]
    assert table[:, 80].tolist() == [1, 0, 2, 1, 1.0, 0.5]


def test_a_curve_is_read_back_as_the_plugins_own(tmp_path: Path) -> None:
    summaries = Summaries(tmp_path)
    summaries.precision_recall(3, "pr/a", np.array([True, False]), np.array([0.8, 0.3]))
    summaries.close()
    events = EventAccumulator(str(tmp_path), ALL_EVENTS).Reload()
    metadata = events.summary_metadata["pr/a"]
    assert metadata.plugin_data.plugin_name == pr_curve_metadata.PLUGIN_NAME
    assert pr_curve_metadata.parse_plugin_metadata(metadata.plugin_data.content).num_thresholds == 101
    (event,) = events.Tensors("pr/a")
    assert tf.make_ndarray(event.tensor_proto).shape == (6, 101)


def test_no_look_asked_for_leaves_long_stretches_alone(tmp_path: Path) -> None:
    session = Session(tmp_path, spec(histogram_every=0), LineTask())
    calls: list[int] = []
    original = session.trainer.run

    def run(iterator: Any, count: int) -> Any:
        calls.append(count)
        return original(iterator, count)

    session.trainer.run = run  # type: ignore[method-assign]
    session.run(each=12)
    assert calls == [1, 11]  # the first, whose graph is shown; the rest
    assert isinstance(session.trainer, Trainer)
    assert ObservedTrainer(session.trainer, []).global_step is session.trainer.global_step


def test_by_default_histograms_are_rare_where_steps_are_short(tmp_path: Path) -> None:
    """Of the first two evaluations and the last step; what lies between comes when it costs next to nothing."""
    session = Session(tmp_path, spec(steps=40, evaluate_every=4), LineTask()).run(steps=40, each=3)
    steps, _ = scalars(session.events, "weight_norm/head/w")
    assert steps == [4, 8, 40]
