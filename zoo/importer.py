"""Imports a foreign checkpoint as a model version.

Takes a file or folder of another framework. Gives a published ModelVersion and a RestoreReport. Next: `zoo.catalog`.

Every tensor goes by an explicit name map (`zoo.architectures`), never by position or by luck of shape, and an import
that leaves a tensor over, unless a rule says why, fails. Backbone and head become separate files.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from zoo.architectures import ARCHITECTURES, architecture_facts
from zoo.architectures.facts import ArchitectureFacts
from zoo.architectures.matching import Match, convert, match
from zoo.catalog import Catalog, Published
from zoo.class_names import check_class_names, read_class_names
from zoo.errors import InvalidArgument, NotFound
from zoo.file_hash import FileHash, hash_file
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture, Component, Fate, Head, Lineage, Manifest, Source
from zoo.names import check_model_name
from zoo.readers import read_checkpoint
from zoo.readers.checkpoint import ForeignCheckpoint
from zoo.restore_report import RestoreReport
from zoo.tensors import write_safetensors


class UnknownSource(InvalidArgument):
    """A checkpoint that no architecture here, or more than one, has the names of."""


class NothingExcluded(InvalidArgument):
    """An `exclude` entry that no tensor's name begins with."""


class NotFinite(InvalidArgument):
    """Weights with NaN or infinity."""


