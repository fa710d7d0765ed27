"""`finetune data inspect | build`: what DATA are like, and DATA as TFRecord shards."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    StoreOption,
    new_app,
    print_fields,
    print_json,
    printable,
    say,
    say_next,
    size_text,
)

if TYPE_CHECKING:
    from finetune.data.inspect.inspection import Inspection
    from finetune.data.inspect.near import FeatureLook
    from finetune.data.source import ExampleSource

app = new_app("Look at data before training on them, and make shards of them.")

DataArgument = Annotated[
    str, typer.Argument(metavar="DATA", help="KIND:LOCATION, e.g. folder:PHOTOS, flickr:PATH, csv:FILE, s3:// too.")
]
LanguageOption = Annotated[str | None, typer.Option("--language", help="Of captions that come in several.")]
PixelsOption = Annotated[int, typer.Option("--max-pixels", min=1, help="Larger images are bad records.")]


@app.command()
def inspect(
    data: DataArgument,
    split: Annotated[
        list[str] | None, typer.Option("--split", metavar="RULE", help="A rule to try, as in data.split; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of splits, samples and the contact sheet.")] = 1,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, metavar="N", help="Look at so many images only.")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every image: finds those damaged behind their headers.")
    ] = False,
    language: LanguageOption = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write all of it as one page.")] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option("--contact-sheet", metavar="FILE", help="Write some of the images as a PNG.")
    ] = None,
    shown: Annotated[int, typer.Option("--images", min=1, max=400, help="On the contact sheet and the page.")] = 24,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Find near duplicates, by the features of --backbone.")
    ] = False,
    label_suspects: Annotated[
        bool, typer.Option("--label-suspects", help="Find labels that are likely wrong, by the features of --backbone.")
    ] = False,
    backbone: Annotated[str | None, typer.Option("--backbone", metavar="REF")] = None,
    threshold: Annotated[
        float | None, typer.Option("--threshold", min=0.01, max=1, help="Cosine from which images are near duplicates.")
    ] = None,
    max_pixels: PixelsOption = 50_000_000,
    store: StoreOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Count, measure and question DATA: images, classes, captions, copies, splits. Changes nothing."""
    if backbone is None and (duplicates or label_suspects):
        asked = "--duplicates" if duplicates else "--label-suspects"
        raise typer.BadParameter(f"{asked} compares the features of a backbone: give --backbone REF")
    from finetune.data.inspect.inspection import inspect_source
    from finetune.data.sources import open_source

    with ProgressBar() as bar:
        source = open_source(data, language=language)
        found = inspect_source(
            source,
            rules=split or (),
            seed=seed,
            sample=sample,
            decode=decode,
            max_pixels=max_pixels,
            on_progress=bar.update,
        )
        if backbone is not None and (duplicates or label_suspects):
            look = _by_features(source, found, backbone, store, max_pixels, bar.update)
            if duplicates:
                found = look.near(split[0] if split else None, seed, threshold)
            if label_suspects:
                found = look.suspects(found, seed)
        if html or contact_sheet:
            bar.update("drawing", 0, 1)
            _draw(source, found, html, contact_sheet, shown, seed)
    if output is Format.JSON:
        print_json(found.to_json())
        return
    from finetune.data.inspect.text import text_lines

    for line in text_lines(found):
        print(printable(line))
    for path in (html, contact_sheet):
        if path:
            say(f"written: {path}")


def _by_features(
    source: ExampleSource,
    found: Inspection,
    reference: str,
    store: str | None,
    max_pixels: int,
    on_progress: Callable[[str, int, int], None],
) -> FeatureLook:
    from finetune.tensorflow_start import start_tensorflow
    from zoo.catalog import open_catalog

    catalog = open_catalog(store)
    version = catalog.get(reference)  # an unknown one is said before TensorFlow comes up
    start_tensorflow()
    from finetune.data.feature_store import shared_features
    from finetune.data.features import FeatureCache
    from finetune.data.inspect.near import FeatureLook
    from finetune.models.backbone import Backbone

    return FeatureLook(
        source,
        found,
        Backbone.from_version(catalog, version),
        FeatureCache(shared=shared_features(catalog.store)),
        max_pixels=max_pixels,
        on_progress=on_progress,
    )


def _draw(
    source: ExampleSource, found: Inspection, html: Path | None, sheet: Path | None, count: int, seed: int
) -> None:
    from finetune.contact_sheet import write_picture
    from finetune.data.inspect.page import page
    from finetune.data.inspect.shown import shown_rows
    from zoo.atomic_file import replaced_file

    rows = shown_rows(source, found.images, count=count, seed=seed)
    if sheet:
        write_picture(sheet, rows, title=found.data)
    if html:
        with replaced_file(html) as file:
            file.write(page(found, rows).encode("utf-8", "backslashreplace"))


@app.command()
def build(
    data: DataArgument,
    folder: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Made if need be; an unfinished build goes on.")],
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, metavar="N", help="Of the largest set. Default: 1 for 1,000.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, metavar="N", help="Processes. Default: one a core.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", metavar="RULE", help="Sets of shards by a rule of data.split.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the order in the shards, and of the split.")] = 1,
    language: LanguageOption = None,
    max_bad_share: Annotated[
        float, typer.Option("--max-bad-share", min=0, max=1, help="Fail when more records can't be used.")
    ] = 0.01,
    max_pixels: PixelsOption = 50_000_000,
    again: Annotated[bool, typer.Option("--again", help="Make every shard anew.")] = False,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Write DATA as TFRecord shards, images as they are; read them as tfrecord:OUT_DIR. Resumes where it was ended."""
    from finetune.data.build import build_shards

    with ProgressBar() as bar:
        made = build_shards(
            data,
            folder.expanduser().absolute(),
            shards=shards,
            workers=workers,
            rule=split,
            seed=seed,
            language=language,
            max_pixels=max_pixels,
            max_bad_share=max_bad_share,
            again=again,
            on_progress=lambda done, total: bar.update("writing", done, total),
        )
    for note in made.notes:
        say(f"note: {note}")
    for record in made.bad_records[:10]:
        say(f"left out: {record.id}: {record.reason}")
    if len(made.bad_records) > 10:
        say(f"and {len(made.bad_records) - 10} more; {made.folder / 'index.json'} lists those of the shards")
    if output is Format.JSON:
        print_json(made.to_json())
        return
    sets = ", ".join(f"{name} {count}" for name, count in made.num_examples.items())
    print_fields(
        [
            ("folder", made.folder),
            ("examples", sets),
            ("shards", f"{len(made.shards)}: {made.made} made, {made.kept} kept"),
            ("bytes", size_text(made.bytes)),
            ("classes", len(made.classes) if made.classes else None),
            ("left out", len(made.bad_records) or None),
        ]
    )
    say_next(f"finetune run --data tfrecord:{made.folder} …")


class ProgressBar:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._phase, self._shown = "", time.monotonic()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *ignored: object) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def update(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown < (0.2 if self._terminal else 5.0) and (phase == self._phase or not self._terminal):
            return
        self._phase, self._shown = phase, now
        from finetune.training.progress import progress_line

        line = progress_line({"phase": phase, "done": done, "total": total if total > 1 else None})
        sys.stderr.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        sys.stderr.flush()
