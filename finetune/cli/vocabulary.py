"""`finetune vocabulary`: the words of a captioner, of a file or of data, and how much of other captions they cover."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.evaluate import SplitName
from finetune.cli.request import absolute_data
from finetune.text.tokenizers import TokenizerKind
from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    StoreOption,
    print_fields,
    print_json,
    printable,
    say,
    say_next,
)

if TYPE_CHECKING:
    from finetune.data.source import Example
    from finetune.text.vocabulary import Vocabulary

_COMMONEST = 20


def vocabulary(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="a captioner's REF, im2txt's word_counts.txt, or DATA to learn from"),
    ],
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="how much of these captions does it cover?")
    ] = None,
    split: Annotated[SplitName, typer.Option("--split", help="of DATA")] = SplitName.train,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="data.… only")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the split")] = 1,
    tokenizer: Annotated[TokenizerKind, typer.Option("--tokenizer", help="to learn from DATA with")] = "words",
    min_count: Annotated[int, typer.Option("--min-count", min=1, help="rarer words of DATA are left out")] = 4,
    write: Annotated[
        Path | None, typer.Option("--write", metavar="FILE", help="write it as im2txt's word_counts.txt")
    ] = None,
    store: StoreOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """The words that a captioner can say; read and written in im2txt's layout, too."""
    from finetune.data.sources import SOURCES
    from finetune.text.word_counts import never_said, read_vocabulary, write_vocabulary

    captions = 0
    if source.partition(":")[0] in SOURCES:
        examples = _examples(source, split, settings, seed)
        captions = sum(len(example.captions) for example in examples)
        found = _learnt(examples, tokenizer, min_count)
    elif Path(source).is_file() or source.endswith(".txt"):
        found = read_vocabulary(Path(source))
    else:
        found = _published(source, store)
    value: dict[str, Any] = {
        "source": source,
        "tokenizer": found.tokenizer,
        "size": len(found),
        "words": len(found.words),
        "min_count": found.min_count,
        "commonest": list(found.words[:_COMMONEST]),
        "never_said": never_said(found),
    }
    if data is not None:
        value["coverage"] = _coverage(found, _examples(data, split, settings, seed))
    if write is not None:
        write_vocabulary(write, found, captions=captions)
        value["written"] = str(write)
        if not captions:
            say("the counts of <S> and </S> are written as 0: only DATA to learn from say how many captions there were")
        say_next("zoo import slim CHECKPOINT NAME --vocabulary " + str(write))
    _print(value, output)


def _print(value: dict[str, Any], output: Format) -> None:
    if value["never_said"]:
        some = ", ".join(map(repr, value["never_said"][:5]))
        say(f"warning: {len(value['never_said'])} words are none to {value['tokenizer']}: {some}, …")
    if output is Format.JSON:
        print_json(value)
        return
    coverage = value.pop("coverage", None)
    shown = {**value, "commonest": " ".join(value["commonest"]), "never_said": len(value["never_said"])}
    print_fields((name.replace("_", " "), text) for name, text in shown.items())
    if coverage is not None:
        unknown = " ".join(f"{word} ({count})" for word, count in coverage["unknown_words"].items())
        print(f"{coverage['words']} words of {coverage['captions']} captions, {coverage['share']:.2%} known")
        print(printable(f"unknown most often: {unknown or 'none'}"))


def _examples(location: str, split: SplitName, settings: list[str] | None, seed: int) -> list[Example]:
    from finetune.score import split_of

    return list(split_of(absolute_data(location), split.value, settings or [], seed)[1])


def _learnt(examples: Iterable[Example], kind: TokenizerKind, min_count: int) -> Vocabulary:
    from finetune.models.heads.captioner import CAPTIONER, CaptionerArguments
    from finetune.text.vocabulary import Vocabulary

    arguments = CaptionerArguments(tokenizer=kind, min_count=min_count)
    return Vocabulary.from_files(CAPTIONER.learn_assets(list(examples), arguments).files)


def _published(reference: str, store: str | None) -> Vocabulary:
    from finetune.text.vocabulary import Vocabulary
    from zoo.catalog import open_catalog
    from zoo.errors import InvalidArgument

    catalog = open_catalog(store)
    version = catalog.get(reference)
    if version.manifest.vocabulary is None:
        raise InvalidArgument(f"{version.reference} has no vocabulary: it is no captioner")
    assets = {asset.name: catalog.open_asset(version, asset.name).read_bytes() for asset in version.manifest.assets}
    return Vocabulary.from_files(assets)


def _coverage(found: Vocabulary, examples: Iterable[Example]) -> dict[str, Any]:
    captions = [caption for example in examples for caption in example.captions]
    said = Counter(word for caption in captions for word in found.cutter.tokenize(caption))
    unknown = Counter({word: count for word, count in said.items() if word not in found.numbers})
    return {
        "captions": len(captions),
        "words": said.total(),
        "share": 1 - unknown.total() / said.total() if said else None,
        "unknown_words": dict(unknown.most_common(_COMMONEST)),
    }
