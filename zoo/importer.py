"""Imports a foreign checkpoint as a model version.

Takes a file or folder of another framework. Gives a published ModelVersion and a RestoreReport. Next: `zoo.catalog`.

Every tensor goes by an explicit name map (`zoo.architectures`), never by position or by luck of shape, and an import
that leaves a tensor over, unless a rule says why, fails. Backbone and head become separate files.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import JsonValue, ValidationError

from zoo.architectures.choosing import check_epsilon, check_types, choose, excluded_tensors
from zoo.architectures.matching import convert
from zoo.catalog import Catalog, Published
from zoo.class_names import check_class_names, read_class_names
from zoo.errors import InvalidArgument, NotFound
from zoo.file_hash import FileHash, hash_file
from zoo.imported_head import head_record
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture, Component, Fate, Lineage, Manifest, Source
from zoo.names import check_model_name
from zoo.readers import read_checkpoint
from zoo.readers.checkpoint import ForeignCheckpoint, ReadOptions
from zoo.restore_report import RestoreReport
from zoo.tensors import write_safetensors


class NotFinite(InvalidArgument):
    """Weights with NaN or infinity."""


class InvalidInputSpec(InvalidArgument):
    """An input spec file that isn't one."""


class MissingInputSpec(NotFound):
    """The file is not there."""


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """`published` is None after a dry run. `notes` are for the user: what was left aside and why it may matter."""

    published: Published | None
    report: RestoreReport
    manifest: Manifest
    layout: str  # the name map that fitted
    notes: tuple[str, ...]


def import_checkpoint(
    catalog: Catalog,
    *,
    kind: str,
    source: str | Path,
    name: str,
    architecture: str | None = None,
    classes: Path | None = None,
    license: str | None = None,
    input_spec: Path | InputSpec | None = None,
    dry_run: bool = False,
    exclude: Sequence[str] = (),
    allow_nan: bool = False,
    raw_weights: bool = False,
    source_url: str | None = None,
    recipe: Mapping[str, JsonValue] | None = None,
    again: bool = False,
) -> ImportResult:
    """Reads `source` and publishes it as the next version of `name`.

    Args:
        kind: a key of `zoo.readers.READERS`.
        architecture: a key of `ARCHITECTURES`; None means the one whose names the checkpoint has.
        classes: a file of class names, a JSON list or a line each; one fewer than outputs means a background class
            comes first. license: an SPDX identifier.
        input_spec: a JSON file, or the value; None means the architecture's usual one.
        dry_run: does everything but publish.
        source: a path, or what else the kind's own tools take, e.g. a handle.
        exclude: scopes of stored names to leave out, e.g. `AuxLogits`; each must match something.
        raw_weights: see `ReadOptions`.
        source_url, recipe: for the manifest: where the file was published, and how its weights were trained, e.g.
            {"label_smoothing": 0.1}; over what the file itself tells.
        again: publishes a new version even where the newest is the same.
    Raises:
        UnknownKind, UnknownArchitecture, UnknownSource, IncompleteRestore (everything that doesn't fit, at once),
        NothingExcluded, NotFinite, UnsupportedHead, InvalidInputSpec, InvalidClassNames, what the reader raises
        (`zoo.readers.checkpoint`) and what `Catalog.publish` raises. Nothing is half written.
    """
    check_model_name(name)
    class_names = None if classes is None else read_class_names(classes)
    spec = read_input_spec(input_spec) if isinstance(input_spec, Path) else input_spec
    checkpoint = read_checkpoint(kind, source, ReadOptions(raw_weights=raw_weights))
    found = choose(checkpoint, source, architecture, excluded_tensors(checkpoint, exclude))
    found.report.require_complete(f"{source} as {found.label}")
    check_epsilon(checkpoint, found)
    check_types(checkpoint, found, source)
    components = convert(checkpoint, found)
    if not allow_nan:
        _refuse_nan(source, components)
    head = head_record(found, components.get("head"))
    outputs = None if head is None else int(str(head.arguments["num_classes"]))
    offset = 0 if class_names is None else check_class_names(class_names, outputs, str(classes))
    used = spec or found.usual_input_spec
    notes = (*checkpoint.notes, *_notes(source, used, spec is not None, class_names is not None, checkpoint))
    with tempfile.TemporaryDirectory(prefix="zoo-import-") as folder:
        files = {part: Path(folder) / f"{part}.safetensors" for part in components}
        for part, path in files.items():
            write_safetensors(path, components[part])
        hashed = {part: hash_file(path) for part, path in sorted(files.items())}  # once: publishing goes by the marks
        records = tuple(_component(part, file, len(components[part])) for part, file in hashed.items())
        manifest = Manifest(
            architecture=Architecture(name=found.facts.name, arguments=found.arguments),
            input_spec=used,
            components=records,
            head=head,
            classes=class_names,
            class_offset=offset,
            license=license,
            lineage=Lineage(
                source=Source(
                    kind=kind,
                    location=_location(source),
                    digest=_digest(checkpoint.files),
                    url=source_url,
                    recipe={**checkpoint.recipe, **(recipe or {})},
                ),
                tensors=_fates(found.report),
            ),
        )
        published = None
        if not dry_run:
            published = catalog.publish(name, manifest, {file.digest: file for file in hashed.values()}, again=again)
    return ImportResult(published=published, report=found.report, manifest=manifest, layout=found.layout, notes=notes)


