from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import client_json
from finetune.wire import error_details, error_from, from_struct, to_struct
from protos.modelzoo.v1 import finetune_pb2
from server import convert
from server.convert import InvalidPage
from server.data_roots import DataNotOnServer, UnknownData
from server.interceptor import STATUSES
from zoo.errors import BY_CODE, InvalidArgument, NotFound, ZooError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=5))
def test_json_comes_through_a_struct_as_it_was(value: dict[str, object]) -> None:
    assert from_struct(to_struct(value)) == value


def test_whole_numbers_come_back_as_integers() -> None:
    value = from_struct(to_struct({"steps": 500, "rate": 0.5, "sizes": [1, 2.0]}))
    assert {key: repr(part) for key, part in value.items()} == {"steps": "500", "rate": "0.5", "sizes": "[1, 2]"}


def test_one_table_maps_the_whole_error_tree() -> None:
    assert STATUSES.keys() == BY_CODE.keys() | {ZooError.code}
    for code, status in STATUSES.items():
        assert status is getattr(grpc.StatusCode, code)


class Leaf(NotFound):
    """A leaf that only this test has."""


def test_an_error_comes_back_with_its_reason_hint_and_details() -> None:
    error = Leaf("no such thing", hint="look elsewhere", thing="x")
    trailing = [("other", "text"), ("grpc-status-details-bin", error_details(error, 5))]
    back = error_from("NOT_FOUND", "no such thing", trailing)
    assert isinstance(back, NotFound)
    assert back.to_dict() == error.to_dict()
    for rubbish in ([], [("grpc-status-details-bin", b"\xff\xff")]):
        back = error_from("INVALID_ARGUMENT", "bad", rubbish)
        assert (type(back).__mro__[1], back.message, back.hint) == (InvalidArgument, "bad", None)


def test_a_long_message_still_fits_into_the_trailing_metadata() -> None:
    error = Leaf("x" * 100_000, hint="y" * 100_000, thing="z" * 100_000)
    assert len(error_details(error, 5)) < 6000


@pytest.mark.parametrize(
    "token", ["zz", "====", "W10=", convert.page_token("a", "b", "c"), convert.page_token("x", "y")]
)
def test_a_foreign_page_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidPage):
        convert.jobs_after(token)


def test_page_sizes() -> None:
    assert [convert.page_size(size) for size in (0, 7, 5000)] == [100, 7, 1000]
    with pytest.raises(InvalidPage):
        convert.page_size(-1)


def test_flags_come_before_the_spec_and_settings_before_both() -> None:
    message = finetune_pb2.FineTuneSpec(
        name="cap",
        backbone="tiny@1",
        head="captioner",
        data="scenes:",
        settings={"train.steps": "7", "train.optimizer.learning_rate": "1e-3"},
        spec=to_struct(
            {"backbone": "other", "train": {"steps": 5, "batch_size": 9}, "head": {"arguments": {"units": 64}}}
        ),
    )
    spec = convert.job_spec(message, {})
    assert (spec.backbone, spec.train.steps, spec.train.batch_size) == ("tiny@1", 7, 9)
    assert spec.train.optimizer.learning_rate == 1e-3
    assert repr(spec.head.arguments["units"]) == "64"
    assert spec.recipe == "captioner"


def test_word_vectors_of_a_request_lie_below_a_data_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "vectors.txt").write_text("dog 1 2\n")
    (tmp_path / "secret.txt").write_text("password 1 2\n")

    def asked(path: str) -> Any:
        settings = {"head.arguments.word_vectors": path}
        message = finetune_pb2.FineTuneSpec(
            name="cap", backbone="tiny@1", head="captioner", data="scenes:", settings=settings
        )
        return convert.job_spec(message, {"texts": str(root)}).head.arguments["word_vectors"]

    assert asked("texts/vectors.txt") == str(root / "vectors.txt")
    for path in (str(tmp_path / "secret.txt"), "../secret.txt", "texts/../../secret.txt"):
        with pytest.raises(DataNotOnServer):
            asked(path)
    with pytest.raises(UnknownData):
        asked("texts/gone.txt")


def test_progress_comes_back_as_it_was_written_with_what_the_wire_has_fields_for() -> None:
    told = {"step": 3, "steps": 10, "loss": 0.5, "examples_per_second": None, "eta_seconds": 2.0, "phase": "training"}
    shown = {"waited_share": 0.25, "ready_fill": 0.5, "read_per_second": 10.0, "decoded_per_second": 9.5,
             "megabytes_per_second": 1.5, "skipped": 2}  # fmt: skip
    message = convert._progress({**told, "input": {**shown, "totals": {"bytes": 1}}, "warnings": ["small"], "pid": 7})
    assert client_json._progress(message) == {
        **told, "done": None, "total": None, "warnings": ["small"], "input": shown
    }  # fmt: skip
    cached = client_json._progress(convert._progress({**told, "input": {"waited_share": 0.0}}))
    assert cached["input"] == dict.fromkeys(shown) | {"waited_share": 0.0}
    assert client_json._progress(convert._progress(told))["input"] is None


@pytest.mark.parametrize("kind", ["one-device", "mirrored", "all-reduce", "parameter-server"])
@pytest.mark.parametrize("way", ["typed", "spec", "settings"])
def test_a_request_may_ask_for_every_strategy_in_every_way(kind: str, way: str) -> None:
    strategy: dict[str, object] = {"kind": kind}
    if kind != "one-device":
        strategy["workers"] = 3
    if kind == "parameter-server":
        strategy["ps"] = 2
    message = finetune_pb2.FineTuneSpec(name="child", backbone="tiny", head="classifier", data="scenes:count=9")
    if way == "typed":
        message.strategy.CopyFrom(finetune_pb2.Strategy(**strategy))  # type: ignore[arg-type]
    elif way == "spec":
        message.spec.update({"strategy": strategy})
    else:
        message.settings.update({f"strategy.{key}": str(value) for key, value in strategy.items()})
    found = convert.job_spec(message, {}).strategy
    assert found.model_dump() == {"workers": 1, "ps": 0, **strategy}


def test_a_strategy_that_cannot_be_is_refused() -> None:
    message = finetune_pb2.FineTuneSpec(name="child", backbone="tiny", head="classifier", data="scenes:count=9")
    for wrong in ({"kind": "all-reduc"}, {"kind": "one-device", "workers": 2}, {"kind": "all-reduce", "workers": -1}):
        message.strategy.CopyFrom(finetune_pb2.Strategy(**wrong))  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="strategy"):
            convert.job_spec(message, {})
