"""`vocabulary.json`, the asset of a captioner: the format alone, so that an import can write one.

Takes words in order. Gives bytes. Next: `finetune.text.vocabulary`, which reads them and knows what words are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from zoo.manifest import canonical_json

VOCABULARY_FILE = "vocabulary.json"
FORMAT = 1
PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")  # by number; `<` is in no word, so none of them can be one
TOKENIZER = "words@1"  # the rule is in finetune.text.tokenizer
SPACE = "▁"  # U+2581: a space as a token, and before the first piece of a word
PIECES_FILE = "sentencepiece.model"  # the model of a sub-word tokenizer, an asset beside the vocabulary


def vocabulary_bytes(
    *,
    words: Sequence[str],
    counts: Sequence[int],
    min_count: int,
    tokenizer: str = TOKENIZER,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> bytes:
    """UTF-8 JSON; the same vocabulary gives the same bytes. Word i has the number len(SPECIALS) + i.

    `files`: of the tokenizer; their hashes are kept, so that a vocabulary isn't read with another one's model.
    """
    value = {
        "format": FORMAT,
        "tokenizer": tokenizer,
        "specials": list(SPECIALS),
        "min_count": min_count,
        "words": list(words),
        "counts": list(counts),
    }
    if files:
        value["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return canonical_json(value)
