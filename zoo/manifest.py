"""The manifest: everything that identifies a model version, and nothing that changes (no times, no names, no aliases).

Its canonical JSON is stored at `manifests/sha256/<hex>.json`; the digest of those bytes identifies the version.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from zoo.file_hash import CHUNK_BYTES, FileHash
from zoo.input_spec import InputSpec

SCHEMA_VERSION = 1
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
ChunkHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fate = Literal["restored", "renamed", "frozen", "trained", "fresh"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Value):
    """A name in the literal table `zoo.architectures.ARCHITECTURES` and the arguments of its builder."""

    name: str
    arguments: dict[str, JsonValue] = {}


class _Blob(_Value):
    """A file of the version. `chunks`: the SHA-256 of each 8 MiB of it, so that a part can be verified alone; empty for
    a file of one chunk, whose hash the digest is, and in manifests of versions of the zoo that didn't write them."""

    digest: Digest
    bytes: Annotated[int, Field(ge=0)]
    chunks: tuple[ChunkHash, ...] = ()

    @model_validator(mode="after")
    def _a_hash_for_every_chunk(self) -> Self:
        if self.chunks and len(self.chunks) != -(-self.bytes // CHUNK_BYTES):
            raise ValueError(f"{len(self.chunks)} chunk hashes for {self.bytes} bytes")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_chunks(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out rather than null: manifests from before there were chunks keep their bytes, and so their digest.
        value: dict[str, Any] = handler(self)
        if not self.chunks:
            value.pop("chunks", None)
        return value


class Component(_Blob):
    """One safetensors file: `backbone` or `head`."""

    name: Literal["backbone", "head"]
    num_tensors: int

    @classmethod
    def of(cls, name: Literal["backbone", "head"], file: FileHash, *, num_tensors: int) -> Self:
        return cls(name=name, digest=file.digest, bytes=file.bytes, chunks=file.chunks, num_tensors=num_tensors)


class Asset(_Blob):
    """A small file that belongs to the version, e.g. `vocabulary.json`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+\.[a-z0-9]+$")]

    @classmethod
    def of(cls, name: str, file: FileHash) -> Self:
        return cls(name=name, digest=file.digest, bytes=file.bytes, chunks=file.chunks)


class Head(_Value):
    """A kind in the literal table `finetune.models.heads.HEADS` and the arguments of its builder."""

    kind: str
    arguments: dict[str, JsonValue] = {}


class VocabularyFacts(_Value):
    """What a reader wants to know of the asset `vocabulary.json` without fetching it."""

    size: int
    tokenizer: str


class Source(_Value):
    """Where imported weights came from. `digest` is of the bytes that were read; `recipe` says how they were trained,
    e.g. {"label_smoothing": 0.1, "ema": true}."""

    kind: str
    location: str
    digest: Digest | None = None
    url: str | None = None
    recipe: dict[str, JsonValue] = {}

    @model_serializer(mode="wrap")
    def _without_what_is_not_known(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out, so that manifests from before there were these keep their bytes.
        value: dict[str, Any] = handler(self)
        return {key: each for key, each in value.items() if each or key not in ("url", "recipe")}


class Lineage(_Value):
    """`parent` is `name@version`; `tensors` gives the fate of every tensor, by `component/tensor name`. `moved`: of the
    trained ones that began with weights of another version, how far they are from there, ‖now − then‖ / ‖then‖."""

    parent: str | None = None
    parent_digest: Digest | None = None
    job: str | None = None
    source: Source | None = None
    tensors: dict[str, Fate] = {}
    moved: dict[str, float] = {}

    @model_serializer(mode="wrap")
    def _without_what_did_not_move(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out rather than empty, so that manifests from before there was this key keep their bytes.
        value: dict[str, Any] = handler(self)
        if not self.moved:
            value.pop("moved", None)
        return value


class Manifest(_Value):
    """The immutable description of one model version."""

    schema_version: Literal[1] = 1
    architecture: Architecture
    input_spec: InputSpec
    components: tuple[Component, ...]
    head: Head | None = None
    classes: tuple[str, ...] | None = None
    class_offset: int = 0  # logits before the first class, e.g. 1 where a background class comes first
    vocabulary: VocabularyFacts | None = None
    assets: tuple[Asset, ...] = ()
    license: str | None = None
    lineage: Lineage = Lineage()
    metrics: dict[str, dict[str, JsonValue]] = {}  # split → metric → value
    spec: dict[str, JsonValue] | None = None  # the resolved JobSpec of the run that made it
    tools: dict[str, str] = {}  # tool → version

    def component(self, name: str) -> Component | None:
        return next((c for c in self.components if c.name == name), None)

    def asset(self, name: str) -> Asset | None:
        return next((a for a in self.assets if a.name == name), None)

    def canonical_bytes(self) -> bytes:
        """UTF-8 JSON with sorted keys and no spaces: equal manifests have equal bytes."""
        return canonical_json(self.model_dump(mode="json"))

    def digest(self) -> str:
        """`sha256:<hex>` of the canonical bytes."""
        return "sha256:" + hashlib.sha256(self.canonical_bytes()).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one JSON encoding of a value. Raises ValueError on NaN and infinities, which JSON doesn't have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
