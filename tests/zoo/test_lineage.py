"""Lineage both ways: ancestors up to the root, every descendant, and where the tree had to be cut."""

from __future__ import annotations

from pathlib import Path

from tests.zoo.samples import new_catalog, version
from zoo.lineage import family, lines
from zoo.manifest import Lineage
from zoo.search.index import CatalogIndex
from zoo.store.memory import MemoryStore


def test_the_tree_both_ways(tmp_path: Path) -> None:
    catalog = new_catalog(MemoryStore(), tmp_path)
    for number, (name, parent) in enumerate(
        [("root", None), ("a", "root@1"), ("b", "root@1"), ("leaf", "a@1"), ("lost", "gone@1")], start=1
    ):
        catalog.publish(name, *version(tmp_path, head=number, lineage=Lineage(parent=parent)))
    with CatalogIndex.open(catalog) as index:
        tree = family(catalog, index, "a")
        assert [one.reference for one in tree.ancestors] == ["root@1"]
        assert [node.version.reference for node in tree.descendants] == ["leaf@1"]
        shown = [(before, one.reference if one else None) for before, one in lines(family(catalog, index, "root"))]
        assert shown == [("", "root@1"), ("├─ ", "a@1"), ("│  └─ ", "leaf@1"), ("└─ ", "b@1")]
        assert family(catalog, index, "lost").missing == "gone@1"
        cut = family(catalog, index, "root", depth=1)
        assert [node.descendants for node in cut.descendants] == [(), ()]


def test_a_circle_made_by_hand_ends(tmp_path: Path) -> None:
    catalog = new_catalog(MemoryStore(), tmp_path)
    catalog.publish("x", *version(tmp_path, head=1, lineage=Lineage(parent="y@1")))
    catalog.publish("y", *version(tmp_path, head=2, lineage=Lineage(parent="x@1")))
    with CatalogIndex.open(catalog) as index:
        tree = family(catalog, index, "x")
    assert tree.cuts
    assert "y@1" in {one.reference for one in tree.ancestors}
