"""Score: a file of captions, whoever made them, against the references of a split.

Takes a results file and DATA. Gives numbers. Next: `finetune.cli.score`. Needs no model, no TensorFlow and no image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.source import Example, ExampleSource
from finetune.data.sources import data_defaults, open_source
from finetune.data.splits import split_examples
from finetune.metrics.captions import caption_metrics, known_captions
from finetune.metrics.cider import DocumentFrequencies
from finetune.metrics.frequencies_file import read_frequencies, write_frequencies
from finetune.metrics.java import java_metrics
from finetune.metrics.results_file import read_results, result_ids
from finetune.spec import DataConfig, InvalidSpec, checked, with_settings
from finetune.text.tokenizer import tokenize
from zoo.errors import InvalidArgument

TRAIN = "train"  # instead of a file: document frequencies of the training split
_NAMED = 3  # ids in a sentence


class NoReferences(InvalidArgument):
    """Nothing that the results could be compared with."""


@dataclass(frozen=True, kw_only=True)
class _Paired:
    """Results and references of the same images, and what had no counterpart."""

    captions: list[str]
    references: list[list[str]]
    missing: list[str]  # ids of the split's images without a result
    wordless: list[str]  # ids of images without a reference
    unknown: list[int | str]  # results for images that the split doesn't have


def score_results(
    results: Path,
    *,
    location: str,
    split: str,
    settings: Sequence[str] = (),
    seed: int = 1,
    frequencies: str | None = None,
    also: Iterable[str] = (),
    save_frequencies: Path | None = None,
) -> dict[str, Any]:
    """Metrics of captions against every reference of their images.

    Args:
        results: a file in COCO's result format.
        location: DATA.
        split: train, validation, test or all.
        settings: `data.KEY=VALUE`, e.g. data.split=….
        seed: of the split.
        frequencies: a file of document frequencies for CIDEr, or `train`; None: those of the references themselves.
        also: `meteor`, `spice`: metrics of the Java libraries.
        save_frequencies: where the document frequencies that were used are written.

    Returns:
        results, data, split, num_examples, metrics, missing, unknown, without_references (numbers of images), warnings.

    Raises:
        NoReferences; what the file, the source, the split and the Java libraries raise.
    """
    said = read_results(results)
    source, chosen, training = split_of(location, split, settings, seed)
    paired = _pair(said, source, chosen)
    if not paired.captions:
        raise NoReferences(
            f"none of the {len(said)} captions of {results} is of an image with references in the {split} split of "
            f"{location} ({len(chosen)} images): the file's first id is {next(iter(said))!r}, the data's "
            f"{next((example.id for example in chosen), None)!r}",
            hint="another --split or --set data.split=…, or other --data",
        )
    fixed = _frequencies(frequencies, training, paired)
    known = known_captions(c for e in training for c in e.captions) if training else None
    metrics = caption_metrics(paired.captions, paired.references, frequencies=fixed, known=known)
    metrics |= java_metrics(list(also), paired.captions, paired.references)
    warnings = [*_warnings(paired, split), *metrics.pop("warnings")]
    if save_frequencies is not None:
        write_frequencies(save_frequencies, fixed)
    return {
        "results": str(results),
        "data": location,
        "split": split,
        "num_examples": len(paired.captions),
        "metrics": metrics,
        "missing": len(paired.missing),
        "unknown": len(paired.unknown),
        "without_references": len(paired.wordless),
        "warnings": warnings,
    }


def split_of(
    location: str, split: str, settings: Sequence[str], seed: int
) -> tuple[ExampleSource, Sequence[Example], Sequence[Example]]:
    """The source, the examples of a split of it (train, validation, test or all), and those of its training split (none
    where there is no split). Arguments and errors as of `score_results`."""
    data = _data(location, settings)
    source = open_source(data.location, language=data.language)
    if split == "all":
        return source, list(source.examples), []
    planned = split_examples(source.examples, data.split, seed=seed, read=source.read)
    chosen, training = getattr(planned, split), planned.train
    return source, [source.examples[i] for i in chosen], [source.examples[i] for i in training]


def _data(location: str, settings: Sequence[str]) -> DataConfig:
    strange = [setting for setting in settings if not setting.startswith("data.")]
    if strange:
        raise InvalidSpec(f"--set {strange[0]!r}: scoring takes settings of the data only, e.g. data.split=…")
    value = with_settings({"data": {"location": location, **data_defaults(location)}}, list(settings))
    return checked(DataConfig, value["data"], path=("data",))


def _pair(said: dict[int | str, str], source: ExampleSource, chosen: Sequence[Example]) -> _Paired:
    ids = result_ids(source)
    paired = _Paired(captions=[], references=[], missing=[], wordless=[], unknown=[])
    left = dict(said)
    for example in chosen:
        caption = left.pop(ids[example.id], None)
        if caption is None:
            paired.missing.append(example.id)
        elif not example.captions:
            paired.wordless.append(example.id)
        else:
            paired.captions.append(caption)
            paired.references.append(list(example.captions))
    paired.unknown.extend(left)
    return paired


def _frequencies(asked: str | None, training: Sequence[Example], paired: _Paired) -> DocumentFrequencies:
    if asked is None:
        return DocumentFrequencies.learn([[tokenize(c) for c in captions] for captions in paired.references])
    if asked != TRAIN:
        return read_frequencies(Path(asked))
    if not training:
        raise InvalidArgument("--frequencies train: there is no training split beside what is scored")
    return DocumentFrequencies.learn([tokenize(c) for c in example.captions] for example in training)


def _warnings(paired: _Paired, split: str) -> list[str]:
    def some(ids: Sequence[object]) -> str:
        more = ", …" if len(ids) > _NAMED else ""
        return ", ".join(str(one) for one in ids[:_NAMED]) + more

    said = []
    if paired.missing:
        total = len(paired.missing) + len(paired.captions) + len(paired.wordless)
        said.append(
            f"{len(paired.missing)} of {total} images of the {split} split have no caption in the file, and no figure "
            f"counts them: {some(paired.missing)}"
        )
    if paired.wordless:
        said.append(f"{len(paired.wordless)} images have no reference and aren't scored: {some(paired.wordless)}")
    if paired.unknown:
        said.append(f"{len(paired.unknown)} captions are of images that the split doesn't have: {some(paired.unknown)}")
    return said
