"""Imports a foreign checkpoint as a model version.

Takes a file or folder of another framework. Gives a published ModelVersion and a RestoreReport. Next: `zoo.catalog`.

Every tensor goes by an explicit name map (`zoo.architectures`), never by position or by luck of shape, and an import
that leaves a tensor over, unless a rule says why, fails. Backbone and head become separate files.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import JsonValue, ValidationError

from zoo.architectures import architecture_facts
from zoo.architectures.choosing import check_epsilon, check_types, choose, excluded_tensors
from zoo.architectures.keeping import keep
from zoo.architectures.matching import Match, convert
from zoo.catalog import Catalog, Published
from zoo.class_names import check_class_names, read_class_names
from zoo.errors import InvalidArgument, NotFound
from zoo.file_hash import FileHash, hash_file
from zoo.im2txt import find_captioner, other_heads, read_captioner, usual_input_spec
from zoo.im2txt_vocabulary import WordCounts, read_word_counts
from zoo.imported_head import head_record
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture, Asset, Component, Fate, Head, Lineage, Manifest, Source, VocabularyFacts
from zoo.names import check_model_name
from zoo.readers import read_checkpoint
from zoo.readers.checkpoint import ForeignCheckpoint, ReadOptions
from zoo.restore_report import RestoreReport
from zoo.tensors import write_safetensors
from zoo.vocabulary_file import VOCABULARY_FILE

IMAGENET_WITH_BACKGROUND = 1001


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
    vocabulary: Path | None = None,
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
        vocabulary: the file `word_counts.txt` of an im2txt checkpoint, whose captioner becomes the head.
        again: publishes a new version even where the newest is the same.
    Raises:
        UnknownKind, UnknownArchitecture, UnknownSource, IncompleteRestore (everything that doesn't fit, at once),
        NothingExcluded, NotFinite, UnsupportedHead, InvalidInputSpec, InvalidClassNames, NoCaptioner,
        MissingWordCounts, InvalidWordCounts, IncompleteCaptioner, what the reader raises (`zoo.readers.checkpoint`)
        and what `Catalog.publish` raises. Nothing is half written.
    """
    check_model_name(name)
    class_names = None if classes is None else read_class_names(classes)
    words = None if vocabulary is None else read_word_counts(vocabulary)
    spec = read_input_spec(input_spec) if isinstance(input_spec, Path) else input_spec
    checkpoint = read_checkpoint(kind, source, ReadOptions(raw_weights=raw_weights))
    parts = _taken(checkpoint, spec, source, architecture, exclude, vocabulary, words)
    if not allow_nan:
        _refuse_nan(source, parts.components)
    offset, said = _class_offset(parts, class_names, str(classes))
    used = spec or parts.input_spec
    notes = (
        *checkpoint.notes,
        *parts.notes,
        *said,
        *_notes(source, used, spec is not None, class_names is not None, checkpoint),
    )
    with tempfile.TemporaryDirectory(prefix="zoo-import-") as folder:
        hashed, assets = _written(Path(folder), parts)
        manifest = Manifest(
            architecture=Architecture(name=parts.found.facts.name, arguments=parts.found.arguments),
            input_spec=used,
            components=tuple(_component(part, file, len(parts.components[part])) for part, file in hashed.items()),
            head=parts.head,
            classes=class_names,
            class_offset=offset,
            vocabulary=parts.vocabulary,
            assets=tuple(Asset.of(asset, file) for asset, file in assets.items()),
            license=license,
            lineage=Lineage(
                source=Source(
                    kind=kind,
                    location=_location(source),
                    digest=_digest(checkpoint.files),
                    url=source_url,
                    recipe={**checkpoint.recipe, **(recipe or {})},
                ),
                tensors=_fates(parts.report),
            ),
        )
        published = None
        if not dry_run:
            files = {file.digest: file for file in (*hashed.values(), *assets.values())}
            published = catalog.publish(name, manifest, files, again=again)
    return ImportResult(
        published=published, report=parts.report, manifest=manifest, layout=parts.found.layout, notes=notes
    )


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a checkpoint comes to, before anything is written."""

    found: Match
    components: dict[str, dict[str, np.ndarray]]
    head: Head | None
    report: RestoreReport
    input_spec: InputSpec
    vocabulary: VocabularyFacts | None = None
    assets: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def _taken(
    checkpoint: ForeignCheckpoint,
    spec: InputSpec | None,
    source: str | Path,
    architecture: str | None,
    exclude: Sequence[str],
    vocabulary: Path | None,
    words: WordCounts | None,
) -> _Parts:
    """Values for an architecture that is known here; where there is none, the network as it came, if it has come."""
    unfit: InvalidArgument | None = None
    if architecture is None or not architecture_facts(architecture).assets:
        try:
            return _parts(checkpoint, source, architecture, exclude, vocabulary, words)
        except InvalidArgument as error:
            if architecture is not None or exclude or vocabulary is not None or checkpoint.whole is None:
                raise
            unfit = error
    kept = keep(checkpoint, spec, exclude, unfit)
    return _Parts(
        found=kept.found,
        components={"backbone": kept.tensors},
        head=None,
        report=kept.found.report,
        input_spec=kept.input_spec,
        assets=kept.assets,
        notes=kept.notes,
    )


def _parts(
    checkpoint: ForeignCheckpoint,
    source: str | Path,
    architecture: str | None,
    exclude: Sequence[str],
    vocabulary: Path | None,
    words: WordCounts | None,
) -> _Parts:
    excluded = excluded_tensors(checkpoint, exclude)
    names = find_captioner(set(checkpoint.tensors) - set(excluded), source, vocabulary=vocabulary)
    rest = checkpoint
    if names is not None:
        excluded |= other_heads(set(checkpoint.tensors) - set(excluded))
        rest = replace(checkpoint, tensors={n: value for n, value in checkpoint.tensors.items() if n not in names.all})
    found = choose(rest, source, architecture, excluded)
    report, captioner = found.report, None
    if names is not None and words is not None:
        width = found.facts.feature_dim(found.arguments)
        captioner = read_captioner(checkpoint, names, words=words, where=str(vocabulary), feature_dim=width)
        report = report.joined(captioner.report)
    report.require_complete(f"{source} as {found.label}")
    check_epsilon(rest, found)
    check_types(rest, found, source)
    components = convert(rest, found)
    if captioner is None:
        head = head_record(found, components.get("head"))
        return _Parts(found=found, components=components, head=head, report=report, input_spec=found.usual_input_spec)
    return _Parts(
        found=found,
        components=components | {"head": dict(captioner.tensors)},
        head=captioner.head,
        report=report,
        input_spec=usual_input_spec(found.usual_input_spec),
        vocabulary=captioner.vocabulary_facts,
        assets={VOCABULARY_FILE: captioner.vocabulary},
        notes=captioner.notes,
    )


def _written(folder: Path, parts: _Parts) -> tuple[dict[str, FileHash], dict[str, FileHash]]:
    """(component → file, asset → file). Each is hashed once: publishing goes by the marks."""
    components, assets = {}, {}
    for part, tensors in sorted(parts.components.items()):
        path = folder / f"{part}.safetensors"
        write_safetensors(path, tensors)
        components[part] = hash_file(path)
    for asset, data in sorted(parts.assets.items()):
        path = folder / asset
        path.write_bytes(data)
        assets[asset] = hash_file(path)
    return components, assets


def _class_offset(parts: _Parts, class_names: Sequence[str] | None, where: str) -> tuple[int, tuple[str, ...]]:
    """The number of outputs before the first class, and what is to be said of it."""
    classifies = parts.head is not None and parts.head.kind == "classifier"
    outputs = int(str(parts.head.arguments["num_classes"])) if parts.head and classifies else None
    if class_names is not None:
        return check_class_names(class_names, outputs, where), ()
    if outputs == IMAGENET_WITH_BACKGROUND and parts.found.framework == "slim":
        note = f"{outputs} outputs: the first is the background, as TF-Slim has it; class_offset 1 is recorded"
        return 1, (note,)
    return 0, ()


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
    fates: dict[str, Fate] = dict.fromkeys(report.fresh, "fresh")
    return fates | {name: "renamed" if name in renamed else "restored" for name in report.restored}


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
