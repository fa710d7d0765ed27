"""What a model card says of its own accord: every fact of it is read from the manifest.

Takes a ModelVersion. Gives front matter and Markdown; what the manifest doesn't say is "not stated", never guessed.
Next: `zoo.card` puts the user's words around them. Keys are the Hugging Face Hub's where it has one for the thing
(license, library_name, pipeline_tag, base_model).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.catalog import ModelVersion
from zoo.input_spec import InputSpec
from zoo.manifest import Manifest

NOT_STATED = "not stated"
OPEN_KEYS = frozenset({"limits"})  # front matter that the manifest can't know: "not stated" until a user states it
_MANY = 50  # class names that front matter lists
_PIPELINES = {  # head → the Hub's name of the task
    "classifier": "image-classification",
    "multilabel": "image-classification",
    "captioner": "image-to-text",
    "embedding": "image-feature-extraction",
}
_DOES = {
    "classifier": "says which one of its classes a photo shows",
    "multilabel": "says which of its classes a photo shows, any number of them",
    "captioner": "describes a photo in a sentence",
    "embedding": "turns a photo into a vector, by which similar photos are found",
}
_USE = {
    "classifier": "finetune classify {reference} photo.jpg",
    "multilabel": "finetune classify {reference} photo.jpg",
    "captioner": "finetune caption {reference} photo.jpg",
    "embedding": "finetune embed {reference} photo.jpg",
}
_FIT = {
    "squash": "both sides are resized to that, whatever the photo's shape",
    "shortest": "the shorter side is resized to size / {crop_fraction:g}, then the centre is cut out",
    "pad": "the photo keeps its shape; what is left over is filled with RGB {background}",
}


def front_matter_of(version: ModelVersion) -> dict[str, Any]:
    """JSON values, in the order in which a card shows them."""
    manifest, lineage = version.manifest, version.manifest.lineage
    kind = manifest.head.kind if manifest.head else None
    value: dict[str, Any] = {
        "model": version.reference,
        "digest": version.digest,
        "license": manifest.license or NOT_STATED,
        "library_name": "modelzoo",
        "pipeline_tag": _PIPELINES.get(kind or "embedding", NOT_STATED),
        "architecture": manifest.architecture.name,
        "head": kind or "none",
    }
    if lineage.parent:
        value["base_model"] = lineage.parent
    source = lineage.source
    value["source"] = source.model_dump(mode="json", exclude_none=True) if source else _made_by(version)
    value["input"] = manifest.input_spec.model_dump(mode="json")
    if manifest.classes is not None:
        few = len(manifest.classes) <= _MANY and sum(map(len, manifest.classes)) <= _MANY * 40
        listed = {"names": list(manifest.classes)} if few else {}
        value["classes"] = {"count": len(manifest.classes), **listed}
    if manifest.vocabulary:
        value["vocabulary"] = manifest.vocabulary.model_dump(mode="json")
    value["metrics"] = {split: _numbers(values) for split, values in sorted(manifest.metrics.items())} or NOT_STATED
    value["training"] = dict(_training(manifest)) or NOT_STATED
    value["limits"] = NOT_STATED
    return dict(json.loads(_normal(json.dumps(value, ensure_ascii=False))))


def _made_by(version: ModelVersion) -> str:
    job = version.manifest.lineage.job
    return f"job {job}" if job else NOT_STATED


def facts_text(version: ModelVersion) -> str:
    """Markdown sections in plain words."""
    sections = {
        "What it is": _what(version),
        "Where it came from": _origin(version),
        "The input it expects": _input(version.manifest.input_spec),
        "How it was trained": _trained(version),
        "Measured": _measured(version),
        "How to use it": _use(version),
    }
    return _normal("\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items()) + "\n")


def _what(version: ModelVersion) -> str:
    manifest = version.manifest
    network = code(manifest.architecture.name)
    if manifest.head is None:
        text = f"`{version.reference}` is {network} without an output layer: a backbone for new heads."
    else:
        does = _DOES.get(manifest.head.kind)
        text = f"`{version.reference}` is {network} with the head {code(manifest.head.kind)}"
        text += f": it {does}." if does else "."
    if manifest.classes is not None:
        names = ", ".join(code(name) for name in manifest.classes[:10])
        rest = f" and {len(manifest.classes) - 10} more" if len(manifest.classes) > 10 else ""
        text += f" It knows {_count(len(manifest.classes), 'class', 'classes')}: {names}{rest}."
    elif manifest.head and "num_classes" in manifest.head.arguments:
        text += f" It has {manifest.head.arguments['num_classes']} outputs, whose names are {NOT_STATED}."
    if manifest.vocabulary:
        text += f" It writes with {manifest.vocabulary.size} words (tokenizer {code(manifest.vocabulary.tokenizer)})."
    parts = [
        f"- {component.name}: {component.num_tensors} tensors, {component.bytes / 1e6:.1f} MB"
        for component in manifest.components
    ]
    return text + "\n\n" + "\n".join(parts)


def _origin(version: ModelVersion) -> str:
    lineage = version.manifest.lineage
    lines = []
    if lineage.parent:
        job = f" by job {code(lineage.job)}" if lineage.job else ""
        lines.append(f"It was made from {code(lineage.parent)}{job}.")
    elif lineage.job:
        lines.append(f"It was made by job {code(lineage.job)}; from which weights is {NOT_STATED}.")
    if lineage.source:
        digest = f" ({code(lineage.source.digest)})" if lineage.source.digest else ""
        kind, location = code(lineage.source.kind), code(lineage.source.location)
        lines.append(f"Its weights were imported from a checkpoint of kind {kind}, {location}{digest}.")
    if not lines:
        lines.append(f"Where it came from is {NOT_STATED}.")
    fates = Counter(lineage.tensors.values())
    if fates:
        counts = ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items()))
        lines.append(f"Of its tensors: {counts}.")
    terms = code(version.manifest.license) if version.manifest.license else NOT_STATED
    return " ".join([*lines, f"License: {terms}."])


def _input(spec: InputSpec) -> str:
    low = [(0 - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True)]
    high = [(255 * spec.scale - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True)]
    fit = _FIT[spec.fit].format(crop_fraction=spec.crop_fraction, background=spec.background)
    return (
        f"An RGB image, {spec.height} pixels high and {spec.width} wide; {fit} ({spec.interpolation} interpolation"
        f"{', antialiased' if spec.antialias else ''}). Pixels of 0 to 255 become (pixel × {spec.scale:.6g} - "
        f"{_triple(spec.mean)}) / {_triple(spec.std)}, so values from {min(low):.3g} to {max(high):.3g}. "
        "The commands below do all of that."
    )


def _triple(values: tuple[float, float, float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else f"({', '.join(f'{value:g}' for value in values)})"


def _trained(version: ModelVersion) -> str:
    training = list(_training(version.manifest))
    if not training:
        return f"The recipe is {NOT_STATED} in the manifest."
    lines = [f"- {name.replace('_', ' ')}: {code(str(value))}" for name, value in training]
    return "\n".join([*lines, "", f"All of it: `zoo show {version.reference} --format json`, under `spec`."])


def _training(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """The highlights of the spec of the run that made the version."""
    spec: Mapping[str, Any] = manifest.spec or {}
    paths = {
        "recipe": "recipe",
        "backbone": "backbone",
        "start_from": "start_from",
        "data": "data.location",
        "split": "data.split",
        "language": "data.language",
        "train_from": "model.train_from",
        "strategy": "strategy.kind",
        "steps": "train.steps",
        "batch_size": "train.batch_size",
        "seed": "train.seed",
        "optimizer": "train.optimizer.name",
        "learning_rate": "train.optimizer.learning_rate",
        "schedule": "train.optimizer.schedule",
        "weight_decay": "train.optimizer.weight_decay",
        "chosen_by": "train.early_stop.metric",
    }
    for name, path in paths.items():
        value = _at(spec, path)
        if value is not None:
            yield name, value
    train = spec.get("train")
    stages = train.get("stages") if isinstance(train, Mapping) else None
    if isinstance(stages, list):
        yield "stages", ", ".join(f"{stage['train_from']} for {stage['steps']} steps" for stage in stages)
    if spec and manifest.tools:
        yield "tools", ", ".join(f"{tool} {number}" for tool, number in sorted(manifest.tools.items()))


def _at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str | int | float) else None


def _measured(version: ModelVersion) -> str:
    metrics = version.manifest.metrics
    if not metrics:
        return "Nothing is measured in the manifest."
    blocks, left_out = [], []
    for split, values in sorted(metrics.items()):
        numbers = _numbers(values)
        left_out += [f"{split}.{name}" for name in sorted(values) if name not in numbers]
        rows = [f"| {words(name)} | {number:.4g} |" for name, number in numbers.items()]
        blocks.append("\n".join([f"On the split {code(split)}:", "", "| metric | value |", "| --- | ---: |", *rows]))
    if left_out:
        where = f"`zoo show {version.reference} --format json`"
        blocks.append(f"Not in these tables, but in {where}: {', '.join(code(name) for name in left_out)}.")
    return "\n\n".join(blocks)


def _use(version: ModelVersion) -> str:
    kind = version.manifest.head.kind if version.manifest.head else None
    lines = [_USE[kind].format(reference=version.reference)] if kind in _USE else []
    lines += [
        f"finetune run --backbone {version.reference} --head classifier --data folder:PHOTOS --name NAME",
        f"zoo pull {version.reference} DIR",
    ]
    return "\n".join(["```sh", *lines, "```"])


def _numbers(values: Mapping[str, Any]) -> dict[str, int | float]:
    return {
        name: value
        for name, value in sorted(values.items())
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _normal(text: str) -> str:
    """As `zoo.card` keeps what users write, so that what comes back compares equal."""
    return unicodedata.normalize("NFC", text)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def code(value: str) -> str:
    """`value` as one line of Markdown code, whatever it holds."""
    clean = _one_line(value)
    ticks = "`" * (max((len(run) for run in re.findall("`+", clean)), default=0) + 1)
    edge = " " if clean.startswith("`") or clean.endswith("`") else ""
    return f"{ticks}{edge}{clean}{edge}{ticks}"


def words(value: str) -> str:
    """`value` as plain words in a line or a table's cell of Markdown."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", _one_line(value))


def _one_line(value: str) -> str:
    """Without what could end the line, close a comment of ours, or steer a terminal."""
    clean = "".join(c if c.isprintable() else " " for c in value).replace("-->", "--&gt;").replace("<!--", "&lt;!--")
    return clean.strip() or " "
