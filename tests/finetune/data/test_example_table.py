from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.example_table import ExampleTable
from finetune.data.source import Example

TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
EXAMPLE = st.builds(
    Example,
    id=TEXT,
    captions=st.lists(TEXT, max_size=3).map(tuple),
    label=st.none() | TEXT,
    labels=st.lists(TEXT, max_size=3).map(tuple),
)


@given(st.lists(EXAMPLE, max_size=20, unique_by=lambda example: example.id))
def test_it_is_the_list_of_its_examples_in_order_of_id(examples: list[Example]) -> None:
    table = ExampleTable(examples)
    wanted = sorted(examples, key=lambda example: example.id)
    assert list(table) == wanted
    assert table == wanted
    assert len(table) == len(wanted)
    assert table[1:3] == wanted[1:3]
    assert [table[-1 - place] for place in range(len(wanted))] == wanted[::-1]


def test_what_cannot_be() -> None:
    table = ExampleTable([Example(id="a")])
    with pytest.raises(IndexError, match="example 1 of 1"):
        table[1]
    with pytest.raises(IndexError):
        table[-2]
    with pytest.raises(ValueError, match="two examples have the id 'b'"):
        ExampleTable([Example(id="b"), Example(id="a"), Example(id="b")])
    assert table != ExampleTable([Example(id="a", label="x")])


def test_a_hundred_thousand_photos_fit_in_a_tenth_of_300_mb() -> None:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    table = ExampleTable(
        Example(id=f"class_{number % 1000:04d}/photo_{number:012d}.jpg", label=f"class_{number % 1000:04d}")
        for number in range(100_000)
    )
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert kept < 30_000_000
    assert table.nbytes < 10_000_000
    assert table[99_999] == Example(id="class_0999/photo_000000099999.jpg", label="class_0999")