class UnsupportedHead(InvalidArgument):
    """A head that our classifier can't express."""


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
    source: Path,
    name: str,
    architecture: str | None = None,
    classes: Path | None = None,
    license: str | None = None,
    input_spec: Path | InputSpec | None = None,
    dry_run: bool = False,
    exclude: Sequence[str] = (),
    allow_nan: bool = False,
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
        exclude: scopes of stored names to leave out, e.g. `AuxLogits`; each must match something.
        again: publishes a new version even where the newest is the same.
    Raises:
        UnknownKind, UnknownArchitecture, UnknownSource, IncompleteRestore (everything that doesn't fit, at once),
        NothingExcluded, NotFinite, UnsupportedHead, InvalidInputSpec, InvalidClassNames, what the reader raises
        (`zoo.readers.checkpoint`) and what `Catalog.publish` raises. Nothing is half written.
    """
    check_model_name(name)
    class_names = None if classes is None else read_class_names(classes)
    spec = read_input_spec(input_spec) if isinstance(input_spec, Path) else input_spec
    checkpoint = read_checkpoint(kind, source)
    found = _chosen(checkpoint, source, architecture, _excluded(checkpoint, exclude))
    found.report.require_complete(f"{source} as {found.label}")
    _check_epsilon(checkpoint, found)
    _check_types(checkpoint, found, source)
    components = convert(checkpoint, found)
    if not allow_nan:
        _refuse_nan(source, components)
    head = _head_record(found, components.get("head"))
    outputs = None if head is None else int(str(head.arguments["num_classes"]))
    offset = 0 if class_names is None else check_class_names(class_names, outputs, str(classes))
    used = spec or found.facts.input_spec
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
                source=Source(kind=kind, location=source.resolve().name, digest=_digest(checkpoint.files)),
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


def _excluded(checkpoint: ForeignCheckpoint, exclude: Iterable[str]) -> dict[str, str]:
    """Stored name → the entry that leaves it out. A scope ends at `/` (TensorFlow's) or `.` (PyTorch's)."""
    excluded: dict[str, str] = {}
    for entry in exclude:
        scope = entry.rstrip("/.")
        hits = [n for n in checkpoint.tensors if n == scope or n.startswith((f"{scope}/", f"{scope}."))]
        if not hits or not scope:
            near = difflib.get_close_matches(scope, _scopes(checkpoint.tensors), n=4, cutoff=0.4)
            meant = f"did you mean {', '.join(near)}?" if near else "no name is like it"
            raise NothingExcluded(f"--exclude {entry!r} matches none of {len(checkpoint.tensors)} tensors; {meant}")
        excluded |= dict.fromkeys(hits, f"excluded by {entry!r}")
    return excluded


def _scopes(names: Iterable[str]) -> list[str]:
    scopes: dict[str, None] = {}
    for name in names:
        scopes |= {name[:place]: None for place, letter in enumerate(name) if letter in "/."} | {name: None}
    return list(scopes)


def _chosen(
    checkpoint: ForeignCheckpoint, source: Path, architecture: str | None, excluded: Mapping[str, str]
) -> Match:
    """The one architecture and name map that fit; failing that the one that is clearly meant, for its report.

    Raises UnknownSource listing the candidates.
    """
    asked = list(ARCHITECTURES.values()) if architecture is None else [architecture_facts(architecture)]
    matches = [m for facts in asked for m in _matches(checkpoint, facts, excluded)]
    if not matches:
        known = ", ".join(f"{facts.name}: {' '.join(facts.name_maps)}" for facts in asked)
        raise UnknownSource(f"{source}: no name map for files of {'/'.join(checkpoint.frameworks)} names ({known})")
    complete = [found for found in matches if found.report.complete]
    if len(complete) == 1:
        return complete[0]
    matches.sort(key=lambda found: -found.coverage)
    clearly = len(matches) == 1 or matches[0].coverage > matches[1].coverage
    if not complete and clearly and matches[0].coverage > (0 if architecture else 0.5):
        return matches[0]
    listed = ", ".join(f"{found.label} {found.coverage:.0%} of its names" for found in matches)
    some = ", ".join(list(checkpoint.tensors)[:3])
    what = "fits several architectures" if complete else "has the names of no architecture here"
    raise UnknownSource(
        f"{source} {what}: {listed}; it holds {len(checkpoint.tensors)} tensors such as {some}",
        hint="say which it is with --architecture; see zoo architectures",
    )


def _matches(checkpoint: ForeignCheckpoint, facts: ArchitectureFacts, excluded: Mapping[str, str]) -> list[Match]:
    layouts = [layout for layout, each in facts.name_maps.items() if each.framework in checkpoint.frameworks]
    return [match(checkpoint, facts, layout, excluded) for layout in layouts]


def _check_epsilon(checkpoint: ForeignCheckpoint, found: Match) -> None:
    """The one constant of the network that a topology may contradict without any shape showing it."""
    wanted = found.facts.batch_norm_epsilon
    others = sorted(e for e in checkpoint.batch_norm_epsilons if not math.isclose(e, wanted, rel_tol=1e-5))
    if others:
        raise UnknownSource(
            f"the checkpoint's BatchNorm has the epsilon {others[0]:g}, {found.facts.name} has {wanted:g}: "
            "the network that these weights belong to is another one"
        )


def _check_types(checkpoint: ForeignCheckpoint, found: Match, source: Path) -> None:
    odd = {stored: checkpoint.tensors[stored].dtype for stored in found.targets}
    wrong = [f"{stored} is {dtype}" for stored, dtype in odd.items() if dtype != np.float32]
    if wrong:
        raise UnknownSource(f"{source}: {len(wrong)} weights are no floating-point numbers: {', '.join(wrong[:5])}")


def _refuse_nan(source: Path, components: Mapping[str, Mapping[str, np.ndarray]]) -> None:
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


def _head_record(found: Match, tensors: Mapping[str, np.ndarray] | None) -> Head | None:
    """What `finetune.models.heads.classifier` must build to hold the head's tensors; None without a head."""
    if tensors is None:
        return None
    *hidden, last = found.dense
    odd = [f"{layer.name}: {layer.activation}" for layer in hidden if layer.activation != "relu"]
    if last.activation not in ("softmax", "linear"):
        odd.append(f"{last.name}: {last.activation}")
    if odd:
        excludes = " ".join(f"--exclude {layer.name}" for layer in found.dense)
        raise UnsupportedHead(
            f"the head's activations are not supported ({', '.join(odd)}): hidden layers are relu, the last is softmax",
            hint=f"import the backbone alone: {excludes}",
        )
    arguments: dict[str, Any] = {
        "num_classes": int(tensors["logits/bias"].size),
        "hidden": [int(tensors[f"hidden_{place}/bias"].size) for place in range(len(hidden))],
        "dropout": [layer.dropout for layer in hidden],
        "activation": "softmax",
    }
    return Head(kind="classifier", arguments=arguments)


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
    source: Path, used: InputSpec, spec_given: bool, classes_given: bool, checkpoint: ForeignCheckpoint
) -> Iterable[str]:
    """What lies beside the checkpoint and was not used. Only what the user names is used."""
    folder = source if source.is_dir() else source.parent
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
