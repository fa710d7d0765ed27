"""A ModelVersion as another tool's files: written, reopened in a fresh process, compared, and only then there.

Takes a reference, a folder and a format. Gives the folder with `export.json`, `MODEL_CARD.md` and `LICENSE` beside the
model. Next: whatever the user serves it with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from importlib.metadata import version as tool_version
from pathlib import Path
from typing import Any

from finetune.export import check_kind, exporter_of
from finetune.export.comparison import Comparison, compare
from finetune.export.exporter import ExportOptions, InvalidOption, Written
from finetune.export.folder import check_free, listed, whole_folder
from finetune.export.source import ExportSource
from finetune.tensorflow_start import start_tensorflow
from zoo.catalog import Catalog
from zoo.manifest import Manifest

EXPORT_FILE = "export.json"
CARD_FILE = "MODEL_CARD.md"
LICENSE_FILE = "LICENSE"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """`facts`: what export.json says."""

    folder: Path
    facts: dict[str, Any]


def export(
    catalog: Catalog, reference: str, folder: Path, *, kind: str, options: ExportOptions | None = None
) -> Exported:
    """Writes `folder`, which mustn't be there or must be empty; all of it or nothing.

    Raises:
        NotFound; UnknownFormat; NotExportable: the format can't hold this version; InvalidOption; MissingTool;
        FolderTaken; NoSpace, NoAccess and the like; ExportUnreadable, ExportDiffers: what was written is not the model,
        and was removed.
    """
    options = options or ExportOptions()
    check_kind(kind)
    version = catalog.get(reference)
    check_free(folder)
    start_tensorflow()  # before an exporter's module imports it
    exporter = exporter_of(kind)
    _check_options(kind, exporter.options, options)
    head = version.manifest.head
    exporter.check(head.kind if head else None, options)
    from finetune.export.probe_images import probe_images

    source = ExportSource.load(catalog, version)
    with whole_folder(folder) as temporary:
        written = exporter.write(source, temporary, probe_images(source.input_spec), options)
        comparison = compare(kind, temporary, written.runs)
        (temporary / CARD_FILE).write_text(source.card, encoding="utf-8")
        (temporary / LICENSE_FILE).write_text(_license_text(version.manifest), encoding="utf-8")
        facts = _facts(source, kind, options, written, comparison) | {"files": listed(temporary)}
        text = json.dumps(facts, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
        (temporary / EXPORT_FILE).write_text(text, encoding="utf-8")
    return Exported(folder=folder, facts=json.loads(text))


def _check_options(kind: str, known: frozenset[str], options: ExportOptions) -> None:
    for option in fields(options):
        if getattr(options, option.name) and option.name not in known:
            flag = "--" + option.name.replace("_", "-")
            has = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(known)) or "none"
            raise InvalidOption(f"{flag} is no option of {kind}, which has {has}")


def _facts(
    source: ExportSource, kind: str, options: ExportOptions, written: Written, comparison: Comparison
) -> dict[str, Any]:
    manifest = source.version.manifest
    return {
        "reference": source.version.reference,
        "digest": source.version.digest,
        "kind": kind,
        "options": {option.name: getattr(options, option.name) for option in fields(options)},
        "architecture": manifest.architecture.model_dump(mode="json"),
        "head": source.head_kind,
        "classes": list(source.labels) if source.head_kind in ("classifier", "multilabel") else None,
        "input_spec": source.input_spec.model_dump(mode="json"),
        "signatures": {name: dict(signature) for name, signature in written.signatures.items()},
        "comparison": comparison.to_dict(),
        "largest_absolute_difference": comparison.worst("absolute"),
        "largest_relative_difference": comparison.worst("relative"),
        "tolerance": max(run.tolerance for run in written.runs),
        "notes": list(written.notes),
        "license": manifest.license,
        "tools": {"modelzoo": tool_version("modelzoo"), **written.tools},
    }


def _license_text(manifest: Manifest) -> str:
    if manifest.license is None:
        return (
            "The weights' licence is not stated in the model's manifest.\n"
            "Ask whoever published them before you pass these files on.\n"
        )
    return (
        f"SPDX-License-Identifier: {manifest.license}\n\n"
        f"The weights in this folder are under {manifest.license}, as their publisher stated;\n"
        f"its text: https://spdx.org/licenses/\n"
    )
