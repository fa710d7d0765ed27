"""`vocabulary.json`, the asset of a captioner: the format alone, so that an import can write one.

Takes words in order. Gives bytes. Next: `finetune.text.vocabulary`, which reads them and knows what words are.
"""

from __future__ import annotations

from collections.abc import Sequence

from zoo.manifest import canonical_json

VOCABULARY_FILE = "vocabulary.json"
FORMAT = 1
PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")  # by number; `<` is in no word, so none of them can be one
TOKENIZER = "words@1"  # the rule is in finetune.text.tokenizer


def vocabulary_bytes(
    *, words: Sequence[str], counts: Sequence[int], min_count: int, tokenizer: str = TOKENIZER
) -> bytes:
    """UTF-8 JSON; the same vocabulary gives the same bytes. Word i has the number len(SPECIALS) + i."""
    return canonical_json(
        {
            "format": FORMAT,
            "tokenizer": tokenizer,
            "specials": list(SPECIALS),
            "min_count": min_count,
            "words": list(words),
            "counts": list(counts),
        }
    )