def read_input_spec(path: Path) -> InputSpec:
    """An InputSpec from a JSON file. Raises MissingInputSpec, InvalidInputSpec naming every fault."""
    if not path.is_file():
        raise MissingInputSpec(f"there is no input spec file at {path}")
    try:
        return InputSpec.model_validate_json(path.read_bytes())
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        known = ", ".join(InputSpec.model_fields)
        raise InvalidInputSpec(f"{path} is not an input spec: {faults}; known keys: {known}") from None


def _location(source: str | Path) -> str:
    """What the source is called, without the folders of this machine."""
    text = str(source)
    return text if "://" in text else Path(source).resolve().name


def _refuse_nan(source: str | Path, components: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    bad = [
        f"{part}/{name} ({np.count_nonzero(~np.isfinite(value))} of {value.size} values)"
        for part, tensors in components.items()
        for name, value in tensors.items()
        if not np.isfinite(value).all()
    ]
    if bad:
        some = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise NotFinite(
            f"{source}: NaN or infinity in {len(bad)} tensors: {some}", hint="import it anyway: --allow-nan"
        )


def _component(part: str, file: FileHash, num_tensors: int) -> Component:
    return Component.of("backbone" if part == "backbone" else "head", file, num_tensors=num_tensors)


def _digest(files: Iterable[Path]) -> str:
    """sha256 over the bytes of all files, one after the other: of a single file, what `sha256sum` prints."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _fates(report: RestoreReport) -> dict[str, Fate]:
    renamed = set(report.renamed.values())
    return {name: "renamed" if name in renamed else "restored" for name in report.restored}


def _notes(
    source: str | Path, used: InputSpec, spec_given: bool, classes_given: bool, checkpoint: ForeignCheckpoint
) -> Iterable[str]:
    """What lies beside the checkpoint and was not used. Only what the user names is used."""
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    beside = folder / "input_spec.json"
    if not spec_given and beside.is_file():
        try:
            other = read_input_spec(beside)
        except InvalidInputSpec as error:
            yield f"not used: {error.message}"
        else:
            if other != used:
                yield (
                    f"{beside} differs from the architecture's usual input spec, which is used: "
                    f"{', '.join(_differences(other, used))}; to use the file: --input-spec {beside}"
                )
    if not classes_given and (folder / "classes.json").is_file():
        yield f"{folder / 'classes.json'} is not used; to name the outputs by it: --classes {folder / 'classes.json'}"
    if checkpoint.widened:
        types = ", ".join(sorted(set(checkpoint.widened.values())))
        yield f"{len(checkpoint.widened)} tensors were widened from {types} to float32"


def _differences(other: InputSpec, used: InputSpec) -> list[str]:
    theirs, ours = other.model_dump(), used.model_dump()
    return [f"{key} {theirs[key]} there, {ours[key]} used" for key in theirs if theirs[key] != ours[key]]
