"""Small versions to publish, and stores that fail at a chosen call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest

from zoo import model_logs, transfer
from zoo.byte_count import OnBytes, nobody_listens
from zoo.cache import BlobCache, file_digest
from zoo.catalog import Catalog
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture, Asset, Component, Head, Lineage, Manifest, Source, VocabularyFacts
from zoo.store.faulty import FaultPlan, FaultyStore
from zoo.store.object_store import Leftover, ObjectInfo, ObjectStore
from zoo.store.retrying import RetryingStore, RetryPolicy
from zoo.tensors import write_safetensors


def new_catalog(store: ObjectStore, folder: Path) -> Catalog:
    return Catalog(store, BlobCache(folder / "cache"))


def component(folder: Path, name: str, seed: int) -> tuple[Component, Path]:
    """A component of two tensors, its values and so its digest decided by `seed`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{seed}.safetensors"
    values = np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32)
    write_safetensors(path, {f"{name}/kernel": values, f"{name}/bias": values[0]})
    facts = Component(name=name, digest=file_digest(path), bytes=path.stat().st_size, num_tensors=2)  # type: ignore[arg-type]
    return facts, path


def version(folder: Path, *, head: int = 1, backbone: int = 1, **fields: Any) -> tuple[Manifest, dict[str, Path]]:
    """A manifest with its files: a backbone and a head of the given seeds, and a vocabulary."""
    backbone_part, backbone_file = component(folder, "backbone", backbone)
    head_part, head_file = component(folder, "head", head)
    vocabulary = folder / f"vocabulary-{head}.json"
    vocabulary.write_text(f'["a", "dog", "{head}"]')
    asset = Asset(name="vocabulary.json", digest=file_digest(vocabulary), bytes=vocabulary.stat().st_size)
    manifest = Manifest(
        **{
            "architecture": Architecture(name="inception_v3"),
            "input_spec": InputSpec(height=299, width=299),
            "components": (backbone_part, head_part),
            "head": Head(kind="captioner", arguments={"units": 4}),
            "vocabulary": VocabularyFacts(size=3, tokenizer="words@1"),
            "assets": (asset,),
            "license": "MIT",
            "lineage": Lineage(
                job="job-1",
                source=Source(kind="tfjs", location="folder"),
                tensors={
                    "backbone/dense/kernel": "frozen",
                    "backbone/dense/bias": "frozen",
                    "head/dense/bias": "fresh",
                },
            ),
            "metrics": {"validation": {"bleu_4": 0.15}},
        }
        | fields
    )
    files = {backbone_part.digest: backbone_file, head_part.digest: head_file, asset.digest: vocabulary}
    return manifest, files


def faulty_store(store: ObjectStore, *, seed: int, rate: float = 0.05) -> RetryingStore:
    """`store` behind a network that fails as often as `rate` says, and what outlasts it."""
    policy = RetryPolicy(attempts=8, first_pause=0.0, longest_pause=0.0)
    return RetryingStore(FaultyStore(store, FaultPlan.mixed(rate, seed=seed)), policy)


def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow on each other at once."""
    for module in (model_logs, transfer):
        monkeypatch.setattr(module, "_FIRST_PAUSE", 0.0001)


class Crash(BaseException):
    """The process is gone: nothing after it runs, and nothing catches it."""


class FailingStore:
    """A store whose calls fail at will. `fail(number, name, key, before)` is asked before and after each call, and
    raises to make it fail; calls are counted from 1."""

    def __init__(self, store: ObjectStore, fail: Callable[[int, str, str, bool], None]) -> None:
        self._store = store
        self._fail = fail
        self._counting = Lock()  # blobs are sent by several threads
        self.calls: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return self._store.url

    def _do(self, name: str, key: str, call: Callable[[], Any]) -> Any:
        with self._counting:
            self.calls.append((name, key))
            number = len(self.calls)
        self._fail(number, name, key, True)
        result = call()
        self._fail(number, name, key, False)
        return result

    def create(self, key: str, data: bytes) -> None:
        self._do("create", key, lambda: self._store.create(key, data))

    def create_from_file(
        self, key: str, path: Path, *, chunks: Sequence[str] = (), on_bytes: OnBytes = nobody_listens
    ) -> None:
        self._do(
            "create_from_file",
            key,
            lambda: self._store.create_from_file(key, path, chunks=chunks, on_bytes=on_bytes),
        )

    def put(self, key: str, data: bytes) -> None:
        self._do("put", key, lambda: self._store.put(key, data))

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        return self._do("read", key, lambda: self._store.read(key, start=start, length=length))

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        return iter(self._do("stream", key, lambda: [*self._store.stream(key, start=start, length=length)]))

    def download(self, key: str, path: Path) -> None:
        self._do("download", key, lambda: self._store.download(key, path))

    def stat(self, key: str) -> ObjectInfo:
        return self._do("stat", key, lambda: self._store.stat(key))

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return iter(self._do("list", prefix, lambda: [*self._store.list(prefix, start_after=start_after)]))

    def folders(self, prefix: str) -> Iterator[str]:
        return iter(self._do("folders", prefix, lambda: [*self._store.folders(prefix)]))

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        return iter(self._do("leftovers", prefix, lambda: [*self._store.leftovers(prefix)]))

    def remove_leftover(self, leftover: Leftover) -> None:
        self._do("remove_leftover", leftover.key, lambda: self._store.remove_leftover(leftover))

    def delete(self, key: str) -> None:
        self._do("delete", key, lambda: self._store.delete(key))

    def local_path(self, key: str) -> Path | None:
        return self._store.local_path(key)


def contents(store: ObjectStore, prefix: str = "") -> Mapping[str, bytes]:
    """Every object below a prefix."""
    return {info.key: store.read(info.key) for info in store.list(prefix)}
