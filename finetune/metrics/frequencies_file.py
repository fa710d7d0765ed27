"""A file of document frequencies, so that CIDEr means the same for any number of images.

Takes DocumentFrequencies. Gives a JSON file, compressed where its name ends in `.gz`. Next: `finetune score`.

pycocoevalcap keeps its own as a pickle, which could run code and so isn't read.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

from finetune.metrics.cider import DocumentFrequencies
from zoo.atomic_file import replaced_file
from zoo.errors import DataLoss, FailedPrecondition, NotFound
from zoo.manifest import canonical_json
from zoo.vocabulary_file import TOKENIZER

FORMAT = 1


class NoFrequenciesFile(NotFound):
    """There is no such file."""


class DamagedFrequencies(DataLoss):
    """The file isn't one of document frequencies."""


class OtherFrequencies(FailedPrecondition):
    """Document frequencies of words that were cut otherwise."""


def write_frequencies(path: Path, frequencies: DocumentFrequencies) -> None:
    """n-grams of a single image are left out: they weigh as much as those of none. Equal ones give equal bytes."""
    counts = {" ".join(ngram): count for ngram, count in frequencies.counts.items() if count > 1}
    data = canonical_json(
        {"format": FORMAT, "tokenizer": TOKENIZER, "images": frequencies.images, "document_frequencies": counts}
    )
    with replaced_file(path) as file:
        file.write(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def read_frequencies(path: Path) -> DocumentFrequencies:
    """What `write_frequencies` wrote. Raises NoFrequenciesFile, DamagedFrequencies, OtherFrequencies."""
    if not path.is_file():
        raise NoFrequenciesFile(
            f"there is no file of document frequencies at {path}", hint="finetune score … --write-frequencies FILE"
        )
    try:
        data = path.read_bytes()
        value = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
        known, tokenizer = value["format"], value["tokenizer"]
        images, counts = value["images"], value["document_frequencies"]
        fit = known == FORMAT and type(images) is int and images > 0
        fit = fit and all(type(count) is int and 0 < count <= images for count in counts.values())
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError, zlib.error) as error:
        raise DamagedFrequencies(
            f"{path} holds no document frequencies: {type(error).__name__}: {error!s:.80}",
            hint="a pickle of pycocoevalcap's isn't read; write a file with finetune score … --write-frequencies FILE",
        ) from None
    if not fit:
        raise DamagedFrequencies(f"{path}: expected format {FORMAT}, a number of images, and counts of at most that")
    if tokenizer != TOKENIZER:
        raise OtherFrequencies(f"{path} counts words by {tokenizer!r}, captions are scored by {TOKENIZER!r}")
    return DocumentFrequencies(images=images, counts={tuple(text.split(" ")): count for text, count in counts.items()})
